"""Packed cuts on the page: forecast beside measurement."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.errors import BadInput
from secateur.report.packed import packed
from secateur.report.page import render_page
from secateur.report.table import check_results
from tests.report import example


def results(off: float = 0.05) -> dict[str, Any]:
    found = example.demo()
    found["rows"][1]["packed"] = {
        "way": "50% <bitmask> bfloat16",
        "forecast": {"tokens_per_second": 100 * (1 + off), "prompt_seconds": 0.2},
        "measured": {"tokens_per_second": 100.0, "prompt_seconds": 0.25},
        "bytes": 150_000_000,
        "prompt": 128,
        "off": off,
    }
    return found


def test_the_line_and_the_page() -> None:
    found = packed(check_results(results()))
    name = example.demo()["rows"][1]["name"]
    assert found.note == ""
    assert found.lines == [[name, "50% <bitmask> bfloat16", "150 MB", "100.0", "105.0", "+5%", "250", "200"]]
    page = render_page(results())
    assert "forecast beside measurement" in page and "50% &lt;bitmask&gt; bfloat16" in page
    assert "forecast beside measurement" not in render_page(example.demo()), "nothing was packed"


@pytest.mark.parametrize("off", [0.3, -0.3])
def test_a_forecast_far_off_is_pointed_at(off: float) -> None:
    found = results(off)
    assert packed(check_results(found)).note.startswith(f"More than 15% off: {found['rows'][1]['name']}.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"way": 3}, "'way' is a number"),
        ({"off": None}, "'off' is missing"),
        ({"bytes": -1}, "'bytes' is -1"),
        ({"measured": {"prompt_seconds": 1.0}}, "'tokens_per_second' is missing"),
        ({"forecast": "fast"}, "'forecast' is a text"),
    ],
)
def test_what_is_not_there_is_refused(change: dict[str, Any], said: str) -> None:
    found = results()
    found["rows"][1]["packed"] |= change
    with pytest.raises(BadInput, match=said):
        check_results(found)
