"""Fit, evaluate, explain, save and load: against hand-made heads and sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.apply.heads import Head, Shots
from secateur.errors import BadInput, Damaged
from secateur.features import Data, Fitted, accuracy, evaluate, explain, fit, load, save, texts_of
from secateur.features.jobs import own_towers, read_tests
from secateur.registry import make
from tests.features.tiny import NAMES, TinyTowers, pictures, words


def shots(count: int, seed: int, noise: float = 40.0) -> Shots:
    images = pictures(count, seed, noise=noise)
    return Shots(TinyTowers().embed_images(images.images), torch.from_numpy(images.labels))


@pytest.fixture(scope="module")
def data() -> Data:
    towers = TinyTowers()
    tests = {"test": shots(40, 2), "noisy": shots(40, 3, 90.0)}
    return Data(texts_of(towers, words()), words(), shots(30, 1), tests, None, (towers.name, towers.digest))


def test_accuracy_answers_among_the_classes_that_the_set_holds() -> None:
    head = Head(torch.eye(3), 1.0)
    rows = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.0, 0.8]])
    both = Shots(rows, torch.tensor([0, 2]))
    assert accuracy(head, both, 3) == 1.0, (
        "class 1 is not in the set, so the first image cannot be taken for it"
    )
    assert accuracy(head, Shots(torch.cat([rows, torch.eye(3)[1:2]]), torch.tensor([0, 2, 1])), 3) == 2 / 3


def test_a_fit_learns_and_says_what_it_used(data: Data) -> None:
    fitted = fit("slr_avd", data, shots=8, seed=0)
    found = fitted.figures
    assert found["images"] == 24 and 0 < found["features"] <= 9 and fitted.settings["lam"] > 0
    assert found["accuracy"]["test"]["1"] > 0.8 > 1 / 3
    assert set(found["accuracy"]) == {"test", "noisy"} and set(found["accuracy"]["test"]) == {"0", "0.5", "1"}
    assert "path" not in found
    path = fit("slr_avd", data, shots=8, seed=0, path=True).figures["path"]
    assert len(path) == 16 and path[0]["lam"] > path[-1]["lam"] == fitted.settings["lam"]
    assert path[0]["features"] == 0 and path[-1]["features"] == found["features"]
    assert path[-1]["noisy"] == found["accuracy"]["noisy"]["1"]
    assert found["accuracy"]["test"]["0"] == accuracy(Head(data.texts.prompts, 20.0), data.tests["test"], 3)


def test_the_open_setting_is_chosen_held_out_and_the_head_refitted_on_all(data: Data) -> None:
    fitted = fit("slr_avd", data, shots=8, seed=0)
    again = fit(make("slr_avd", lam=fitted.settings["lam"]), data, shots=8, seed=0)
    assert torch.equal(again.head.weight, fitted.head.weight)
    with pytest.raises(BadInput, match="3 shots a class are too few to choose lam"):
        fit("slr_avd", data, shots=3)
    assert fit(make("slr_avd", lam=0.01), data, shots=1).figures["images"] == 3


def test_zero_shot_needs_no_images(data: Data) -> None:
    fitted = fit("zero_shot", replace(data, train=None))
    assert fitted.figures["accuracy"]["test"]["1"] > 0.8
    with pytest.raises(BadInput, match="no images to learn from"):
        fit("ridge_probe", replace(data, train=None))
    with pytest.raises(BadInput, match="wanda"):
        fit("wanda", data)


def test_the_explanation_is_the_largest_coefficients() -> None:
    towers = TinyTowers()
    texts = texts_of(towers, words())
    coefficients = torch.zeros(3, 3)
    coefficients[0], coefficients[1] = torch.tensor([0.5, 2.0, -3.0]), torch.tensor([0.0, -1.0, 0.0])
    head = Head(torch.zeros(3, texts.width), 20.0, None, coefficients, torch.tensor([4, 0, 7]))
    fitted = Fitted(head, Head(texts.prompts, 20.0), texts, words(), "slr_avd", {}, {})
    found = explain(fitted, 3)
    assert found["disc"] == [(words().words[0], 2.0), (words().words[4], 0.5)]
    assert found["bar"] == [] and list(found) == list(NAMES)
    with pytest.raises(BadInput, match="uses no texts"):
        explain(replace(fitted, head=Head(texts.prompts, 20.0)))


def test_a_text_that_two_classes_brought_is_named_once() -> None:
    towers = TinyTowers()
    texts = texts_of(towers, words())
    texts = replace(texts, words=(texts.words[0], *texts.words[:-1]))
    coefficients = torch.zeros(3, 3)
    coefficients[0] = torch.tensor([0.5, 0.7, 1.0])
    head = Head(torch.zeros(3, texts.width), 20.0, None, coefficients, torch.tensor([0, 1, 2]))
    found = explain(Fitted(head, Head(texts.prompts, 20.0), texts, words(), "slr_avd", {}, {}), 1)
    ((text, value),) = found["disc"]
    assert text == texts.words[0] and value == pytest.approx(1.2)


@pytest.mark.parametrize("method", ["slr_avd", "linear_probe", "zero_shot"])
def test_a_folder_gives_back_the_same_head(data: Data, tmp_path: Path, method: str) -> None:
    fitted = fit(method, data, shots=8)
    folder = save(fitted, tmp_path / "head")
    back = load(folder)
    assert torch.equal(back.head.weight, fitted.head.weight) and back.head.scale == fitted.head.scale
    assert torch.equal(back.zero.weight, fitted.zero.weight) and back.zero.scale == fitted.zero.scale
    assert back.figures == fitted.figures and back.settings == fitted.settings and back.model == data.model
    assert back.descriptors == fitted.descriptors and evaluate(back, data.tests) == evaluate(
        fitted, data.tests
    )
    if method != "linear_probe":
        assert explain(back) == explain(fitted)
    with pytest.raises(BadInput, match="exists"):
        save(fitted, folder)
    file = folder / "head.safetensors"
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(bytes(body))
    with pytest.raises(Damaged):
        load(folder)


def test_a_head_is_used_with_its_own_model_and_width_alone(data: Data, tmp_path: Path) -> None:
    fitted = fit("zero_shot", data)
    other: Any = TinyTowers()
    assert own_towers(fitted, other) is other
    with torch.no_grad():
        other.tower.project.weight += 1
    with pytest.raises(BadInput, match="is not tiny, which the head was fitted on"):
        own_towers(fitted, other)
    import numpy as np

    np.save(tmp_path / "x.npy", np.ones((2, 7), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(2, np.int64))
    with pytest.raises(BadInput, match="7 wide, the texts 24"):
        read_tests(fitted, {"x": (tmp_path / "x.npy", tmp_path / "y.npy")})
