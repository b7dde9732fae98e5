"""The demo on a tiny model: what it leaves, and what it uses again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from secateur import demo as module
from secateur.demo import demo
from secateur.errors import BadInput
from tests.docs.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("demo") / "tiny"))


@pytest.fixture(autouse=True)
def short(monkeypatch, request):
    if "slow" in request.keywords:  # the real one, as it is
        return
    monkeypatch.setattr(module, "QUICK", {"samples": 2, "length": 32, "windows": 2, "new_tokens": 3})


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


def test_it_leaves_three_rows_four_folders_and_a_page(tiny, tmp_path):
    heard = []
    results = demo(tmp_path / "d", quick=True, model=tiny, listen=heard.append)
    assert [row["name"] for row in results["rows"]] == ["dense", "magnitude 50%", "wanda 50%"]
    assert [row["sparsity"] for row in results["rows"]] == [0, 0.5, 0.5] and results["reused"] == []
    assert sorted(os.listdir(tmp_path / "d")) == [
        "layers.csv", "magnitude-50", "magnitude-50-sparse", "plot.svg", "report.html",
        "results.csv", "results.json", "results.md",
        "wanda-50", "wanda-50-sparse",
    ]  # fmt: skip
    for row in results["rows"][1:]:
        assert row["sample"].startswith(module.PROMPT) and row["bytes"] < row["plain_bytes"]
        assert json.loads((Path(row["folder"]) / "results.json").read_text())["inputs"] == results["inputs"]
    assert any(event.stage == "wanda 50%: save" and event.done == event.total for event in heard)


def test_a_second_run_reuses_what_is_whole_and_says_so(tiny, tmp_path):
    first = demo(tmp_path, quick=True, model=tiny)
    before = times(tmp_path)
    again = demo(tmp_path, quick=True, model=tiny)
    assert again["reused"] == ["dense", "magnitude 50%", "wanda 50%"] and times(tmp_path) == before
    assert again["rows"] == json.loads(json.dumps(first["rows"]))
    assert again["calibration"] == first["calibration"] != ""


def test_what_is_damaged_or_of_other_inputs_is_made_again(tiny, tmp_path, monkeypatch):
    demo(tmp_path, quick=True, model=tiny)
    before = times(tmp_path)
    path = tmp_path / "wanda-50" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 16
    path.write_bytes(raw)
    again = demo(tmp_path, quick=True, model=tiny)
    assert again["reused"] == ["dense", "magnitude 50%"]
    changed = {name for name, time in times(tmp_path).items() if time != before[name]}
    assert {Path(name).parent.name for name in changed} == {"wanda-50", "wanda-50-sparse"}
    monkeypatch.setattr(module, "QUICK", {**module.QUICK, "windows": 3})
    assert demo(tmp_path, quick=True, model=tiny)["reused"] == []


def test_what_is_not_its_own_is_never_touched(tiny, tmp_path):
    (tmp_path / "wanda-50").mkdir()
    (tmp_path / "wanda-50" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="did not write"):
        demo(tmp_path, quick=True, model=tiny)
    assert (tmp_path / "wanda-50" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="not a folder"):
        demo(tmp_path / "file", quick=True, model=tiny)


def test_the_command_says_all_of_it(tiny, tmp_path, monkeypatch):
    from tests.cli.tiny import secateur

    monkeypatch.setattr(module.demo, "__kwdefaults__", {**(module.demo.__kwdefaults__ or {}), "model": tiny})
    for reused in (False, True):
        said = secateur("demo", "--quick", "--out", tmp_path / "d")
        assert said.status == 0 and said.err == "", said.err
        assert "perplexity" in said.out and "report.html" in said.out and module.PROMPT in said.out
        assert ("reused from an earlier run" in said.out) == reused


@pytest.mark.slow
def test_the_real_one_within_its_budget(tmp_path):
    import time

    from tests.cli.tiny import secateur

    start = time.monotonic()
    said = secateur("demo", "--quick", "--out", tmp_path / "d")
    assert said.status == 0, said.err
    assert time.monotonic() - start < 240  # 90 on an idle machine of two cores
    rows = {row["name"]: row for row in json.loads((tmp_path / "d" / "results.json").read_text())["rows"]}
    perplexity = {name: row["metrics"]["perplexity"] for name, row in rows.items()}
    assert perplexity["dense"] < perplexity["wanda 50%"] < perplexity["magnitude 50%"] / 3
    assert all(row["peak_mb"] < 4000 for row in rows.values())
    assert rows["wanda 50%"]["bytes"] < 0.65 * rows["wanda 50%"]["plain_bytes"]
