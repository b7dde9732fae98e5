from __future__ import annotations

import csv
import io
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from secateur.errors import BadInput
from secateur.report import radar as page

EVIL = "<script>alert(1)</script>\"'&|"
NAMES = ("fog", "snow", "zoom_blur", "glass_blur", "contrast")


def result(base: float, names: tuple[str, ...] = NAMES, **more: Any) -> dict[str, Any]:
    cells = {
        n: {str(s): {"accuracy": base - 0.05 * s - 0.03 * (i % 5), "ece": 0.05} for s in (1, 2)}
        for i, n in enumerate(names)
    }
    return {
        "label": "secateur rendering", "table": "cifar-c", "seed": 0, "count": 2000, "severities": [1, 2],
        "clean": {"accuracy": base, "ece": 0.021}, "corruptions": cells,
        "by_corruption": {n: sum(c["accuracy"] for c in row.values()) / 2 for n, row in cells.items()},
        "robust_accuracy": base - 0.1, "ece": 0.05, "mce": None, "relative_mce": None, **more,
    }  # fmt: skip


MODELS = [("dense", result(0.9)), (EVIL, result(0.8)), ("wanda 80%", result(0.7, NAMES[:4]))]


def test_is_well_formed_titled_escaped_and_byte_stable() -> None:
    drawn = page.radar(MODELS, EVIL)
    assert drawn == page.radar(MODELS, EVIL)
    root = ET.fromstring(drawn)
    assert root.tag == "svg" and root.attrib["role"] == "img" and root[0].text == EVIL
    assert "<script" not in drawn and "http" not in drawn and "style=" not in drawn
    numbers = [float(n) for n in re.findall(r'="(-?[\d.]+|nan|inf)"', drawn)]
    assert all(math.isfinite(n) for n in numbers)


def outlines(drawn: str) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(drawn)
    found = [p for p in root.iter("polygon") if p.attrib["class"].startswith("line")]
    return [
        [(float(x), float(y)) for x, y in (q.split(",") for q in p.attrib["points"].split())] for p in found
    ]


def test_the_distance_from_the_middle_is_the_accuracy_on_an_axis_from_zero() -> None:
    models = [("a", result(0.9)), ("b", result(0.8))]
    drawn = page.radar(models)
    rings = [p for p in ET.fromstring(drawn).iter("polygon") if p.attrib["class"] == "grid"]
    assert len(rings) >= 3
    middle = (280.0, 0.3 * 560 + 46)
    for (_, found), points in zip(models, outlines(drawn), strict=True):
        assert len(points) == 5
        distances = [math.dist(point, middle) for point in points]
        wanted = [found["by_corruption"][name] for name in NAMES]
        scale = distances[0] / wanted[0]
        assert distances == pytest.approx([w * scale for w in wanted], abs=0.05)
    # The best, 0.825, is drawn on an axis to 0.9.
    assert math.dist(outlines(drawn)[0][0], middle) == pytest.approx(168 * 0.825 / 0.9, abs=0.05)
    assert outlines(drawn)[0][0][0] == 280 and outlines(drawn)[0][0][1] < middle[1], (
        "the first spoke points up"
    )


def test_a_corruption_not_measured_leaves_the_outline_and_an_empty_cell() -> None:
    assert [len(points) for points in outlines(page.radar(MODELS))] == [5, 5, 4]
    _, rows = page.corruption_rows(MODELS)
    assert rows[4] == ["contrast", "70.5%", "60.5%", ""]


def test_every_model_has_its_own_colour_and_dense_its_own() -> None:
    def colours(drawn: str) -> list[str]:
        return [
            t.attrib["class"]
            for t in ET.fromstring(drawn).iter("text")
            if "name" in t.attrib.get("class", "")
        ]

    assert colours(page.radar(MODELS)) == ["name ref", "name s0", "name s1"]
    assert colours(page.radar(MODELS, dense=False)) == ["name s0", "name s1", "name s2"]


@pytest.mark.parametrize("size", [360, 560])
def test_names_stay_inside_the_picture(size: int) -> None:
    from secateur.robustness.severities import NAMES as ALL

    for text in ET.fromstring(page.radar([("a", result(0.95, ALL))], size=size)).iter("text"):
        if text.attrib.get("class") == "axis" and text.text:
            x, length = float(text.attrib["x"]), 6.4 * len(text.text)
            ends = {
                "end": (x - length, x),
                "start": (x, x + length),
                "middle": (x - length / 2, x + length / 2),
            }
            low, high = ends[text.attrib["text-anchor"]]
            assert low >= -1 and high <= size + 1, text.text


def test_two_corruptions_make_no_radar() -> None:
    assert "fewer than three" in page.radar([("a", result(0.9, NAMES[:2]))])


def test_the_table_has_a_row_a_corruption_and_the_means() -> None:
    heads, rows = page.corruption_rows(MODELS[:1])
    assert heads == ["Corruption", "dense"]
    assert rows[:2] == [["fog", "82.5%"], ["snow", "79.5%"]] and rows[2][0] == "zoom blur"
    assert rows[5:] == [["Clean", "90.0%"], ["Mean of the corruptions", "80.0%"], ["ECE, clean", "0.021"],
                        ["ECE, corrupted", "0.050"]]  # fmt: skip
    with_mce = page.corruption_rows([("a", result(0.9, mce=76.7, relative_mce=105.0))])[1]
    assert ["mCE", "76.7"] in with_mce and ["Relative mCE", "105.0"] in with_mce


def test_markdown_escapes_and_says_what_the_images_are() -> None:
    text = page.corruption_markdown(MODELS)
    lines = text.splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: |" and "<script" not in text and "\\|" in lines[0]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines[:3])
    assert lines[-1] == "cifar-c parameters, secateur rendering, seed 0, 2,000 images, severities 1, 2"
    other = result(0.9, label="published set", seed=None, severities=[1, 2, 3, 4, 5])
    assert (
        page.source_words([("a", other)])
        == "cifar-c parameters, published set, 2,000 images, severities 1 to 5"
    )


def test_csv_has_a_line_a_cell_and_never_starts_a_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(page.corruption_csv([("=1+1", result(0.9))]))))
    assert len(rows) == 1 + 5 * 2 and rows[0]["corruption"] == "clean" and rows[0]["severity"] == "0"
    assert rows[1] == {
        "model": "'=1+1",
        "corruption": "fog",
        "severity": "1",
        "accuracy": "0.85",
        "ece": "0.05",
    }


def test_control_characters_of_a_name_are_taken_out() -> None:
    models = [("a\x1b[31m\u202eb", result(0.9))]
    for text in (page.radar(models), page.corruption_markdown(models), page.corruption_csv(models)):
        assert "\x1b" not in text and "\u202e" not in text


def test_bad_results_are_refused() -> None:
    with pytest.raises(BadInput, match="no model"):
        page.radar([])
    broken = result(0.9)
    broken["by_corruption"]["fog"] = 82.5
    with pytest.raises(BadInput, match=r"82\.5 on fog"):
        page.corruption_rows([("a", broken)])
