"""Exit statuses, the one line of each, help, and what a process of its own does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur.cli import main as entry
from tests.cli.tiny import secateur


def test_help_names_every_command() -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        said = secateur(*words)
        assert said.status == 0 and all(f"  {verb}" in said.out for verb in entry.VERBS)


def test_version() -> None:
    from secateur import __version__

    assert secateur("--version").out == f"secateur {__version__}\n"


@pytest.mark.parametrize("verb", entry.VERBS)
def test_every_command_has_help_and_refuses_a_flag_it_does_not_know(verb: str) -> None:
    said = secateur(verb, "--help")
    assert said.status == 0 and f"usage: secateur {verb}" in said.out and "--debug" in said.out
    said = secateur(verb, "--no-such-flag")
    assert said.status == 2 and said.err.count("\n") == 1, said.err


def test_the_fields_of_a_method_are_flags_with_the_words_of_its_docstring() -> None:
    said = secateur("compress", "model", "sparsegpt", "--help")
    assert said.status == 0
    assert "--blocksize" in said.out and "columns whose mask is chosen together" in " ".join(said.out.split())
    assert "--share" not in said.out
    assert "--no-share" in secateur("plan", "model", "wanda", "--help").out


@pytest.mark.parametrize(
    "error,status,line",
    [
        (OSError(28, "No space left on device", "/full/x"), 74, "/full/x: No space left on device"),
        (PermissionError(13, "Permission denied", "/root/x"), 74, "/root/x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division\nby zero"), 70, "run again with --debug"),
        (RuntimeError("long " * 100), 70, "run again with --debug"),
    ],
)
def test_what_is_not_the_users_fault_is_one_line_too(error, status, line, monkeypatch) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(entry, "_dispatch", fail)
    said = secateur("list")
    assert (said.status, said.out) == (status, "") and line in said.err
    assert said.err.count("\n") == 1 and len(said.err) <= 161


def test_debug_shows_the_traceback(monkeypatch) -> None:
    def fail(words: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        secateur("list", "--debug")


def test_disk_errors_leave_with_74(tiny: Path, here: Path, monkeypatch) -> None:
    from secateur.io import checkpoint

    def full(folder: Path) -> Path:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    said = secateur("compress", tiny, "magnitude", "--out", "out")
    assert said.status == 74 and "No space left" in said.err and said.err.count("\n") == 1
    assert os.listdir(here) == []


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys, secateur.cli.main as m; m.main(['--help']); print('torch' in sys.modules)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("False\n"), done.stderr
    assert time.monotonic() - start < 5  # 0.05 s on an idle machine


@pytest.mark.slow
def test_ctrl_c_ends_within_two_seconds_and_leaves_nothing(tiny: Path, text: Path, tmp_path: Path) -> None:
    words = [
        "compress",
        str(tiny),
        "wanda",
        "--calibration",
        str(text),
        "--samples",
        "20000",
        "--length",
        "64",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur", *words, "--out", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(12)
    assert process.poll() is None, process.communicate()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 4  # two, and two more for a busy machine
    assert process.returncode == 130 and err.strip().splitlines()[-1].startswith("secateur: interrupted")
    assert os.listdir(tmp_path) == []
