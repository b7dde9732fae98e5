"""The small page: everything but charts is escaped."""

from __future__ import annotations

from secateur.report.simple import simple_page


def test_texts_are_escaped_and_charts_are_not() -> None:
    page = simple_page("<t>", "<l>", ["<svg></svg>"], ["<h>", "x"], [["<r>", "<c>"]], "<e>")
    for word in ("t", "l", "h", "r", "c", "e"):
        assert f"&lt;{word}&gt;" in page and f"<{word}>" not in page
    assert "<figure><svg></svg></figure>" in page and page.count("<td>") == 1
    assert "<thead>" not in simple_page("t", "l", [], (), [["a", "b"]])
