"""Fine-tune the image tower from a fitted head, then blend with where it came from: WiSE-FT on SLR-AVD.

The head is fitted first and everything is trained after (LP-FT); then, for every weight and the head,
theta(alpha) = (1 - alpha) * zero-shot + alpha * fine-tuned (sheet slr-avd, step 9). Both heads hold the logit scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.heads import Head, Shots
from secateur.engine.events import Listener, silent
from secateur.engine.train import Fit, fit
from secateur.evaluate.classify import to_batch
from secateur.features.data import class_places
from secateur.features.jobs import Fitted, accuracy, check_model, save
from secateur.io.images import Images, load_images
from secateur.io.towers import LoadedTowers, load_towers, save_towers
from secateur.recover.interpolate import interpolate

RECIPE = Fit(epochs=10, batch=64, optimizer="adamw", lr=3e-5, weight_decay=0.1, warmup=0.1, clip=1.0)
ALPHAS = tuple(step / 10 for step in range(11))


class Tuner(nn.Module):
    """An image tower and a linear head: float images [n, C, H, W] in [0, 1] to logits [n, classes]."""

    def __init__(self, tower: nn.Module, head: Head) -> None:
        super().__init__()
        self.tower = tower
        self.weight = nn.Parameter(head.scale * head.weight.clone())
        self.bias = nn.Parameter(torch.zeros(len(head.weight)) if head.bias is None else head.bias.clone())

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(F.normalize(self.tower(images), dim=1), self.weight, self.bias)


@dataclass(eq=False)
class Tuned:
    """What fine-tuning gave.

    Attributes:
        towers: with the image tower blended at `alpha`.   fitted: the head blended at `alpha`, over these towers.
        accuracy: {set: {alpha: accuracy}} along the path.   history: one row an epoch.
    """

    towers: LoadedTowers
    fitted: Fitted
    alpha: float
    accuracy: dict[str, dict[str, float]]
    history: list[dict[str, float]]


def tune(
    fitted: Fitted,
    model: str | LoadedTowers,
    images: str,
    *,
    how: Fit = RECIPE,
    alpha: float = 0.5,
    alphas: Sequence[float] = ALPHAS,
    shifted: Sequence[str] = (),
    size: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
    listen: Listener = silent,
) -> Tuned:
    """Train image tower and head on the train split of `images`, and measure every alpha on the test splits.

    Args:
        how: wise-ft's recipe by default: AdamW, 3e-5, decay 0.1, cosine, clipped at 1.
        alpha: of the blend that is returned; 0.5 is WiSE-FT's safe default. One picked on a shifted set is an oracle.
    """
    if alpha not in alphas:
        alphas = sorted({*alphas, alpha})
    towers = load_towers(model, device) if isinstance(model, str) else model
    check_model(fitted, towers)
    learn = load_images(images, "train", size=size, limit=limit)
    tests = [load_images(source, "test", size=size, limit=limit) for source in (images, *shifted)]
    module = Tuner(towers.image_module(), fitted.head)
    zero = {name: value.clone() for name, value in module.state_dict().items()}
    start = Tuner(module.tower, fitted.zero)
    zero |= {"weight": start.weight.detach().clone(), "bias": start.bias.detach().clone()}
    labels = class_places(learn, fitted.texts.classes)
    history = fit(module, to_batch(learn.images), labels, how, listen=listen)
    tuned = {name: value.clone() for name, value in module.state_dict().items()}
    found: dict[str, dict[str, float]] = {data.name: {} for data in tests}
    for each in alphas:
        module.load_state_dict(interpolate(zero, tuned, each))
        for data in tests:
            found[data.name][f"{each:g}"] = _accuracy(module, data, fitted)
    module.load_state_dict(interpolate(zero, tuned, alpha))
    scale = fitted.texts.scale
    head = Head(module.weight.detach() / scale, scale, module.bias.detach().clone())
    towers = towers.replace_image(module.tower.state_dict())
    figures = {**fitted.figures, "alpha": alpha, "tuned": found, "epochs": how.epochs}
    blended = replace(fitted, head=head, figures=figures, model=(towers.name, towers.digest))
    return Tuned(towers, blended, alpha, found, history)


def save_tuned(done: Tuned, source: str, out: str | Path) -> Path:
    """Write OUT/model, the folder `source` with the blended image tower, and OUT/head, fitted on that model."""
    folder = save_towers(Path(out) / "model", done.towers, source)
    towers = load_towers(folder)
    save(replace(done.fitted, model=(towers.name, towers.digest)), Path(out) / "head")
    return Path(out)


@torch.no_grad()
def _accuracy(module: Tuner, data: Images, fitted: Fitted, batch: int = 64) -> float:
    module.eval()
    rows = [
        F.normalize(module.tower(to_batch(data.images[start : start + batch])), dim=1)
        for start in range(0, len(data), batch)
    ]
    shots = Shots(torch.cat(rows), class_places(data, fitted.texts.classes))
    head = Head(module.weight.detach(), 1.0, module.bias.detach())
    return accuracy(head, shots, len(fitted.texts.classes))
