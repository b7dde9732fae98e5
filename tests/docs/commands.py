"""Reads the commands out of README.md and docs/, and runs them: what a document shows is what works.

A document is a session: its blocks run in order, in one empty folder, with one Python namespace.

    ```bash, ```console     each line is a command; in console blocks only the lines after "$ "
    ```python               runs as it stands
    ```toml title="a.toml"  any block with a title is written to that file first
    <!-- slow -->           above a block: it needs minutes or the real model, and runs under the slow marker only
    <!-- leaves with 2 -->  above a block: its commands must leave with that status; in console blocks what is shown
                            below a command must be the last it printed, to the letter. Or: slow: leaves with 2
    <!-- not run: why -->   above a block: it is shown, never run (a hub, another machine)

In the quick run the embedded model's name stands for a tiny random one, so that the same line takes seconds; under
the slow marker every line runs exactly as printed.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED, TINY = "smollm2-135m", "tiny"
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*) *(?P<info>[^`]*)$")
RUNNABLE = {"bash", "console", "sh", "shell", "python"}


@dataclass(frozen=True)
class Block:
    """A fenced block: language, text, line of its first line of text, and what is said about it."""

    language: str
    text: str
    line: int
    title: str = ""
    slow: bool = False
    not_run: str = ""
    status: int = 0


def documents() -> list[Path]:
    """README.md, CONTRIBUTING.md and all of docs/ that hold at least one block to run."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        p for p in found if p.is_file() and any(b.language in RUNNABLE for b in blocks(p.read_text("utf-8")))
    ]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order; indented ones (lists, tabs) too."""
    out: list[Block] = []
    lines = text.splitlines()
    notes = ""
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if opening is None:
            # a note holds for the next block; blank lines may stand between
            notes = lines[at].strip() if lines[at].strip() else notes
            at += 1
            continue
        first = at + 1
        while at + 1 < len(lines) and lines[at + 1].strip() != opening["ticks"]:
            at += 1
        cut = len(opening["indent"])
        body = "\n".join(line[cut:] for line in lines[first : at + 1])
        title = re.search(r'title="([^"]+)"', opening["info"])
        reason = re.fullmatch(r"<!-- not run: (.+) -->", notes)
        status = re.fullmatch(r"<!-- (?:slow: )?leaves with (\d+) -->", notes)
        out.append(
            Block(
                language=opening["language"],
                text=body,
                line=first + 1,
                title=title[1] if title else "",
                slow=notes.startswith(("<!-- slow -->", "<!-- slow: ")),
                not_run=reason[1] if reason else "",
                status=int(status[1]) if status else 0,
            )
        )
        notes = ""
        at += 2
    return out


def commands(block: Block) -> list[tuple[int, str]]:
    """(line in the document, command) of a shell block; continued lines joined, comments and shown output left out."""
    out: list[tuple[int, str]] = []
    pending, start = "", 0
    for offset, line in enumerate(block.text.splitlines()):
        if not pending:
            start = block.line + offset
            if block.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip() + " "
            continue
        words = shlex.split(pending, comments=True)
        if words:
            out.append((start, pending))
        pending = ""
    return out


def output(block: Block, line: int) -> str:
    """What a console block shows below the command at this line of the document."""
    shown: list[str] = []
    for text in block.text.splitlines()[line - block.line + 1 :]:
        if text.startswith("$ "):
            break
        shown.append(text)
    return "\n".join(shown).strip()


class Session:
    """Runs the blocks of one document in `folder`; `tiny` puts the tiny model in the embedded one's place."""

    def __init__(self, folder: Path, tiny: Path | None) -> None:
        self.folder, self.tiny = folder, tiny
        self.names: dict[str, Any] = {"__name__": "__document__"}
        if tiny is not None:
            (folder / TINY).symlink_to(tiny, target_is_directory=True)

    def run(self, block: Block) -> None:
        """Run a block; AssertionError with the line and what was printed, where it fails."""
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._stand_in(block.text) + "\n", encoding="utf-8")
        elif block.language == "python":
            self._python(block)
        elif block.language in RUNNABLE:
            for line, command in commands(block):
                said = self._shell(line, shlex.split(self._stand_in(command), comments=True), block.status)
                if block.status and block.language == "console":
                    shown = self._stand_in(output(block, line))
                    assert said.strip().endswith(shown), f"line {line} shows\n{shown}\nand prints\n{said}"

    def _stand_in(self, text: str) -> str:
        """The tiny model for the embedded one, where its name stands alone (not in `smollm2-135m-wanda`)."""
        if self.tiny is None:
            return text
        return re.sub(rf"(?<![\w./-]){re.escape(EMBEDDED)}(?![\w./-])", TINY, text)

    def _python(self, block: Block) -> None:
        said = io.StringIO()
        try:
            code = compile("\n" * (block.line - 1) + self._stand_in(block.text), "document", "exec")
            with contextlib.redirect_stdout(said):
                exec(code, self.names)
        except Exception:
            raise AssertionError(
                f"python block at line {block.line}:\n{said.getvalue()}{traceback.format_exc()}"
            ) from None

    def _shell(self, line: int, words: list[str], wanted: int) -> str:
        if words[0] == "secateur":
            status, said = in_process(words[1:])
        elif words[:3] == ["python", "-m", "secateur"]:
            status, said = in_process(words[3:])
        elif words[0] == "torchrun":
            status, said = self._subprocess([sys.executable, "-m", "torch.distributed.run", *words[1:]])
        elif words[0] in ("mkdir", "cat", "ls", "head"):
            status, said = self._subprocess(words)
        else:
            status, said = promise(words)
        assert status == wanted, f"line {line}: {shlex.join(words)} left with {status}:\n{said[-4000:]}"
        return said

    def _subprocess(self, words: list[str]) -> tuple[int, str]:
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=1800)
        return done.returncode, done.stdout + done.stderr


def in_process(arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of `secateur ARGUMENTS`, without starting Python anew for each line."""
    from secateur.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
    return (status if isinstance(status, int) else 0 if status is None else 1), said.getvalue()


def promise(words: list[str]) -> tuple[int, str]:
    """Lines that set up a machine are not run, but what they name must be there: make targets, extras, files."""
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
        missing = [w for w in words[1:] if "=" not in w and w not in targets]
    elif "install" in words and "pip" in " ".join(words[:3]):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        wanted = {
            e.strip() for w in words for m in re.findall(r"^[\w.]+\[([^]]+)\]", w) for e in m.split(",")
        }
        missing = sorted(wanted - set(project["optional-dependencies"]))
        missing += [w for w in words if w.endswith(".txt") and not (ROOT / w).is_file()]
    elif words[0] in ("cd", "git"):
        missing = []
    else:
        return 1, f"a document may not show {words[0]!r}: nothing here can run it (tests/docs/commands.py)"
    return (1, f"there is no {', '.join(missing)}") if missing else (0, "")
