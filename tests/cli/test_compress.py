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
    assert said.out.splitlines()[-1].startswith("50% 2:4 float32: forecast ")
    said = secateur("compress", tiny, "magnitude", "--measure", "--json", "--out", tmp_path / "b", *words)
    speed = json.loads(said.out)["speed"]
    assert speed["way"] == "50% bitmask float32" and speed["bytes"] > 0
    rates = [speed[key]["tokens_per_second"] for key in ("forecast", "measured")]
    assert speed["off"] == pytest.approx(rates[0] / rates[1] - 1)


def test_without_kernels_the_cut_is_done_and_the_rest_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    said = secateur("compress", tiny, "magnitude", "--measure", "--out", tmp_path / "a")
    assert said.status == 0 and (tmp_path / "a" / "model.safetensors").is_file()
    assert "note: not measured: forecast: no compiled kernels to probe" in said.out
    said = secateur("compress", tiny, "magnitude", "--out", tmp_path / "b", "--json")
    assert "speed" not in json.loads(said.out), "nobody asked"
