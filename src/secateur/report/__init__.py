"""Results shown to people: one offline page, charts, and tables for files, terminals and documents.

Everything here reads the shape of results.json (`table.check_results`) and measures nothing itself.
"""

from __future__ import annotations

from secateur.report.page import render_page, write_page, write_plot
from secateur.report.table import check_results, load_results, to_csv, to_json, write_tables
from secateur.report.text import markdown_table, terminal_table

__all__ = [
    "check_results",
    "load_results",
    "markdown_table",
    "render_page",
    "terminal_table",
    "to_csv",
    "to_json",
    "write_page",
    "write_plot",
    "write_tables",
]
