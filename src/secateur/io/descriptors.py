"""Descriptors: short descriptions of what can be seen of each class, and the files they are kept in.

    .json       {"format": 1, "classes": {CLASS: [{"text": .., "source": ..}, ..]}}: what is written here; and the plain
                {CLASS: [text, ..]} in which descriptors are passed around (Menon & Vondrick), which is read only
    .txt, .md   for a person to edit:     // a comment, on a line of its own
                                          # robin
                                          - red breast  // where it comes from

Both forms keep provenance: in the text form it stands behind `//`, and a line that says nothing comes from the file.
White space is written as single spaces, and a description that one class has twice counts once.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported, nearest
from secateur.io.files import read_small, write_atomic
from secateur.io.header import strict_json

FORMAT = 1
TEXT_SUFFIXES = (".txt", ".md")
LONGEST = (
    1000  # characters of a class name, a descriptor or a source; a file with more is no list of descriptors
)
MOST = 12  # descriptors that `clean` keeps of one answer
WORDS, CHARACTERS = (
    16,
    100,
)  # of one descriptor in an answer; beyond lies prose (1 in 100 published ones has over 13)
_LIMIT = 32 << 20
_QUOTED = re.compile(r"\[?[\"'“‘]([^\"“”]*)[\"'”’]\]?")
_COMMENT = re.compile(r"(?:^|\s)//(.*)$")
_BULLETS = "-–—•‣◦·▪●"
_MARKER = re.compile(rf"\s*(?:(?:[{_BULLETS}*+]|\(?\d{{1,2}}[.)])\s+|[{_BULLETS}]|\d{{1,2}}[.)](?=[^\W\d]))+")
_INLINE = re.compile(rf"\s+[{_BULLETS}*]\s+(?!\d)|\s+\(?\d{{1,2}}[.)]\s+(?=[^\W\d])")
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_QUESTION = re.compile(r"\s*(?:Q|Question)\s*\d*\s*:", re.IGNORECASE)
_ANSWER = re.compile(r"\s*(?:A|Answer)\s*\d*\s*:\s*", re.IGNORECASE)
_CHATTER = re.compile(
    r"(?:sure|certainly|of course|absolutely|yes|no|okay|ok|sorry)\s*[,!.:]"
    r"|(?:here (?:are|is)|here's|the following|there are (?:several|many|a few)|i hope|let me know|as an ai)\b"
    r"|(?:i'm|i am) (?:sorry|unable|an ai)\b|i can(?:not|'t|’t)\b|(?:please )?note(?: that|:)|feel free|thank you"
    r"|these (?:are|visual|features|descriptions)\b|in (?:summary|conclusion)\b|overall,",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Descriptors:
    """Every class with its descriptors, class by class.

    Attributes:
        classes: names, all different. A class may be without descriptor: see `check_complete`.
        words: the M descriptors; inside one class all different.
        owner: M places in `classes`, ascending: for which class each descriptor was written.
        sources: M lines: where each descriptor comes from.

    Raises:
        BadInput: no class, a name or descriptor twice, or a text that is empty, too long, or not one line.
    """

    classes: tuple[str, ...]
    words: tuple[str, ...]
    owner: tuple[int, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        check_names(self.classes)
        if not len(self.words) == len(self.owner) == len(self.sources):
            counts = f"{len(self.words)} words, {len(self.owner)} owners, {len(self.sources)} sources"
            raise BadInput(counts, where="descriptors", fix="give one owner and one source a word")
        if any(type(place) is not int or not 0 <= place < len(self.classes) for place in self.owner):
            raise BadInput("an owner is no place in the classes", where="descriptors")
        if any(a > b for a, b in zip(self.owner, self.owner[1:], strict=False)):
            raise BadInput("owners are not ascending", where="descriptors", fix="list them class by class")
        seen: set[tuple[int, str]] = set()
        for place, word, source in zip(self.owner, self.words, self.sources, strict=True):
            check_line(word, f"descriptor of {self.classes[place]!r:.80}")
            check_line(source, f"source of {word!r:.80}")
            if (place, word) in seen:
                raise BadInput(f"{word!r:.80} is there twice", where=self.classes[place], fix="remove one")
            seen.add((place, word))

    def of(self, place: int) -> tuple[str, ...]:
        """The descriptors of the class at that place."""
        return tuple(word for word, own in zip(self.words, self.owner, strict=True) if own == place)

    def check_complete(self) -> None:
        """BadInput, naming the first class that has no descriptor."""
        has = set(self.owner)
        for place, name in enumerate(self.classes):
            if place not in has:
                raise BadInput("no descriptor", where=name, fix="write one, or ask for them")


Table = dict[str, list[tuple[str, str]]]  # class -> (descriptor, source)


def read_descriptors(path: str | Path) -> Descriptors:
    """What a file of the forms at the top holds, classes in the file's order.

    Raises:
        NoMatch: no such file.   BadInput: another suffix, or content that is not of the form.
        Damaged: not JSON, not UTF-8, a key twice, more than 32 MB.   Unsupported: a newer form.
    """
    path = Path(path)
    _check_suffix(path)
    text = _read(path)
    try:
        return _gathered(_from_json(text, path) if path.suffix == ".json" else _from_text(text, path))
    except BadInput as error:
        if error.where.startswith(str(path)):
            raise
        raise BadInput(f"{error.where}: {error.what}", where=str(path), fix=error.fix) from error


def write_descriptors(path: str | Path, d: Descriptors) -> Path:
    """Write `d` in the form of the suffix, whole or not at all; reading it gives `d` again.

    Raises:
        BadInput: another suffix, or a text that the .txt form takes for a comment (` //`).
    """
    path = Path(path)
    _check_suffix(path)
    table: Table = {name: [] for name in d.classes}
    for place, word, source in zip(d.owner, d.words, d.sources, strict=True):
        table[d.classes[place]].append((word, source))
    if path.suffix == ".json":
        body = {
            "format": FORMAT,
            "classes": {
                name: [{"text": word, "source": source} for word, source in rows]
                for name, rows in table.items()
            },
        }
        text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
    else:
        blocks = []
        for name, rows in table.items():
            for part in (name, *(word for word, _ in rows)):
                if _COMMENT.search(part):
                    raise BadInput(
                        f"{part!r:.80} would be read as a comment", where=str(path), fix="write .json"
                    )
            blocks.append("\n".join([f"# {name}", *(f"- {word}  // {source}" for word, source in rows)]))
        text = "\n\n".join(blocks) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Class names in order: a .json list of strings, or text with one name a line (`//` starts a comment).

    Raises:
        NoMatch: no such file.   BadInput: no name, one that is empty or there twice.   Damaged: not JSON, not UTF-8.
    """
    path = Path(path)
    text = _read(path)
    names: Any = [" ".join(_COMMENT.sub("", line).split()) for line in text.split("\n")]
    if path.suffix == ".json":
        names = strict_json(text.encode(), str(path))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadInput("is no list of names", where=str(path), fix='write ["robin", "wren"]')
        names = [" ".join(name.split()) for name in names]
    else:
        names = [name for name in names if name]
    try:
        check_names(tuple(names))
    except BadInput as error:
        raise BadInput(f"{error.where}: {error.what}", where=str(path), fix=error.fix) from error
    return tuple(names)


def clean(answer: str | Iterable[str]) -> list[str]:
    """What a language model answered, as descriptors.

    A list behind dashes, bullets or numbers is taken alone, the prose around it dropped; without such marks every line
    counts; a list on one line is split at its marks. Headings, questions, chatter, what follows a new `Q:`, lines of
    more than 16 words or 100 characters, and what was there before (in any case of letters) are dropped; 12 stay.

    >>> clean("Sure, here are some:\\n- Red breast.\\n- brown back\\n- red breast\\nI hope this helps!")
    ['Red breast', 'brown back']
    """
    text = answer if isinstance(answer, str) else "\n".join(answer)
    text = text.encode(errors="ignore").decode().replace("\r\n", "\n").replace("\r", "\n")
    found: list[tuple[bool, str]] = []
    for line in _THINKING.sub("", text).split("\n"):
        if _QUESTION.match(line):
            if found:
                break  # a model without end of answer goes on with questions of its own, about other things
            continue
        line = _ANSWER.sub("", line, count=1) if _ANSWER.match(line) else line
        mark = _MARKER.match(line)
        body = _bare(line[mark.end() :] if mark else line)
        if body:
            found.append((mark is not None, body))
    if len(found) == 1:
        found = [(True, _bare(part)) for part in _INLINE.split(found[0][1])]
    marked = any(mark for mark, _ in found)
    kept: dict[str, str] = {}
    for mark, body in found:
        fits = len(body.split()) <= WORDS and len(body) <= CHARACTERS and any(c.isalpha() for c in body)
        if fits and mark == marked:
            kept.setdefault(body.casefold(), body)
    return list(kept.values())[:MOST]


def random_words(d: Descriptors, seed: int = 0) -> Descriptors:
    """The control of "do the words matter": as many descriptors a class, each of as many words, that describe nothing.

    Words are drawn, with their frequencies, from all descriptors of all classes, so that the text tower sees the same
    vocabulary and lengths, not one meaning. (Where a class would get one twice 50 times, it gets a word more.)

    Raises:
        BadInput: nothing to draw from, or a seed that is not in [0, 2^32).
    """
    if type(seed) is not int or not 0 <= seed < 1 << 32:
        raise BadInput(f"{seed!r:.40} is no whole number in [0, 2^32)", where="seed")
    pool = [bare for word in d.words for part in word.split() if (bare := part.strip(",;:.()[]\"'"))]
    if not pool:
        raise BadInput("hold no word to draw from", where="descriptors")
    # RandomState: NumPy promises that its stream never changes
    random, words, own = np.random.RandomState(seed), list[str](), set[tuple[int, str]]()
    for place, word in zip(d.owner, d.words, strict=True):
        length, tries = len(word.split()), 0
        while True:
            drawn = " ".join(pool[at] for at in random.randint(len(pool), size=length + tries // 50))
            if (place, drawn) not in own:
                break
            tries += 1
        own.add((place, drawn))
        words.append(drawn)
    return Descriptors(d.classes, tuple(words), d.owner, (f"random words, seed {seed}",) * len(words))


def check_names(classes: tuple[str, ...]) -> None:
    """Refuse no name, a name twice, and a name that is no plain line."""
    if not classes:
        raise BadInput("no class", where="classes", fix="name at least one")
    seen: set[str] = set()
    for place, name in enumerate(classes):
        check_line(name, f"class {place + 1}")
        if name in seen:
            raise BadInput(f"{name!r:.80} is there twice", where="classes", fix="give each class one name")
        seen.add(name)


def check_line(text: object, where: str) -> None:
    """Refuse what is not one line of text: empty, with white space other than single spaces, too long, no Unicode."""
    if not isinstance(text, str):
        raise BadInput(f"{text!r:.40} is no text", where=where)
    if not text:
        raise BadInput("is empty", where=where, fix="write it, or remove it")
    if len(text) > LONGEST:
        raise BadInput(f"has {len(text)} characters", where=where, fix=f"{LONGEST} at most")
    if text != " ".join(text.split()) or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        what = f"{text!r:.80} holds control characters, or white space besides single spaces"
        raise BadInput(what, where=where)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".json", *TEXT_SUFFIXES):
        known = " or ".join((".json", *TEXT_SUFFIXES))
        raise BadInput("is of no form known for descriptors", where=str(path), fix=f"use {known}")


def _read(path: Path) -> str:
    try:
        data = read_small(path, _LIMIT)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise NoMatch("no such file", where=str(path), fix=nearest(path.name, beside)) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Damaged(f"line {line} is not UTF-8", where=str(path), fix="save it as UTF-8") from error


def _from_json(text: str, path: Path) -> Table:
    found = strict_json(text.encode(), str(path))
    if not isinstance(found, dict):
        raise BadInput("is no table of classes", where=str(path), fix='write {"robin": ["red breast"]}')
    if isinstance(found.get("format", []), list):
        return {name: list(_plain(name, rows, path)) for name, rows in found.items()}
    number = found["format"]
    if type(number) is not int or number < 1:
        raise BadInput(f"format {number!r:.40} is no number of a format", where=str(path))
    if number > FORMAT:
        raise Unsupported(f"is of format {number}", where=str(path), fix="install a newer secateur")
    if set(found) != {"format", "classes"} or not isinstance(found["classes"], dict):
        raise BadInput("does not hold exactly a format and a table of classes", where=str(path))
    return {name: list(_rich(name, rows, path)) for name, rows in found["classes"].items()}


def _plain(name: str, rows: Any, path: Path) -> Iterator[tuple[str, str]]:
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise BadInput(f"class {name!r:.80} is no list of texts", where=str(path))
    yield from ((row, _file_source(path)) for row in rows)


def _rich(name: str, rows: Any, path: Path) -> Iterator[tuple[str, str]]:
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict) or set(row) != {"text", "source"}:
            fix = 'write [{"text": .., "source": ..}]'
            raise BadInput(f"class {name!r:.80} is no list of texts and sources", where=str(path), fix=fix)
        if not all(isinstance(value, str) for value in row.values()):
            raise BadInput(f"class {name!r:.80} has a text or source that is none", where=str(path))
        yield row["text"], row["source"]


def _from_text(text: str, path: Path) -> Table:
    table: Table = {}
    rows: list[tuple[str, str]] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        comment = _COMMENT.search(line)
        body = line[: comment.start()] if comment else line
        where = f"{path}, line {number}"
        if body.startswith("#") and not body.startswith("##"):
            name = " ".join(body[1:].split())
            if name in table:
                raise BadInput(f"class {name!r:.80} is there twice", where=where, fix="join the two")
            rows = table[name] = []
        elif body.lstrip().startswith("-"):
            if rows is None:
                raise BadInput("a descriptor before any class", where=where, fix="write `# class` above it")
            source = " ".join(comment[1].split()) if comment else ""
            rows.append((body.lstrip()[1:], source or _file_source(path)))
        elif body.strip():
            fix = "write `# class`, `- descriptor` or `// comment`"
            raise BadInput(f"{body.strip()!r:.60} is none of its lines", where=where, fix=fix)
    return table


def _gathered(table: Table) -> Descriptors:
    """One white space, and each descriptor of a class once."""
    classes = tuple(" ".join(name.split()) for name in table)
    words: list[str] = []
    owner: list[int] = []
    sources: list[str] = []
    for place, rows in enumerate(table.values()):
        once: dict[str, str] = {}
        for word, source in rows:
            once.setdefault(" ".join(word.split()), " ".join(source.split()))
        words += once
        owner += [place] * len(once)
        sources += once.values()
    return Descriptors(classes, tuple(words), tuple(owner), tuple(sources))


def _file_source(path: Path) -> str:
    return " ".join(path.name.encode(errors="replace").decode().split())


def _bare(text: str) -> str:
    """A line of an answer without emphasis, the quotes around it and its final stop; empty where it is chatter."""
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    text = " ".join(text.replace("*", "").split())
    if text.startswith("```") or text.endswith((":", "?")):
        return ""
    text = text.strip("_`# ")
    if _CHATTER.match(text):
        return ""
    text = text.rstrip(" ,;!")
    wrapped = _QUOTED.fullmatch(text.rstrip("."))
    text = wrapped[1].strip() if wrapped else text
    return text if text.endswith("etc.") else text.rstrip("., ;!")
