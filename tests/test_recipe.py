"""Recipes: read strictly, and done as written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.methods.weights.wanda import Wanda
from secateur.recipe import load_recipe, run_recipe
from tests.tinylm import save_tiny

GOOD = """
[model]
name = "dense"
[method]
name = "wanda"
sparsity = "60%"
[calibration]
source = "words.txt"
samples = 3
length = 16
[walk]
feed = "block"
only = ["*.mlp.*"]
[output]
folder = "out/half"
[evaluate]
text = "words.txt"
length = 16
windows = 2
page = "page"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("recipe")
    save_tiny(at / "dense")
    (at / "words.txt").write_text(" ".join(f"w{i * i % 60}" for i in range(900)))
    return at


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_recipe_and_defaults_filled_in(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write(folder, GOOD))
    assert recipe.model == {
        "name": str(folder / "dense"), "dtype": "auto", "device": "cpu", "trust_remote_code": False,
    }  # fmt: skip
    assert recipe.method == Wanda(sparsity=0.6)
    assert recipe.calibration["source"] == str(folder / "words.txt") and recipe.calibration["seed"] == 0
    assert recipe.output["folder"] == str(folder / "out/half")
    assert load_recipe(write(folder, GOOD.partition("[evaluate]")[0])).evaluate is None
    plain = load_recipe(
        write(folder, GOOD.replace('"words.txt"', '"embedded"').replace('"dense"', '"smollm2-135m"'))
    )
    assert plain.calibration["source"] == "embedded" and plain.model["name"] == "smollm2-135m"


def test_a_recipe_does_what_it_says(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write(folder, GOOD))
    result, results = run_recipe(recipe, command="a command")
    assert (folder / "out/half/manifest.json").is_file() and abs(result.plan.sparsity - 0.6) < 0.05
    assert len(result.plan.sites) == 6 and result.plan.made["feed"] == "block"
    assert results is not None and [row["name"] for row in results["rows"]] == ["dense", "wanda 60%"]
    assert results["rows"][0]["sparsity"] == 0 < results["rows"][1]["sparsity"]
    assert json.loads((folder / "page/results.json").read_text())["command"] == "a command"
    with pytest.raises(BadInput, match="exists already"):
        run_recipe(recipe)
    run_recipe(recipe, overwrite=True)
    streamed = load_recipe(
        write(folder, GOOD.replace("[walk]", "[walk]\nstream = true").replace("out/half", "out/two"))
    )
    run_recipe(streamed)
    weights = [(folder / "out" / name / "model.safetensors").read_bytes() for name in ("half", "two")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "old,new,error,words",
    [
        ("[walk]", "[wlak]", NoMatch, "walk"),
        ("feed =", "fed =", NoMatch, "feed"),
        ("sparsity =", "sparsty =", NoMatch, "sparsity"),
        ('"wanda"', '"wnada"', NoMatch, "wanda"),
        ('"60%"', "1.5", BadInput, "fraction"),
        ('"60%"', "[0.5]", BadInput, "0.5"),
        ('"60%"', "{ parms = 3 }", SecateurError, "params"),
        ("samples = 3", 'samples = "3"', BadInput, "whole number"),
        ("samples = 3", "samples = true", BadInput, "whole number"),
        ("samples = 3", "samples = 0", BadInput, "too small"),
        ('["*.mlp.*"]', "[1]", BadInput, "list of texts"),
        ('["*.mlp.*"]', '"*.mlp.*"', BadInput, "list of texts"),
        ("[model]", "[[model]]", BadInput, "not a table"),
        ('folder = "out/half"', "", BadInput, "no folder"),
        ('name = "dense"', "name = 3", BadInput, "no name"),
        ('name = "dense"', 'name = "dense', Damaged, "TOML"),
        ('name = "dense"', 'name = "dense"\nname = "dense"', Damaged, "TOML"),
    ],
)
def test_what_is_wrong_is_named(old, new, error, words, folder):
    assert old in GOOD
    with pytest.raises(error, match=words):
        load_recipe(write(folder, GOOD.replace(old, new, 1)))


def test_deep_nesting_and_bytes_that_are_no_text(folder):
    for data in (b"a = " + b"[" * 100_000, b"\xff\xfe", b"x = 1\n" * 400_000):
        (folder / "job.toml").write_bytes(data)
        with pytest.raises(SecateurError):
            load_recipe(folder / "job.toml")


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(0, len(GOOD)))
def test_only_our_errors_escape(tmp_path_factory, text, at):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes((GOOD[:at] + text + GOOD[at:]).encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(path)
    except SecateurError:
        return
    assert recipe.output["folder"]
