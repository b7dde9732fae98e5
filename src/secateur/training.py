"""A training job: a network, images, a method that cuts it on the way, and what came of it, from one TOML recipe.

    [model]                       [method]                      [training]
    name = "resnet20"             name = "granet"               epochs = 30        # one key a field of engine.train.Fit
    seed = 0                      sparsity = 0.9                lr = 0.1
    device = "cpu"                                              augment = "none"   # crop-flip, gaussian, augmix
    [data]                        [output]                      small_dense = true # train the small-dense baseline too
    source = "cifar10_small"      folder = "resnet20-granet"

Without [method] the network is trained dense. After every epoch the state is saved beside the folder (FOLDER.state),
from which `resume` goes on bit for bit, and FOLDER.html shows the curves so far.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.training import Training
from secateur.engine.events import Listener, silent
from secateur.engine.train import Augment, Fit, fit
from secateur.errors import BadInput, NoMatch, nearest
from secateur.evaluate.classify import accuracy, to_batch
from secateur.evaluate.stability import stability
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.files import check_replaceable, write_atomic
from secateur.io.hub import device_of
from secateur.io.images import Images, load_images
from secateur.io.networks import Classifier, is_network, narrower
from secateur.io.state import read_state, write_state
from secateur.recipe import read_tables, resolve
from secateur.registry import name_of
from secateur.report.curves import curves_page
from secateur.robustness.augment import augmix, gaussian_augment
from secateur.signals.flops import layer_flops, training_flops

AUGMENTS = ("none", "crop-flip", "gaussian", "augmix")
_FIT = {f.name: f.default for f in fields(Fit) if f.name != "cycle"}
_TABLES: dict[str, dict[str, Any]] = {
    "model": {"name": "", "seed": 0, "device": "cpu"},
    "data": {"source": "", "size": 0, "limit": 0},
    "training": {**_FIT, "augment": "none", "small_dense": False},
    "output": {"folder": "", "overwrite": False},
}


@dataclass(frozen=True)
class TrainingRecipe:
    """A checked recipe.

    Args:
        model, data: name or folder; `seed` draws new weights.   method: None trains dense.
        device: where the network trains; the images stay where they are until their batch comes.
        how: see `Fit`.   augment: one of AUGMENTS.
        small_dense: also train a narrower dense network of as many parameters as non-zeros stay.
        folder: where the trained network goes; None keeps it in memory only.
    """

    model: str
    data: str
    method: Training | None
    how: Fit
    seed: int = 0
    device: str = "cpu"
    size: int | None = None
    limit: int | None = None
    augment: str = "none"
    small_dense: bool = False
    folder: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTS:
            fix = nearest(self.augment, AUGMENTS)
            raise BadInput(f"{self.augment!r} is no augmentation", where="augment", fix=fix)
        if self.small_dense and (self.method is None or not is_network(self.model)):
            raise BadInput("needs a network by name and a method", where="small_dense", fix="leave it out")
        if self.method is not None and not isinstance(self.method, Training):
            what = f"{name_of(self.method)} cuts a trained network, it does not train"
            raise BadInput(what, where="method", fix="use `secateur compress`")


@dataclass
class Trained:
    """A trained network, `history` (one row an epoch) and `figures` (what training.json holds)."""

    model: nn.Module
    history: list[dict[str, float]]
    figures: dict[str, Any]
    folder: Path | None


def load_training(path: str | Path) -> TrainingRecipe:
    """Read and check a training recipe.

    Raises:
        Damaged: not TOML.   NoMatch: an unknown table, key, method or setting.   BadInput: a wrong value.
    """
    from secateur.registry import make

    path = Path(path)
    tables, found = read_tables(
        path, _TABLES, {"model": "name", "data": "source", "output": "folder"}, "method"
    )
    base = path.resolve().parent
    method = make(**found["method"]) if "method" in found else None
    rest = dict(tables["training"])
    augment, small = rest.pop("augment"), rest.pop("small_dense")
    return TrainingRecipe(
        model=resolve(base, tables["model"]["name"]),
        data=resolve(base, tables["data"]["source"]),
        method=method,
        how=Fit(**rest),
        seed=tables["model"]["seed"],
        device=tables["model"]["device"],
        size=tables["data"]["size"] or None,
        limit=tables["data"]["limit"] or None,
        augment=augment,
        small_dense=small,
        folder=base / tables["output"]["folder"],
        overwrite=tables["output"]["overwrite"],
    )


def train(
    recipe: TrainingRecipe | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listen: Listener = silent,
) -> Trained:
    """Do what a training recipe says.

    Args:
        resume: go on from FOLDER.state, where an earlier run of the same recipe was stopped.

    Raises:
        As `load_training`, and what loading, attaching and saving raise: one line each.
    """
    if not isinstance(recipe, TrainingRecipe):
        recipe = load_training(recipe)
    folder = recipe.folder
    if folder is not None:
        _check_out(folder, overwrite or recipe.overwrite, resume)
    device = device_of(recipe.device)
    learn = load_images(recipe.data, "train", limit=recipe.limit, size=recipe.size)
    test = load_images(recipe.data, "test", size=recipe.size)
    model = network(recipe.model, learn, recipe.seed).to(device)
    start = time.perf_counter()
    history, figures = _run(recipe, model, learn, test, folder, resume, listen)
    figures["seconds"] = time.perf_counter() - start
    if recipe.small_dense:
        figures["small_dense"] = _small_dense(recipe, model, learn, test, listen)
    if folder is not None:
        text = json.dumps(figures, indent=1) + "\n"
        save_classifier(model, folder, extra={"training.json": text})
        shutil.rmtree(state_folder(folder), ignore_errors=True)
        _page(figures, folder)
    return Trained(model, history, figures, folder)


def rewinding(
    recipe: TrainingRecipe | str | Path,
    at: Callable[[int], Sequence[int]],
    *,
    pairs: int = 1,
    points: int = 1,
    listen: Listener = silent,
) -> list[dict[str, Any]]:
    """From which step on the recipe's training is stable (evaluate/stability.py); its method cuts nothing here.

    Args:
        at: the steps to branch from, given the length of one training in steps.

    Returns:
        A row a step: step, error, between, barrier, barriers, stable.
    """
    if not isinstance(recipe, TrainingRecipe):
        recipe = load_training(recipe)
    learn = load_images(recipe.data, "train", limit=recipe.limit, size=recipe.size)
    test = load_images(recipe.data, "test", size=recipe.size)
    model = network(recipe.model, learn, recipe.seed).to(device_of(recipe.device))
    images, labels = to_batch(learn.images), torch.as_tensor(learn.labels)
    how = _timed(recipe.how, recipe.method, len(images))
    total = round((how.cycle or how.epochs) * how.per_epoch(len(images)))
    return stability(
        model, images, labels, how, at(total), lambda m: accuracy(m, test.images, test.labels),
        steps=total, pairs=pairs, points=points, augment=lambda h: augmenter(recipe.augment, h), listen=listen,
    )  # fmt: skip


def state_folder(folder: Path) -> Path:
    """Where an unfinished training is kept."""
    return folder.with_name(folder.name + ".state")


def _run(
    recipe: TrainingRecipe,
    model: nn.Module,
    learn: Images,
    test: Images,
    folder: Path | None,
    resume: bool,
    listen: Listener,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    method = recipe.method
    images, labels = to_batch(learn.images), torch.as_tensor(learn.labels)
    how = _timed(recipe.how, method, len(images))
    optimizer, pruner = how.make(model), None
    if method is not None:
        starts = range(0, len(images), how.batch)[:8]
        device = device_of(recipe.device)
        some = [(images[i : i + how.batch].to(device), labels[i : i + how.batch].to(device)) for i in starts]
        steps = how.epochs * how.per_epoch(len(images))
        pruner = method.attach(model, optimizer, steps=steps, data=some, loss=nn.functional.cross_entropy)
    figures = _asked(recipe, learn)

    def keep(state: dict[str, Any]) -> None:
        if folder is not None:
            write_state(state_folder(folder), {**state, "figures": figures})
            _page({**figures, "history": state["history"]}, folder)

    state = None
    if resume and folder is not None:
        state = read_state(state_folder(folder))
        told = json.loads(json.dumps(figures))
        if state.pop("figures") != told:
            raise BadInput(
                "was another job", where=str(state_folder(folder)), fix="resume with the same recipe"
            )
    history = fit(
        model, images, labels, how, optimizer=optimizer, pruner=pruner, augment=augmenter(recipe.augment, how),
        evaluate=lambda m: accuracy(m, test.images, test.labels), save=keep, state=state, listen=listen,
    )  # fmt: skip
    if pruner is not None:
        pruner.detach()
        flops = layer_flops(model, images[:1].to(device_of(recipe.device)))
        figures |= pruner.report()
        dense_layers = dict.fromkeys(flops, float(pruner.net.step))  # what `skip` and `only` leave out
        densities = {**dense_layers, **pruner.density_steps}
        figures["train_flops"] = training_flops(flops, how.batch, densities, pruner.dense_steps)
        figures["dense_train_flops"] = 3 * how.batch * pruner.net.step * sum(flops.values())
    return history, {**figures, "accuracy": history[-1].get("accuracy"), "history": history}


def _timed(how: Fit, method: Training | None, samples: int) -> Fit:
    """Where a method trains several times, the learning rate goes by the length of one training."""
    length = getattr(method, "length", None)
    if length is None:
        return how
    per_epoch = how.per_epoch(samples)
    return replace(how, cycle=length(how.epochs * per_epoch) / per_epoch)


def _asked(recipe: TrainingRecipe, learn: Images) -> dict[str, Any]:
    """The first part of training.json: what was asked for."""
    method = recipe.method
    return {
        "format": "secateur.training",
        "version": 1,
        "model": recipe.model,
        "data": learn.name,
        "method": name_of(method) if method is not None else "dense",
        "settings": method.settings() if method is not None else {},
        "training": {f.name: getattr(recipe.how, f.name) for f in fields(Fit)},
        "augment": recipe.augment,
    }


def _small_dense(
    recipe: TrainingRecipe,
    model: Classifier,
    learn: Images,
    test: Images,
    listen: Listener,
) -> dict[str, Any]:
    """A narrower network of as many parameters as the cut one has non-zeros, trained dense by the same recipe."""
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
    name = narrower(model.settings, nonzero)
    small = network(name, learn, recipe.seed).to(device_of(recipe.device))
    dense = replace(recipe, model=name, method=None, small_dense=False)
    history, _ = _run(dense, small, learn, test, None, False, listen)
    parameters = sum(p.numel() for p in small.parameters())
    return {
        "model": name,
        "parameters": parameters,
        "nonzero_of_cut": nonzero,
        "accuracy": history[-1]["accuracy"],
    }


def network(name: str, data: Images, seed: int) -> Classifier:
    """A new network of that name for these images, normalised by their statistics; or the one of a folder."""
    classes = len(data.classes)
    if not is_network(name):
        return load_classifier(name, channels=data.channels, classes=classes).train()
    mean, std = data.statistics()
    shape = {"channels": data.channels, "size": data.size, "classes": classes}
    return load_classifier(name, **shape, seed=seed, mean=mean, std=std)


def augmenter(name: str, how: Fit) -> Augment | None:
    """(images [n, C, H, W], step) -> images, of one of AUGMENTS; draws from the seed and the step alone."""
    if name == "none":
        return None
    if name == "crop-flip":
        return lambda x, step: _crop_flip(x, how.seed * 1_000_003 + step)
    kind = augmix if name == "augmix" else gaussian_augment
    return lambda x, step: torch.as_tensor(np.asarray(kind(x, seed=how.seed, first=step * how.batch)))


def _crop_flip(x: Tensor, seed: int, pad: int = 4) -> Tensor:
    """Random crops of the zero-padded image, and mirror images half of the time."""
    g = torch.Generator().manual_seed(seed)
    n, _, h, w = x.shape
    padded = nn.functional.pad(x, (pad, pad, pad, pad))
    down, right = (torch.randint(0, 2 * pad + 1, (n, 1), generator=g) for _ in range(2))
    rows = (down + torch.arange(h))[:, None, :, None]
    columns = (right + torch.arange(w))[:, None, None, :]
    mirrored = torch.rand(n, generator=g) < 0.5
    columns = torch.where(mirrored[:, None, None, None], columns.flip(3), columns)
    batch = torch.arange(n)[:, None, None, None]
    return padded[batch, torch.arange(x.shape[1])[None, :, None, None], rows, columns]


def _page(figures: dict[str, Any], folder: Path) -> None:
    write_atomic(folder.with_name(folder.name + ".html"), curves_page(figures))


def _check_out(folder: Path, overwrite: bool, resume: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise BadInput("exists already", where=str(folder), fix="choose another folder, or pass --overwrite")
    check_replaceable(folder)
    state = state_folder(folder)
    if resume and not state.is_dir():
        raise NoMatch("no unfinished training to go on with", where=str(state), fix="run without --resume")
    if not resume and state.is_dir() and not overwrite:
        raise BadInput("holds an unfinished training", where=str(state), fix="pass --resume or --overwrite")
