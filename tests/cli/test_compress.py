"""`secateur compress --measure`: the forecast of the cut beside what is measured, and the cut where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.runtime import library
from tests.cli.tiny import secateur


@pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler")
@pytest.mark.parametrize("words", [(), ("--stream",)])
def test_speed_is_forecast_and_measured(tiny: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    said = secateur(
        "compress", tiny, "magnitude", "--pattern", "2:4", "--measure", "--out", tmp_path / "a", *words
    )
    assert said.status == 0, said.err
    line, page = said.out.splitlines()[-2:]
    assert line.startswith("50% 2:4 float32: forecast ") and page == str(tmp_path / "a.html")
    shown = Path(page).read_text()
    assert "forecast beside measurement" in shown and "50% 2:4 float32" in shown and "magnitude 2:4" in shown
    said = secateur("compress", tiny, "magnitude", "--measure", "--json", "--out", tmp_path / "b", *words)
    speed = json.loads(said.out)["speed"]
    assert speed["way"] == "50% bitmask float32" and speed["bytes"] > 0
    rates = [speed[key]["tokens_per_second"] for key in ("forecast", "measured")]
    assert speed["off"] == pytest.approx(rates[0] / rates[1] - 1)


@pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler")
def test_compare_sets_them_side_by_side_too(tiny: Path, tmp_path: Path) -> None:
    words = ["--windows", "1", "--length", "16", "--measure", "--out", tmp_path / "both"]
    said = secateur("compare", tiny, "magnitude", "random", *words)
    assert said.status == 0, said.err
    rows = json.loads((tmp_path / "both" / "results.json").read_text())["rows"]
    assert [bool(row["packed"]) for row in rows] == [False, True, True]
    assert (tmp_path / "both" / "report.html").read_text().count("50% bitmask float32") == 2


def test_compare_without_kernels_says_so(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    words = ["--windows", "1", "--length", "16", "--measure", "--out", tmp_path / "one"]
    assert secateur("compare", tiny, "magnitude", *words).status == 0
    (_, row) = json.loads((tmp_path / "one" / "results.json").read_text())["rows"]
    assert row["packed"] is None and any(note.startswith("not packed: ") for note in row["notes"])


def test_without_kernels_the_cut_is_done_and_the_rest_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    said = secateur("compress", tiny, "magnitude", "--measure", "--out", tmp_path / "a")
    assert said.status == 0 and (tmp_path / "a" / "model.safetensors").is_file()
    assert "note: not measured: forecast: no compiled kernels to probe" in said.out
    assert not (tmp_path / "a.html").exists()
    said = secateur("compress", tiny, "magnitude", "--out", tmp_path / "b", "--json")
    assert "speed" not in json.loads(said.out), "nobody asked"
