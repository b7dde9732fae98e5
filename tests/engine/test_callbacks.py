"""The callbacks of transformers' Trainer and of Lightning: zeros, steps, and resuming to the same bits."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.apply.training import Training
from secateur.engine.callbacks import STATE, lightning_callback, trainer_callback
from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.methods.weights.adasap import AdaSAP
from secateur.methods.weights.edge_popup import EdgePopup
from secateur.methods.weights.gmp import GMP
from secateur.methods.weights.lottery_ticket import LotteryTicket
from secateur.methods.weights.set import SET
from secateur.methods.weights.snip import SNIP
from secateur.recover.finetune import Keep
from tests.recover.cut import cut_model, expect_pattern, zeros
from tests.tinylm import tiny_llama

STEPS = 6
METHODS: dict[str, Training] = {
    "gmp": GMP(sparsity=0.75, every=1, end=0.5),
    # weights that its first masks cut live later: they must come back as they were saved
    "set": SET(sparsity=0.75, every=1),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What these libraries warn about is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def expect_zeros(model: nn.Module, sparsity: float, optimizer: Any = None) -> None:
    """Every linear weight has floor(sparsity * size) zeros, and no moment under them."""
    inner = getattr(optimizer, "optimizer", optimizer)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    total = sum(m.weight.numel() for m in layers.values())
    cut = sum(int((m.weight == 0).sum()) for m in layers.values())
    assert abs(cut - sparsity * total) <= len(layers), cut / total
    for name, layer in layers.items() if inner is not None else ():
        moment = inner.state[layer.weight]["exp_avg"]
        assert bool(moment.any()) and not bool(moment[layer.weight == 0].any()), name


# -- transformers ----------------------------------------------------------------------------------------------------


class Stop(Exception):
    """As a machine that goes away."""


def trainer(folder: Path, callback: Any, model: Any = None, stop: int = 0, **changes: Any) -> Any:
    """A Trainer of STEPS optimiser steps of 2 x 2 windows, saved after every third."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stopper(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if stop and state.global_step == stop:
                raise Stop

    ids = torch.randint(4, 64, (32, 10), generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "optim": "adamw_torch",
        "save_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 1,
    }
    return Trainer(
        model=model if model is not None else tiny_llama(),
        args=TrainingArguments(**{**settings, **changes}),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        callbacks=[callback, Stopper()],
    )


@pytest.mark.parametrize("name", METHODS)
def test_trainer_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    callback = trainer_callback(METHODS[name])
    whole = trainer(tmp_path / "whole", callback)
    whole.train()
    assert callback.pruner.net.step == whole.state.global_step == STEPS
    expect_zeros(whole.model, 0.75, whole.optimizer)
    saved = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    for key, value in saved.items():
        assert torch.equal(value, whole.model.state_dict()[key]), key
    assert set(saved) <= set(tiny_llama().state_dict()), "the state dict has the names it had"

    with pytest.raises(Stop):
        trainer(tmp_path / "part", trainer_callback(METHODS[name]), stop=4).train()
    again = trainer_callback(METHODS[name])
    other = tiny_llama()
    other.apply(other._init_weights)  # what it starts from is not what comes of it
    resumed = trainer(tmp_path / "part", again, model=other)
    resumed.train(resume_from_checkpoint=True)
    assert again.pruner.net.step == STEPS
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    ends = [c.pruner.state_dict() for c in (callback, again)]
    assert ends[0].keys() == ends[1].keys() and ends[0]["density_steps"] == ends[1]["density_steps"]
    for key, mask in ends[0]["masks"].items():
        assert torch.equal(mask, ends[1]["masks"][key]), key


def test_trainer_steps_are_optimiser_steps(tmp_path: Path) -> None:
    """Accumulated gradients, once a step: the weights are those of a loop written out."""
    method = GMP(sparsity=0.5, every=1, end=0.5)
    callback = trainer_callback(method)
    run = trainer(tmp_path, callback, max_grad_norm=0.0, lr_scheduler_type="constant", save_strategy="no")
    slow = copy.deepcopy(run.model)
    seen: list[Tensor] = []
    step = run.training_step
    run.training_step = lambda model, inputs, *a: (seen.append(inputs["input_ids"]), step(model, inputs, *a))[
        1
    ]
    run.train()
    assert len(seen) == 2 * STEPS and callback.pruner.net.step == STEPS
    optimizer = torch.optim.AdamW(slow.parameters(), 1e-2, weight_decay=0.1)
    optimizer.param_groups[0]["params"] = [p for p in slow.parameters() if p.ndim > 1]
    optimizer.add_param_group({"params": [p for p in slow.parameters() if p.ndim == 1], "weight_decay": 0.0})
    pruner = method.attach(slow, optimizer, steps=STEPS)
    slow.train()
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        for ids in (first, second):
            (slow(ids, labels=ids).loss / 2).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    for (key, a), b in zip(run.model.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4), key
    expect_zeros(run.model, 0.5)


@pytest.mark.slow
def test_the_trainers_keep_the_zeros_of_a_cut_network(tmp_path: Path) -> None:
    model = cut_model("2:4")
    before = zeros(model)
    callback = trainer_callback(Keep())
    run = trainer(tmp_path / "a", callback, model=model)
    run.train()
    expect_pattern(model, before, "2:4")
    with pytest.raises(Stop):
        trainer(tmp_path / "b", trainer_callback(Keep()), model=cut_model("2:4"), stop=4).train()
    again = trainer(tmp_path / "b", trainer_callback(Keep()))
    again.train(resume_from_checkpoint=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    net = module()
    with torch.no_grad():
        net.net[0].weight[::2] = 0
    lightning(tmp_path / "c", lightning_callback(Keep()), 1).fit(net, loader())
    assert not bool(net.net[0].weight[::2].any()) and bool(net.net[0].weight[1::2].all())


@pytest.mark.slow
def test_trainer_names_what_it_cannot_go_on_from(tmp_path: Path) -> None:
    trainer(tmp_path / "a", trainer_callback(METHODS["gmp"]), save_steps=6).train()
    checkpoint = tmp_path / "a" / "checkpoint-6"
    more = {"resume_from_checkpoint": str(checkpoint)}
    with pytest.raises(NoMatch, match="checkpoint-6: holds no masks to go on with; start again, or name"):
        trainer(tmp_path / "b", trainer_callback(METHODS["gmp"])).train(**more)
    trainer(tmp_path / "b", trainer_callback(METHODS["gmp"], resume=checkpoint)).train(**more)
    with pytest.raises(BadInput, match="resume: was saved with method gmp, this run has set"):
        trainer(tmp_path / "a", trainer_callback(METHODS["set"])).train(**more)
    other = tmp_path / "c"
    trainer(other, trainer_callback(METHODS["gmp"]), save_steps=6, seed=9, learning_rate=0.1).train()
    shutil.rmtree(checkpoint / STATE)
    shutil.copytree(other / "checkpoint-6" / STATE, checkpoint / STATE)
    with pytest.raises(BadInput, match="weights that the masks cut are not zero"):
        trainer(tmp_path / "a", trainer_callback(METHODS["gmp"])).train(**more)


# -- Lightning -------------------------------------------------------------------------------------------------------


def module(lr: float = 1e-2, seed: int = 0, **changes: Any) -> Any:
    """A LightningModule of two layers; `automatic` and `optimizers` may be changed."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
            self.automatic_optimization = changes.get("automatic", True)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            made = [
                torch.optim.AdamW(self.parameters(), lr, weight_decay=0.1)
                for _ in range(changes.get("optimizers", 1))
            ]
            return made

    return Module()


def lightning(folder: Path, callback: Any, epochs: int | None = 3, **changes: Any) -> Any:
    """A Lightning trainer: 4 batches an epoch, 2 of them a step; saves after every epoch."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    settings: dict[str, Any] = {
        "max_epochs": epochs,
        "accumulate_grad_batches": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    keep = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, save_last=True)
    return pl.Trainer(**{**settings, **changes}, callbacks=[*([callback] if callback else []), keep])


def loader() -> Any:
    g = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(
        torch.randn(32, 12, generator=g), torch.randint(0, 4, (32,), generator=g)
    )
    return torch.utils.data.DataLoader(data, batch_size=8)


@pytest.mark.parametrize("name", METHODS)
def test_lightning_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    callback = lightning_callback(METHODS[name])
    whole, run = module(), lightning(tmp_path, callback)
    run.fit(whole, loader())
    assert callback.pruner.net.step == run.global_step == STEPS
    expect_zeros(whole, 0.75, run.optimizers[0])
    assert set(whole.state_dict()) == set(module().state_dict())

    checkpoint = tmp_path / "epoch=1.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    masks = stored["callbacks"][STATE]
    assert masks["step"] == 4 and masks["method"] == name
    assert all(isinstance(bits, Tensor) for bits in masks["masks"].values())

    again, fresh = lightning_callback(METHODS[name]), module(seed=8)
    lightning(tmp_path / "again", again).fit(fresh, loader(), ckpt_path=checkpoint, weights_only=True)
    assert again.pruner.net.step == STEPS
    for key, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key
    for key, mask in callback.pruner.net.masks.items():
        assert torch.equal(mask, again.pruner.net.masks[key]), key


def test_lightning_equals_a_loop_written_out(tmp_path: Path) -> None:
    method = GMP(sparsity=0.5, every=1)
    quick, slow = module(), module()
    lightning(tmp_path, lightning_callback(method), 2).fit(quick, loader())
    optimizer = slow.configure_optimizers()[0]
    pruner = method.attach(slow, optimizer, steps=4)
    for _ in range(2):
        for index, batch in enumerate(loader()):
            (slow.training_step(batch, index) / 2).backward()
            if index % 2:
                optimizer.step()
                pruner.step()
                optimizer.zero_grad()
    for key, value in slow.state_dict().items():
        assert torch.allclose(value, quick.state_dict()[key], atol=1e-6), key


def test_a_method_that_looks_at_gradients_first(tmp_path: Path) -> None:
    data = list(loader())
    model = module()
    callback = lightning_callback(
        SNIP(sparsity=0.5, only=("net.*",)), data=[(x, y) for x, y in data], loss=F.cross_entropy
    )
    model.forward = model.net.forward
    lightning(tmp_path, callback, 1).fit(model, loader())
    assert callback.pruner.density == pytest.approx(0.5, abs=0.01)
    expect_zeros(model, 0.5)


def test_lightning_names_what_it_cannot_do(tmp_path: Path) -> None:
    method = METHODS["gmp"]
    for changes, said in (
        ({"optimizers": 2, "automatic": False}, "2 optimisers"),
        ({"automatic": False}, "manual"),
    ):
        with pytest.raises(Unsupported, match=said):
            lightning(tmp_path, lightning_callback(method), accumulate_grad_batches=1).fit(
                module(**changes), loader()
            )
    with pytest.raises(BadInput, match="a training without an end; give the Trainer max_epochs or max_steps"):
        lightning(tmp_path, lightning_callback(method), -1).fit(module(), loader())
    lightning(tmp_path / "bare", None, 2).fit(module(), loader())
    with pytest.raises(NoMatch, match="holds no masks to go on with"):
        lightning(tmp_path, lightning_callback(method)).fit(
            module(), loader(), ckpt_path=tmp_path / "bare" / "epoch=0.ckpt", weights_only=True
        )


@pytest.mark.parametrize("make", [trainer_callback, lightning_callback])
def test_methods_that_need_a_loop_of_their_own_are_refused(make: Any) -> None:
    for method, said in (
        (AdaSAP(), "adasap: needs a second pass at every step"),
        (LotteryTicket(), "lottery_ticket: needs its learning rate to start anew every round"),
        (EdgePopup(), "edge_popup: needs scores in the place of weights"),
    ):
        with pytest.raises(Unsupported, match=said) as caught:
            make(method)
        assert "secateur train" in str(caught.value) and "\n" not in str(caught.value)
