from __future__ import annotations

from typing import Any

from secateur.report import groups, parts
from secateur.report.table import check_results
from tests.report import example


def _view(results: dict[str, Any]) -> groups.View:
    return groups.view(check_results(results))


def test_the_four_figures_of_cost_have_tiers_of_their_own() -> None:
    columns = parts.columns(_view(example.sweep()))
    assert parts.tiers(columns) == [
        ("Cut", 3), ("Quality", 2), ("On disk", 1), ("Arithmetic", 1), ("Measured here", 3),
    ]  # fmt: skip


def test_four_tiles_and_no_borrowed_time() -> None:
    tiles = parts.tiles(_view(example.demo()))
    assert [tile.label for tile in tiles] == ["Density", "Bytes on disk", "FLOPs per token", "Measured time"]
    assert [tile.figure for tile in tiles] == ["50.0%", "538 MB", "163 M", "not measured"]
    assert tiles[3].missing and "time to cut" in tiles[3].note
    assert parts.tiles(_view(example.sweep()))[3].unit == "tokens/s"


def test_curves_for_a_sweep_rows_of_dots_for_one_sparsity() -> None:
    sweep, demo = parts.plots(_view(example.sweep())), parts.plots(_view(example.demo()))
    assert [plot.metric for plot in sweep] == ["perplexity", "accuracy"]
    assert "<polyline" in sweep[0].wide and "log scale" in sweep[0].wide and "log scale" not in sweep[1].wide
    assert [plot.heading for plot in demo] == ["Perplexity at 50% sparsity"] and "<polyline" not in demo[
        0
    ].wide


def test_cuts_that_form_no_curve_have_a_row_each() -> None:
    results = example.demo()
    for row, pattern, sparsity in zip(results["rows"][1:], ("2:4", "1:4"), (0.5, 0.75), strict=True):
        row.update(method="wanda", name=f"wanda {pattern}", config={"sparsity": sparsity, "pattern": pattern})
    plot = parts.plots(_view(results))[0]
    assert plot.heading == "Perplexity of each cut" and ">wanda 1:4</text>" in plot.wide


def test_figures_that_are_not_finite_are_counted() -> None:
    results = example.sweep()
    results["rows"][1]["metrics"]["perplexity"] = float("inf")
    assert "1 of 36 figures were not finite" in parts.plots(_view(results))[0].caption


def test_the_prompt_is_told_apart_from_what_the_model_wrote() -> None:
    results = example.demo()
    results["rows"][1]["sample"] = "something else"
    results["rows"][2]["sample"] = None
    dense, magnitude, wanda = parts.samples(_view(results), example.PROMPT)
    assert dense.prompt == example.PROMPT and dense.text is not None and dense.text.startswith(" Paris")
    assert (magnitude.prompt, magnitude.text) == ("", "something else")
    assert wanda.text is None


def test_maps_say_what_they_show_and_what_was_not_measured() -> None:
    maps = parts.maps(_view(example.sweep()))
    assert [item.name for item in maps.items] == ["magnitude 50%", "wanda 50%", "sparsegpt 50%"]
    assert maps.items[0].unknown == ["Output error: not measured."]
    assert maps.items[1].grids[0][2] == "All 210 at 50.0%."
    assert [heading for heading, _, _ in maps.scales] == ["Cut", "Output error"]


def test_knees() -> None:
    methods, rules = parts.knees(check_results(example.sweep()))
    assert methods == ["magnitude", "wanda", "sparsegpt"]
    assert rules[1] == ("accuracy minus 5 points", ["none found", "44%", "47%"])


def test_origins_and_folders() -> None:
    found = dict(parts.origins(check_results({**example.demo(), "calibration": None})))
    assert (
        found["Machine"] == "AMD EPYC 7B13, 2 cores, 24 GB memory" and found["Calibration"] == "not recorded"
    )
    assert parts.folders(check_results(example.demo()))[0] == (
        "magnitude 50%",
        "secateur-demo/magnitude-50-seed0",
    )
