"""`secateur plasticity` on the digits: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.engine.train import Fit, fit
from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.images import load_images
from tests.cli.tiny import secateur

WORDS = ["--images", "digits", "--limit", "400", "--batch", "50"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlp-16 trained for a few epochs."""
    data = load_images("digits", "train")
    mean, std = data.statistics()
    model = load_classifier("mlp-16", channels=1, size=8, classes=10, seed=0, mean=mean, std=std)
    fit(model, to_batch(data.images), torch.as_tensor(data.labels), Fit(epochs=15, batch=64, lr=0.1))
    return save_classifier(model, tmp_path_factory.mktemp("digits") / "mlp")


def test_table_and_figures(digits: Path) -> None:
    said = secateur("plasticity", digits, "--images", "digits", "--fraction", "0.2,50%,0.9", "--json")
    assert said.status == 0, said.err
    rows = json.loads(said.out)
    assert [row["fraction"] for row in rows] == [0.2, 0.5, 0.9]
    test = load_images("digits", "test")
    whole = accuracy(load_classifier(digits), test.images, test.labels)
    assert all(row["before"] == whole > 0.9 for row in rows)
    assert rows[0]["cut"] > rows[1]["cut"] > rows[2]["cut"], "the more is cut, the more is lost"
    assert all(row["recovered"] > row["cut"] for row in rows[1:]), "training on brings accuracy back"
    assert [row["pruned"] for row in rows] == [204 + 32, 512 + 80, 921 + 144]
    assert len({row["uncut"] for row in rows}) == 1, "the same batches, whatever is cut"
    shown = secateur("plasticity", digits, "--images", "digits", "--fraction", "0.2,0.5,0.9").out.splitlines()
    assert shown[0].split() == ["fraction", "before", "after", "cut", "recovered", "plasticity", "gain"]
    row = rows[2]
    cells = [f"{100 * row[key]:.1f}%" for key in ("before", "cut", "recovered")]
    assert shown[4].split() == ["0.9", *cells, *(f"{100 * row[k]:+.1f}%" for k in ("plasticity", "gain"))]
    assert "1,184 of 1,184 weights alive before" in shown[5]


def test_flags_reach_the_measure() -> None:
    said = secateur("plasticity", "mlp-16", *WORDS, "--structured", "--regrow", "--steps", "0", "--json")
    (row,) = json.loads(said.out)
    assert row["units"] == 16 and row["pruned"] == row["regrown"] == 8
    assert row["cut"] == row["recovered"], "no step, and what grows back is zero"
    assert row["before"] == row["uncut"] < 0.3, "a new network knows nothing"
    said = secateur("plasticity", "mlp-16", *WORDS, "--criterion", "global", "--lr", "0.1", "--json")
    (trained,) = json.loads(said.out)
    assert trained["pruned"] == 592 and trained["recovered"] > 0.5 and trained["gain"] > 0.3
    other = secateur(
        "plasticity", "mlp-16", *WORDS, "--criterion", "global", "--lr", "0.1", "--json", "--seed", "1"
    )
    assert json.loads(other.out) != [trained]


@pytest.mark.parametrize(
    "words,line",
    [
        (["mlp-16"], "plasticity: missing --images"),
        (["mlp-16", *WORDS, "--fraction", "1.5"], "fraction: 1.5 is not a fraction in (0, 1)"),
        (["mlp-16", *WORDS, "--fraction", "half"], "'half' is no fraction"),
        (["mlp-16", *WORDS, "--fraction", ","], "--fraction: none"),
        (["mlp-16", *WORDS, "--criterion", "wanda"], "criterion: 'wanda' is no criterion"),
        (["mlp-16", *WORDS, "--lr", "0"], "lr > 0"),
        (["mlp-16", *WORDS, "--lr", "1e38"], "lower --lr"),
        (["mlp-16", *WORDS, "--batch", "500"], "samples make no batch of 500"),
        (["mpl-16", *WORDS], "no network, file or folder of this name"),
        (["mlp-16", "--images", "digit"], "did you mean 'digits'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str) -> None:
    said = secateur("plasticity", *words)
    assert said.status == 2 and line in said.err and said.err.count("\n") == 1, said.err
