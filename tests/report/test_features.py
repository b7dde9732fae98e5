"""The page of a sparse head, from plain values."""

from __future__ import annotations

from secateur.report.features import Reason, features_page


def page(**other: object) -> str:
    given = {
        "classes": {"a<b": [Reason("long & thin", 2.0, (b"\x89PNG",)), Reason("red", 1.0)], "none": []},
        "accuracy": {"test": {"0": 0.5, "0.5": 0.6, "1": 0.7}},
        "path": [{"features": 1, "test": 0.4}, {"features": 9, "test": 0.7}],
    }
    return features_page("title", "lead", **{**given, **other})  # type: ignore[arg-type]


def test_texts_are_escaped_and_bars_are_shares_of_the_largest_weight() -> None:
    found = page()
    assert "<h2>a&lt;b</h2>" in found and "long &amp; thin" in found and "a<b" not in found
    assert "width='100.0%'" in found and "width='50.0%'" in found
    assert "No text counts for this class." in found
    assert "data:image/png;base64,iVBORw==" in found


def test_the_table_names_both_ends_of_the_blend() -> None:
    found = page()
    assert "zero-shot" in found and "this head" in found and "alpha 0.5" in found and "70.0%" in found
    assert "Accuracy against the number of features used" in found
    assert "Accuracy against" not in page(path=())


def test_how_many_classes_are_left_out_is_said() -> None:
    assert "2 of 1000 classes" in page(total=1000) and "classes.</p>" not in page()
