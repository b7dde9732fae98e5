"""`secateur accelerate`: its table, its JSON, its flags, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.runtime import library
from tests.cli.tiny import secateur

needs_kernels = pytest.mark.skipif(
    library.load() is None, reason="secateur was installed without a C compiler"
)
QUICK = ["--tokens", "2", "--prompt", "4"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


@needs_kernels
def test_table_json_and_cache(tiny: Path) -> None:
    said = secateur("accelerate", tiny, *QUICK)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("layers") and "model.layers.*.mlp.gate_proj, up_proj x4" in said.out
    assert any(line.startswith("all tensors:") for line in lines)
    assert (
        lines[-1].startswith(("measured, lean step:", "measured, native step:"))
        and "tokens a second" in lines[-1]
    )
    said = secateur("accelerate", tiny, *QUICK, "--json")
    found = json.loads(said.out)
    assert found["groups"] and all(group["cached"] for group in found["groups"]), "known from the first time"
    assert found["bytes_before"] >= 4 * 64 * 16 and found["bytes_after"] > 0
    measured = found["measured"]
    assert (
        measured["before"]["token"] > 0
        and measured["after"]["way"] in ("native", "lean")
        and measured["after"]["length"] == 4
    )
    assert [group["raced"][0]["way"] for group in found["groups"]] == ["dense"] * len(found["groups"])
    again = json.loads(secateur("accelerate", tiny, *QUICK, "--json", "--again").out)
    assert not any(group["cached"] for group in again["groups"])


@needs_kernels
def test_explain_and_values(tiny: Path) -> None:
    said = secateur("accelerate", tiny, "--explain", "--values", "int8", "--aim", "memory", "--tokens", "0")
    assert said.status == 0, said.err
    assert "packed int8" in said.out and "measured" not in said.out.rpartition("\n\n")[2]
    rows = json.loads(
        secateur("accelerate", tiny, "--values", "int8", "--tolerance", "1e-6", "--tokens", "0", "--json").out
    )["groups"]
    out = {one["out"][:6] for group in rows for one in group["raced"] if "int8" in one["way"]}
    assert out == {"off by"}, "int8 is never within a millionth"


@pytest.mark.parametrize(
    "words,line",
    [
        (["--values", "int7"], "values: 'int7' is no values; did you mean"),
        (["--aim", "size"], "aim: 'size' is no aim"),
        (["--group", "48"], "group: groups of 48; choose 32, 64, 128 or 0"),
        (["--values", "int4", "--group", "0"], "int4 needs a group"),
        (["--batch", "0"], "--batch: 0 is below 1"),
        (["--way", "x"], "no flag --way"),
    ],
)
def test_what_is_refused(tiny: Path, words: list[str], line: str) -> None:
    said = secateur("accelerate", tiny, "--tokens", "0", *words)
    assert said.status == 2 and line in said.err and said.out == ""
    assert len(said.err.strip().splitlines()) == 1
