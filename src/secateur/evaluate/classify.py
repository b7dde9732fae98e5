"""What an image classifier says of labelled images: logits and top-1 accuracy.

    images     uint8 [N, H, W, C] of 0..255, as io/images.py gives them; the model gets float [n, C, H, W] in [0, 1]
    accuracy   how often the largest logit is the label's; of equal logits the first class counts

Oracle: hand-made logits in the tests; the published ResNet-20 on CIFAR-10 (91.73% of the whole test set).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.evaluate.perplexity import evaluating

Progress = Callable[[int, int], None]


def accuracy(
    model: nn.Module,
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    batch: int = 256,
    device: torch.device | str | None = None,
    *,
    progress: Progress | None = None,
) -> float:
    """Share of the images [N, H, W, C] whose largest logit is that of their label [N]; 0 to 1.

    Raises: BadInput: labels that are not whole numbers below the number of classes, one an image.   And as `logits`.
    """
    wanted = torch.as_tensor(labels)
    if wanted.ndim != 1 or wanted.is_floating_point() or wanted.dtype == torch.bool:
        what = f"labels are {wanted.dtype} of shape {list(wanted.shape)}"
        raise BadInput(what, where="accuracy", fix="give whole numbers [N]")
    if len(wanted) != len(images):
        raise BadInput(
            f"{len(images)} images and {len(wanted)} labels", where="accuracy", fix="give one each"
        )
    found = logits(model, images, batch, device, progress=progress)
    wanted = wanted.long().cpu()
    low, high = int(wanted.min()), int(wanted.max())
    if low < 0 or high >= found.shape[1]:
        what = f"label {low if low < 0 else high}, and the model knows {found.shape[1]} classes"
        raise BadInput(what, where="accuracy", fix="the images belong to another data set than the model")
    return int((found.argmax(1) == wanted).sum()) / len(wanted)


@torch.no_grad()
def logits(
    model: nn.Module,
    images: np.ndarray | Tensor,
    batch: int = 256,
    device: torch.device | str | None = None,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Logits [N, classes], float32 on the CPU. Modes and device of the model are afterwards what they were.

    Args:
        images: uint8 [N, H, W, C], or floats [N, C, H, W] in [0, 1] (a tensor) that go in as they are.
        batch: how many at a time. device: where to compute; by default where the model is.
        progress: called with (images done, images in all).

    Raises:
        BadInput: images of another kind, none at all, or logits that are NaN or +Inf (the batch is named).
        Unsupported: the model does not return [n, classes].
    """
    if type(batch) is not int or batch < 1:
        raise BadInput(f"{batch!r:.40} images at a time", where="batch", fix="give at least 1")
    count = len(images)
    if count == 0:
        raise BadInput("there are no images", where="classify", fix="give at least one")
    out: list[Tensor] = []
    with evaluating(model), _on(model, device) as there:
        for start in range(0, count, batch):
            part = to_batch(images[start : start + batch]).to(there)
            found = _plain(model(part), len(part), type(model).__name__)
            if bool((found.isnan() | found.isposinf()).any()):
                what = f"logits of batch {start // batch} (images {start} to {start + len(part) - 1}) hold NaN or Inf"
                raise BadInput(what, where=_not_finite(model), fix="check the weights, or compute in float32")
            out.append(found)
            if progress:
                progress(start + len(part), count)
    return torch.cat(out)


def to_batch(images: np.ndarray | Tensor) -> Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1], contiguous; floats [N, C, H, W] pass. Else BadInput."""
    kind = f"{images.dtype} of shape {list(images.shape)}"
    if images.ndim == 4:
        if isinstance(images, Tensor) and images.is_floating_point():
            return images
        if images.dtype in (np.uint8, torch.uint8):
            # a copy: torch warns of arrays that cannot be written, and takes no negative strides
            pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images, order="C"))
            return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
    raise BadInput(f"images are {kind}", where="classify", fix="give uint8 [N, H, W, C]")


@contextmanager
def _on(model: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """The device to compute on; the model is brought there and back where it is another one than its own."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    home = tensor.device if tensor is not None else torch.device("cpu")
    try:
        there = home if device is None else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        fix = "use cpu, or cuda if there is one"
        raise BadInput(f"no device {device!r:.40} here", where="device", fix=fix) from error
    if there == home:
        yield home
        return
    try:
        model.to(there)
        yield there
    finally:
        model.to(home)


def _plain(found: Any, count: int, where: str) -> Tensor:
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        what = f"gives {shape} for {count} images"
        raise Unsupported(what, where=where, fix="use a classifier: it returns [images, classes]")
    return found.float().cpu()


def _not_finite(model: nn.Module) -> str:
    named = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, p in named if p.is_floating_point() and not p.isfinite().all()), "the model")
