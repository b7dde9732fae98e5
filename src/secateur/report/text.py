"""The table of results for a terminal (rich) and as Markdown: means over seeds, differences to dense in brackets.

Columns that no row measured are left out and named below the table, so that an absent figure is never read as a zero.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from secateur.errors import require
from secateur.report import groups, parts, words
from secateur.report.table import check_results

if TYPE_CHECKING:
    from rich.table import Table

_MARKDOWN = re.compile(r"([\\`*_\[\]|~!])")


# For a terminal of 80 columns: the figures that must be seen, under short heads.
_SHORT = {"Bytes": "On disk", "FLOPs per token": "FLOPs", "Time to cut": "Cut in", "Peak memory": "Peak"}
_LEFT_OUT = ("sparsity", "model_density")


def _cells(view: groups.View, short: bool = False) -> tuple[list[str], list[list[str]], list[str]]:
    """(heads, one list of texts a group, names of the columns nobody measured)."""
    columns = [c for c in parts.columns(view) if not (short and c.field in _LEFT_OUT)]
    lines = parts.summary(view, columns)
    kept = [i for i in range(len(columns)) if any(not line.cells[i].missing for line in lines)]
    names = [_SHORT.get(column.head, column.head) if short else column.head for column in columns]
    heads = ["Model", *[names[i] for i in kept]]
    rows = []
    for line in lines:
        texts = [
            _beside(line.cells[i].text, line.cells[i].small, short and columns[i].metric != view.metric)
            for i in kept
        ]
        rows.append([_beside(line.name, line.small, short), *texts])
    absent = [column.head for i, column in enumerate(columns) if i not in kept]
    return heads, rows, absent


def _beside(text: str, small: str, short: bool) -> str:
    return f"{text} ({small})" if small and not short else text


def _unmeasured(absent: list[str]) -> str:
    return f"{words.MISSING}: {', '.join(name[:1].lower() + name[1:] for name in absent)}" if absent else ""


def terminal_table(results: dict[str, Any]) -> Table:
    """A rich table of the results; names are shown as they are, never read as markup.

    Raises:
        BadInput, Unsupported: see `check_results`; rich is not installed.
    """
    rich_table, rich_text = require("rich.table", "cli"), require("rich.text", "cli")
    box = require("rich.box", "cli")
    view = groups.view(check_results(results))
    heads, rows, absent = _cells(view, short=True)
    seeds = max(len(group.rows) for group in view.groups)
    said = [f"means over up to {seeds} seeds" if seeds > 1 else "", _unmeasured(absent)]
    caption = rich_text.Text("; ".join(words_ for words_ in said if words_))
    table = rich_table.Table(
        box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1, 0, 0)
    )
    for index, head in enumerate(heads):
        # Folded where the terminal is narrow: a figure is never cut off.
        table.add_column(rich_text.Text(head), justify="right" if index else "left", overflow="fold")
    best = groups.best(view.shown, view.metric) if len(view.shown) > 1 else None
    for group, row in zip(view.groups, rows, strict=True):
        style = "dim" if group is view.dense else "bold" if group is best else ""
        table.add_row(*[rich_text.Text(text.replace("\n", " ")) for text in row], style=style)
    return table


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line, without HTML."""
    one_line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", one_line)


def markdown_table(results: dict[str, Any]) -> str:
    """The same table in Markdown, for a README, an issue, or a terminal without rich; ends with a newline."""
    heads, rows, absent = _cells(groups.view(check_results(results)))
    rule = ["---", *["---:" for _ in heads[1:]]]
    lines = [[_escape(head) for head in heads], rule, *[[_escape(text) for text in row] for row in rows]]
    note = f"\n{_escape(_unmeasured(absent))}\n" if absent else ""
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + note
