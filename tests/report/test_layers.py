from __future__ import annotations

import math

import pytest

from secateur.report import groups, layers


def _group(*found: dict) -> groups.Group:
    return groups.Group("g", "g", 0, 0.5, ({"name": "g", "layers": list(found)},))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj", ((3,), "self_attn.q_proj")),
        ("transformer.h.11.mlp.c_fc", ((11,), "mlp.c_fc")),
        ("encoder.stages.0.layers.1.pwconv1", ((0, 1), "pwconv1")),
        ("model.layers.2.block_sparse_moe.experts.5.w1", ((2,), "block_sparse_moe.experts.*.w1")),
        ("bert.encoder.layer.0.attention.output.dense", ((0,), "attention.output.dense")),
        ("blocks.1.mlp.0", ((1,), "mlp.0")),
        ("net.4.weight", ((4,), "weight")),
        ("lm_head", ((), "lm_head")),
    ],
)
def test_place(name: str, place: tuple) -> None:
    assert layers.place(name) == place


def test_short_columns_stay_distinct() -> None:
    assert layers.short_columns(["a.q_proj", "m.up_proj"]) == ["q", "up"]
    bert = layers.short_columns(["attention.output.dense", "output.dense", "intermediate.dense"])
    assert len(set(bert)) == 3 and bert[2] == "intermediate.dense"
    assert layers.short_columns(["mlp.0", "mlp.2"]) == ["mlp.0", "mlp.2"]


def test_experts_are_averaged_by_size_and_outsiders_stand_apart() -> None:
    grid = layers.grid(
        _group(
            {"name": "layers.0.experts.0.w", "shape": [10, 10], "sparsity": 0.2, "error": None},
            {"name": "layers.0.experts.1.w", "shape": [10, 30], "sparsity": 0.6, "error": None},
            {"name": "layers.10.experts.0.w", "shape": [10, 10], "sparsity": 0.1, "error": None},
            {"name": "lm_head", "shape": [4, 4], "sparsity": 0.3, "error": None},
        ),
        "sparsity",
    )
    assert grid is not None
    assert grid.rows == ("0", "10") and math.isclose(grid.cells[0, 0].value, 0.5)
    assert "mean of 2 experts" in grid.cells[0, 0].tip
    assert [name for name, _ in grid.outside] == ["lm_head"]


def test_unreported_errors_give_no_grid() -> None:
    assert layers.grid(_group({"name": "layers.0.q", "sparsity": 0.5, "error": None}), "error") is None


def test_seeds_are_averaged() -> None:
    rows = tuple({"name": "g", "layers": [{"name": "layers.0.q", "error": e}]} for e in (0.1, 0.3))
    grid = layers.grid(groups.Group("g", "g", 0, 0.5, rows), "error")
    assert grid is not None and math.isclose(grid.cells[0, 0].value, 0.2)
    assert "mean of 2 seeds" in grid.cells[0, 0].tip


def test_domain_is_wide_enough_to_show_that_all_are_alike() -> None:
    even = layers.grid(_group({"name": "layers.0.q", "sparsity": 0.5}), "sparsity")
    assert even is not None
    low, high = layers.domain([even], "sparsity")
    assert low < 0.5 < high and high - low >= 0.2 - 1e-9
    assert layers.words_for(even, "sparsity") == "All 1 at 50.0%."
    assert layers.domain([], "error") == (0.0, 1.0)
