from __future__ import annotations

from typing import Any

import pytest

from secateur.report import groups, headline
from secateur.report.table import check_results
from tests.report import example


def _said(results: dict[str, Any]) -> str:
    view = groups.view(check_results(results))
    return " ".join([headline.sentence(view, results["model"]), headline.rivals(view), headline.costs(view)])


def _demo(
    speeds: tuple[float | None, float | None] = (None, None), size: int | None = None
) -> dict[str, Any]:
    results = example.demo()
    results["rows"][0]["tokens_per_second"] = speeds[0]
    for row in results["rows"][1:]:
        row["tokens_per_second"] = speeds[1]
        row["bytes"] = size if size is not None else row["bytes"]
    results["rows"][2]["metrics"]["perplexity"] = 65.8
    return results


def test_says_what_was_cut_and_what_it_cost() -> None:
    said = _said(_demo())
    assert "wanda cut 50% of the units that may be cut in smollm2-135m" in said
    assert "perplexity went from 32.90 to 65.80, 2.00 times the dense model’s" in said
    assert "At the same sparsity: magnitude 525.4." in said
    assert "538 MB, as much as dense" in said and "39% fewer FLOPs" in said


def test_over_seeds_says_how_many_and_how_far_apart() -> None:
    assert "(mean of 3 seeds, 57.35 to 60.30)" in _said(example.sweep())


@pytest.mark.parametrize("speeds", [(None, None), (None, 80.0), (80.0, None)])
def test_no_speed_without_two_measurements(speeds: tuple[float | None, float | None]) -> None:
    said = _said(_demo(speeds))
    assert "was not measured" in said and "none is claimed" in said
    assert "faster" not in said and "slow" not in said


@pytest.mark.parametrize(
    ("ours", "words"),
    [(41.0, "no faster on this machine"), (80.0, "generates faster"), (20.0, "more slowly")],
)
def test_speed_as_measured(ours: float, words: str) -> None:
    said = _said(_demo((40.0, ours)))
    assert words in said and "tokens/s against 40.0 dense" in said


@pytest.mark.parametrize(
    ("size", "words"), [(290_000_000, "46% less than dense"), (600_000_000, "12% more than dense")]
)
def test_size_as_measured(size: int, words: str) -> None:
    assert words in _said(_demo(size=size))


def test_unknown_costs_are_said_to_be_unknown() -> None:
    results = _demo()
    results["rows"] = results["rows"][2:]
    results["rows"][0]["bytes"] = None
    said = _said(results)
    assert "the dense model was not measured, so the cost is unknown" in said
    assert "size on disk was not measured" in said


def test_a_broken_model_is_called_broken() -> None:
    results = _demo()
    for row in results["rows"][1:]:
        row["metrics"]["perplexity"] = float("inf")
    assert "no longer finite" in _said(results)


def test_nothing_cut() -> None:
    results = _demo()
    results["rows"] = results["rows"][:1]
    assert _said(results).startswith("Nothing was cut")


def test_notes_are_gathered_once() -> None:
    results = _demo()
    results["notes"] = ["an expert saw no token", "an expert saw no token"]
    results["rows"][1]["notes"] = ["damping raised to 0.1 at layers.3"]
    found = headline.notes(check_results(results))
    assert found == ["an expert saw no token", "magnitude 50%: damping raised to 0.1 at layers.3"]
