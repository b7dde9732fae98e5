"""The page of corrupted images: means by severity, names escaped."""

from __future__ import annotations

import re

from secateur.report.shift import by_severity, shift_page


def result(offset: float) -> dict:
    cells = {
        name: {"1": {"accuracy": 0.8 + offset, "ece": 0.1}, "3": {"accuracy": 0.4 + offset, "ece": 0.2}}
        for name in ("fog", "snow", "contrast")
    }
    return {
        "label": "secateur rendering", "table": "cifar-c", "seed": 0, "count": 9, "severities": [1, 3],
        "clean": {"accuracy": 0.9, "ece": 0.05}, "corruptions": cells,
        "by_corruption": {name: 0.6 + offset for name in cells}, "robust_accuracy": 0.6 + offset, "ece": 0.15,
    }  # fmt: skip


def test_page_and_means() -> None:
    page = shift_page([("a<b>", result(0.0)), ("other", result(0.05))], "secateur evaluate ...")
    assert "a&lt;b&gt;" in page and "<b>" not in page and page.count("<svg") == 2
    plot = by_severity([("one", result(0.0))])
    tips = re.findall(r"<title>([^<]*)</title>", plot)
    assert (
        any("80.0%" in tip for tip in tips)
        and any("40.0%" in tip for tip in tips)
        and any("90.0%" in tip for tip in tips)
    )
