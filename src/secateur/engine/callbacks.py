"""A training method in the trainers people use: transformers' Trainer and Lightning.

    Trainer(..., callbacks=[trainer_callback(GMP(sparsity=0.9))])
    L.Trainer(..., callbacks=[lightning_callback(GMP(sparsity=0.9))])

Both attach when training begins, count optimiser steps (not batches), save the masks with each checkpoint and go on
from them. The pruner is the callback's `pruner`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.apply.pruner import Pruner
from secateur.apply.training import Training
from secateur.errors import NoMatch, require
from secateur.io.state import load_state, save_state

STATE = "secateur"


def trainer_callback(method: Training, **attach: Any) -> Any:
    """A `transformers.TrainerCallback`; the masks lie in each checkpoint's folder `secateur`.

    Args:
        attach: `data` and `loss`, for methods that look at gradients before training.
    """
    transformers = require("transformers", "hf")

    class SecateurCallback(transformers.TrainerCallback):
        pruner: Pruner | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.pruner = method.attach(kwargs["model"], kwargs["optimizer"], steps=state.max_steps, **attach)
            if state.global_step:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
                if not folder.is_dir():
                    raise NoMatch(
                        "holds no masks to go on with", where=str(folder), fix="start the training again"
                    )
                self.pruner.load_state_dict(load_state(folder))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.pruner is not None
            self.pruner.step()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.pruner is not None
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
                save_state(folder, self.pruner.state_dict())

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert self.pruner is not None
            self.pruner.detach()

    return SecateurCallback()


def lightning_callback(method: Training, **attach: Any) -> Any:
    """A Lightning `Callback` for automatic optimisation with one optimiser; the masks lie in its checkpoints.

    Args:
        attach: `data` and `loss`, for methods that look at gradients before training.
    """
    lightning = require("pytorch_lightning", "train")

    class SecateurCallback(lightning.Callback):
        pruner: Pruner | None = None
        _done = 0
        _held: dict[str, Any] | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            steps = int(trainer.estimated_stepping_batches)
            self.pruner = method.attach(pl_module, trainer.optimizers[0], steps=steps, **attach)
            self._done = trainer.global_step
            if self._held is not None:
                self.pruner.load_state_dict(self._held)

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
