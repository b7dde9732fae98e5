"""Small image classifiers under plain names, the networks that the pruning papers train. Made through classifiers.py.

    mlp-128-128        flatten, hidden layers of these widths, ReLU, linear; `mlp` is this one
    lenet-300-100      the same shape with Glorot weights, as the lottery-ticket papers have it; `lenet` is this one
    conv-16-32-32      3 x 3 convolutions of these widths with batch norm and ReLU, global mean, linear (the AdaSAP
                       sheet's); from the second on with stride 2 while the map is larger than 8; `conv` is this one
    vgg-32-64-128      two 3 x 3 convolutions with batch norm and ReLU a stage, 2 x 2 maximum after each, global mean,
                       linear; `vgg` is this one
    resnet20           He et al. 2015, section 4.2: 20, 32, 44, 56 or 110 layers, shortcuts without parameters (option
                       A: every second pixel, zero channels on both sides); resnet20x2 is twice as wide, x0.5 half

All take [N, C, H, W] in [0, 1] and subtract mean, divide by std themselves, so that whatever is done to an image is
done before. Names in the state dict of a ResNet are those of akamaster's published weights.
Weights: He normal over the inputs (Glorot normal for lenet), drawn by a generator of their own; biases 0.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput, NoMatch, nearest

PLAIN = {"mlp": "mlp-128-128", "lenet": "lenet-300-100", "conv": "conv-16-32-32", "vgg": "vgg-32-64-128"}
DEPTHS = (20, 32, 44, 56, 110)
_KNOWN = (*PLAIN, *PLAIN.values(), *(f"resnet{depth}" for depth in DEPTHS), "resnet20x2")
_WIDTHS = re.compile(r"^(mlp|lenet|conv|vgg)((?:-[1-9]\d{0,4}){1,16})$")
_RESNET = re.compile(r"^resnet(\d{1,3})(?:x(\d{1,2}(?:\.\d{1,4})?))?$")


@dataclass(frozen=True)
class Settings:
    """What makes a classifier but its weights: the content of its config.json.

    architecture: a name of the module's table.   channels, size: of the images it takes, size x size.
    mean, std: a number a channel, of values in [0, 1].
    """

    architecture: str
    channels: int
    size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for word, most in (("channels", 64), ("size", 4096), ("classes", 1_000_000)):
            value = getattr(self, word)
            if type(value) is not int or not 1 <= value <= most:
                raise BadInput(f"{value!r:.40} is not a count", where=word, fix=f"give 1 to {most}")
        for word in ("mean", "std"):
            value = getattr(self, word)
            right = isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
            if not right or len(value) != self.channels or not all(abs(v) < 1e6 for v in value):
                raise BadInput(f"{value!r:.60}", where=word, fix=f"give {self.channels} numbers")
        if min(self.std) <= 0:
            raise BadInput(f"{self.std} would divide by zero or turn the sign", where="std", fix="give > 0")


class Classifier(nn.Module, ABC):
    """Base: checks and normalises; a subclass says `classify`. Neither buffer is in the state dict (see Settings)."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of float images [N, C, H, W] in [0, 1]. BadInput for another kind or channel count."""
        check_batch(images, self.settings)
        return self.classify((images - self.mean) / self.std)

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""

    def reset_parameters(self) -> None:
        """Draw the weights anew, by torch's global generator."""
        _draw(self, None)


class Perceptron(Classifier):
    def __init__(self, settings: Settings, widths: tuple[int, ...]) -> None:
        super().__init__(settings)
        ends = (settings.channels * settings.size**2, *widths)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(ends))
        self.linear = nn.Linear(ends[-1], settings.classes)

    def classify(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.linear(x)


class Stages(Classifier):
    """conv: one convolution a stage. vgg (`pooled`): two, then the maximum of 2 x 2."""

    def __init__(self, settings: Settings, widths: tuple[int, ...], pooled: bool) -> None:
        super().__init__(settings)
        stages, inputs, size = [], settings.channels, settings.size
        for i, width in enumerate(widths):
            stride = 2 if not pooled and i and size > 8 else 1
            size = -(-size // stride)
            parts = [_conv(inputs, width, stride), *([_conv(width, width, 1)] if pooled else [])]
            if pooled and size < 2:
                fix = f"at most {i} stages, or larger images"
                raise BadInput(f"the map has 1 pixel after {i} stages", settings.architecture, fix)
            size = size // 2 if pooled else size
            stages.append(nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pooled else [])))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(inputs, settings.classes)

    def classify(self, x: Tensor) -> Tensor:
        return self.linear(self.stages(x).mean((2, 3)))


class ResNet(Classifier):
    def __init__(self, settings: Settings, blocks: int, widths: tuple[int, int, int]) -> None:
        super().__init__(settings)
        self.conv1 = nn.Conv2d(settings.channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _blocks(widths[0], widths[0], 1, blocks)
        self.layer2 = _blocks(widths[0], widths[1], 2, blocks)
        self.layer3 = _blocks(widths[1], widths[2], 2, blocks)
        self.linear = nn.Linear(widths[2], settings.classes)

    def classify(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity() if (inputs, stride) == (outputs, 1) else OptionA(outputs - inputs, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class OptionA(nn.Module):
    """Every `stride`-th pixel; `extra` channels of zeros, half of them (rounded down) before the others."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


def make_network(settings: Settings, seed: int = 0) -> Classifier:
    """A network with seeded weights, in training mode. The global random state is neither read nor changed.

    Raises: NoMatch: no such architecture.   BadInput: one that these images are too small for.
    """
    model = skeleton(settings).to_empty(device="cpu")
    _draw(model, torch.Generator().manual_seed(seed))
    model.mean.copy_(torch.tensor(settings.mean).view_as(model.mean))
    model.std.copy_(torch.tensor(settings.std).view_as(model.std))
    return model


def _draw(model: Classifier, random: torch.Generator | None) -> None:
    glorot = model.settings.architecture.startswith("lenet")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if glorot:
                nn.init.xavier_normal_(module.weight, generator=random)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=random)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def skeleton(settings: Settings) -> Classifier:
    """The network without memory for its weights (meta device): names and shapes cost nothing to compare."""
    name = full_name(settings.architecture)
    with torch.device("meta"):
        if found := _RESNET.match(name):
            depth, width = int(found[1]), float(found[2] or 1)
            first, second, third = (max(1, round(base * width)) for base in (16, 32, 64))
            return ResNet(settings, (depth - 2) // 6, (first, second, third))
        kind, *rest = name.split("-")
        widths = tuple(int(width) for width in rest)
        if kind in ("mlp", "lenet"):
            return Perceptron(settings, widths)
        return Stages(settings, widths, pooled=kind == "vgg")


def full_name(name: str) -> str:
    """`conv` to `conv-16-32-32`; a full name stays. NoMatch, with the nearest names, for what is none."""
    name = PLAIN.get(name, name)
    found = _RESNET.match(name)
    if _WIDTHS.match(name) or (found and int(found[1]) in DEPTHS and float(found[2] or 1) > 0):
        return name
    raise NoMatch("no network of this name", where=f"{name:.80}", fix=nearest(name, _KNOWN))


def is_network(name: str) -> bool:
    """Whether `full_name` knows it."""
    try:
        full_name(name)
    except NoMatch:
        return False
    return True


def check_batch(images: Tensor, settings: Settings) -> None:
    """BadInput unless float [N, channels, H, W]."""
    if images.ndim != 4 or images.shape[1] != settings.channels or not images.is_floating_point():
        what = f"a batch of {images.dtype} {list(images.shape)}"
        fix = f"give floats in [0, 1], [N, {settings.channels}, H, W]"
        raise BadInput(what, where=settings.architecture, fix=fix)


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    parts = {
        "conv": nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        "bn": nn.BatchNorm2d(outputs),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(parts))


def _blocks(inputs: int, outputs: int, stride: int, count: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(count - 1))
    )


def narrower(settings: Settings, parameters: int) -> str:
    """The name of the same kind of network with other widths whose parameters come nearest to `parameters`."""
    name = full_name(settings.architecture)

    def scaled(factor: float) -> str:
        if found := _RESNET.match(name):
            width = round(float(found[2] or 1) * factor, 4)
            return f"resnet{found[1]}" + (f"x{width:g}" if width != 1 else "")
        kind, *widths = name.split("-")
        return "-".join([kind, *(str(max(1, round(int(width) * factor))) for width in widths)])

    def count(candidate: str) -> int:
        return sum(p.numel() for p in skeleton(replace(settings, architecture=candidate)).parameters())

    candidates = dict.fromkeys(scaled(step / 200) for step in range(1, 201))
    return min(candidates, key=lambda candidate: abs(count(candidate) - parameters))
