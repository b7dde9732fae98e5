"""The page of a training, written again after every epoch: loss, accuracy and density against epochs. No script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.report.simple import simple_page
from secateur.report.svg import Frame, Series, line_plot

_PLOTS = (("accuracy", "Test accuracy"), ("loss", "Training loss"), ("density", "Density"))


def curves_page(figures: Mapping[str, Any]) -> str:
    """One offline HTML page.

    Args:
        figures: what training.json holds: model, data, method, settings, history (rows with epoch and the plotted
            figures), and, once the training has ended, the report's figures.
    """
    title = f"{figures['model']} on {figures['data']}, {figures['method']}"
    history = figures.get("history") or []
    lead = f"{len(history)} of {figures['training']['epochs']} epochs"
    charts = [_plot(history, key, name) for key, name in _PLOTS if any(key in row for row in history)]
    return simple_page(title, lead, charts, (), _facts(figures))


def _plot(history: list[Mapping[str, float]], key: str, name: str) -> str:
    points = tuple((row["epoch"], row[key]) for row in history if key in row)
    frame = Frame(
        name, "epoch", name.lower(), width=760, height=260, y_format="{:.4g}".format, x_format="{:g}".format
    )
    return line_plot([Series(name, points, 0)], frame)


def _facts(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in figures.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "version":
            found.append((re.sub("_", " ", key), f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3g}"))
    settings = ", ".join(f"{key} {value}" for key, value in figures.get("settings", {}).items())
    return [*found, ("settings", settings or "none")]
