"""`secateur stability` on the digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.tiny import secateur

RECIPE = """
[model]
name = "mlp-16"
[data]
source = "digits"
limit = 400
[training]
epochs = 6
batch = 50
[output]
folder = "out"
"""
METHOD = """
[method]
name = "lottery_ticket"
sparsity = 0.5
rounds = 2
"""


def test_table_and_figures(tmp_path: Path) -> None:
    recipe = tmp_path / "digits.toml"
    recipe.write_text(RECIPE + METHOD)
    said = secateur("stability", recipe, "--at", "0,25%,16", "--pairs", "2", "--json")
    assert said.status == 0, said.err
    rows = json.loads(said.out)
    assert [row["step"] for row in rows] == [0, 4, 16], "one training of three is 16 steps"
    assert rows[2]["barrier"] == pytest.approx(0, abs=1e-9) and rows[2]["stable"]
    shown = secateur("stability", recipe, "--at", "16").out.splitlines()
    assert shown[0].split() == ["step", "error", "between", "barrier"]
    assert shown[-1] == "first step below a barrier of 2%: 16 (lottery_ticket: rewind_step = 16)"
    assert not (tmp_path / "out").exists(), "a measurement writes nothing"


@pytest.mark.parametrize(
    ("at", "said"), [("99", "at: step 99 is not in this training"), ("x", "--at: 'x' is no step")]
)
def test_refusals(tmp_path: Path, at: str, said: str) -> None:
    recipe = tmp_path / "digits.toml"
    recipe.write_text(RECIPE)
    done = secateur("stability", recipe, "--at", at)
    assert done.status == 2 and said in done.err and len(done.err.splitlines()) == 1
