"""The parts of the page, worked out from the figures: cost tiles, tables, plots, maps, samples, origins.

Each function returns plain data that the template only lays out; charts come as SVG strings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from secateur.report import axes, layers, svg, words
from secateur.report.groups import Group, View, against, finite

WIDE, NARROW = 760, 372  # px: the width of a chart where there is room, and on a telephone
PAIR = 530  # px: of two charts side by side


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, a second small line, and what to sort by ("" last)."""

    text: str
    small: str = ""
    sort: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Column:
    """A column of the table of results: the tier above it, its head, the field, and how a figure is written."""

    tier: str
    head: str
    field: str
    show: Callable[[float | None], str]
    metric: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the table of results: name, a small line under it, the class of its colour, its cells."""

    name: str
    small: str
    tag: str
    cells: list[Cell] = field(default_factory=list)


def columns(view: View) -> list[Column]:
    """The columns: the four figures of cost (density, bytes, FLOPs, measured time) stay in tiers of their own."""
    quality = [
        Column("Quality", words.title_of(name), f"metrics.{name}", lambda v, n=name: words.metric(n, v), name)
        for name in sorted(view.metrics, key=lambda name: (name != "perplexity", name != "accuracy"))
    ]
    return [
        Column("Cut", "Sparsity", "sparsity", words.percent),
        Column("Cut", "Density", "density", words.percent),
        Column("Cut", "Model density", "model_density", words.percent),
        *quality,
        Column("On disk", "Bytes", "bytes", words.size),
        Column("Arithmetic", "FLOPs per token", "flops", words.quantity),
        Column("Measured here", "Time to cut", "seconds", words.duration),
        Column("Measured here", "Peak memory", "peak_mb", words.megabytes),
        Column("Measured here", "Tokens/s", "tokens_per_second", words.speed),
    ]


def tiers(found: list[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns of one tier as (tier, number of columns)."""
    out: list[tuple[str, int]] = []
    for column in found:
        if out and out[-1][0] == column.tier:
            out[-1] = (column.tier, out[-1][1] + 1)
        else:
            out.append((column.tier, 1))
    return out


def _plain_cell(group: Group, column: Column) -> Cell:
    value = group.mean(column.field)
    if value is None and group.slot < 0 and column.field == "seconds":
        return Cell("no cut", missing=True)
    return Cell(column.show(value), "", "" if finite(value) is None else repr(value), missing=value is None)


def _cell(view: View, group: Group, column: Column) -> Cell:
    small = ""
    if column.metric and group is not view.dense:
        change = against(view, group, column.field, lambda ours, dense: ours - dense)
        small = "" if change is None else words.difference(column.metric, change)
    return replace(_plain_cell(group, column), small=small)


def _seeds(group: Group) -> str:
    return f"{len(group.rows)} seeds" if len(group.rows) > 1 else ""


def summary(view: View, found: list[Column]) -> list[Line]:
    """One line a cut, means over its seeds, differences to dense beneath the metrics."""
    return [
        Line(group.name, _seeds(group), svg.tag_class(group.slot), [_cell(view, group, c) for c in found])
        for group in view.groups
    ]


def every_row(view: View, found: list[Column]) -> list[Line]:
    """One line a row, for the seeds one by one; empty where every cut has a single seed."""
    if all(len(group.rows) < 2 for group in view.groups):
        return []
    lines = []
    for group in view.groups:
        for row in group.rows:
            one = Group(row["name"], group.series, group.slot, group.level, (row,))
            seed = "" if row.get("seed") is None else f"seed {row['seed']}"
            cells = [_plain_cell(one, column) for column in found]
            lines.append(Line(row["name"], seed, svg.tag_class(group.slot), cells))
    return lines


@dataclass(frozen=True)
class Tile:
    """One of the four figures of cost: the lead's figure, a line about it, and bars over the cuts shown."""

    label: str
    figure: str
    note: str
    bars: str
    unit: str = ""
    missing: bool = False


def _bars(view: View, name: str, show: Callable[[float | None], str], title: str, dense: bool = True) -> str:
    groups = ([view.dense] if view.dense and dense else []) + view.shown
    same = len({group.series for group in view.shown}) == len(view.shown)
    items = [
        svg.Bar(
            g.series if same and g is not view.dense else g.name, g.mean(name), show(g.mean(name)), g.slot
        )
        for g in groups
    ]
    return svg.bars(items, title, 1.0 if name == "density" else None)


def _relative(view: View, lead: Group, name: str) -> str:
    if lead is view.dense:
        return ""
    share = against(view, lead, name, lambda ours, dense: ours / dense if dense else math.nan)
    return "" if finite(share) is None else f"{words.percent(share, 0)} of dense"


def tiles(view: View) -> list[Tile]:
    """Density, bytes on disk, FLOPs per token and measured time, never added up or traded for one another."""
    lead = view.lead or view.dense
    if lead is None:
        return []
    density, size, flops = lead.mean("density"), lead.mean("bytes"), lead.mean("flops")
    whole = lead.mean("model_density")
    about = "of the units that may be cut" + (
        "" if whole is None else f"; {words.percent(whole)} of the whole model"
    )
    chosen = (
        ("Density", "density", words.percent, density, about),
        ("Bytes on disk", "bytes", words.size, size, _relative(view, lead, "bytes")),
        ("FLOPs per token", "flops", words.quantity, flops, _relative(view, lead, "flops")),
    )
    made = [
        Tile(head, show(value), note, _bars(view, name, show, head), missing=value is None)
        for head, name, show, value, note in chosen
    ]
    return [*made, _time_tile(view, lead)]


def _time_tile(view: View, lead: Group) -> Tile:
    speed, took = lead.mean("tokens_per_second"), lead.mean("seconds")
    measured = any(group.mean("tokens_per_second") is not None for group in view.groups)
    note = "generating text" + ("" if took is None else f"; cut in {words.duration(took)}")
    if measured:
        chart = _bars(view, "tokens_per_second", words.speed, "Tokens per second")
    else:
        note = "no generation was timed" + ("; below, the time to cut" if view.cuts else "")
        chart = _bars(view, "seconds", words.duration, "Time to cut", dense=False)
    unit = "" if speed is None else "tokens/s"
    return Tile("Measured time", words.speed(speed), note, chart, unit, missing=speed is None)


@dataclass(frozen=True)
class Plot:
    """A chart drawn twice, for wide and narrow screens, with what must be said about it."""

    metric: str
    heading: str
    wide: str
    narrow: str
    caption: str


def _series(view: View, metric: str) -> list[svg.Series]:
    name = f"metrics.{metric}"
    return [
        svg.Series(
            label, tuple((g.level, y) for g in groups if g.level is not None for y in g.values(name)), slot
        )
        for label, slot, groups in view.series
    ]


def _rows(view: View, metric: str) -> list[svg.Series]:
    """Every cut as a series of its own, for cuts that form no curve."""
    name = f"metrics.{metric}"
    return [
        svg.Series(group.name, tuple((group.level or 0.0, y) for y in group.values(name)), group.slot)
        for group in view.cuts
    ]


def plots(view: View) -> list[Plot]:
    """Quality against sparsity, one chart for each metric that was measured on a cut model."""
    drawn = []
    for metric in view.metrics:
        series = _series(view, metric)
        if any(s.points for s in series):
            drawn.append((metric, [s for s in series if s.points]))
    return [_plot(view, metric, series, PAIR if len(drawn) > 1 else WIDE) for metric, series in drawn]


def _plot(view: View, metric: str, series: list[svg.Series], width: int) -> Plot:
    label = svg.clip(words.title_of(metric), 32)
    dense = finite(view.dense.mean(f"metrics.{metric}")) if view.dense else None
    values = [y for s in series for _, y in s.points]
    known = [y for y in values if math.isfinite(y)] + ([dense] if dense is not None else [])
    log = axes.spans_decade(known)
    levels = {x for s in series for x, _ in s.points}
    curves = any(len({x for x, _ in s.points}) > 1 for s in series)
    rows = series if len(levels) == 1 else _rows(view, metric)
    better = "lower is better" if words.lower_is_better(metric) else "higher is better"
    reference = None if dense is None else (f"dense {words.metric(metric, dense)}", dense)

    def draw(wide: int) -> str:
        frame = svg.Frame(
            f"{label} against sparsity",
            "Sparsity",
            f"{label}, {better}{', log scale' if log else ''}",
            wide,
            300 if wide == NARROW else 360,
            log,
            words.short_percent,
            lambda value: words.metric(metric, value),
            lambda value: words.tick(metric, value),
            reference,
        )
        return svg.line_plot(series, frame) if curves else svg.dot_plot(rows, frame)

    notes = []
    if any(len(group.rows) > 1 for group in view.cuts):
        notes.append("Small points are seeds, marks their mean.")
    lost = sum(1 for y in values if not math.isfinite(y))
    if lost:
        notes.append(f"{lost} of {len(values)} figures were not finite and are not drawn.")
    heading = f"{label} against sparsity"
    if not curves:
        heading = (
            f"{label} of each cut"
            if len(levels) > 1
            else f"{label} at {words.short_percent(*levels)} sparsity"
        )
    return Plot(metric, heading, draw(width), draw(NARROW), " ".join(notes))


@dataclass(frozen=True)
class Map:
    """What was cut in each layer of one cut: a grid, its words, and the sites outside the blocks."""

    name: str
    tag: str
    grids: list[tuple[str, str, str]]  # (heading, svg or "", words)
    outside: list[str]
    unknown: list[str]


@dataclass(frozen=True)
class Maps:
    """The maps of all cuts shown, and what the ends of their shades mean: (heading, low, high)."""

    items: list[Map]
    scales: list[tuple[str, str, str]]


_MAPS = (("sparsity", "Cut", words.percent), ("error", "Output error", words.plain))


def maps(view: View) -> Maps:
    """Sparsity and output error by block and kind of layer; one scale of shades for all maps of a field."""
    found = {name: [layers.grid(group, name) for group in view.shown] for name, _, _ in _MAPS}
    ends = {name: layers.domain([grid for grid in grids if grid], name) for name, grids in found.items()}
    items = []
    for index, group in enumerate(view.shown):
        drawn, outside, unknown = [], [], []
        for name, heading, _ in _MAPS:
            grid = found[name][index]
            if grid is None:
                unknown.append(f"{heading}: {words.MISSING}.")
                continue
            drawn.append(
                (
                    heading,
                    _draw(grid, ends[name], f"{heading} per layer, {group.name}"),
                    layers.words_for(grid, name),
                )
            )
            outside += [cell.tip for _, cell in grid.outside]
        if any(chart for _, chart, _ in drawn):
            items.append(Map(group.name, svg.tag_class(group.slot), drawn, outside, unknown))
    scales = [(head, show(ends[n][0]), show(ends[n][1])) for n, head, show in _MAPS if any(found[n])]
    return Maps(items, scales)


def _draw(grid: layers.Grid, ends: tuple[float, float], title: str) -> str:
    if not grid.cells:
        return ""
    low, high = ends
    cells = {
        at: (0.04 + 0.96 * (cell.value - low) / (high - low), cell.tip)
        for at, cell in grid.cells.items()
        if math.isfinite(cell.value)
    }
    width = max(6.0, min(19.0, 150.0 / max(len(grid.columns), 1)))
    height = max(4.0, min(12.0, 420.0 / max(len(grid.rows), 1)))
    rows, columns = ([svg.clip(name, 14) for name in names] for names in (grid.rows, grid.columns))
    return svg.heat_map(rows, columns, cells, title, (width, height))


@dataclass(frozen=True)
class Sample:
    """A continuation: the prompt it began with (may be empty) and what the model wrote."""

    name: str
    tag: str
    prompt: str
    text: str | None


def samples(view: View, prompt: str) -> list[Sample]:
    """What dense and the cuts shown made of the prompt, of each the first seed that kept its text."""
    groups = ([view.dense] if view.dense else []) + view.shown
    found = []
    for group in groups:
        text = next((row["sample"] for row in group.rows if row.get("sample") is not None), None)
        begins = bool(text and prompt and text.startswith(prompt))
        rest = text[len(prompt) :] if text is not None and begins else text
        found.append(Sample(group.name, svg.tag_class(group.slot), prompt if begins else "", rest))
    return found if any(sample.text is not None for sample in found) else []


def knees(results: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(methods, [(rule, a value for each method)]): the sparsity beyond which a rule calls the quality lost."""
    knee: dict[str, dict[str, float | None]] = results.get("knee") or {}
    rules = list(dict.fromkeys(rule for found in knee.values() for rule in found))

    def show(value: float | None) -> str:
        return (
            "none found"
            if value is None
            else words.short_percent(value)
            if 0 <= value <= 1
            else words.plain(value)
        )

    return list(knee), [
        (rule.replace("_", " "), [show(found.get(rule)) for found in knee.values()]) for rule in rules
    ]


def _machine(machine: dict[str, Any]) -> str:
    known = {"cpu": "{}", "cores": "{} cores", "memory_gb": "{} GB memory", "gpu": "{}"}
    return ", ".join(
        known.get(key, key.replace("_", " ") + " {}").format(value) for key, value in machine.items()
    )


def origins(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the figures come from, in words: (what, value)."""
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    found = [
        ("Model", results.get("model")),
        ("Calibration", results.get("calibration")),
        ("Evaluation", results.get("evaluation")),
        ("Machine", _machine(results.get("machine") or {})),
        ("Versions", versions),
        ("Made", words.moment(results.get("created") or "")),
    ]
    return [(what, str(value) if value else "not recorded") for what, value in found]


def folders(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Where each checkpoint lies: (row, folder)."""
    found = [(row["name"], row["folder"]) for row in results["rows"] if row.get("folder")]
    return list(dict.fromkeys(found))
