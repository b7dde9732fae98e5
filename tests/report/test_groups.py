from __future__ import annotations

import math
from typing import Any

from secateur.report import groups
from secateur.report.table import check_results
from tests.report import example


def _view(*rows: dict[str, Any]) -> groups.View:
    whole = {"format": "secateur.results", "version": 1, "rows": list(rows)}
    return groups.view(check_results(whole))


def _row(method: str, perplexity: float | None, sparsity: float = 0.5, **config: Any) -> dict[str, Any]:
    return {
        "name": f"{method} {sparsity}", "method": method, "sparsity": sparsity, "config": config,
        "metrics": {"perplexity": perplexity},
    }  # fmt: skip


def test_seeds_are_joined_and_series_keep_their_slots() -> None:
    view = groups.view(check_results(example.sweep()))
    assert len(view.cuts) == 12 and all(len(group.rows) == 3 for group in view.cuts)
    assert [(label, slot, len(found)) for label, slot, found in view.series] == [
        ("magnitude", 0, 4), ("wanda", 1, 4), ("sparsegpt", 2, 4),
    ]  # fmt: skip
    assert view.dense is not None and view.dense.slot == -1


def test_leads_with_the_best_cut_nearest_a_half() -> None:
    view = groups.view(check_results(example.sweep()))
    assert view.level == 0.5 and view.lead is not None and view.lead.name == "sparsegpt 50%"
    assert [group.name for group in view.shown] == ["magnitude 50%", "wanda 50%", "sparsegpt 50%"]


def test_variants_of_a_method_are_told_apart_by_what_differs() -> None:
    view = _view(_row("wanda", 69, pattern="row", block=1), _row("wanda", 217, pattern="2:4", block=1))
    assert [group.series for group in view.cuts] == ["wanda row", "wanda 2:4"]


def test_missing_seeds_are_not_zeros() -> None:
    view = _view(_row("wanda", 60), _row("wanda", None), _row("wanda", 70))
    assert view.cuts[0].mean("metrics.perplexity") == 65
    assert view.cuts[0].mean("bytes") is None and view.cuts[0].spread("metrics.perplexity") == (60, 70)


def test_one_broken_seed_breaks_the_mean() -> None:
    view = _view(_row("wanda", 60), _row("wanda", math.inf), _row("magnitude", 500))
    assert view.cuts[0].mean("metrics.perplexity") == math.inf
    assert view.lead is view.cuts[1]


def test_accuracy_leads_where_perplexity_was_not_taken_and_higher_wins() -> None:
    rows = [_row("a", None), _row("b", None)]
    rows[0]["metrics"], rows[1]["metrics"] = {"accuracy": 0.3}, {"accuracy": 0.4}
    view = _view(*rows)
    assert view.metric == "accuracy" and view.lead is not None and view.lead.series == "b"
