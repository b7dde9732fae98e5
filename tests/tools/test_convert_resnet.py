"""Published .th files: names, counts and mean arrive; anything but tensors is refused unread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.errors import BadInput, Damaged, NoMatch
from secateur.io.classifiers import load_classifier
from tools import convert_resnet


class Trap:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def write_th(path: Path, name: str = "resnet20x0.25", classes: int = 7) -> dict[str, torch.Tensor]:
    """As akamaster's files are: `module.` before every name, no counters of batches."""
    model = load_classifier(name, channels=3, size=32, classes=classes, seed=4)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.5}, path)
    return state


def test_a_file_becomes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = write_th(tmp_path / "x.th")
    assert convert_resnet.main([str(tmp_path / "x.th"), str(tmp_path / "out")]) == 0
    assert "resnet20x0.25, " in capsys.readouterr().out
    model = load_classifier(tmp_path / "out", channels=3, size=32, classes=7)
    assert model.settings.mean == (0.485, 0.456, 0.406) and model.settings.std == (0.229, 0.224, 0.225)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_weights_into_a_network_one_has(tmp_path: Path) -> None:
    state = write_th(tmp_path / "x.th")
    model = load_classifier("resnet20x0.25", channels=3, size=32, classes=7, seed=1)
    convert_resnet.load_resnet_weights(model, tmp_path / "x.th")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    other = load_classifier("resnet20", channels=3, size=32, classes=7)
    with pytest.raises(BadInput, match="does not fit the network"):
        convert_resnet.load_resnet_weights(other, tmp_path / "x.th")


def test_pickled_code_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"module.conv1.weight": Trap()}}, tmp_path / "x.th")
    assert convert_resnet.main([str(tmp_path / "x.th"), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "it ran" not in printed.out and "cannot be read as weights" in printed.err
    assert not (tmp_path / "out").exists()


def test_other_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.th"
    with pytest.raises(NoMatch, match="no such file"):
        convert_resnet.convert(path)
    for held, line in (([1], "holds no state_dict"), ({"a": torch.ones(2)}, "holds no conv1.weight")):
        torch.save(held, path)
        with pytest.raises(Damaged, match=line):
            convert_resnet.convert(path)


def test_the_published_file(shared_data: Path) -> None:
    model = convert_resnet.convert(shared_data / "resnet_cifar10_weights" / "resnet20-12fca82f.th")
    assert model.settings.architecture == "resnet20" and not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
