"""cards: one compressed classifier of a deck: found by a lottery, or by one of the ways it is compared with.

    lrr          train, cut, start the clock again, keep the weights          lottery_ticket, rewind=learning_rate
    lth          the same, and the weights go back too                        lottery_ticket, rewind=weights
    edge_popup   a mask on random weights                                     edge_popup
    biprop       a mask on random weights that count by their sign: 1 bit     biprop
    gmp          little by little (a control of the paper)                    gmp
    fine_tune    train, cut once, train on (the other control)                lottery_ticket, oneshot, rewind=none

All that cuts is in those methods: this file only chooses one, with the paper's settings, and passes every question on.
A CARD (compact, accurate, robust deep network) is this and an augmentation: in a recipe `method.name = "cards"` and
`training.augment = "gaussian"` or "augmix". robustness/deck.py makes several of them one classifier.

Give `fine_tune` a learning rate that does not end at 0 (`schedule = "step"` holds its last, a hundredth): its second
half goes on where the first ended, and after a cosine nothing would move.

Shapes:  w [out, in, ...].      Unit: weight.      Needs: nothing but the weights.
Departs: where the chosen method does; see its file.
Oracle:  weights, masks and clock of the chosen method alone, bit for bit.
Paper:   A Winning Hand: Compressing Deep Networks Can Improve Out-of-Distribution Robustness (2021), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from secateur.apply.training import Masks, Net, Training
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, nearest
from secateur.methods.weights.biprop import Biprop
from secateur.methods.weights.edge_popup import EdgePopup
from secateur.methods.weights.gmp import GMP
from secateur.methods.weights.lottery_ticket import LotteryTicket

KINDS: dict[str, tuple[type[Training], dict[str, Any]]] = {
    "lrr": (LotteryTicket, {"rewind": "learning_rate"}),
    "lth": (LotteryTicket, {"rewind": "weights"}),
    "edge_popup": (EdgePopup, {}),
    "biprop": (Biprop, {}),
    "gmp": (GMP, {}),
    "fine_tune": (LotteryTicket, {"rewind": "none", "oneshot": True}),
}


@dataclass(frozen=True, kw_only=True)
class CARD(Training):
    """One card. A setting left at None is what the chosen method takes by itself; one it does not have is refused.

    Args:
        kind: a row of the table above.
        rounds: lrr, lth. None: as many as cut a fifth of the surviving weights each; 13 to a density of 5%.
        rewind_step: lrr, lth, fine_tune: see lottery_ticket.
        scope: global or layer.
        weights: edge_popup, biprop: the random weights.
        ramp: biprop: the part of the training in which its density comes down from a half.
        begin, end, interval: gmp; the last is its `every`, optimiser steps between two cuts.
    """

    sparsity: float | str = 0.95
    kind: str = "lrr"
    rounds: int | None = None
    rewind_step: int | None = None
    scope: str | None = None
    weights: str | None = None
    ramp: float | None = None
    begin: float | None = None
    end: float | None = None
    interval: int | None = None

    card = Card(
        paper="A Winning Hand: compressing deep networks can improve out-of-distribution robustness (2021)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="|w| or trained score",
        purpose="robustness",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise BadInput(f"{self.kind!r} is no kind", where="kind", fix=nearest(str(self.kind), KINDS))
        inner = self.inner  # made now: its own checks speak before anything trains
        object.__setattr__(self, "trains", inner.trains)
        object.__setattr__(self, "rewires", inner.rewires)

    @cached_property
    def inner(self) -> Training:
        """The method that does it all."""
        cls, fixed = KINDS[self.kind]
        known = {f.name for f in fields(cls)} - fixed.keys()
        if fixed.get("oneshot"):
            known.discard("rounds")
        settings: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "kind" or value is None:
                continue
            name = "every" if f.name == "interval" else f.name
            if name not in known:
                raise BadInput(f"{self.kind} has no {f.name}", where=f.name, fix="leave it out")
            settings[name] = value
        if "rounds" in known:
            settings.setdefault("rounds", fifths(self.density))
        return cls(**settings, **fixed)

    @property
    def length(self) -> Callable[[int], int] | None:
        """For a kind that trains several times: steps of the first training, of a run of so many; else None."""
        return getattr(self.inner, "length", None)

    def prepare(self, net: Net) -> None:
        self.inner.prepare(net)

    def start(self, net: Net) -> Masks:
        return self.inner.start(net)

    def due(self, net: Net) -> bool:
        return self.inner.due(net)

    def revise(self, net: Net) -> Masks:
        return self.inner.revise(net)

    def effective(self, name: str, net: Net) -> Tensor:
        return self.inner.effective(name, net)


def fifths(density: float) -> int:
    """How many rounds that each cut a fifth of what is left come nearest to a density in (0, 1]; at least 1."""
    return max(1, round(math.log(density) / math.log(0.8)))
