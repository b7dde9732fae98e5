"""The page of a training: the figures it is given, escaped, and no script."""

from __future__ import annotations

from secateur.report.curves import curves_page

FIGURES = {
    "model": "net <b>",
    "data": "digits",
    "method": "gmp",
    "settings": {"sparsity": 0.9},
    "training": {"epochs": 3},
    "accuracy": 0.97,
    "train_flops": 3.25e9,
    "history": [
        {"epoch": 1.0, "loss": 2.0, "accuracy": 0.5, "density": 1.0},
        {"epoch": 2.0, "loss": 1.0, "accuracy": 0.75, "density": 0.1},
    ],
}


def test_plots_and_facts() -> None:
    page = curves_page(FIGURES)
    assert page.count("<svg") == 3 and "2 of 3 epochs" in page
    assert "net &lt;b&gt;" in page and "<b>" not in page and "<script" not in page
    assert "3.25e+09" in page and "sparsity 0.9" in page


def test_before_the_first_epoch() -> None:
    page = curves_page({**FIGURES, "history": []})
    assert "<svg" not in page and "0 of 3 epochs" in page
