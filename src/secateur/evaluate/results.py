"""results.json: the head every table and page shares (command, versions, machine), and the files written from it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.errors import require
from secateur.io.files import write_atomic
from secateur.report import groups, parts
from secateur.report.page import write_page, write_plot
from secateur.report.table import FORMAT, VERSION, check_results, write_tables

Row = dict[str, Any]
PAGE = "report.html"


def new_results(
    rows: Sequence[Row],
    *,
    title: str,
    command: str,
    model: str,
    calibration: str = "",
    evaluation: str = "",
    prompt: str = "",
    notes: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """Rows under a full head. `more`: further fields of the format, such as `knee`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
        "machine": machine(),
        "model": model,
        "calibration": calibration,
        "evaluation": evaluation,
        "prompt": prompt,
        "notes": list(notes),
        "rows": list(rows),
        **more,
    }


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    found = {"python": platform.python_version()}
    for name in ("secateur", "torch", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed, so it decided nothing
    return found


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, and memory in GB."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = (
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        )
        cpu = next(named, cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out: dict[str, Any] = {"cpu": cpu, "cores": cores}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    return out


def check_page() -> None:
    """Refuse before hours of work what the page will need at their end."""
    require("jinja2", "report")


def write_results(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """results.json, results.csv, layers.csv, results.md, report.html and, where a cut has a perplexity, plot.svg in
    `folder`; returns their paths."""
    folder = Path(folder)
    paths = write_tables(results, folder)
    write_atomic(folder / "results.md", markdown(results))
    paths += [folder / "results.md", write_page(results, folder / PAGE)]
    if any(row["method"] != "dense" and "perplexity" in row["metrics"] for row in results["rows"]):
        paths.append(write_plot(results, folder / "plot.svg"))
    return paths


def lines(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of results as text: heads, and one line of cells a cut (mean over seeds, spread where there are some).
    Columns that nothing was measured for are left out."""
    view = groups.view(check_results(results))
    shown = [c for c in parts.columns(view) if any(g.mean(c.field) is not None for g in view.groups)]
    out = []
    for group, line in zip(view.groups, parts.summary(view, shown), strict=True):
        cells = ["-" if cell.missing else cell.text for cell in line.cells]
        for at, column in enumerate(shown):
            spread = group.spread(column.field) if column.metric else None
            if spread is not None:
                cells[at] += f" ({column.show(spread[0])} to {column.show(spread[1])})"
        out.append([group.name, *cells])
    return ["", *(column.head for column in shown)], out


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown, with what was measured on and the command that made it."""
    head, body = lines(results)
    rows = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    about = "; ".join(
        f"{word}: {results[word]}"
        for word in ("model", "calibration", "evaluation", "command")
        if results.get(word)
    )
    return f"{table}\n\n{about}\n"
