"""What was cut and what it cost, in sentences computed from the figures.

Honest by construction: a speed is mentioned only where tokens per second were measured for both models, a smaller size
only where the bytes on disk are fewer, and what was not measured is said to be so.
"""

from __future__ import annotations

from typing import Any

from secateur.report import words
from secateur.report.groups import Group, View, against, best, finite

SAME = 0.005
"""Relative difference below which two sizes or counts are called the same."""
SAME_SPEED = 0.05
"""Relative difference below which two measured speeds are called the same: runs differ by as much."""


def _metric_name(name: str) -> str:
    return "next-token accuracy" if name == "accuracy" else name.replace("_", " ")


def _over_seeds(group: Group, metric: str) -> str:
    """` (mean of 3 seeds, 58.1 to 60.2)`, or nothing for one seed."""
    spread = group.spread(f"metrics.{metric}")
    if spread is None:
        return ""
    count = len(group.values(f"metrics.{metric}"))
    low, high = (words.metric(metric, value) for value in spread)
    return f" (mean of {count} seeds, {low} to {high})"


def _quality(view: View, lead: Group) -> str:
    """`perplexity went from 32.90 to 59.00, 1.79 times the dense model's`."""
    metric, field = view.metric, f"metrics.{view.metric}"
    name, cut = _metric_name(metric), lead.mean(field)
    dense = view.dense.mean(field) if view.dense else None
    if cut is None:
        return "its quality was not measured"
    if finite(cut) is None:
        return f"its {name} is no longer finite: the model is broken"
    after = words.metric(metric, cut) + _over_seeds(lead, metric)
    if finite(dense) is None or dense is None:
        return f"its {name} is {after}; the dense model was not measured, so the cost is unknown"
    before = words.metric(metric, dense)
    if words.metric(metric, cut) == before:
        return f"{name} stayed at {after}"
    if words.is_fraction(metric) or dense <= 0:
        return f"{name} went from {before} to {after}, {words.difference(metric, cut - dense)}"
    return f"{name} went from {before} to {after}, {words.times(cut / dense)} the dense model’s"


def sentence(view: View, model: str) -> str:
    """The headline: what was cut out of which model, and what that did to its quality."""
    model = model or "the model"
    lead = view.lead
    if lead is None:
        quality = words.metric(view.metric, view.dense.mean(f"metrics.{view.metric}") if view.dense else None)
        return f"Nothing was cut: these are the figures of {model} as it is ({_metric_name(view.metric)} {quality})."
    share = lead.mean("sparsity")
    what = "an unmeasured share" if share is None else words.short_percent(share)
    return f"{lead.series} cut {what} of the units that may be cut in {model}; {_quality(view, lead)}."


def rivals(view: View) -> str:
    """How the other cuts at the same sparsity did, best first; empty when there is none."""
    field = f"metrics.{view.metric}"
    others = [group for group in view.cuts if group.level == view.level and group is not view.lead]
    known = [group for group in others if group.mean(field) is not None]
    if not known or view.level is None or view.lead is None:
        return ""
    ordered: list[Group] = []
    while (first := best([g for g in known if g not in ordered], view.metric)) is not None:
        ordered.append(first)
    ordered += [group for group in known if group not in ordered]
    said = [f"{group.series} {words.metric(view.metric, group.mean(field))}" for group in ordered]
    listed = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return f"At the same sparsity: {listed}."


def _disk(view: View, lead: Group) -> str:
    size, relative = lead.mean("bytes"), against(view, lead, "bytes", lambda ours, dense: ours / dense - 1)
    if size is None:
        return "Its size on disk was not measured."
    if relative is None:
        return f"It takes {words.size(size)} on disk."
    if abs(relative) < SAME:
        return (
            f"On disk it takes {words.size(size)}, as much as dense: zeros are stored like any other value."
        )
    how = "less" if relative < 0 else "more"
    return f"On disk it takes {words.size(size)}, {words.percent(abs(relative), 0)} {how} than dense."


def _arithmetic(view: View, lead: Group) -> str:
    relative = against(view, lead, "flops", lambda ours, dense: ours / dense - 1)
    if relative is None or abs(relative) < SAME:
        return ""
    how = "fewer" if relative < 0 else "more"
    return f"Counting only weights that are not zero, a token needs {words.percent(abs(relative), 0)} {how} FLOPs."


def _speed(view: View, lead: Group) -> str:
    ratio = against(
        view, lead, "tokens_per_second", lambda ours, dense: ours / dense if dense else float("nan")
    )
    if finite(ratio) is None or ratio is None:
        half = " for both models" if lead.mean("tokens_per_second") is not None else ""
        return f"Generation speed was not measured{half}, so none is claimed."
    ours, dense = lead.mean("tokens_per_second"), view.dense.mean("tokens_per_second") if view.dense else None
    speeds = f"{words.speed(ours)} tokens/s against {words.speed(dense)} dense"
    if abs(ratio - 1) < SAME_SPEED:
        return f"It is no faster on this machine: {speeds}."
    return f"Measured on this machine it generates {'faster' if ratio > 1 else 'more slowly'}: {speeds}."


def costs(view: View) -> str:
    """Size, arithmetic and measured speed of the lead beside dense, each in its own sentence."""
    if view.lead is None:
        return ""
    parts = (_disk(view, view.lead), _arithmetic(view, view.lead), _speed(view, view.lead))
    return " ".join(part for part in parts if part)


def notes(results: dict[str, Any]) -> list[str]:
    """What the run itself had to say: notes of the whole, then of each row, without repeats."""
    found = [str(note) for note in results.get("notes") or []]
    found += [f"{row['name']}: {note}" for row in results["rows"] for note in row.get("notes") or []]
    return list(dict.fromkeys(found))
