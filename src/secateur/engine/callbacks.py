"""A training method in the trainers people use: transformers' Trainer and Lightning.

    Trainer(..., callbacks=[trainer_callback(GMP(sparsity=0.9))])
    L.Trainer(..., callbacks=[lightning_callback(GMP(sparsity=0.9))])

Both attach when training begins, count optimiser steps (not batches), save the masks with each checkpoint and go on
from them. The pruner is the callback's `pruner`. A trainer has its own optimiser step, learning rate and checkpoints,
so methods that need a loop of their own (a second pass, rewinding, trained scores) are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.apply.pruner import Pruner
from secateur.apply.training import Training
from secateur.errors import BadInput, NoMatch, Unsupported, require
from secateur.io.state import read_state, write_state
from secateur.registry import name_of

STATE = "secateur"


def trainer_callback(method: Training, *, resume: str | Path | None = None, **attach: Any) -> Any:
    """A `transformers.TrainerCallback`; the masks lie in each checkpoint's folder `secateur`.

    Args:
        resume: the checkpoint that `train(resume_from_checkpoint=...)` is given, if it lies outside of output_dir.
        attach: `data` and `loss`, for methods that look at gradients before training.

    Raises:
        Unsupported: a method that needs a loop of its own.   When a run is resumed, NoMatch: the checkpoint holds no
        masks; BadInput: they are another method's, or do not fit its weights.
    """
    transformers = require("transformers", "hf")
    _check(method)

    class SecateurCallback(transformers.TrainerCallback):
        pruner: Pruner | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved = load_masks(args, state.global_step, resume) if state.global_step else None
            self.pruner = _attach(
                method, kwargs["model"], kwargs["optimizer"], state.max_steps, attach, saved
            )

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.pruner is not None
            self.pruner.step()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.pruner is not None
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
                write_state(folder, self.pruner.state_dict())

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.pruner is not None
            self.pruner.detach()

    return SecateurCallback()


def lightning_callback(method: Training, **attach: Any) -> Any:
    """A Lightning `Callback` for automatic optimisation with one optimiser; the masks lie in its checkpoints.

    Args:
        attach: `data` and `loss`, for methods that look at gradients before training.

    Raises:
        Unsupported: a method that needs a loop of its own; when training begins, manual optimisation or several
        optimisers.   NoMatch, BadInput: as `trainer_callback`.
    """
    lightning = require("pytorch_lightning", "train")
    _check(method)

    class SecateurCallback(lightning.Callback):
        pruner: Pruner | None = None
        state_key = STATE
        _done = 0
        _held: dict[str, Any] | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
                what = f"{len(trainer.optimizers)} optimisers, or manual optimisation"
                raise Unsupported(what, where="Lightning", fix="attach the method in training_step yourself")
            steps = trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                fix = "give the Trainer max_epochs or max_steps"
                raise BadInput("a training without an end", where="Lightning", fix=fix)
            self._done = trainer.global_step
            saved, self._held = self._held, None
            if saved is None and self._done:
                if self.pruner is None:
                    raise _no_masks("the Lightning checkpoint")
                saved = self.pruner.state_dict()  # the same Trainer is asked to fit once more
            self.pruner = _attach(method, pl_module, trainer.optimizers[0], int(steps), attach, saved)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step > self._done:  # not while gradients accumulate
                self._done = trainer.global_step
                assert self.pruner is not None
                self.pruner.step()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            assert self.pruner is not None
            self.pruner.detach()

        def state_dict(self) -> dict[str, Any]:
            return self.pruner.state_dict() if self.pruner is not None else {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self._held = state_dict or None

    return SecateurCallback()


def load_masks(args: Any, step: int, resume: str | Path | None) -> dict[str, Any]:
    """The masks in a Trainer's checkpoint of this step."""
    checkpoint = Path(resume) if resume is not None else Path(args.output_dir) / f"checkpoint-{step}"
    if not (checkpoint / STATE).is_dir():
        raise _no_masks(str(checkpoint))
    return read_state(checkpoint / STATE)


def _no_masks(where: str) -> NoMatch:
    return NoMatch(
        "holds no masks to go on with", where=where, fix="start again, or name the checkpoint: resume="
    )


def _check(method: Training) -> None:
    reasons = {
        "a second pass at every step": getattr(method, "wrap", None) is not None,
        "its learning rate to start anew every round": getattr(method, "length", None) is not None,
        "scores in the place of weights": method.trains == "scores",
    }
    for what, true in reasons.items():
        if true:
            fix = "use `secateur train`, or attach it in a loop of your own"
            raise Unsupported(f"needs {what}, which a trainer does not do", where=name_of(method), fix=fix)


def _attach(
    method: Training,
    model: Any,
    optimizer: Any,
    steps: int,
    attach: dict[str, Any],
    saved: dict[str, Any] | None,
) -> Pruner:
    """Attach; with `saved`, go on from it, with weights and moments as the trainer has loaded them.

    Attaching puts a method's first masks on, which would cut weights that grew back later: what it touches is put back.
    """
    if saved is None:
        return method.attach(model, optimizer, steps=steps, **attach)
    inner = getattr(optimizer, "optimizer", optimizer)
    moments = [v for state in inner.state.values() for v in state.values() if isinstance(v, Tensor)]
    live = [*model.parameters(), *model.buffers(), *moments]
    loaded = [tensor.detach().clone() for tensor in live]
    pruner = method.attach(model, optimizer, steps=steps, **attach)
    with torch.no_grad():
        for tensor, value in zip(live, loaded, strict=True):
            tensor.copy_(value)
    pruner.load_state_dict(saved)
    if not all(torch.equal(tensor, value) for tensor, value in zip(live, loaded, strict=True)):
        pruner.detach()
        what = "weights that the masks cut are not zero: the two are of different checkpoints"
        raise BadInput(what, where="resume", fix="name the checkpoint: resume=")
    return pruner
