"""Quality at every sparsity, always from the dense weights, and the knee."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput, SecateurError
from secateur.evaluate.bench import Bench, Text
from secateur.evaluate.sweep import knees, read_grid, sweep, sweep_points, sweep_rows
from secateur.evaluate.terms import Terms
from secateur.io.hub import Loaded
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.wanda import Wanda
from tests.tinylm import tiny_llama, tiny_tokenizer


def bench() -> Bench:
    torch.manual_seed(1)
    return Bench(tiny_llama(), tiny_tokenizer(), Text(torch.randint(0, 64, (3, 16)), "random ids"))


def test_every_point_is_cut_from_the_dense_weights():
    points = sweep_points(Magnitude(), "0.2:0.8:0.2")
    rows, _ = sweep_rows(bench(), points)
    alone = bench()
    for row, point in zip(rows[1:], points, strict=True):
        assert row["metrics"] == alone.cut(point)["metrics"]
    assert [round(row["sparsity"], 1) for row in rows] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_patterns_come_in_the_order_of_their_sparsity():
    points = sweep_points(Wanda(), "ignored", ["1:4", "3:4", "2:4"])
    assert [str(p.pattern) for p in points] == ["3:4", "2:4", "1:4"]
    assert [p.sparsity for p in points] == [0.25, 0.5, 0.75]


def test_results_name_the_knees(tmp_path):
    model = Loaded(tiny_llama(), tiny_tokenizer(), "tiny", None)
    terms = Terms(text=torch.randint(0, 64, (3, 16)))
    results = sweep(model, "magnitude", [0.3, 0.0, 0.6], terms=terms, out=tmp_path)
    assert set(results["knee"]["magnitude"]) == {"drop", "chord", "slope"}
    assert [row["name"] for row in results["rows"]] == ["dense", "magnitude 30%", "magnitude 60%"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_known_curve_has_a_known_knee():
    def row(sparsity: float, loss: float) -> dict:
        return {"sparsity": sparsity, "metrics": {"perplexity": math.exp(loss)}}

    flat = [row(s / 10, 3.0 + (0 if s < 6 else 2.0 * (s - 5))) for s in range(10)]
    assert knees(flat) == {"drop": 0.5, "chord": 0.5, "slope": 0.5}
    assert knees(flat[:2]) == {}
    broken = [*flat, row(0.95, float("inf"))]
    assert knees(broken)["drop"] == 0.5, "a point that is not finite is left out"


@pytest.mark.parametrize(
    "text,points",
    [
        ("0:0.9:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.5:0.6:0.05", [0.5, 0.55, 0.6]),
        ("70%,0.1, 0.1", [0.1, 0.7]),
        ("0.25", [0.25]),
    ],
)
def test_grids(text, points):
    assert read_grid(text) == points


@pytest.mark.parametrize(
    "text", ["", ":", "a", "0:1:0.5", "0:0.5", "0.5:0.1:0.1", "0:0.5:-0.1", "0:0.5:nan", "1", "-0.1"]
)
def test_grids_that_are_none(text):
    with pytest.raises(BadInput):
        read_grid(text)


@given(st.text(alphabet="0123456789.:,%- einf", max_size=24))
def test_a_grid_is_sparsities_or_a_refusal(text):
    try:
        points = read_grid(text)
    except SecateurError:
        return
    assert points == sorted(set(points)) and all(0 < p < 1 for p in points) and len(points) <= 10_001


def test_points_that_are_none():
    for method, grid, patterns in (
        (Magnitude(), "0.5", ()),
        (Wanda(pattern="2:4"), "0.1:0.5:0.1", ()),
        (Wanda(), "", ["2:4"]),
    ):
        with pytest.raises(BadInput):
            sweep_points(method, grid, patterns)
