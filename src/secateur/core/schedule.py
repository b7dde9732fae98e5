"""When a network that is training is cut, and how far: the target sparsity after each optimiser step.

    once     all at `begin`
    linear   in equal parts from `begin` to `end`
    cubic    s = final + (initial - final) (1 - p)^3: steep first, flat at the end (Zhu & Gupta 2017, section 3)
    cosine   s = final + (initial - final) (1 + cos(pi p)) / 2
    rounds   each event leaves the same fraction of what is left: density = d_0 (d_n / d_0)^p (iterative pruning)

p runs from 0 at `begin` to 1 at the last event in n equal parts; n + 1 events, the first of which changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.core.select import check_sparsity
from secateur.errors import BadInput, nearest

SHAPES = ("once", "linear", "cubic", "cosine", "rounds")


@dataclass(frozen=True)
class Schedule:
    """A ramp on the grid begin, begin + every, ..., begin + events * every of optimiser steps.

    Args:
        shape: one of SHAPES.
        begin, every, events: steps; `events` is the paper's n, the number of parts of the ramp.
        initial, final: sparsity before the first event and after the last.
    """

    shape: str
    begin: int
    every: int
    events: int
    initial: float = 0.0
    final: float = 0.5

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise BadInput(f"{self.shape!r} is no shape", where="schedule", fix=nearest(self.shape, SHAPES))
        if self.begin < 0 or self.every < 1 or self.events < 0:
            what = f"begin {self.begin}, every {self.every}, events {self.events}"
            raise BadInput(what, where="schedule", fix="begin >= 0, every >= 1, events >= 0")
        check_sparsity(self.initial)
        check_sparsity(self.final)

    @property
    def end(self) -> int:
        """The step of the last event."""
        return self.begin + self.every * self.events

    def due(self, step: int) -> bool:
        """True if the sparsity is brought to its target after optimiser step `step` (1 is the first)."""
        if self.shape == "once":
            return step == self.begin
        return self.begin <= step <= self.end and (step - self.begin) % self.every == 0

    def target(self, step: int) -> float:
        """The sparsity asked for at `step`; `initial` before the ramp, `final` after it."""
        if step < self.begin:
            return self.initial
        if self.shape == "once" or step >= self.end:
            return self.final
        p = (step - self.begin) // self.every / self.events
        if self.shape == "rounds":
            return 1 - (1 - self.initial) * ((1 - self.final) / (1 - self.initial)) ** p
        left = {"linear": 1 - p, "cubic": (1 - p) ** 3, "cosine": (1 + math.cos(math.pi * p)) / 2}[self.shape]
        return self.final + (self.initial - self.final) * left


def window(
    shape: str, steps: int, begin: float, end: float, every: int, initial: float = 0.0, final: float = 0.5
) -> Schedule:
    """The schedule that fills begin..end, fractions of a training of `steps` optimiser steps.

    Raises:
        BadInput: it would end after the training does, or has no room for one event.
    """
    if not 0 <= begin <= end <= 1:
        raise BadInput(
            f"from {begin:g} to {end:g} of the training", where="schedule", fix="0 <= begin <= end <= 1"
        )
    if every < 1:
        raise BadInput(f"an event every {every} steps", where="schedule", fix="use 1 or more")
    first = max(1, round(begin * steps))
    events = 0 if shape == "once" else (round(end * steps) - first) // every
    if first > steps or (shape != "once" and events < 1):
        what = f"{round((end - begin) * steps)} of {steps} steps hold no event every {every} steps"
        raise BadInput(what, where="schedule", fix="lower `every`, widen the window or train longer")
    return Schedule(shape, first, every, events, initial, final)
