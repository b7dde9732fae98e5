"""Classifiers by name and by folder: what is saved comes back, the published ResNets are right, refusals are plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported
from secateur.evaluate.classify import accuracy
from secateur.io.checkpoint import save_checkpoint
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.describe import verify
from secateur.io.images import load_images
from tools.convert_resnet import convert

DIGITS: dict[str, Any] = {"channels": 1, "size": 8, "classes": 10}
NAMES = ("mlp", "lenet-30-10", "conv-4-8", "vgg-4-8", "resnet20x0.25")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_comes_back(tmp_path: Path, name: str) -> None:
    model = load_classifier(name, **DIGITS, seed=3, mean=[0.3], std=[0.4])
    assert model.training
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x)  # moves the batch norms' statistics
    out = save_classifier(model, tmp_path / "net", extra={"note.json": "{}"})
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "manifest.json",
        "note.json",
    }
    verify(out)
    for path in (out, out / "model.safetensors", str(out)):
        back = load_classifier(path, **DIGITS)
        assert not back.training and back.settings == model.settings
        assert back.settings.mean == (0.3,) and back.settings.std == (0.4,)
        with torch.no_grad():
            assert torch.equal(back(x), model.eval()(x))
    # a second save over it, and the same bytes
    first = (out / "model.safetensors").read_bytes(), (out / "config.json").read_bytes()
    save_classifier(model, out)
    assert first == ((out / "model.safetensors").read_bytes(), (out / "config.json").read_bytes())


def test_a_name_wins_over_a_folder_and_a_path_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_classifier(load_classifier("mlp-4", **DIGITS), tmp_path / "mlp")
    assert load_classifier("mlp", **DIGITS).settings.architecture == "mlp-128-128"
    for path in ("./mlp", Path("mlp")):
        assert load_classifier(path).settings.architecture == "mlp-4"


def test_equal_seeds_give_equal_weights() -> None:
    one, same, other = (load_classifier("conv", **DIGITS, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["linear.weight"], other["linear.weight"])
    assert load_classifier("conv", **DIGITS).settings.mean == (0.5,)


def test_numbers_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="conv: size is not given"):
        load_classifier("conv", channels=1, classes=10)
    with pytest.raises(BadInput, match=r"std: .*give 1 numbers"):
        load_classifier("conv", **DIGITS, std=[0.2, 0.2, 0.2])
    with pytest.raises(NoMatch, match=r"did you mean .*'resnet20'"):
        load_classifier("resnet21", **DIGITS)
    folder = save_classifier(load_classifier("conv-4", **DIGITS), tmp_path / "net")
    for word, value in (("channels", 3), ("size", 32), ("classes", 9)):
        with pytest.raises(BadInput, match=f"{word} {value} was asked for, the model has {DIGITS[word]}"):
            load_classifier(folder, **{**DIGITS, word: value})
    with pytest.raises(BadInput, match="has its own mean and std"):
        load_classifier(folder, mean=[0.5])
    with pytest.raises(NoMatch, match="did you mean 'net'"):
        load_classifier(tmp_path / "nett")


def edit(folder: Path, **changes: Any) -> None:
    """Another config.json, as somebody without a manifest would have it."""
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"architecture": "conv-4-8"}, "'stages.1.0.conv.weight' of conv-4-8 is missing"),
        ({"architecture": "mlp-99999-99999"}, "of mlp-99999-99999 is missing"),
        ({"classes": 11}, r"tensor 'linear.weight' is \[10, 4\], conv-4 has \[11, 4\]"),
        ({"architecture": "alexnet"}, "alexnet: no network of this name"),
        ({"architecture": ["conv-4"]}, "architecture is no word"),
        ({"size": None}, "lacks 'size'"),
        ({"size": "8"}, "size: '8' is not a count"),
        ({"std": [0]}, "std: .*would divide by zero"),
        ({"mean": 0.5}, "mean: .*give 1 numbers"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    folder = save_classifier(load_classifier("conv-4", **DIGITS), tmp_path / "net")
    edit(folder, **changes)
    with pytest.raises(Damaged, match=line) as caught:
        load_classifier(folder)
    assert "\n" not in str(caught.value)


def test_damage_and_foreign_folders(tmp_path: Path) -> None:
    folder = save_classifier(load_classifier("conv-4", **DIGITS), tmp_path / "net")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(Damaged, match="crc32 differs"):
        load_classifier(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(Damaged, match="is not a table"):
        load_classifier(folder)
    (folder / "config.json").unlink()
    with pytest.raises(NoMatch, match=r"holds no config.json"):
        load_classifier(folder)
    pickled = tmp_path / "weights.th"
    pickled.write_bytes(b"\x80\x02}.")
    with pytest.raises(Unsupported, match=r"tools/convert_resnet.py"):
        load_classifier(pickled)


def test_only_what_can_be_loaded_again_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="Linear is not from load_classifier"):
        save_classifier(nn.Linear(2, 2), tmp_path / "net")
    sliced = load_classifier("mlp-4-4", **DIGITS)
    sliced.linear = nn.Linear(3, 10)
    with pytest.raises(Unsupported, match=r"tensor 'linear.weight' is \[10, 3\], mlp-4-4 has \[10, 4\]"):
        save_classifier(sliced, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    grown = load_classifier("mlp-4-4", **DIGITS)
    grown.register_buffer("mask", torch.ones(1))
    with pytest.raises(Unsupported, match="mlp-4-4 has no tensor 'mask'"):
        save_classifier(grown, tmp_path / "net")


def test_a_state_dict_without_a_config_is_no_classifier(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net", model=nn.Linear(2, 2))
    with pytest.raises(NoMatch, match=r"holds no config.json"):
        load_classifier(tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize(("file", "right"), [("resnet20-12fca82f.th", 1833), ("resnet32-d509ac18.th", None)])
def test_the_published_resnets(shared_data: Path, tmp_path: Path, file: str, right: int | None) -> None:
    pytest.importorskip("PIL")
    held = load_images(shared_data / "cifar10_small")
    folder = save_classifier(convert(shared_data / "resnet_cifar10_weights" / file), tmp_path / "net")
    model = load_classifier(folder, channels=held.channels, size=held.size, classes=len(held.classes))
    top1 = accuracy(model, held.images, held.labels)
    # 91.73 and 92.63% of all 10,000 test images; these are the first 2,000
    assert abs(top1 - {"resnet20": 0.9173, "resnet32": 0.9263}[model.settings.architecture]) < 0.01
    if right is not None:
        assert abs(top1 * 2000 - right) <= 2  # as measured here; another processor may turn a tie
