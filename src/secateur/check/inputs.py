"""Checks of what a method refuses: settings, names, weights and data that cannot be used are one typed line, early."""

from __future__ import annotations

import json
import time
from dataclasses import FrozenInstanceError, fields
from typing import Any

import torch
from torch import nn

from secateur.check.probe import Probe, Skip, Toy, expect, expect_counts, expect_measured, refuses, state
from secateur.core.budget import Budget
from secateur.core.select import NM
from secateur.engine.calibrate import Calibration
from secateur.engine.run import FEEDS, Options, compress
from secateur.errors import BadInput, Infeasible, NoMatch, SecateurError, Unsupported
from secateur.registry import make


def config_round_trip(probe: Probe) -> None:
    """Settings go to JSON and back, unchanged; a method cannot be altered once made."""
    fixed = isinstance(probe.method().pattern, NM)
    amounts = () if fixed else ("29%", Budget(density=0.4), Budget(keep=100))
    variants = [probe.method(), *probe.patterns(), *(probe.method(sparsity=amount) for amount in amounts)]
    for method in variants:
        back = probe.cls(**json.loads(json.dumps(method.settings(), allow_nan=False)))
        expect(back == method, f"{method} came back as {back}")
    try:
        variants[0].sparsity = 0.9  # type: ignore[misc]
    except FrozenInstanceError:
        return
    raise AssertionError("a setting could be changed after construction")


def range_edges(probe: Probe) -> None:
    """A sparsity, pattern or allocation outside its range is refused when the method is made, within 50 ms."""
    bad: dict[str, list[Any]] = {
        "sparsity": [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), -1e-300, "half", "150%", "", "nan", True],
        "pattern": ["4:2", "0:4", "0:0", "-1:4", "2:4:8", ":", "2:", "0x4", "rows", "", 5],
        "allocate": ["unifrom", ""],
    }
    start, count = time.perf_counter(), 0
    for name, values in bad.items():
        for value in values:
            refuses(SecateurError, lambda n=name, v=value: probe.method(**{n: v}), what=f"{name}={value!r}")
            count += 1
    expect(time.perf_counter() - start < 0.05 * count, "refusing took more than 50 ms a setting")
    for sparsity in (0, 0.0, 1e-12, 0.999999, "0%", "99.9%"):
        probe.method(sparsity=sparsity, pattern="row", allocate="uniform")


def hostile_settings(probe: Probe) -> None:
    """Nonsense in any setting is refused as such, or it runs and cuts what it says: never another exception."""
    values = [
        -1,
        0,
        2**80,
        float("nan"),
        float("inf"),
        -0.5,
        1e-9,
        1e300,
        "x",
        "",
        None,
        True,
        [],
        {},
        {"a": 1},
        b"x",
    ]
    for field in fields(probe.cls):
        for value in values:
            try:
                method = probe.method(**{field.name: value})
                plan = probe.run(probe.model(), method).plan
            except SecateurError:
                continue
            except Exception as error:
                raise AssertionError(f"{field.name}={value!r}: {type(error).__name__}: {error}") from error
            expect(0 <= plan.sparsity < 1, f"{field.name}={value!r} cut {plan.sparsity}")


def unknown_setting(probe: Probe) -> None:
    """A misspelt setting is refused, and the right one named."""
    if probe.name is None:
        raise Skip("not registered: a class refuses unknown settings by itself (TypeError)")
    refuses(NoMatch, lambda: make(str(probe.name), sparsty=0.5), "sparsty", "sparsity")


def no_match(probe: Probe) -> None:
    """A glob that matches no site is an error that names it; nothing is cut."""
    model = probe.model()
    before = state(model)
    refuses(NoMatch, lambda: probe.run(model, only=("*.upp",)), "*.upp")
    refuses(NoMatch, lambda: probe.run(model, skip=("nonsense",)), "nonsense")
    refuses(NoMatch, lambda: probe.run(model, skip=("*",)), what="skipping every site")
    expect(state(model) == before, "the model changed")


def empty_sites(probe: Probe) -> None:
    """A model without a weight matrix is refused by its name."""
    refuses(SecateurError, lambda: probe.run(nn.LayerNorm(16)), "LayerNorm", what="a model without a Linear")


def _bad_weight(probe: Probe, value: float) -> None:
    for feed in FEEDS:
        for name in ("layers.0.up", "layers.1.down"):
            model = probe.model()
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            layer.weight.data[1, 2] = value
            before = state(model)
            refuses(BadInput, lambda m=model, f=feed: probe.run(m, feed=f), name, what=f"{value} in {name}")
            expect(state(model) == before, f"feed {feed}: the model changed before {value} was seen")


def nan_weight(probe: Probe) -> None:
    """A NaN among the weights is refused by the tensor's name, whatever the feed, and nothing has changed."""
    _bad_weight(probe, float("nan"))


def inf_weight(probe: Probe) -> None:
    """So is an infinite weight, of either sign."""
    _bad_weight(probe, float("inf"))
    _bad_weight(probe, -float("inf"))


def nan_signal(probe: Probe) -> None:
    """NaN or Inf among the activations is refused, and nothing has changed."""
    if probe.cls.needs is None:
        raise Skip("measures nothing")
    for feed in FEEDS:
        for value in (float("nan"), float("inf"), -float("inf")):
            model, data = probe.model(), probe.data()
            data.samples[3]["x"][2, 1] = value
            before = state(model)
            refuses(
                BadInput,
                lambda m=model, d=data, f=feed: probe.run(m, data=d, feed=f),
                what=f"{value} as input",
            )
            expect(state(model) == before, f"feed {feed}: the model changed")


def zero_signal(probe: Probe) -> None:
    """Inputs that are all zero still give exact counts and finite weights; the site is named in the plan's notes."""
    zeros = Calibration(tuple({"x": torch.zeros(8, 16)} for _ in range(3)), "zeros")
    for feed in FEEDS:
        method = probe.method(allocate="uniform")
        result = probe.run(probe.model(), method, zeros, feed=feed)
        expect_measured(result)
        for name, kept in result.plan.sites.items():
            expect_counts(kept.mask(), method.pattern, method.sparsity, name)
        named = any("layers.0.up" in note for note in result.plan.notes)
        expect(probe.cls.needs is None or named, f"feed {feed}: no note names layers.0.up")


def zero_samples(probe: Probe) -> None:
    """Without calibration data a method that measures is refused; one that does not, runs."""
    refuses(BadInput, lambda: Calibration((), "nothing"), "0 samples", what="an empty calibration")
    model = probe.model()
    for feed in FEEDS:
        if probe.cls.needs is not None:
            before = state(model)
            refuses(
                BadInput, lambda f=feed: compress(model, probe.method(), None, Options(feed=f)), "calibration"
            )
            expect(state(model) == before, "the model changed")
        else:
            result = compress(probe.model(), probe.method(), None, Options(feed=feed))
            expect(result.plan.sparsity > 0, "nothing was cut")


def one_sample(probe: Probe) -> None:
    """One sample of one token is enough to run: exact counts, finite weights."""
    for feed in FEEDS:
        method = probe.method(allocate="uniform")
        result = probe.run(probe.model(), method, probe.data(samples=1, tokens=1), feed=feed)
        expect_measured(result)
        for name, kept in result.plan.sites.items():
            expect_counts(kept.mask(), method.pattern, method.sparsity, name)


def pattern_divides(probe: Probe) -> None:
    """A pattern that does not divide a site is refused before anything changes, naming the site."""
    tried = 0
    for pattern in ("3:5", "1:7", "5x5", "16x3"):
        try:
            method = probe.method(pattern=pattern, allocate="uniform")
        except BadInput:
            continue
        model = probe.model()
        before = state(model)
        refuses(Infeasible, lambda m=model, k=method: probe.run(m, k), "layers.0.up", what=pattern)
        expect(state(model) == before, "the model changed")
        tried += 1
    if not tried:
        raise Skip("accepts no pattern that divides anything")


def dtype_refused(probe: Probe) -> None:
    """Weights of a quantised model (integers) are refused by the site's name."""
    model = Toy()
    model.layers[1].up.weight = nn.Parameter(torch.ones(24, 16, dtype=torch.int8), requires_grad=False)  # type: ignore[union-attr]
    refuses(Unsupported, lambda: probe.run(model), "layers.1.up", "int8", what="an int8 weight")


CHECKS = (
    config_round_trip,
    range_edges,
    hostile_settings,
    unknown_setting,
    no_match,
    empty_sites,
    nan_weight,
    inf_weight,
    nan_signal,
    zero_signal,
    zero_samples,
    one_sample,
    pattern_divides,
    dtype_refused,
)
