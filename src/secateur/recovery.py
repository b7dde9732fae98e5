"""A fine-tuning job: a cut language model by name, text, and the model trained on with its zeros kept, as a folder.

What the source folder has as plan.json goes along (the zeros are the same), and finetune.json says how it was trained.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.engine.calibrate import Calibration, calibration
from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput
from secateur.evaluate.perplexity import vocabulary_size
from secateur.io.files import inside, read_small
from secateur.io.hub import Loaded
from secateur.io.store import Model, as_loaded, check_out, save
from secateur.recover.finetune import finetune
from secateur.recover.lora import Adapted, lora
from secateur.sites.trainable import trainable_weights

PLAN, FIGURES = "plan.json", "finetune.json"
LR, LORA_LR = 1e-5, 1e-4  # adapters begin at nothing and need larger steps than weights
_LIMIT = 256 << 20


@dataclass
class Finetuned:
    """A trained network, the loss of every step, `figures` (what finetune.json holds), and the folder if any."""

    model: nn.Module
    losses: list[float]
    figures: dict[str, Any]
    folder: Path | None = None
    seconds: float = 0.0


def finetune_model(
    model: Model,
    out: str | Path | None = None,
    *,
    text: Any = "embedded",
    steps: int = 100,
    length: int = 256,
    batch: int = 2,
    lr: float | None = None,
    adapters: bool = False,
    rank: int = 8,
    seed: int = 0,
    field: str = "text",
    tokenizer: Any = None,
    format: str = "dense",
    overwrite: bool = False,
    listen: Listener = silent,
) -> Finetuned:
    """Train a language model on text, AdamW with lr falling to 0, with every zero of its layers kept.

    Weights of 16 bits are trained as float32 and rounded once, at the end.

    Args:
        model: a name, what `load` gave, or a module, which is changed in place.   tokenizer: for a module and text.
        out: a folder for the trained model; None writes nothing.   format, overwrite: as for `save`.
        text, length, field, seed: windows are drawn as for calibration (engine/calibrate.py), batch * steps of them.
        lr: at the first step; None: 1e-5, and 1e-4 for adapters.
        adapters, rank: train LoRA adapters under the mask (recover/lora.py) and merge them, instead of all weights.

    Raises:
        BadInput, NoMatch, Damaged, Unsupported: one line; `out` is as it was.
    """
    _check(steps, batch, length)
    if out is not None:
        check_out(out, overwrite, format)
    start = time.perf_counter()
    loaded = as_loaded(model, tokenizer, tell=lambda done: listen(Event("load", done, 1, str(model))))
    limit = vocabulary_size(loaded.model)
    how = {"samples": steps * batch, "length": length, "seed": seed, "field": field, "vocab_size": limit}
    drawn = calibration(text, loaded.tokenizer, **how)
    rate = lr if lr is not None else LORA_LR if adapters else LR
    settings = {"steps": steps, "batch": batch, "lr": rate, "rank": rank if adapters else None, "seed": seed}
    losses = _train(loaded.model, drawn, listen, **settings)  # type: ignore[arg-type]
    figures = {
        "format": "secateur.finetune",
        "version": 1,
        "model": loaded.name,
        "text": drawn.source,
        "digest": drawn.digest(),
        **settings,
        "sparsity": _sparsity(loaded.model),
        "losses": losses,
    }
    result = Finetuned(loaded.model, losses, figures)
    if out is not None:
        listen(Event("save", 0, 1, str(out)))
        result.folder = _write(loaded, out, figures, format, overwrite)
        listen(Event("save", 1, 1, str(out)))
    result.seconds = time.perf_counter() - start
    return result


def _train(
    net: nn.Module,
    drawn: Calibration,
    listen: Listener,
    *,
    steps: int,
    batch: int,
    lr: float,
    rank: int | None,
    seed: int,
) -> list[float]:
    def tell(step: int, loss: float) -> None:
        listen(Event("finetune", step, steps, f"loss {loss:.3f}"))

    with _wide(net), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout, where there is any
        trained: nn.Module | Adapted = net if rank is None else lora(net, rank=rank, seed=seed)
        try:
            return finetune(trained, drawn.batches(batch), steps=steps, lr=lr, tell=tell)
        finally:
            if isinstance(trained, Adapted):
                trained.merge()


def _write(loaded: Loaded, out: str | Path, figures: dict[str, Any], format: str, overwrite: bool) -> Path:
    """The checkpoint, with the plan of the folder it came from."""
    extra = {FIGURES: json.dumps(figures, indent=1) + "\n"}
    if loaded.folder is not None and (loaded.folder / PLAN).is_file():
        extra[PLAN] = read_small(inside(loaded.folder, PLAN), _LIMIT).decode("utf-8")
    return save(
        loaded.model,
        out,
        tokenizer=loaded.tokenizer,
        source=loaded.folder,
        format=format,
        overwrite=overwrite,
        extra=extra,
    )


def _check(steps: int, batch: int, length: int) -> None:
    for word, value in (("steps", steps), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"{value!r}", where=word, fix="give a whole number, 1 or more")
    if length < 2:
        raise BadInput(
            f"{length!r}", where="length", fix="a window needs 2 tokens: one to read, one to guess"
        )


def _sparsity(model: nn.Module) -> float:
    """Fraction of zeros in the linear layers."""
    weights = trainable_weights(model).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@contextmanager
def _wide(model: nn.Module) -> Iterator[None]:
    """16-bit tensors are float32 inside, and as they were after; a zero stays a zero."""
    tensors = [*model.parameters(), *model.buffers()]
    narrow = [(t, t.dtype) for t in tensors if t.dtype in (torch.bfloat16, torch.float16)]
    for tensor, _ in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
