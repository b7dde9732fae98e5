"""Published CIFAR ResNets (akamaster/pytorch_resnet_cifar10) to folders that secateur loads.

    python tools/convert_resnet.py resnet20-12fca82f.th OUT

A .th file is a pickled checkpoint, {"state_dict": {"module.conv1.weight": ..}}; the library reads none, so this is done
outside of it, and torch is told to accept tensors only. Depth, width and classes are read from the tensors; mean and
std are ImageNet's, with which these networks were trained. Prints what was written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.networks import Classifier

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="CIFAR ResNet .th file to a secateur folder")
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(argv)
    try:
        model = convert(options.file)
        save_classifier(model, options.out)
    except SecateurError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {model.settings.architecture}, {count} parameters")
    return 0


def convert(file: Path) -> Classifier:
    """The network of a .th file with its weights, in evaluation mode. Damaged for a file that holds none."""
    state = read_state(file)
    first, last = state.get("conv1.weight"), state.get("linear.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 2:
        raise Damaged("holds no conv1.weight or no linear.weight", where=str(file))
    depth = 1 + sum(tensor.ndim == 4 for tensor in state.values())
    width = first.shape[0] / 16
    name = f"resnet{depth}" + (f"x{width:g}" if width != 1 else "")
    model = load_classifier(name, channels=first.shape[1], size=32, classes=last.shape[0], mean=MEAN, std=STD)
    fill(model, state, str(file))
    return model.eval()


def load_resnet_weights(model: nn.Module, path: Path | str) -> nn.Module:
    """Put the weights of a .th file into a network of load_classifier; Damaged where the tensors are not its own."""
    return fill(model, read_state(Path(path)), str(path))


def read_state(file: Path) -> dict[str, Tensor]:
    """Tensors of a .th file, `module.` taken off their names."""
    if not file.is_file():
        raise NoMatch("no such file", where=str(file))
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises whatever it likes
        raise Damaged(f"cannot be read as weights ({type(error).__name__})", where=str(file)) from error
    state = held.get("state_dict", held) if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise Damaged("holds no state_dict of tensors", where=str(file))
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> nn.Module:
    own = model.state_dict()
    # written before batch norm counted its batches
    counted = {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in state}
    try:
        model.load_state_dict({**state, **counted}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"does not fit the network ({reason:.200})", where=where) from error
    return model


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
