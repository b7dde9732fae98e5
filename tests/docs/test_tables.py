"""What the documents list is what the code has; the site builds, and loads nothing from outside."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from secateur import errors
from secateur.check import checks
from secateur.cli.main import VERBS
from secateur.engine.run import FEEDS
from tests.docs.commands import ROOT, blocks, commands

DOCS = ROOT / "docs"


def rows(path: Path) -> list[list[str]]:
    """The cells of every table row of a document."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_battery_is_listed_question_by_question() -> None:
    listed = {row[0].strip("`"): row[1] for row in rows(DOCS / "check.md") if row[0].startswith("`")}
    assert listed == checks()


def test_the_six_errors_are_listed() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    ours = {
        name
        for name in classes
        if issubclass(getattr(errors, name), errors.SecateurError) and name != "SecateurError"
    }
    listed = {row[0].strip("`") for row in rows(DOCS / "errors.md") if re.fullmatch(r"`[A-Z]\w+`", row[0])}
    assert listed == ours and len(ours) == 6


def test_the_feeds_are_listed() -> None:
    listed = {
        re.sub(r"[` ].*", "", row[0].lstrip("`")) for row in rows(DOCS / "feeds.md") if row[0].startswith("`")
    }
    assert listed == set(FEEDS)


def test_the_readme_shows_every_verb_and_stays_short() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = {
        command.split()[1]
        for block in blocks(text)
        if block.language == "bash"
        for _, command in commands(block)
    }
    assert set(VERBS) <= shown
    assert len(text.splitlines()) < 150


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "decisions" / "index.md").read_text("utf-8")
    files = sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.md"))
    assert re.findall(r"\]\((\d[^)]+)\)", index) == files
    for path in files:
        title = (DOCS / "decisions" / path).read_text("utf-8").splitlines()[0]
        assert f"[{title.partition('. ')[2]}]({path})" in index


def test_links_of_the_documents_outside_the_site_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text("utf-8")):
            assert "://" in target or (ROOT / target).is_file(), f"{name} links to {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_holds_every_document(site: Path) -> None:
    for path in DOCS.rglob("*.md"):
        assert (site / path.relative_to(DOCS)).with_suffix(".html").is_file()


def test_no_page_of_the_site_loads_anything_from_outside(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"')
    for page in site.rglob("*.html"):
        assert loads.findall(page.read_text("utf-8")) == [], page
