"""Is a network past the point from which its training ends in one place, whatever the order of the data?

    theta_k: the run's weights after k steps;   theta_A, theta_B: trained on from it to the end in two other data orders
    rise(a)  = E((1 - a) theta_A + a theta_B) - ((1 - a) E(theta_A) + a E(theta_B)),   E the error in [0, 1]
    barrier  = the largest rise over the points on the line;   below 2%: stable, and k is late enough to rewind to

Tickets rewound to a stable step train to the dense accuracy; in deep networks step 0 is rarely one (late rewinding).
Departs: both copies begin with a fresh optimiser, as a rewound ticket does. Running statistics of batch norms are
measured anew on the line: averaged ones belong to no network. The middle is the only point unless more are asked for;
the paper takes 30 and the largest error.
Oracle:  k = T: both copies are theta_T, the barrier is 0.
Source:  Linear Mode Connectivity and the Lottery Ticket Hypothesis (2020), section 2; sheet lottery-ticket, step 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.events import Event, Listener, silent
from secateur.engine.train import Augment, Fit, fit
from secateur.errors import BadInput
from secateur.recover.interpolate import interpolate, restate_batch_norm

STABLE = 0.02  # the largest barrier, in error, that counts as none (the paper's 2%)
_BATCHES = 16  # of training images, for the statistics of batch norms


def stability(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    how: Fit,
    at: Sequence[int],
    evaluate: Callable[[nn.Module], float],
    *,
    steps: int | None = None,
    pairs: int = 1,
    points: int = 1,
    augment: Callable[[Fit], Augment | None] = lambda how: None,
    listen: Listener = silent,
) -> list[dict[str, Any]]:
    """The barrier between two copies trained on from each step of `at`.

    Args:
        model: at its first weights; it stays as it is.   images, labels, how: as for `engine.train.fit`.
        at: steps k, in [0, steps].   evaluate: accuracy in [0, 1].
        steps: T, of one training; None: all of `how`.
        pairs: how many pairs of copies each step gets; data orders are seeded how.seed + 1, + 2, ...
        points: how many on the line between the ends, evenly spaced; 1: the middle.
        augment: the augmentation of a run, from its `Fit` (its seed differs from copy to copy).

    Returns:
        One row a step, ascending: step, error (mean of the ends), between (mean over the pairs of the largest error on
        the line), barrier (mean), barriers (one a pair), stable (barrier < 2%).

    Raises:
        BadInput: a step beyond the training; no pair; no point.
    """
    total = how.epochs * how.per_epoch(len(images)) if steps is None else steps
    wanted = _wanted(at, total, pairs, points)
    trunk = deepcopy(model)
    optimizer, done, rows = how.make(trunk), 0, []
    for k in wanted:
        fit(trunk, images, labels, how, optimizer=optimizer, augment=augment(how), start=done, stop=k)
        done, found = k, []
        for pair in range(pairs):
            seeds = (how.seed + 2 * pair + 1, how.seed + 2 * pair + 2)
            ends = [
                _trained(trunk, images, labels, replace(how, seed=seed), augment, k, total) for seed in seeds
            ]
            found.append(_line(ends, images, how, evaluate, points))
            listen(Event("stability", len(rows) * pairs + pair + 1, len(wanted) * pairs, f"step {k}"))
        rows.append(_row(k, found))
    return rows


def _wanted(at: Sequence[int], total: int, pairs: int, points: int) -> list[int]:
    late = next((k for k in at if not 0 <= k <= total), None)
    if late is not None or not at:
        what = "no step" if late is None else f"step {late} is not in this training"
        raise BadInput(what, where="at", fix=f"choose from 0 to {total}")
    if pairs < 1 or points < 1:
        raise BadInput(f"{pairs} pairs, {points} points", where="stability", fix="use 1 or more of each")
    return sorted(set(at))


def _row(step: int, found: list[tuple[float, float, float]]) -> dict[str, Any]:
    errors, between, barriers = (list(values) for values in zip(*found, strict=True))
    barrier = sum(barriers) / len(found)
    return {
        "step": step,
        "error": sum(errors) / len(found),
        "between": sum(between) / len(found),
        "barrier": barrier,
        "barriers": barriers,
        "stable": barrier < STABLE,
    }


def _trained(
    trunk: nn.Module,
    images: Tensor,
    labels: Tensor,
    how: Fit,
    augment: Callable[[Fit], Augment | None],
    start: int,
    stop: int,
) -> nn.Module:
    copy = deepcopy(trunk)
    fit(copy, images, labels, how, augment=augment(how), start=start, stop=stop)
    return copy


def _line(
    ends: Sequence[nn.Module],
    images: Tensor,
    how: Fit,
    evaluate: Callable[[nn.Module], float],
    points: int,
) -> tuple[float, float, float]:
    """Mean error of the ends, the largest error between them, and the largest rise over the straight line."""
    errors = [1 - evaluate(end) for end in ends]
    first, last = (end.state_dict() for end in ends)
    middle = deepcopy(ends[0])
    device = next(middle.parameters()).device
    between, barrier = [], []
    for i in range(1, points + 1):
        a = i / (points + 1)
        middle.load_state_dict(interpolate(first, last, a))
        with torch.no_grad():
            restate_batch_norm(middle, [part.to(device) for part in images.split(how.batch)[:_BATCHES]])
        between.append(1 - evaluate(middle))
        barrier.append(between[-1] - ((1 - a) * errors[0] + a * errors[1]))
    return sum(errors) / 2, max(between), max(barrier)
