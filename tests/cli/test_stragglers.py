"""`secateur stragglers` on two networks of digits: tables, JSON, page, and what it refuses."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.engine.train import Fit, fit
from secateur.evaluate.classify import accuracy, to_batch
from secateur.evaluate.stragglers import HELD
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.images import load_images
from secateur.robustness.corrupt import corrupt
from tests.cli.tiny import secateur

QUICK = ["--images", "digits", "--points", "5", "--draws", "4", "--steps", "3", "--limit", "100"]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """zero: mlp-16 trained on digits that lie or stand; tuned: trained on upright ones; turned.npz; others."""
    folder = tmp_path_factory.mktemp("stragglers")
    data, test = load_images("digits", "train"), load_images("digits", "test")
    x, y = to_batch(data.images), torch.as_tensor(data.labels)
    mean, std = data.statistics()
    made = {}
    model = load_classifier("mlp-16-12", channels=1, size=8, classes=10, seed=0, mean=mean, std=std)
    turned = torch.cat([x, torch.rot90(x, 1, (2, 3))])
    for name, images in (("zero", turned), ("tuned", x)):
        labels = y.repeat(len(images) // len(y))
        fit(model, images, labels, Fit(epochs=8, batch=64, lr=0.1))
        made[name] = save_classifier(deepcopy(model), folder / name)
    other = load_classifier("mlp-16", channels=1, size=8, classes=10)
    plain = load_classifier("mlp-16-12", channels=1, size=8, classes=10)
    made |= {
        "other": save_classifier(other, folder / "other"),
        "plain": save_classifier(plain, folder / "plain"),
    }
    made["turned"] = folder / "turned.npz"
    np.savez(made["turned"], images=np.rot90(test.images, axes=(1, 2)), labels=test.labels)
    np.savez(folder / "wide.npz", images=np.zeros((2, 8, 9), np.uint8), labels=np.array([0, 1]))
    np.savez(
        folder / "named.npz", images=test.images[:4], labels=test.labels[:4] % 2, classes=np.array(["a", "b"])
    )
    return {**made, "wide": folder / "wide.npz", "named": folder / "named.npz"}


def test_figures_and_tables(ends: dict[str, Path]) -> None:
    words = ["stragglers", ends["zero"], ends["tuned"], *QUICK, "--shifted", ends["turned"]]
    words += ["--corruptions", "contrast", "--severity", "2", "--repair", "difference", "--sparsity", "50%,1"]
    said = secateur(*words, "--json")
    assert said.status == 0 and not said.err, said.err
    found = json.loads(said.out)
    turned = load_images(str(ends["turned"]), "test")
    sets = found["path"]["sets"]
    assert list(sets) == ["choose", HELD, str(ends["turned"]), "contrast 2"]
    for end, name in ((0, "zero"), (-1, "tuned")):
        model, test = load_classifier(ends[name]), load_images("digits", "test")
        assert sets[str(ends["turned"])]["accuracy"][end] == accuracy(model, turned.images, turned.labels)
        parts = (sets[n]["accuracy"][end] for n in ("choose", HELD))
        assert sum(parts) / 2 == pytest.approx(accuracy(model, test.images, test.labels)), (
            "two halves of the test"
        )
    zero, tuned = (sets[str(ends["turned"])]["accuracy"][i] for i in (0, -1))
    assert zero > tuned + 0.05, "what is fine-tuned on upright digits forgets the others"
    assert [r["sparsity"] for r in found["repair"]] == [0.5, 1.0] and len(found["stragglers"]) == 1
    assert found["settings"]["method"] == "magnitude" and found["settings"]["limit"] == 100
    shown = secateur(*words).out
    row = found["picks"]["sets"][HELD]
    figures = [f"{100 * row[k]:.1f}%" for k in ("zero", "tuned", "half", "chosen", "oracle")]
    lines = shown.splitlines()
    assert next(line for line in lines if line.startswith(HELD)).split()[2:7] == figures
    assert lines[2].split()[:2] == ["hidden.0", "1,040"] and shown.count("accuracy on") == 3
    assert f"stragglers: {found['definition']}: {found['stragglers'][0]}" in shown
    assert "stragglers' difference from zero-shot cut at 0.5 by magnitude, alpha" in shown
    assert secateur(*words, "--quiet").out == ""


def test_the_corrupted_set_is_the_reported_half(ends: dict[str, Path]) -> None:
    words = [
        "stragglers",
        ends["zero"],
        ends["zero"],
        *QUICK,
        "--corruptions",
        "fog",
        "--seed",
        "3",
        "--json",
    ]
    found = json.loads(secateur(*words).out)
    from secateur.cli.stragglers import halves

    _, held = halves(load_images("digits", "test"))
    foggy = corrupt(held.images, "fog", 3, table="cifar-c", seed=3)
    exact = accuracy(load_classifier(ends["zero"]), foggy, held.labels)
    assert found["path"]["sets"]["fog 3"]["accuracy"] == [exact] * 5
    assert found["stragglers"] == [] and found["settings"]["seed"] == 3


def test_flags_reach_the_settings(ends: dict[str, Path]) -> None:
    words = [
        "stragglers",
        ends["zero"],
        ends["tuned"],
        *QUICK,
        "--json",
        "--measure",
        "block",
        "--others",
        "path",
    ]
    words += [
        "--rule",
        "sharpness",
        "--rho",
        "0.02",
        "--raw-logits",
        "--fisher",
        "--restate",
        "--share",
        "0.4",
    ]
    words += ["--batch", "32", "--repair", "tuned", "--method", "wanda", "--sparsity", "0.3"]
    said = secateur(*words)
    assert said.status == 0, said.err
    how = json.loads(said.out)["settings"]
    wanted = {
        "measure": "block", "others": "path", "rule": "sharpness", "rho": 0.02, "normalise": False, "fisher": True,
        "restate": True, "share": 0.4, "batch": 32, "repair": "tuned", "method": "wanda", "sparsities": [0.3],
        "points": 5, "draws": 4, "ascent": 3,
    }  # fmt: skip
    assert {key: how[key] for key in wanted} == wanted


def test_the_page(ends: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["stragglers", ends["zero"], ends["tuned"], *QUICK, "--shifted", ends["turned"], "--out", page]
    assert secateur(*words, "--repair", "difference", "--quiet").status == 0
    text = page.read_text()
    assert text.count("<svg") == 3 and "Stragglers between zero and tuned" in text and "://" not in text
    assert f"{HELD}, cut at 0.5" in text and "hidden.0" in text and "--repair difference" in text
    said = secateur(*words)
    assert said.status == 2 and "exists already" in said.err
    assert secateur(*words, "--overwrite", "--quiet").status == 0


def test_without_stragglers_nothing_is_cut(ends: dict[str, Path]) -> None:
    shown = secateur("stragglers", ends["zero"], ends["zero"], *QUICK, "--repair", "difference").out
    assert "no straggler, so nothing was cut" in shown and "at alpha 0.5: none" in shown


@pytest.mark.parametrize(
    "words,line",
    [
        (["{zero}", "{tuned}"], "missing --images"),
        (["{zero}", "mlp-16", *QUICK], "mlp-16: is the name of a new network"),
        (["{zero}", "nowhere", *QUICK], "no network, file or folder of this name"),
        (["{zero}", "{other}", *QUICK], "architecture mlp-16, that of"),
        (["{zero}", "{plain}", *QUICK], "mean (0.5,), that of"),
        (["{zero}", "{tuned}", *QUICK, "--shifted", "{wide}"], "images of [8, 9, 1], the others [8, 8, 1]"),
        (["{zero}", "{tuned}", *QUICK, "--shifted", "{named}"], "its classes are not those of digits/test"),
        (["{zero}", "{tuned}", *QUICK, "--shifted", "digit"], "did you mean 'digits'"),
        (["{zero}", "{tuned}", *QUICK, "--corruptions", "fogg"], "did you mean 'fog'"),
        (["{zero}", "{tuned}", *QUICK, "--corruptions", "fog", "--severity", "6"], "severity"),
        (["{zero}", "{tuned}", *QUICK, "--measure", "layer"], "'layer' is no measure"),
        (["{zero}", "{tuned}", *QUICK, "--repair", "both"], "'both' is no repair"),
        (["{zero}", "{tuned}", *QUICK, "--repair", "tuned", "--sparsity", "1"], "sparsity: 1.0"),
        (["{zero}", "{tuned}", *QUICK, "--sparsity", ","], "--sparsity: none"),
        (["{zero}", "{tuned}", *QUICK, "--method", "magnitud"], "did you mean 'magnitude'"),
        (["{zero}", "{tuned}", *QUICK, "--draws", "3"], "they come in pairs"),
        (["{zero}", "{tuned}", *QUICK, "--device", "cuda:99"], "no device 'cuda:99' here"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str, ends: dict[str, Path]) -> None:
    said = secateur("stragglers", *(word.format(**ends) for word in words))
    assert said.status == 2 and line in said.err and said.err.count("\n") == 1, said.err
