from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from secateur.report import svg

EVIL = "<script>alert(1)</script>\"'&"
CURVES = [
    svg.Series("wanda", ((0.3, 37.0), (0.5, 69.0), (0.5, 71.0)), 0),
    svg.Series(EVIL, ((0.3, 55.0), (0.5, 506.0)), 1),
]
FRAME = svg.Frame(EVIL, "Sparsity", "Perplexity", log=True, reference=("dense 32.9", 32.9))
CHARTS = {
    "line_plot": lambda: svg.line_plot(CURVES, FRAME),
    "dot_plot": lambda: svg.dot_plot(CURVES, FRAME),
    "bars": lambda: svg.bars([svg.Bar(EVIL, 3.0, "3 <s>", 0), svg.Bar("b", None, "not measured", 9)], EVIL),
    "heat_map": lambda: svg.heat_map(
        [EVIL, "1"], ["q", EVIL], {(0, 0): (0.5, EVIL), (1, 1): (7.0, "t")}, EVIL
    ),
    "kept_grid": lambda: svg.kept_grid(0.5, EVIL),
}


@pytest.mark.parametrize("name", CHARTS)
def test_is_well_formed_titled_escaped_and_byte_stable(name: str) -> None:
    drawn = CHARTS[name]()
    assert drawn == CHARTS[name]()
    root = ET.fromstring(drawn)
    assert (
        root.tag == "svg" and root.attrib["role"] == "img" and root[0].tag == "title" and root[0].text == EVIL
    )
    assert "<script" not in drawn and "http" not in drawn and "style=" not in drawn


@pytest.mark.parametrize("name", CHARTS)
def test_coordinates_are_finite_and_short(name: str) -> None:
    numbers = re.findall(r'="(-?[\d.]+|nan|inf)"', CHARTS[name]())
    assert numbers and all(math.isfinite(float(n)) and len(n.partition(".")[2]) <= 2 for n in numbers)


def test_num_has_no_negative_zero_and_no_trailing_zeros() -> None:
    assert [svg.num(v) for v in (-0.001, 2.0, 2.5, 100.0, 1 / 3)] == ["0", "2", "2.5", "100", "0.33"]


def test_line_passes_through_the_means_and_shows_every_seed() -> None:
    root = ET.fromstring(svg.line_plot([CURVES[0]], svg.Frame("t", "x", "y")))
    line = root.find(".//polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    seeds = [float(c.attrib["cy"]) for c in root.iter("circle") if c.attrib["class"] == "seed"]
    assert len(points) == 2 and len(seeds) == 2
    assert points[1][1] == pytest.approx(sum(seeds) / 2, abs=0.02)
    assert points[0][1] > points[1][1]  # more perplexity stands higher


def test_what_is_not_finite_is_not_drawn() -> None:
    broken = svg.Series("broken", ((0.5, math.inf), (0.6, math.nan)), 0)
    assert "not measured" in svg.line_plot([broken], FRAME)
    assert "broken" not in svg.line_plot([broken, *CURVES], FRAME)


def test_missing_bar_has_an_empty_track_and_its_words() -> None:
    root = ET.fromstring(
        svg.bars([svg.Bar("a", None, "not measured", 0), svg.Bar("b", 2.0, "2", 1)], "t", 4.0)
    )
    first, second = root.findall("g")
    assert [r.attrib["class"] for r in first.findall("rect")] == ["track"]
    assert second.findall("rect")[1].attrib["width"] == "50%"
    assert "not measured" in [t.text for t in first.findall("text")]


def test_a_figure_below_dense_stands_left_of_its_mark() -> None:
    frame = svg.Frame("t", "x", "accuracy", reference=("dense", 0.41))
    root = ET.fromstring(svg.dot_plot([svg.Series("wanda", ((0.5, 0.3),), 0)], frame))
    value = next(t for t in root.iter("text") if t.attrib.get("class") == "value")
    circle = next(root.iter("circle"))
    assert value.attrib["text-anchor"] == "end" and float(value.attrib["x"]) < float(circle.attrib["cx"])


@pytest.mark.parametrize(("sparsity", "gone"), [(0.0, 0), (0.5, 50), (0.996, 100), (0.374, 37)])
def test_kept_grid_counts(sparsity: float, gone: int) -> None:
    drawn = svg.kept_grid(sparsity, "t")
    assert drawn.count('class="gone"') == gone and drawn.count('class="stay"') == 100 - gone


def test_a_chart_alone_is_a_file() -> None:
    root = ET.fromstring(svg.standalone(svg.line_plot(CURVES, FRAME)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].tag.endswith("style") and "--s0" in (root[0].text or "")
