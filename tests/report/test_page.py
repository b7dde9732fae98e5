from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.report import page
from tests.report import example

EVIL = "</style></title></script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text outside script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def hostile() -> dict[str, Any]:
    """Results with markup in every text a model, a prompt or a user could put there."""
    results = example.demo()
    for name in ("title", "command", "created", "model", "calibration", "evaluation", "prompt"):
        results[name] = EVIL
    results["machine"], results["versions"], results["notes"] = (
        {"cpu": EVIL, EVIL: EVIL},
        {EVIL: EVIL},
        [EVIL],
    )
    results["knee"] = {EVIL: {EVIL: 0.5}}
    for row in results["rows"]:
        row.update(name=row["name"] + EVIL, sample=EVIL + EVIL, folder=EVIL, notes=[EVIL])
        row["config"] = {"sparsity": 0.5, "pattern": EVIL}
        row["metrics"][EVIL] = 1.5
        row["method"] += "" if row["method"] == "dense" else EVIL
        for layer in row["layers"]:
            layer["name"] += EVIL
    return results


@pytest.fixture(scope="module")
def sweep() -> str:
    return page.render_page(example.sweep())


def test_nothing_is_fetched_from_anywhere(sweep: str) -> None:
    tags = _Tags(sweep).tags
    loads = [
        (tag, a[n])
        for tag, a in tags
        for n in ("src", "href", "srcset", "data", "action", "xlink:href")
        if n in a
    ]
    assert loads == [("link", "data:,")]
    assert not {tag for tag, _ in tags} & {
        "img",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "form",
        "base",
    }
    assert "http" not in sweep.replace("http-equiv", "") and "url(" not in sweep and "@import" not in sweep


def test_the_policy_names_our_own_style_and_script_by_hash(sweep: str) -> None:
    policy = next(
        a["content"] for tag, a in _Tags(sweep).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", sweep, re.S)
        assert len(inside) == 1 and f"{name} '{page._hash(inside[0])}'" in (policy or "")
    assert (policy or "").startswith("default-src 'none'") and "unsafe" not in (policy or "")
    assert not any("style" in a or any(n.startswith("on") for n in a) for _, a in _Tags(sweep).tags)


def test_same_results_same_bytes(sweep: str) -> None:
    assert page.render_page(example.sweep()) == sweep


def test_sections_and_figures(sweep: str) -> None:
    text = _Tags(sweep).text
    for words in (
        "sparsegpt cut 50% of the units that may be cut in smollm2-135m", "Cost, in four figures", "Bytes on disk",
        "FLOPs per token", "Measured time", "Quality against sparsity", "log scale", "What was cut, layer by layer",
        "Output error", "Knee of the curve", "none found", "The same prompt, continued", "How this was made",
        "secateur compare smollm2-135m", "torch 2.13.0", "AMD EPYC 7B13, 2 cores, 24 GB memory",
        "wiki.valid.raw, 32 windows of 512 tokens", "+25.90", "−24.7 pt", "All 210 at 50.0%.",
    ):  # fmt: skip
        assert words in text, words
    tips = re.findall(r"<title>(model\.layers[^<]*)</title>", sweep)
    assert len(tips) == 210 * 5  # three maps of what was cut, two of the error: magnitude reports none
    assert "Output error: not measured." in text


def test_what_was_not_measured_is_never_a_zero() -> None:
    results = example.demo()
    for name in ("bytes", "flops", "seconds", "peak_mb", "model_density", "density"):
        for row in results["rows"]:
            row[name] = None
    for name in ("command", "calibration", "evaluation", "machine", "versions", "created", "prompt", "title"):
        del results[name]
    html = page.render_page(results)
    body = re.search(r"<tbody>(.*?)</tbody>", html, re.S)
    assert body is not None
    cells = [
        re.findall(r'<td data-sort="([^"]*)" class="([^"]*)">([^<]*)', row)
        for row in body[1].split("</tr>")[:3]
    ]
    for row in cells:
        for index in (1, 2, 4, 5, 6, 7, 8, 9):  # density, model density, accuracy, and all that costs
            sort, kind, text = row[index]
            assert sort == "" and "missing" in kind and text in ("not measured", "no cut")
    assert html.count("not recorded") == 6


def test_hostile_text_stays_text() -> None:
    html = page.render_page(hostile())
    found = _Tags(html)
    assert [tag for tag, _ in found.tags].count("script") == 1 and "img" not in [tag for tag, _ in found.tags]
    assert found.text.count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in found.text and "49" not in re.findall(r"onerror=alert\(2\)>(\d+)", found.text)


def test_headers_belong_to_their_cells(sweep: str) -> None:
    tags = _Tags(sweep).tags
    assert all(a.get("scope") in ("col", "row", "colgroup") for tag, a in tags if tag == "th")
    assert [tag for tag, _ in tags].count("h1") == 1
    assert dict(tags)["html"] == {"lang": "en"}
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for tag, a in tags if tag == "svg")


def _contrast(one: str, two: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_texts_stand_out_in_light_and_in_dark() -> None:
    css = page._read("page.css") + page._read("chart.css")
    for name in ("ink", "muted", "keep", "ref", *[f"s{slot}" for slot in range(8)]):
        text = re.findall(rf"--{name}: (#\w{{6}})", css)
        paper, shade = re.findall(r"--paper: (#\w{6})", css), re.findall(r"--shade: (#\w{6})", css)
        assert len(text) == len(paper) == 2
        for index in range(2):
            assert _contrast(text[index], paper[index]) >= 4.5, (name, index)
            assert _contrast(text[index], shade[index]) >= 4.2, (name, index)


def test_write_page_is_whole_or_absent(tmp_path: Path) -> None:
    path = page.write_page(example.demo(), tmp_path / "deep" / "report.html")
    first = path.read_bytes()
    assert first.startswith(b"<!doctype html>") and [p.name for p in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(BadInput):
        page.write_page({"format": "else"}, path)
    assert path.read_bytes() == first


def test_write_plot(tmp_path: Path) -> None:
    path = page.write_plot(example.sweep(), tmp_path / "plot.svg")
    assert path.read_text().startswith("<svg ") and "sparsegpt" in path.read_text()
    with pytest.raises(NoMatch, match="did you mean 'accuracy'"):
        page.write_plot(example.sweep(), tmp_path / "plot.svg", "accuarcy")


def test_without_jinja2_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(Unsupported, match=r"pip install 'secateur\[report\]'"):
        page.render_page(example.demo())
