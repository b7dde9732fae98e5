"""Several methods on equal terms."""

from __future__ import annotations

import json

import pytest
import torch

from secateur.errors import BadInput, NoMatch
from secateur.evaluate.compare import compare
from secateur.evaluate.terms import Terms
from secateur.io.hub import Loaded
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.random import Random
from secateur.methods.weights.wanda import Wanda
from tests.tinylm import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(2)
    return Loaded(tiny_llama(), tiny_tokenizer(), "some/tiny", None)


@pytest.fixture(scope="module")
def terms(tmp_path_factory) -> Terms:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{i * i % 60}" for i in range(2000)))
    return Terms(calibration=path, text=path, samples=4, length=16, windows=4)


def test_one_row_a_method_and_seed_that_can_differ(loaded, terms):
    methods = [Magnitude(sparsity=0.5), Wanda(sparsity=0.5), Random(sparsity=0.5)]
    results = compare(loaded, methods, seeds=[0, 1], terms=terms)
    rows = [(row["name"], row["seed"]) for row in results["rows"]]
    assert rows == [
        ("dense", None), ("magnitude 50%", 0), ("wanda 50%", 0), ("wanda 50%", 1), ("random 50%", 0), ("random 50%", 1),
    ]  # fmt: skip
    wanda = [row["metrics"]["perplexity"] for row in results["rows"] if row["method"] == "wanda"]
    drawn = [row["metrics"]["perplexity"] for row in results["rows"] if row["method"] == "random"]
    assert wanda[0] != wanda[1] and drawn[0] != drawn[1]
    assert results["model"] == "tiny" and "seeds 0, 1" in results["calibration"]
    assert results["evaluation"] == "words.txt, 4 windows of 16 tokens"


def test_the_order_of_the_methods_changes_no_figure(loaded, terms):
    there = compare(loaded, [Magnitude(sparsity=0.7), Wanda(sparsity=0.5)], terms=terms)["rows"]
    back = compare(loaded, [Wanda(sparsity=0.5), Magnitude(sparsity=0.7)], terms=terms)["rows"]
    assert [row["metrics"] for row in there] == [back[i]["metrics"] for i in (0, 2, 1)]


def test_tables_page_and_models_are_written(loaded, terms, tmp_path):
    results = compare(
        loaded,
        ["magnitude", "wanda"],
        terms=terms,
        out=tmp_path / "out",
        save_models=True,
        command="a command",
    )
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == [
        "layers.csv", "magnitude-50-seed0", "plot.svg", "report.html", "results.csv", "results.json", "results.md",
        "wanda-50-seed0",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["dense", "magnitude 50%", "wanda 50%"]
    assert written["rows"][1]["bytes"] > 1000 and written["rows"][1]["folder"].endswith("magnitude-50-seed0")
    assert written["command"] == results["command"] == "a command"
    table = (tmp_path / "out" / "results.md").read_text()
    assert table.count("\n| ") == 4 and "| wanda 50% |" in table and "command: a command" in table


def test_nothing_to_compare_is_refused_before_any_work(terms):
    for methods, seeds, error in (
        ([], [0], BadInput),
        ([Wanda()], [], BadInput),
        ([Wanda(), Wanda(sparsity=0.5)], [0], BadInput),
        ([Wanda()], [1, 1], BadInput),
        (["wand"], [0], NoMatch),
    ):
        with pytest.raises(error):
            compare("no such model", methods, seeds=seeds, terms=terms)
