"""A training job from its recipe: what is written, resumed and refused; the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.cli.main import main
from secateur.errors import BadInput, NoMatch
from secateur.io.classifiers import load_classifier
from secateur.io.manifest import check_manifest
from secateur.recipe import load_recipe
from secateur.training import TrainingRecipe, load_training, state_folder, train

RECIPE = """
[model]
name = "mlp-24"
[data]
source = "digits"
limit = 400
[method]
name = "gmp"
sparsity = 0.8
every = 5
[training]
epochs = 4
batch = 50
lr = 0.1
[output]
folder = "out"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_what_a_recipe_leaves(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe)]) == 0
    shown = capsys.readouterr().out
    folder = recipe.parent / "out"
    figures = json.loads((folder / "training.json").read_text())
    model = load_classifier(folder)
    weights = [p for p in model.parameters() if p.ndim == 2]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.8, abs=0.001) and figures["density"] == pytest.approx(1 - zeros)
    assert f"{100 * figures['accuracy']:.1f}%" in shown and "of a dense training" in shown
    assert [row["epoch"] for row in figures["history"]] == [1, 2, 3, 4]
    assert 0 < figures["train_flops"] < figures["dense_train_flops"]
    assert not state_folder(folder).exists()
    check_manifest(folder)
    page = (recipe.parent / "out.html").read_text()
    assert page.count("<svg") == 3 and "4 of 4 epochs" in page and "<script" not in page


def test_a_killed_run_goes_on_to_the_same_weights(recipe: Path) -> None:
    whole = train(recipe)
    again = load_training(recipe)
    calls = []

    def stop(event: object) -> None:
        calls.append(event)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, overwrite=True, listen=stop)
    state = state_folder(recipe.parent / "out")
    assert (state / "state.json").is_file() and "2 of 4 epochs" in (recipe.parent / "out.html").read_text()
    with pytest.raises(BadInput, match="exists already"):
        train(again)
    other = TrainingRecipe(**{**again.__dict__, "seed": 3, "augment": "gaussian"})
    with pytest.raises(BadInput, match="was another job"):
        train(other, resume=True, overwrite=True)
    resumed = train(again, resume=True, overwrite=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.history == whole.history and not state.exists()


def test_the_small_dense_baseline_has_as_many_parameters(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("[output]", "small_dense = true\n[output]"))
    small = train(recipe).figures["small_dense"]
    assert abs(small["parameters"] - small["nonzero_of_cut"]) / small["nonzero_of_cut"] < 0.25
    assert 0 < small["accuracy"] <= 1 and small["model"].startswith("mlp-")


def test_layers_that_stay_dense_are_counted_dense(recipe: Path) -> None:
    cut = train(recipe).figures
    recipe.write_text(
        RECIPE.replace("every = 5", 'every = 5\nskip = ["linear"]').replace('"out"', '"dense-head"')
    )
    held = train(recipe).figures
    assert list(held["layers"]) == ["hidden.0.weight"]
    assert cut["train_flops"] < held["train_flops"] < held["dense_train_flops"] == cut["dense_train_flops"]


@pytest.mark.parametrize("augment", ["crop-flip", "gaussian", "augmix"])
def test_augmentations_train(recipe: Path, augment: str) -> None:
    recipe.write_text(RECIPE.replace("[output]", f'augment = "{augment}"\n[output]'))
    assert train(recipe).history[-1]["loss"] < 2.4


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('name = "gmp"', 'name = "gpm"', "no method 'gpm'.*gmp"),
        ('name = "gmp"', 'name = "wanda"', "wanda"),
        ("every = 5", "evry = 5", "no setting 'evry'"),
        ("every = 5", "every = 500", "hold no event every 500 steps"),
        ("epochs = 4", "epocks = 4", "no key 'epocks'"),
        ("epochs = 4", 'epochs = "4"', "is not a whole number"),
        ("lr = 0.1", "lr = 0", "lr 0.0"),
        ('source = "digits"', 'source = "digitz"', "digitz"),
        ('name = "mlp-24"', 'name = "mlp-x"', "mlp-x"),
        ("[output]", 'augment = "mix"\n[output]', "'mix' is no augmentation"),
        ("every = 5", 'every = "5"', "every: '5' is no int"),
        ("every = 5", "every = 2.5", "every: 2.5 is no int"),
        ("every = 5", "only = 3", "only: 3 are no layer names"),
        ("every = 5", "only = [1]", "are no layer names"),
        ('name = "mlp-24"', 'name = "mlp-24"\ndevice = "nowhere"', "no device 'nowhere'"),
        (
            '[method]\nname = "gmp"\nsparsity = 0.8\nevery = 5\n[training]',
            "[training]\nsmall_dense = true",
            "small_dense",
        ),
        ('folder = "out"', "", "has no folder"),
    ],
)
def test_bad_recipes_are_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    recipe.write_text(RECIPE.replace(old, new))
    assert main(["train", str(recipe)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    import re

    assert re.search(words, said), said
    assert not (recipe.parent / "out").exists()


def test_resume_without_a_state(recipe: Path) -> None:
    with pytest.raises(NoMatch, match="no unfinished training"):
        train(recipe, resume=True)


@pytest.mark.parametrize("verb", ["compress", "plan", "compare", "sweep"])
def test_what_cuts_a_trained_network_points_to_train(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "smollm2-135m", "gmp", "--out", "nothing-is-written"]) == 2
    assert "gmp cuts while a network trains; use `secateur train" in capsys.readouterr().err


def test_a_recipe_for_run_points_to_train(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = {name = "x"}\nmethod = {name = "gmp"}\noutput = {folder = "out"}\n')
    with pytest.raises(BadInput, match="gmp cuts while a network trains"):
        load_recipe(path)
