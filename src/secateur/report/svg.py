"""Charts as SVG strings: pure functions, the same bytes for the same numbers, every text escaped.

Colours come from the classes of templates/chart.css (`s0`.. for a series, `ref` for dense), so that one chart serves
light, dark and print. Series also differ by the shape of their marks. `standalone` makes a chart a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from secateur.report.axes import Scale, spread_out

SLOTS = 8
"""Distinct series colours; a ninth series takes the first colour again, with a dashed line."""

_GLYPH = 7.2  # width of one character at 12 px, in px, on the wide side of common fonts


@dataclass(frozen=True)
class Series:
    """One line: the points of each seed, (x, y); `slot` picks colour and mark, and keeps them over all charts."""

    label: str
    points: tuple[tuple[float, float], ...]
    slot: int

    def means(self) -> list[tuple[float, float]]:
        """(x, mean of y) by rising x."""
        columns: dict[float, list[float]] = {}
        for x, y in self.points:
            columns.setdefault(x, []).append(y)
        return [(x, sum(ys) / len(ys)) for x, ys in sorted(columns.items())]


@dataclass(frozen=True)
class Frame:
    """What surrounds the marks: texts, size in px, scale, the writing of numbers, and a line to compare with."""

    title: str
    x_label: str
    y_label: str
    width: int = 760
    height: int = 380
    log: bool = False
    x_format: Callable[[float], str] = str
    y_format: Callable[[float], str] = str
    tick_format: Callable[[float], str] = "{:g}".format
    reference: tuple[str, float] | None = None


def num(value: float) -> str:
    """A coordinate with at most two decimals and no negative zero.

    >>> num(3.14159), num(2.0), num(-0.001)
    ('3.14', '2', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def text_of(value: str) -> str:
    """Escaped for an element or an attribute."""
    return escape(value, quote=True)


def clip(text: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis when some were left out."""
    return text if len(text) <= length else text[: max(length - 1, 1)].rstrip() + "…"


def tag_class(slot: int) -> str:
    """The class that gives a series its colour; dense (slot -1) has its own."""
    return "ref" if slot < 0 else f"s{slot % SLOTS}"


def open_svg(title: str, width: float, height: float, kind: str) -> str:
    """The opening tag with its title, which a screen reader speaks."""
    return (
        f'<svg class="chart {kind}" role="img" viewBox="0 0 {num(width)} {num(height)}" width="{num(width)}" '
        f'height="{num(height)}"><title>{text_of(title)}</title>'
    )


def mark(slot: int, x: float, y: float, tip: str, radius: float = 4.5) -> str:
    """The mark of a series: circle, square, diamond or triangle, with a tooltip."""
    shape = max(slot, 0) % 4
    if shape == 0:
        head = f'<circle cx="{num(x)}" cy="{num(y)}" r="{num(radius)}"'
    elif shape == 1:
        side = radius * 1.75
        head = (
            f'<rect x="{num(x - side / 2)}" y="{num(y - side / 2)}" width="{num(side)}" height="{num(side)}"'
        )
    else:
        r = radius * (1.3 if shape == 2 else 1.2)
        corners = [(0, -r), (r, 0), (0, r), (-r, 0)] if shape == 2 else [(0, -r), (r, r * 0.8), (-r, r * 0.8)]
        head = '<polygon points="' + " ".join(f"{num(x + dx)},{num(y + dy)}" for dx, dy in corners) + '"'
    return f'{head} class="mark"><title>{text_of(tip)}</title></{head[1:].split()[0]}>'


def _finite(series: Sequence[Series]) -> list[Series]:
    kept = [
        Series(s.label, tuple(p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])), s.slot)
        for s in series
    ]
    return [s for s in kept if s.points]


def _empty(frame: Frame) -> str:
    middle = f'<text x="{num(frame.width / 2)}" y="45" text-anchor="middle">not measured</text></svg>'
    return open_svg(frame.title, frame.width, 90, "plot") + middle


def line_plot(series: Sequence[Series], frame: Frame) -> str:
    """One line a series through the means, seeds as small points joined by their spread, labels at the right end.

    Points that are not finite are left out (the caller says how many); with none left the chart says "not measured".
    """
    series = _finite(series)
    if not series:
        return _empty(frame)
    labels = [clip(s.label, 24 if frame.width > 500 else 14) for s in series]
    if frame.reference:
        labels.append(clip(frame.reference[0], 24 if frame.width > 500 else 14))
    right = frame.width - max(len(label) for label in labels) * _GLYPH - 18
    left, top, bottom = 54.0, 28.0, frame.height - 46.0
    xs = sorted({x for s in series for x, _ in s.points})
    ys = [y for s in series for _, y in s.points] + ([frame.reference[1]] if frame.reference else [])
    x_of = Scale(xs, left, right, False, 0.03)
    y_of = Scale(ys, bottom, top, frame.log)
    out = [open_svg(frame.title, frame.width, frame.height, "plot")]
    out.append(_axes(frame, x_of, y_of, _x_ticks(xs, right - left, x_of), (left, top, right, bottom)))
    wanted = [y_of(s.means()[-1][1]) for s in series]
    if frame.reference:
        y = num(y_of(frame.reference[1]))
        out.append(f'<line class="ref dash" x1="{num(left)}" x2="{num(right)}" y1="{y}" y2="{y}"/>')
        wanted.append(y_of(frame.reference[1]))
    out.extend(_line(s, frame, x_of, y_of) for s in series)
    slots = [s.slot for s in series] + [-1]
    for label, slot, y in zip(labels, slots, spread_out(wanted, top, bottom), strict=False):
        out.append(
            f'<text class="name {tag_class(slot)}" x="{num(right + 12)}" y="{num(y + 4)}">{text_of(label)}</text>'
        )
    return "".join([*out, "</svg>"])


def _x_ticks(xs: list[float], room: float, scale: Scale) -> list[float]:
    """The measured places themselves where their labels fit, else round numbers."""
    apart = min((scale(b) - scale(a) for a, b in pairwise(xs)), default=room)
    return xs if apart >= 40 else scale.ticks(int(room // 80))


def _axes(
    frame: Frame, x_of: Scale, y_of: Scale, x_ticks: list[float], box: tuple[float, float, float, float]
) -> str:
    left, top, right, bottom = box
    out = [f'<text class="axis" x="0" y="12">{text_of(frame.y_label)}</text>']
    for value in y_of.ticks(5):
        y = y_of(value)
        if top - 1 <= y <= bottom + 1:
            out.append(f'<line class="grid" x1="{num(left)}" x2="{num(right)}" y1="{num(y)}" y2="{num(y)}"/>')
            label = text_of(frame.tick_format(value))
            out.append(f'<text x="{num(left - 8)}" y="{num(y + 4)}" text-anchor="end">{label}</text>')
    out.append(
        f'<line class="base" x1="{num(left)}" x2="{num(right)}" y1="{num(bottom)}" y2="{num(bottom)}"/>'
    )
    for value in x_ticks:
        x = num(x_of(value))
        out.append(f'<line class="base" x1="{x}" x2="{x}" y1="{num(bottom)}" y2="{num(bottom + 4)}"/>')
        label = text_of(frame.x_format(value))
        out.append(f'<text x="{x}" y="{num(bottom + 18)}" text-anchor="middle">{label}</text>')
    middle = num((left + right) / 2)
    out.append(f'<text class="axis" x="{middle}" y="{num(bottom + 38)}" text-anchor="middle">')
    return "".join([*out, text_of(frame.x_label), "</text>"])


def _line(series: Series, frame: Frame, x_of: Scale, y_of: Scale) -> str:
    means = series.means()
    out = [f'<g class="{tag_class(series.slot)}">']
    if len(means) > 1:
        points = " ".join(f"{num(x_of(x))},{num(y_of(y))}" for x, y in means)
        dashed = " dash" if series.slot >= SLOTS else ""
        out.append(f'<polyline class="line{dashed}" points="{points}"/>')
    for x, mean in means:
        seeds = sorted(y for at, y in series.points if at == x)
        where = f"{series.label}, {frame.x_format(x)}: "
        if len(seeds) > 1:
            px = num(x_of(x))
            ends = f'y1="{num(y_of(seeds[0]))}" y2="{num(y_of(seeds[-1]))}"'
            out.append(f'<line class="spread" x1="{px}" x2="{px}" {ends}/>')
            for y in seeds:
                tip = text_of(f"{where}{frame.y_format(y)} (one seed)")
                out.append(
                    f'<circle class="seed" cx="{px}" cy="{num(y_of(y))}" r="2.2"><title>{tip}</title></circle>'
                )
        tip = frame.y_format(mean) + (f" (mean of {len(seeds)} seeds)" if len(seeds) > 1 else "")
        out.append(mark(series.slot, x_of(x), y_of(mean), where + tip, 4))
    return "".join([*out, "</g>"])


def dot_plot(series: Sequence[Series], frame: Frame) -> str:
    """One row a series along a horizontal axis: the mean, its seeds, and a bar from dense to it.

    Takes the y of every point and drops the x: for cuts that all lie at one sparsity.
    """
    series = _finite(series)
    if not series:
        return _empty(frame)
    name_room = min(max(len(s.label) for s in series) * _GLYPH + 16, frame.width * 0.4)
    means = [sum(y for _, y in s.points) / len(s.points) for s in series]
    below = frame.reference is not None and min(means) < frame.reference[1]
    left, right, step = name_room + (48 if below else 0), frame.width - 66.0, 34.0
    top = 26.0 if frame.reference else 8.0
    height = step * len(series) + top + 54
    values = [y for s in series for _, y in s.points] + ([frame.reference[1]] if frame.reference else [])
    scale = Scale(values, left, right, frame.log, 0.05)
    bottom = height - 44.0
    out = [open_svg(frame.title, frame.width, height, "plot")]
    for value in scale.ticks(int((right - left) // 90) + 1):
        x = num(scale(value))
        out.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{num(top)}" y2="{num(bottom)}"/>')
        label = text_of(frame.tick_format(value))
        out.append(f'<text x="{x}" y="{num(bottom + 16)}" text-anchor="middle">{label}</text>')
    if frame.reference:
        x = num(scale(frame.reference[1]))
        out.append(f'<line class="ref dash" x1="{x}" x2="{x}" y1="{num(top - 6)}" y2="{num(bottom)}"/>')
        out.append(f'<text class="name ref" x="{x}" y="12">{text_of(frame.reference[0])}</text>')
    for row, one in enumerate(series):
        out.append(_dots(one, frame, scale, step * (row + 0.5) + top, name_room))
    label = text_of(clip(frame.y_label, int((frame.width - left) / _GLYPH * 1.1)))
    out.append(f'<text class="axis" x="{num(left)}" y="{num(bottom + 36)}">{label}</text></svg>')
    return "".join(out)


def _dots(series: Series, frame: Frame, scale: Scale, y: float, left: float) -> str:
    seeds = [value for _, value in series.points]
    mean = sum(seeds) / len(seeds)
    label = text_of(clip(series.label, int(left / _GLYPH)))
    out = [f'<g class="{tag_class(series.slot)}"><text class="name" x="0" y="{num(y + 4)}">{label}</text>']
    if frame.reference:
        start = num(scale(frame.reference[1]))
        out.append(f'<line class="line" x1="{start}" x2="{num(scale(mean))}" y1="{num(y)}" y2="{num(y)}"/>')
    if len(seeds) > 1:
        for value in sorted(seeds):
            tip = text_of(f"{series.label}: {frame.y_format(value)} (one seed)")
            x = num(scale(value))
            out.append(f'<circle class="seed" cx="{x}" cy="{num(y)}" r="2.2"><title>{tip}</title></circle>')
    out.append(mark(series.slot, scale(mean), y, f"{series.label}: {frame.y_format(mean)}", 5))
    # The figure stands on the side away from dense, where no line crosses it.
    inside = frame.reference is not None and mean < frame.reference[1]
    ends = [scale(value) for value in [mean, *seeds]]
    where = f'x="{num(min(ends) - 11)}" text-anchor="end"' if inside else f'x="{num(max(ends) + 11)}"'
    out.append(f'<text class="value" {where} y="{num(y + 4)}">{text_of(frame.y_format(mean))}</text></g>')
    return "".join(out)


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; a `value` of None draws the empty track beside the words of `text`."""

    label: str
    value: float | None
    text: str
    slot: int


def bars(items: Sequence[Bar], title: str, full: float | None = None) -> str:
    """Horizontal bars from zero, as wide as what holds them; `full` is a whole track (default: the largest value)."""
    known = [item.value for item in items if item.value is not None and math.isfinite(item.value)]
    whole = max([*known, full or 0.0], default=0.0)
    height = 30 * len(items)
    out = [
        f'<svg class="chart bars" role="img" width="100%" height="{height}"><title>{text_of(title)}</title>'
    ]
    for row, item in enumerate(items):
        y = 30 * row
        out.append(f'<g class="{tag_class(item.slot)}"><text class="name" x="0" y="{y + 12}">')
        out.append(
            f'{text_of(clip(item.label, 24))}</text><text class="value" x="100%" y="{y + 12}" text-anchor="end">'
        )
        out.append(
            f'{text_of(item.text)}</text><rect class="track" x="0" y="{y + 17}" width="100%" height="5"/>'
        )
        if item.value is not None and math.isfinite(item.value) and whole > 0:
            share = num(max(0.0, min(100.0, 100 * item.value / whole)))
            out.append(f'<rect class="bar" x="0" y="{y + 17}" width="{share}%" height="5"/>')
        out.append("</g>")
    return "".join([*out, "</svg>"])


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], tuple[float, str]],
    title: str,
    cell: tuple[float, float] = (20.0, 10.0),
) -> str:
    """A grid of `cells[row, column] = (shade in [0, 1], tooltip)`; a place without a cell stays empty."""
    width, height = cell
    left = max((len(row) for row in rows), default=1) * _GLYPH * 0.92 + 8
    top = max((len(column) for column in columns), default=1) * _GLYPH * 0.7 + 12
    lean = max((len(column) for column in columns), default=1) * _GLYPH * 0.62
    out = [open_svg(title, left + width * len(columns) + lean, top + height * len(rows) + 2, "heat")]
    for index, column in enumerate(columns):
        x, y = num(left + width * (index + 0.5)), num(top - 6)
        out.append(f'<text x="{x}" y="{y}" transform="rotate(-45 {x} {y})">{text_of(column)}</text>')
    every = max(1, math.ceil(13 / height))
    for index, row in enumerate(rows):
        if index % every == 0:
            y = num(top + height * (index + 0.5) + 3.5)
            out.append(f'<text x="{num(left - 6)}" y="{y}" text-anchor="end">{text_of(row)}</text>')
    for (row, column), (shade, tip) in sorted(cells.items()):
        place = f'x="{num(left + width * column)}" y="{num(top + height * row)}"'
        extent = f'width="{num(width - 1)}" height="{num(height - 1)}"'
        fill = f'fill-opacity="{num(min(max(shade, 0.0), 1.0))}"'
        out.append(f'<rect class="cell" {place} {extent} {fill}><title>{text_of(tip)}</title></rect>')
    return "".join([*out, "</svg>"])


def kept_grid(sparsity: float, title: str, slot: int = 0, columns: int = 10) -> str:
    """A hundred squares, each 1% of the units that may be cut: the kept ones solid, the cut ones faint."""
    cut = round(100 * min(max(sparsity, 0.0), 1.0))
    # 61 is coprime to 100: walking by it visits every square once and spreads the cut ones evenly.
    gone = {61 * index % 100 for index in range(cut)}
    side = 15
    out = [open_svg(title, side * columns - 3, side * (100 // columns) - 3, f"kept {tag_class(slot)}")]
    for index in range(100):
        place = f'x="{side * (index % columns)}" y="{side * (index // columns)}"'
        out.append(
            f'<rect class="{"gone" if index in gone else "stay"}" {place} width="12" height="12" rx="2"/>'
        )
    return "".join([*out, "</svg>"])


def style() -> str:
    """The style sheet of the charts: colours for light, dark and print."""
    return (Path(__file__).parent / "templates" / "chart.css").read_text(encoding="utf-8")


def standalone(svg: str) -> str:
    """The chart as the text of an .svg file: name space and style sheet inside."""
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{"<style>"}{style()}</style>{rest}\n'
