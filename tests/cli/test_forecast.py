"""`secateur forecast`: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.runtime import library
from secateur.runtime.forecast import cases
from tests.cli.tiny import secateur

pytestmark = pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler")


def test_table_and_json(tiny: Path) -> None:
    said = secateur("forecast", tiny, "--prompt", "8", "--threads", "1")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].split() == [
        "way",
        "bytes",
        "of",
        "now",
        "tokens/s",
        "x",
        "now",
        "prompt,",
        "ms",
        "x",
        "now",
        "±",
    ]
    assert lines[2].startswith("dense float32, torch") and " 100% " in lines[2] and " 1.00 " in lines[2]
    assert "8 tokens of prompt" in said.out and "quality is not forecast" in said.out
    said = secateur("forecast", tiny, "--prompt", "8", "--json", "--dtype", "bfloat16")
    found = json.loads(said.out)
    names = [row["way"] for row in found["rows"]]
    left = {note.partition(" is left out")[0] for note in found["notes"]}
    assert {*names, *left} == {case.name for case in cases("bfloat16")} and found["prompt"] == 8
    assert all(row["bytes"] > 0 and row["tokens_per_second"] > 0 for row in found["rows"])
    cut = [row["way"] for row in found["rows"] if not row["plain"]]
    assert [
        line.partition(":")[0] if not line.startswith("2:4") else line[: line.index(": ")]
        for line in found["verdicts"]
    ] == cut


def test_quiet_says_nothing(tiny: Path) -> None:
    said = secateur("forecast", tiny, "--prompt", "8", "--quiet")
    assert (said.status, said.out, said.err) == (0, "", "")


@pytest.mark.parametrize(
    "words,line",
    [
        ([], "missing MODEL"),
        (["nowhere"], "nowhere"),
        (["nowhere", "--prompt", "0"], "--prompt: 0 is below 1"),
    ],
)
def test_what_is_refused(here: Path, words: list[str], line: str) -> None:
    said = secateur("forecast", *words)
    assert said.status == 2 and line in said.err and len(said.err.strip().splitlines()) == 1


def test_a_folder_is_measured_beside_its_forecast(tiny: Path, tmp_path: Path) -> None:
    half, packed = tmp_path / "half", tmp_path / "packed"
    assert secateur("compress", tiny, "magnitude", "--out", half).status == 0
    assert secateur("export", half, "--to", "sparse", "--values", "int8", "--out", packed).status == 0
    said = secateur("forecast", tiny, "--check", packed, "--prompt", "8")
    assert said.status == 0 and said.out.startswith("50% bitmask int8: forecast "), said.err
    assert " tokens/s, measured " in said.out and "; prompt of 8: forecast " in said.out
    found = json.loads(secateur("forecast", tiny, "--check", packed, "--prompt", "8", "--json").out)
    rates = [found[key]["tokens_per_second"] for key in ("forecast", "measured")]
    assert found["way"] == "50% bitmask int8" and found["off"] == pytest.approx(rates[0] / rates[1] - 1)
    said = secateur("forecast", tiny, "--check", half)
    assert (said.status, said.out) == (2, "") and "holds nothing packed; write it with" in said.err
    assert secateur("forecast", tiny, "--check", tmp_path / "nowhere").status == 2
