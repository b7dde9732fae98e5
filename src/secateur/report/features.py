"""The page of a sparse head: every class with its texts, their weights, the images they fire on. Offline, no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from secateur.report.simple import simple_page
from secateur.report.svg import Frame, Series, line_plot

SHOWN = 24  # classes on a page, unless some are named


@dataclass(frozen=True)
class Reason:
    """One text behind a class: its coefficient, and PNG files of the images with the largest cosine to it."""

    words: str
    weight: float
    pictures: tuple[bytes, ...] = ()


def features_page(
    title: str,
    lead: str,
    classes: Mapping[str, Sequence[Reason]],
    accuracy: Mapping[str, Mapping[str, float]],
    path: Sequence[Mapping[str, float]] = (),
    command: str = "",
    total: int = 0,
) -> str:
    """One HTML page.

    Args:
        classes: the reasons of each class shown, the weightiest first.   total: how many classes there are.
        accuracy: {test set: {alpha: accuracy}}, the set in distribution first.
        path: points of the path, each with `features` and the accuracy on every test set by name.
    """
    charts = [_curve(path, list(accuracy))] if path else []
    alphas = list(next(iter(accuracy.values()), {}))
    heads = ["accuracy", *(_alpha(alpha) for alpha in alphas)]
    rows = [[name, *(f"{found[alpha]:.1%}" for alpha in alphas)] for name, found in accuracy.items()]
    sections = "".join(_section(name, reasons) for name, reasons in classes.items())
    if total > len(classes):
        sections += f"<p>{len(classes)} of {total} classes.</p>"
    return simple_page(title, lead, charts, heads, rows, command, sections=f"<section>{sections}</section>")


def _alpha(alpha: str) -> str:
    return {"0": "zero-shot", "1": "this head"}.get(alpha, f"alpha {alpha}")


def _curve(path: Sequence[Mapping[str, float]], names: Sequence[str]) -> str:
    series = [
        Series(name, tuple((point["features"], point[name]) for point in path if name in point), slot)
        for slot, name in enumerate(names)
    ]
    frame = Frame(
        "Accuracy against the number of features used", "features", "accuracy", x_format="{:g}".format,
        y_format="{:.1%}".format, tick_format="{:.0%}".format,
    )  # fmt: skip
    return line_plot(series, frame)


def _section(name: str, reasons: Sequence[Reason]) -> str:
    most = max((abs(reason.weight) for reason in reasons), default=1.0) or 1.0
    lines = "".join(_line(reason, most) for reason in reasons)
    widths = "".join(f"<col style='width:{share}%'>" for share in (50, 10, 15, 25))
    table = f"<table style='table-layout:fixed'><colgroup>{widths}</colgroup><tbody>{lines}</tbody></table>"
    body = table if lines else "<p>No text counts for this class.</p>"
    return f"<h2>{escape(name)}</h2>{body}"


def _line(reason: Reason, most: float) -> str:
    share = 100 * abs(reason.weight) / most
    bar = f"<svg class='chart' width='120' height='8' role='img'><title>{reason.weight:.3g}</title>"
    bar += f"<g class='s0'><rect class='bar' width='{share:.1f}%' height='8'/></g></svg>"
    pictures = "".join(_picture(data, reason.words) for data in reason.pictures)
    cells = "".join(f"<td>{cell}</td>" for cell in (f"{reason.weight:.3g}", bar, pictures))
    return f"<tr><th scope='row'>{escape(reason.words)}</th>{cells}</tr>"


def _picture(data: bytes, words: str) -> str:
    coded = base64.b64encode(data).decode("ascii")
    return (
        f"<img width='64' height='64' alt='{escape(words, quote=True)}' src='data:image/png;base64,{coded}'> "
    )
