"""The page of models on corrupted images: a radar, accuracy against severity, and the table. Offline, no script."""

from __future__ import annotations

from secateur.report.radar import Results, corruption_rows, radar, source_words
from secateur.report.simple import simple_page
from secateur.report.svg import Frame, Series, line_plot


def shift_page(results: Results, command: str = "") -> str:
    """One HTML page of `[(name, result), ...]`, results as `evaluate_corruptions` gives them."""
    title = " and ".join(name for name, _ in results) + " on corrupted images"
    charts = [radar(results, dense=len(results) > 1), by_severity(results)]
    heads, rows = corruption_rows(results)
    return simple_page(title, source_words(results), charts, heads, rows, command)


def by_severity(results: Results) -> str:
    """Mean accuracy over the corruptions against severity, clean at 0, a line a model, as inline SVG."""
    series = []
    for slot, (name, result) in enumerate(results, -1 if len(results) > 1 else 0):
        points = [(0.0, result["clean"]["accuracy"])]
        for severity in result["severities"]:
            cells = [
                row[str(severity)]["accuracy"]
                for row in result["corruptions"].values()
                if str(severity) in row
            ]
            points += [(float(severity), sum(cells) / len(cells))] if cells else []
        series.append(Series(name, tuple(points), slot))
    percent = "{:.0%}".format
    frame = Frame(
        "Mean accuracy at each severity (0 is clean)", "severity", "accuracy", x_format="{:g}".format,
        y_format="{:.1%}".format, tick_format=percent,
    )  # fmt: skip
    return line_plot(series, frame)
