"""The checked-in cards are what the registry and the docstrings say."""

from __future__ import annotations

import pytest

from secateur.registry import names
from tools import cards


def test_the_pages_in_docs_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert cards.main(["--check"]) == 0, capsys.readouterr().out


def test_every_method_has_a_page_with_all_its_settings() -> None:
    pages = cards.render_all()
    assert sorted(pages) == sorted(["index.md", *(f"{name}.md" for name in names())])
    assert "| `--share` | switch | off | cut by share of the row's total score" in pages["wanda.md"]
    assert "| `--pattern` | pattern | `row` | what competes" in pages["wanda.md"]  # from the base class
    assert "| `--pattern` | pattern | `layer` |" in pages["magnitude.md"]
    assert "| needs | input norms |" in pages["wanda.md"] and "| needs | nothing |" in pages["magnitude.md"]
    assert "compared inside each output row i" in pages["wanda.md"]
    assert "| when | during training |" in pages["gmp.md"] and "secateur train" in pages["gmp.md"]


def test_every_setting_is_explained() -> None:
    empty = [
        (name, row)
        for name in names()
        for row in cards.card(name).splitlines()
        if row.startswith("| `--") and row.endswith("|  |")
    ]
    assert empty == []


def test_a_changed_page_and_a_stray_one_are_reported(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    assert cards.main([]) == 0 and cards.main(["--check"]) == 0
    (tmp_path / "wanda.md").write_text("changed")
    (tmp_path / "gone.md").write_text("a method that was removed")
    capsys.readouterr()
    assert cards.main(["--check"]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "docs/cards/wanda.md",
        "docs/cards/gone.md",
    ]
    assert cards.main([]) == 0 and not (tmp_path / "gone.md").exists()


def test_arguments_of_a_docstring() -> None:
    text = """Title.

    Args:
        one: first line
            and its second.
        two, three: for both.

    Returns:
        four: not a setting.
    """
    assert cards._arguments(text) == {
        "one": "first line and its second.",
        "two": "for both.",
        "three": "for both.",
    }
    assert cards._arguments("Title only.") == {}
