"""What models are worth on each corruption: a radar plot and a table, from what `evaluate_corruptions` returns.

Pure functions of `[(name, result), ...]`, one result a model, the first usually dense. A place on the radar is a
corruption, its distance from the middle the accuracy (mean over the severities measured); the axis starts at 0, so
that areas do not exaggerate. A corruption that a model was not measured on is left out of its outline and is an empty
cell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.errors import BadInput
from secateur.report import words
from secateur.report.axes import spread_out, ticks
from secateur.report.svg import SLOTS, clip, mark, num, open_svg, tag_class, text_of

Results = Sequence[tuple[str, Mapping[str, Any]]]

_ROWS = {
    "clean": ("Clean", "{:.1%}"),
    "robust_accuracy": ("Mean of the corruptions", "{:.1%}"),
    "mce": ("mCE", "{:.1f}"),
    "relative_mce": ("Relative mCE", "{:.1f}"),
    "clean_ece": ("ECE, clean", "{:.3f}"),
    "ece": ("ECE, corrupted", "{:.3f}"),
}


def radar(
    results: Results, title: str = "Accuracy on each corruption", size: int = 560, dense: bool = True
) -> str:
    """The radar as an inline SVG.

    Args:
        size: width in px; the height follows. dense: whether the first model is drawn in the colour of dense.

    Raises:
        BadInput: no model, or an accuracy outside [0, 1].
    """
    results, title = _clean(results), words.clean(title)
    names = corruptions(results)
    accuracy = [_accuracies(name, result) for name, result in results]
    reach = _reach(names, size)
    middle = (size / 2, reach + 46)
    height = middle[1] + reach + 46 + 20 * len(results)
    out = [open_svg(title, size, height, "plot radar")]
    if len(names) < 3:  # two spokes make no area
        text = f'<text x="{num(size / 2)}" y="45" text-anchor="middle">fewer than three corruptions measured</text>'
        return "".join([open_svg(title, size, 90, "plot radar"), text, "</svg>"])
    top = _top(accuracy)
    out.append(_web(names, middle, reach, top))
    for row, ((label, _), found) in enumerate(zip(results, accuracy, strict=True)):
        slot = row - 1 if dense else row
        out.append(_outline(label, found, names, slot, middle, reach / top))
        y = height - 20 * (len(results) - row) + 6
        name = text_of(clip(label, int(size / 8) - 4))
        out.append(f'<g class="{tag_class(slot)}">{mark(slot, 14, y - 4, label, 4)}</g>')
        out.append(f'<text class="name {tag_class(slot)}" x="26" y="{num(y)}">{name}</text>')
    return "".join([*out, "</svg>"])


def corruption_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """(heads, rows of texts): a row a corruption, in the order measured, then the means; a column a model.

    Empty text where a model was not measured. A row that nobody measured is left out.

    Raises:
        BadInput: as `radar`.
    """
    results = _clean(results)
    heads = ["Corruption", *[name for name, _ in results]]
    accuracy = [_accuracies(name, result) for name, result in results]
    rows = [
        [_words(name), *["" if name not in found else f"{found[name]:.1%}" for found in accuracy]]
        for name in corruptions(results)
    ]
    for key, (head, form) in _ROWS.items():
        values = [_figure(result, key) for _, result in results]
        texts = ["" if value is None else form.format(value) for value in values]
        if any(texts):
            rows.append([head, *texts])
    return heads, rows


def corruption_markdown(results: Results) -> str:
    """The table in Markdown, with what the images are below it; ends with a newline."""
    heads, rows = corruption_rows(results)
    lines = [[_escape(head) for head in heads], ["---", *["---:"] * (len(heads) - 1)]]
    lines += [[_escape(cell) for cell in row] for row in rows]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{table}\n{_escape(source_words(results))}\n"


def corruption_csv(results: Results) -> str:
    """One line a model, corruption and severity: model, corruption, severity (0 is clean), accuracy, ece."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "corruption", "severity", "accuracy", "ece"])
    for name, result in _clean(results):
        # A leading sign would make a spreadsheet run the name as a formula.
        label = "'" + name if name[:1] in ("=", "+", "-", "@", "\t") else name
        writer.writerow([label, "clean", 0, result["clean"]["accuracy"], result["clean"]["ece"]])
        for corruption, row in result["corruptions"].items():
            for severity, cell in row.items():
                writer.writerow([label, corruption, severity, cell["accuracy"], cell["ece"]])
    return out.getvalue()


def source_words(results: Results) -> str:
    """What the images are: 'cifar-c parameters, secateur rendering, seed 0, 2,000 images, severities 1 to 5'."""
    said = []
    for _, result in results:
        severities = [str(s) for s in result["severities"]]
        which = f"1 to {severities[-1]}" if severities == ["1", "2", "3", "4", "5"] else ", ".join(severities)
        seed = "" if result["seed"] is None else f", seed {result['seed']}"
        said.append(
            f"{result['table']} parameters, {result['label']}{seed}, {result['count']:,} images, "
            f"severit{'y' if len(severities) == 1 else 'ies'} {which}"
        )
    return "; ".join(dict.fromkeys(said))


def corruptions(results: Results) -> list[str]:
    """Every corruption that some model was measured on, in the order of the first that names it."""
    if not results:
        raise BadInput("no model", where="corruptions", fix="measure at least one")
    return list(dict.fromkeys(name for _, result in results for name in result["by_corruption"]))


def _clean(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """The names free of what could fool a page or a terminal."""
    return [(words.clean(name), result) for name, result in results]


def _accuracies(label: str, result: Mapping[str, Any]) -> dict[str, float]:
    found = dict(result["by_corruption"])
    for name, value in found.items():
        if not 0 <= value <= 1:
            raise BadInput(f"accuracy {value!r:.40} on {name}", where=label, fix="give fractions in [0, 1]")
    return found


def _figure(result: Mapping[str, Any], key: str) -> float | None:
    if key == "clean":
        return result["clean"]["accuracy"]
    return result["clean"]["ece"] if key == "clean_ece" else result.get(key)


def _top(accuracy: Sequence[Mapping[str, float]]) -> float:
    """The end of the axis: the best accuracy, rounded up to a tenth."""
    best = max((value for found in accuracy for value in found.values()), default=1.0)
    return max(math.ceil(best * 10 - 1e-9) / 10, 0.1)


def _reach(names: Sequence[str], size: float) -> float:
    """The length of a spoke: 0.3 of the width, less where a name beside its end would leave the picture."""
    reach = size * 0.3
    for i, name in enumerate(names):
        across = abs(_place(i, len(names), 1.0, (0.0, 0.0))[0])
        if across > 0.05:
            reach = min(reach, (size / 2 - 6.4 * len(name)) / across - 12)
    return max(reach, 40.0)


def _place(index: int, count: int, distance: float, middle: tuple[float, float]) -> tuple[float, float]:
    """Of spoke `index` of `count`, clockwise from the top."""
    angle = 2 * math.pi * index / count - math.pi / 2
    return middle[0] + distance * math.cos(angle), middle[1] + distance * math.sin(angle)


def _web(names: Sequence[str], middle: tuple[float, float], reach: float, top: float) -> str:
    """Rings, spokes, the values along the first spoke and the name at the end of each."""
    out = []
    for value in [v for v in ticks(0, top, 4) if v > 0]:
        corners = [_place(i, len(names), reach * value / top, middle) for i in range(len(names))]
        points = " ".join(f"{num(x)},{num(y)}" for x, y in corners)
        out.append(f'<polygon class="grid" fill="none" points="{points}"/>')
        x, y = corners[0]
        out.append(f'<text x="{num(x + 4)}" y="{num(y + 10)}">{value:.0%}</text>')
    ends = [_place(i, len(names), reach + 12, middle) for i in range(len(names))]
    for side in (-1, 1):  # the names left of the middle, then those right of it, kept apart
        here = [i for i, (x, _) in enumerate(ends) if (x < middle[0] - 1) == (side < 0)]
        heights = spread_out([ends[i][1] for i in here], middle[1] - reach - 26, middle[1] + reach + 26)
        for i, y in zip(here, heights, strict=True):
            x = ends[i][0]
            anchor = "middle" if abs(x - middle[0]) < 1 else "end" if side < 0 else "start"
            tip = _place(i, len(names), reach, middle)
            ends_at = f'x1="{num(middle[0])}" y1="{num(middle[1])}" x2="{num(tip[0])}" y2="{num(tip[1])}"'
            out.append(f'<line class="grid" {ends_at}/>')
            label = text_of(_words(names[i]))
            out.append(
                f'<text class="axis" x="{num(x)}" y="{num(y + 4)}" text-anchor="{anchor}">{label}</text>'
            )
    return "".join(out)


def _outline(
    label: str,
    found: Mapping[str, float],
    names: Sequence[str],
    slot: int,
    middle: tuple[float, float],
    scale: float,
) -> str:
    places = {
        name: _place(i, len(names), found[name] * scale, middle)
        for i, name in enumerate(names)
        if name in found
    }
    points = " ".join(f"{num(x)},{num(y)}" for x, y in places.values())
    dashed = " dash" if slot < 0 or slot >= SLOTS else ""
    out = [f'<g class="{tag_class(slot)}"><polygon class="line{dashed}" points="{points}"/>']
    for name, (x, y) in places.items():
        out.append(mark(slot, x, y, f"{label}, {_words(name)}: {found[name]:.1%}", 3))
    return "".join([*out, "</g>"])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _escape(text: str) -> str:
    one_line = " ".join(text.split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        one_line = one_line.replace(sign, safe)
    return "".join("\\" + c if c in "\\`*_[]|~!" else c for c in one_line)
