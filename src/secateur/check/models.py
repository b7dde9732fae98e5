"""Checks of what happens to the model: only what the plan says, all of it undone on demand or after any failure."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.mask import apply
from secateur.check.probe import Probe, Toy, expect, expect_measured, refuses, state
from secateur.core.method import OneShot
from secateur.engine.run import FEEDS, Options, plan
from secateur.errors import BadInput, Unsupported
from secateur.io.plans import load_plan, save_plan
from secateur.io.sparse import decode, encode


def plan_leaves_model(probe: Probe) -> None:
    """Making a plan leaves the model as it was: bits, modes, hooks, flags."""
    for feed in FEEDS:
        model = probe.model().train()
        model.layers[0].eval()
        before = state(model)
        made = plan(model, probe.method(), probe.data(), Options(feed=feed))
        expect(made.sparsity > 0, "the plan cuts nothing")
        expect(state(model) == before, f"feed {feed}: the model is not as it was")


def undo(probe: Probe) -> None:
    """Undo gives back every bit, after every feed."""
    for feed in FEEDS:
        model = probe.model()
        before = state(model)
        result = probe.run(model, feed=feed)
        expect(state(model) != before, f"feed {feed}: nothing was cut")
        result.undo.undo()
        expect(state(model) == before, f"feed {feed}: the model is not as it was")


def modes_kept(probe: Probe) -> None:
    """A run leaves modes, hooks, flags and parameter objects alone, and cuts with dropout switched off."""
    for feed in FEEDS:
        training, resting = probe.model().train(), probe.model().eval()
        before = state(training)
        plans = [probe.run(model, feed=feed).plan for model in (training, resting)]
        expect(state(training)[1:] == before[1:], f"feed {feed}: something other than values changed")
        expect(plans[0].digest() == plans[1].digest(), f"feed {feed}: training mode changes the plan")


def dtypes(probe: Probe) -> None:
    """Weights keep their dtype and device: float32, float64, float16, bfloat16."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            model = probe.model(dtype).to(device)
            result = probe.run(model, data=probe.data(dtype=dtype))
            for name, tensor in model.state_dict().items():
                kept = tensor.dtype == dtype and tensor.device.type == device
                expect(kept, f"{name} became {tensor.dtype} on {tensor.device}")
            expect_measured(result)


def read_only_weights(probe: Probe) -> None:
    """Deciding writes nothing into the weights, so that a read-only memory map serves."""
    weight, x, bias, site = probe.site()
    held, version = weight.clone(), weight._version
    first = probe.cut(weight, x, bias, site)
    expect(
        torch.equal(weight, held) and weight._version == version,
        "the method wrote into the weights it was given",
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: the array is not writable; that is the point
        path = Path(folder) / "weight.bin"
        path.write_bytes(weight.numpy().tobytes())
        mapped = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r", shape=(24, 16)))
        expect(torch.equal(probe.cut(mapped, x, bias, site).keep, first.keep), "another mask")
        model = probe.model()
        up = model.get_submodule("layers.0.up")
        assert isinstance(up, nn.Linear)
        path.write_bytes(up.weight.detach().numpy().tobytes())
        up.weight = nn.Parameter(
            torch.from_numpy(np.memmap(path, dtype=np.float32, mode="c", shape=(24, 16)))
        )
        before = path.read_bytes()
        expect(probe.run(model).plan.digest() == probe.run(probe.model()).plan.digest(), "another plan")
        expect(path.read_bytes() == before, "the file changed")


def tied_weights(probe: Probe) -> None:
    """A weight that two modules share is one site, stays shared, and is measured at both; else it is refused."""
    for same_object in (True, False):
        model = probe.model()
        first, second = model.get_submodule("layers.0.up"), model.get_submodule("layers.1.up")
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        second.weight = first.weight if same_object else nn.Parameter(first.weight.data)
        result = probe.run(model)
        expect("layers.1.up" not in result.plan.sites, "the shared weight was counted twice")
        expect(first.weight.data_ptr() == second.weight.data_ptr(), "the weights are no longer shared")
        expect_measured(result)
        wanted = sum(kept.mask().numel() for kept in result.plan.sites.values())
        expect(wanted == 3 * 16 * 24, f"{wanted} units, not {3 * 16 * 24}")
        for feed in ("block", "layer") if probe.cls.needs is not None else ():
            refuses(
                Unsupported, lambda m=model, f=feed: probe.run(m, feed=f), "layers.0.up", what=f"feed {feed}"
            )


class _Injected(Exception):
    """The failure that `failure_restores` injects."""


@contextmanager
def _failing(target: Any, name: str, after: int, error: type[BaseException]) -> Iterator[None]:
    """`target.name` raises from its call number `after` on."""
    original: Callable[..., Any] = getattr(target, name)
    calls = 0

    def fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= after:
            raise error("injected")
        return original(*args, **kwargs)

    own = name in vars(target)
    setattr(target, name, fails)
    try:
        yield
    finally:
        if own:
            setattr(target, name, original)
        else:
            delattr(target, name)


_STAGES = {
    "the first decision": ("method", "cut", 1),
    "a later decision": ("method", "cut", 3),
    "scoring": ("method", "score", 2),
    "selection": ("method", "select", 2),
    "measuring": ("signal", "add", 4),
    "the first forward": ("layer", "forward", 1),
    "a later forward": ("layer", "forward", 3),
    "progress": ("listener", "hear", 2),
}


class _Listener:
    def hear(self, event: Any) -> None:
        pass


def failure_restores(probe: Probe) -> None:
    """An exception at any stage, Ctrl-C too, leaves weights, hooks, modes and flags as they were."""
    for feed in FEEDS:
        for error in (_Injected, KeyboardInterrupt):
            raised = set()
            for stage, (where, name, after) in _STAGES.items():
                model, listener = probe.model().train(), _Listener()
                model.layers[1].eval()
                before = state(model)
                layer = model.layers[0].down  # type: ignore[union-attr]
                target = {
                    "method": probe.cls,
                    "signal": probe.cls.needs,
                    "layer": layer,
                    "listener": listener,
                }[where]
                if target is None:
                    continue
                with _failing(target, name, after, error):
                    try:
                        probe.run(model, feed=feed, listen=listener.hear)
                    except error:
                        raised.add(stage)
                if stage in raised:
                    expect(state(model) == before, f"feed {feed}, {error.__name__} at {stage}: not as it was")
            expect(
                {"the first decision", "a later decision", "progress"} <= raised,
                f"only {raised} were reached",
            )


def save_load_apply(probe: Probe) -> None:
    """A plan that went through a file and is applied to another copy cuts what compress cut."""
    result = probe.run(probe.model())
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_plan(save_plan(result.plan, Path(folder) / "plan.safetensors"))
    expect(loaded.digest() == result.plan.digest(), "the plan changed on its way through the file")
    expect(
        loaded.config == result.plan.config and loaded.notes == result.plan.notes, "settings or notes changed"
    )
    other = probe.model()
    before = state(other)
    if probe.cls.updates:
        refuses(BadInput, lambda: apply(other, loaded), "masks", what="a plan without its updates")
        expect(state(other) == before, "the model changed")
    taken = apply(other, loaded, masks_only=probe.cls.updates)
    for name, tensor in probe.model().state_dict().items():
        site = name.removesuffix(".weight")
        wanted = tensor * loaded.sites[site].mask() if site in loaded.sites else tensor
        expect(torch.equal(other.state_dict()[name], wanted), f"{name}: not the mask's values")
        if not probe.cls.updates:
            left = result.model.state_dict()[name]
            expect(torch.equal(other.state_dict()[name], left), f"{name}: not what compress left")
    taken.undo()
    expect(state(other) == before, "undo does not give the model back")


def compact_equals_masked(probe: Probe) -> None:
    """The sparse format gives every weight back bit for bit, so the compact model computes what the masked one does."""
    for dtype in (torch.float32, torch.bfloat16):
        result = probe.run(probe.model(dtype), data=probe.data(dtype=dtype))
        compact = copy.deepcopy(result.model)
        for name in result.plan.sites:
            weight: Tensor = compact.get_submodule(name).weight.data  # type: ignore[assignment,union-attr]
            weight.copy_(decode(encode(weight)))
        x = probe.data(dtype=dtype).samples[0]["x"][None]
        compact.eval()
        result.model.eval()
        for (name, a), b in zip(
            compact.state_dict().items(), result.model.state_dict().values(), strict=True
        ):
            expect(torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"{name}: other bits")
        expect(torch.equal(compact(x), result.model(x)), "another output")


def sites_chosen(probe: Probe) -> None:
    """`only` and `skip` leave every other weight as it was, to the bit."""
    for feed in FEEDS:
        model, same = probe.model(), probe.model()
        result = probe.run(model, feed=feed, only=("*.up",), skip=("layers.0.*",))
        expect(list(result.plan.sites) == ["layers.1.up"], f"feed {feed}: cut {list(result.plan.sites)}")
        for (name, a), b in zip(model.state_dict().items(), same.state_dict().values(), strict=True):
            inside = name.startswith("layers.1.up")
            expect(inside or torch.equal(a, b), f"feed {feed}: {name} changed")


def every_feed(probe: Probe) -> None:
    """Fed by block, by layer or not at all, the plan is what the weights show; the method is a plain object."""
    method: OneShot = probe.method()
    for feed in FEEDS:
        result = probe.run(Toy(), method, feed=feed)
        expect(
            list(result.plan.sites) == [f"layers.{i}.{p}" for i in (0, 1) for p in ("up", "down")],
            "other sites",
        )
        expect_measured(result)
    expect(method == probe.method(), "the method changed while it ran")


CHECKS = (
    plan_leaves_model,
    undo,
    modes_kept,
    dtypes,
    read_only_weights,
    tied_weights,
    failure_restores,
    save_load_apply,
    compact_equals_masked,
    sites_chosen,
    every_feed,
)
