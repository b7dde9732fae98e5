"""`secateur generate`: the same text streamed or not, from a dense or a compact folder; nothing fools a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.cli.generate import whole_lines
from secateur.evaluate import generate as writing
from secateur.report.words import clean
from tests.cli.tiny import secateur


def test_the_text_is_the_one_of_json(tiny: Path, here: Path) -> None:
    words = (tiny, "the License", "--tokens", "12")
    text = json.loads(secateur("generate", *words, "--json").out)["text"]
    said = secateur("generate", *words)
    assert said.status == 0 and said.out == f"the License{text}\n" and len(text) > 12


def test_pieces_are_shown_while_they_come_and_cleaned(
    tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "continuation", lambda *_, **__: iter([" a\x1b[31", "mb\r", "\n", "c"]))
    assert secateur("generate", tiny, "the").out == "the a\ufffd[31mb\nc\n"
    assert secateur("generate", tiny, "the", "--chat").out == " a\ufffd[31mb\nc\n"


def test_an_error_while_it_writes_ends_the_line(
    tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        yield " one"
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(writing, "continuation", broken)
    said = secateur("generate", tiny, "the")
    assert (said.status, said.out, said.err) == (74, "the one\n", "secateur: disk: No space left on device\n")


def test_a_compact_folder_writes_what_the_dense_one_writes(
    tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(here / "cache"))
    for kind in ("dense", "sparse"):
        words = ("magnitude", "--sparsity", "0.5", "--format", kind, "--out", kind)
        assert secateur("compress", tiny, *words).status == 0
    wanted = secateur("generate", "dense", "the License", "--tokens", "12")
    assert wanted.status == 0
    for how in ((), ("--no-accelerate",), ("--aim", "memory")):
        said = secateur("generate", "sparse", "the License", "--tokens", "12", *how)
        assert (said.status, said.out) == (0, wanted.out), (how, said.err)


def test_ends_of_lines_stay_whole() -> None:
    for text in ("a\r\nb\r\r\nc\r", "\r", "", "\n\r\n"):
        assert "".join(whole_lines(list(text))) == text
        assert "".join(map(clean, whole_lines(list(text)))) == clean(text)
