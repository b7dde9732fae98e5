"""The page in a real browser: no complaint, no request, nothing off the screen, in light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur.report.page import write_page
from tests.report import example
from tests.report.browser import Browser, chromium
from tests.report.test_page import hostile

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(chromium() is None, reason="no chromium on this machine (apt install chromium)"),
]
PAGES = {"sweep": example.sweep, "demo": example.demo, "hostile": hostile}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: write_page(make(), folder / f"{name}.html") for name, make in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (420, "light"), (420, "dark")]
)
def test_opens_clean(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    browser.open(pages[name], width, scheme)
    assert browser.value("document.querySelector('h1').textContent")
    picture = browser.screenshot(tmp_path / "page.png")
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.scripts.length") == 1
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    dark = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 18)"
    assert dark is (scheme == "dark")


def test_a_complaint_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('boo')</script><img src='file:///absent.png'>")
    browser.open(bad)
    assert any("boo" in said for said in browser.complaints())
    assert len(browser.requests()) == 2


def test_the_policy_stops_a_script_and_a_request(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    html = (
        pages["demo"]
        .read_text()
        .replace("<main>", "<main><script>document.title='no'</script><img src='a.png'>")
    )
    (tmp_path / "injected.html").write_text(html)
    browser.open(tmp_path / "injected.html")
    assert browser.value("document.title") != "no"
    assert len(browser.complaints()) >= 2


def test_sorting_puts_the_missing_last(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["sweep"])
    browser.value("""
        window.column = head => [...document.querySelector('table').tHead.rows[1].cells]
            .findIndex(cell => cell.textContent === head);
        window.sort = head => document.querySelector('table').tHead.rows[1].cells[column(head)]
            .querySelector('button').click();
        window.texts = head => [...document.querySelector('table').tBodies[0].rows]
            .map(row => row.cells[column(head)].textContent);
        null""")
    browser.value("sort('Time to cut')")
    times = browser.value("texts('Time to cut')")
    assert times[0] == "3.1 s" and times[-1] == "no cut"
    browser.value("sort('Time to cut')")
    assert browser.value("texts('Time to cut')")[-1] == "no cut"
    browser.value("sort('Perplexity')")
    names = browser.value("texts('Model')")
    assert names[0].startswith("dense") and names[-1].startswith("magnitude 60%")
    browser.value("sort('Model')")
    assert browser.value("texts('Model')")[:2] == ["dense", "magnitude 30%3 seeds"]


def test_prints(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["demo"], 1280, "dark")
    printed = browser.pdf()
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") in range(2, 7)
