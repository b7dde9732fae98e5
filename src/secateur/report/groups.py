"""Rows as a reader compares them: the seeds of one cut together, the cuts of one method in one series.

A `Group` is one cut (method, configuration) over its seeds; a series is a method with one configuration over its
sparsities. The view also picks what the page leads with: the sparsity at which most series meet, and the best cut
there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from secateur.report.words import lower_is_better, short_percent

Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """One cut over its seeds. `slot` numbers its series from 0 in order of appearance, -1 for dense."""

    name: str
    series: str
    slot: int
    level: float | None
    rows: tuple[Row, ...]

    def values(self, field: str) -> list[float]:
        """The measured values of a field, one a seed; `metrics.NAME` reaches a metric."""
        return [value for row in self.rows if (value := read(row, field)) is not None]

    def mean(self, field: str) -> float | None:
        """Mean over the seeds that were measured; None when none was; inf or nan when one was not finite."""
        values = self.values(field)
        return sum(values) / len(values) if values else None

    def spread(self, field: str) -> tuple[float, float] | None:
        """Lowest and highest over the seeds, or None for fewer than two finite values."""
        values = [value for value in self.values(field) if math.isfinite(value)]
        return (min(values), max(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class View:
    """What every part of the report reads: dense (or None), the cuts in order, metrics in order, and the lead."""

    dense: Group | None
    cuts: tuple[Group, ...]
    metrics: tuple[str, ...]
    level: float | None
    lead: Group | None

    @property
    def metric(self) -> str:
        """The metric the page leads with."""
        return self.metrics[0]

    @property
    def groups(self) -> tuple[Group, ...]:
        """Dense first, then the cuts."""
        return ((self.dense,) if self.dense else ()) + self.cuts

    @property
    def series(self) -> list[tuple[str, int, list[Group]]]:
        """(label, slot, its groups by sparsity), in order of appearance."""
        found: dict[int, list[Group]] = {}
        for group in self.cuts:
            found.setdefault(group.slot, []).append(group)
        return [
            (groups[0].series, slot, sorted(groups, key=lambda g: g.level or 0.0))
            for slot, groups in found.items()
        ]

    @property
    def shown(self) -> list[Group]:
        """The cuts compared side by side: all when they are few, else those at the leading sparsity."""
        if len(self.cuts) <= 6:
            return list(self.cuts)
        return [group for group in self.cuts if group.level == self.level]


def read(row: Row, field: str) -> float | None:
    """A numeric field of a row, None when it was not measured."""
    head, _, rest = field.partition(".")
    value = (row.get(head) or {}).get(rest) if rest else row.get(head)
    return None if value is None else float(value)


def is_dense(row: Row) -> bool:
    """Whether the row is the uncut model."""
    return row["method"] == "dense"


def _settings(row: Row, without: Iterable[str]) -> dict[str, Any]:
    config = row.get("config") or {}
    return {key: config[key] for key in sorted(config) if key not in without and config[key] is not None}


def _level(row: Row) -> float | None:
    asked = (row.get("config") or {}).get("sparsity")
    if isinstance(asked, int | float) and not isinstance(asked, bool) and 0 <= asked < 1:
        return float(asked)
    measured = row.get("sparsity")
    return None if measured is None else round(float(measured), 2)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def series_labels(rows: Iterable[Row]) -> dict[str, str]:
    """Label of each series: the method, and what sets it apart where one method appears in several variants."""
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        settings = _settings(row, ("sparsity", "seed"))
        variants.setdefault(row["method"], {})[_key([row["method"], settings])] = settings
    labels = {}
    for method, found in variants.items():
        names = sorted({name for settings in found.values() for name in settings})
        apart = [n for n in names if len({_key(settings.get(n)) for settings in found.values()}) > 1]
        for key, settings in found.items():
            words = [_word(name, settings[name]) for name in apart if name in settings]
            labels[key] = " ".join([method, *[word for word in words if word]])
    return labels


def _word(name: str, value: Any) -> str:
    if name == "pattern" or isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


def _name(rows: list[Row], series: str, level: float | None) -> str:
    names = {row["name"] for row in rows}
    if len(names) == 1:
        return rows[0]["name"]
    return series if level is None else f"{series} {short_percent(level)}"


def _metric_names(rows: list[Row]) -> tuple[str, ...]:
    """Perplexity and accuracy always, so that a missing one is seen to be missing; the others as they come."""
    known = dict.fromkeys(["perplexity", "accuracy"])
    known.update(dict.fromkeys(name for row in rows for name in (row.get("metrics") or {})))
    measured = {
        name for row in rows for name, value in (row.get("metrics") or {}).items() if value is not None
    }
    return tuple(sorted(known, key=lambda name: name not in measured))


def best(groups: Iterable[Group], metric: str) -> Group | None:
    """The group with the best finite mean of the metric, the first of equals; None when none has one."""
    sign = 1 if lower_is_better(metric) else -1
    scored = [
        (sign * mean, group)
        for group in groups
        if (mean := finite(group.mean(f"metrics.{metric}"))) is not None
    ]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def finite(value: float | None) -> float | None:
    """The value, or None when it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def _lead_level(cuts: list[Group], metric: str) -> float | None:
    """The sparsity at which most series were measured; among equals the one nearest a half, then the lower."""
    series: dict[float, set[int]] = {}
    for group in cuts:
        if group.level is not None:
            found = series.setdefault(group.level, set())
            if finite(group.mean(f"metrics.{metric}")) is not None:
                found.add(group.slot)
    return min(series, key=lambda level: (-len(series[level]), abs(level - 0.5), level), default=None)


def view(results: dict[str, Any]) -> View:
    """Group the rows of checked results (see `secateur.report.table.check_results`)."""
    rows: list[Row] = results["rows"]
    cut_rows = [row for row in rows if not is_dense(row)]
    labels = series_labels(cut_rows)
    slots: dict[str, int] = {}
    grouped: dict[str, list[Row]] = {}
    for row in cut_rows:
        series = _key([row["method"], _settings(row, ("sparsity", "seed"))])
        slots.setdefault(series, len(slots))
        grouped.setdefault(_key([series, _level(row)]), []).append(row)
    cuts = []
    for members in grouped.values():
        series = _key([members[0]["method"], _settings(members[0], ("sparsity", "seed"))])
        level = _level(members[0])
        name = _name(members, labels[series], level)
        cuts.append(Group(name, labels[series], slots[series], level, tuple(members)))
    dense_rows = tuple(row for row in rows if is_dense(row))
    dense = Group(dense_rows[0]["name"], "dense", -1, 0.0, dense_rows) if dense_rows else None
    metrics = _metric_names(rows)
    level = _lead_level(cuts, metrics[0])
    at_level = [group for group in cuts if group.level == level]
    lead = best(at_level, metrics[0]) or (at_level or cuts or [None])[0]
    return View(dense, tuple(cuts), metrics, level, lead)


def against(view_: View, group: Group, field: str, how: Callable[[float, float], float]) -> float | None:
    """`how(group mean, dense mean)` when both were measured and finite, else None."""
    if view_.dense is None:
        return None
    ours, dense = finite(group.mean(field)), finite(view_.dense.mean(field))
    return None if ours is None or dense is None else how(ours, dense)
