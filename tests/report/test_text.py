from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from secateur.report.text import markdown_table, terminal_table
from tests.report import example


def _shown(results: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(terminal_table(results))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_terminal_shows_figures_and_names_what_is_missing() -> None:
    shown = _shown(example.demo())
    line = next(line for line in shown.splitlines() if "wanda" in line)
    for figure in ("50.0%", "70.55 (+37.65)", "538 MB", "163 M", "32 s", "2.35 GB"):
        assert figure in line
    assert "not measured: accuracy, tokens/s" in shown


def test_terminal_fits_eighty_columns_without_wrapping() -> None:
    shown = _shown(example.demo(), 80)
    assert sum("magnitude 50%" in line and "525.4 (+492.5)" in line for line in shown.splitlines()) == 1


def test_terminal_never_cuts_a_figure_off() -> None:
    shown = _shown(example.sweep(), 60)
    assert "…" not in shown and "means over up to 3 seeds" in shown


def test_terminal_reads_names_as_text() -> None:
    results = example.demo()
    results["rows"][1]["name"] = "[bold]x[/bold]\x1b[31m"
    shown = _shown(results)
    assert "[bold]x[/bold]" in shown and "\x1b" not in shown


def test_markdown_by_hand() -> None:
    lines = markdown_table(example.demo()).splitlines()
    assert lines[0].startswith("| Model | Sparsity | Density |") and lines[1].startswith("| --- | ---: |")
    assert lines[4].startswith("| wanda 50% | 50.0% | 50.0% |") and "70.55 (+37.65)" in lines[4]
    assert lines[-1] == "not measured: accuracy, tokens/s"


def test_markdown_escapes() -> None:
    results = example.demo()
    results["rows"][1]["name"] = "a|b\n<script> `x` [l](u) & c\\"
    line = markdown_table(results).splitlines()[3]
    assert line.startswith(r"| a\|b &lt;script&gt; \`x\` \[l\](u) &amp; c\\ | ")
