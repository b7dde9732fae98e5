"""The frame of a small page: title, charts and one table. Offline, no script, the style of the large one."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

_TEMPLATES = Path(__file__).parent / "templates"


def simple_page(
    title: str,
    lead: str,
    charts: Sequence[str],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    end: str = "",
    sections: str = "",
) -> str:
    """One HTML page.

    Args:
        title, lead, heads, rows, end: plain text, escaped here; the first cell of a row is its head.
        charts: inline SVG, as the functions of report/ return it.
        sections: HTML between the charts and the table; it may hold pictures as data URIs.
    """
    style = "\n".join((_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "chart.css"))
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr><th scope='row'>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; img-src data:" if sections else "")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{policy}\">"
        f"<title>{escape(title)}</title><link rel='icon' href='data:,'><style>{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>{''.join(f'<figure>{chart}</figure>' for chart in charts)}"
        f"{sections}<table>{f'<thead><tr>{head}</tr></thead>' if heads else ''}<tbody>{body}</tbody></table>"
        f"<p>{escape(end)}</p></main></body></html>\n"
    )
