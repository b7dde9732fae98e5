"""The page of a training, written again after every epoch: loss, accuracy and density against epochs. No script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from secateur.report.svg import Frame, Series, line_plot

_TEMPLATES = Path(__file__).parent / "templates"
_PLOTS = (("accuracy", "Test accuracy"), ("loss", "Training loss"), ("density", "Density"))


def curves_page(figures: Mapping[str, Any]) -> str:
    """One offline HTML page.

    Args:
        figures: what training.json holds: model, data, method, settings, history (rows with epoch and the plotted
            figures), and, once the training has ended, the report's figures.
    """
    style = "\n".join((_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "chart.css"))
    title = f"{figures['model']} on {figures['data']}, {figures['method']}"
    history = figures.get("history") or []
    epochs = f"{len(history)} of {figures['training']['epochs']} epochs"
    plots = [_plot(history, key, name) for key, name in _PLOTS if any(key in row for row in history)]
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in _facts(figures)
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>{epochs}</p>{''.join(f'<figure>{p}</figure>' for p in plots)}"
        f"<table>{rows}</table></main></body></html>\n"
    )


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
