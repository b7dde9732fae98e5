"""lottery_ticket: train, cut the smallest weights, go back, train again; round after round in one training.

    T steps, cut, R times (back to step k, T - k steps, cut): steps = T + R (T - k), so k = 0 makes R + 1 equal parts
    after round r the density is (1 - sparsity)^(r / R): each round cuts the same fraction of what survives
    of the surviving weights the smallest |w| go, layer by layer or over all layers together

What `rewind` brings back, before the masks are put on again:
    weights         every parameter and buffer as it was when step k of the first training was done; k = 0: at first
    learning_rate   nothing but the clock (LRR): the weights stay
    none            nothing: fine-tuning, the clock runs on from T
Each of them gives the optimiser a fresh state. The clock is `Pruner.position`: it runs to T, goes back to k, runs to T
again. Write the learning rate and the order of the data as functions of it, and ask before each optimiser step:

    for group in optimizer.param_groups:
        group["lr"] = rate(pruner.position)        # 0 .. T - 1; with rewind="none" also T .. steps - 1: hold the last

Shapes:  w [out, in, ...].      Unit: weight.      Needs: nothing but the weights.
Departs: counts by the house's floor of the whole target, at most one weight a round and layer from the paper's; one
         fraction for all layers (the 2019 code halves it in the output layer; `skip` leaves a layer out instead).
Oracle:  fraction 0.2: 80, 64, 51.2, 40.96, 32.77 .. 10.74% left (r = 10) .. 3.52% (r = 15) .. 1.15% (r = 20).
Paper:   The Lottery Ticket Hypothesis (2019), section 1; late rewinding: Linear Mode Connectivity and the Lottery
         Ticket Hypothesis (2020), algorithm 2; the kinds of rewinding: Comparing Rewinding and Fine-tuning (2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.apply.training import Masks, Net, Training, dense, keep_largest
from secateur.core.method import Card
from secateur.core.schedule import Schedule
from secateur.core.units import Unit
from secateur.errors import BadInput, Unsupported, one_of

CHOICES = {
    "scope": ("global", "layer"),
    "rewind": ("weights", "learning_rate", "none"),
    "control": ("none", "reinit", "random_layer", "shuffle", "random"),
}
_DONE = "rounds"  # rounds that are done; -1 before the weights to come back to are kept
_KEPT = "kept/"


@dataclass(frozen=True, kw_only=True)
class LotteryTicket(Training):
    """Iterative magnitude pruning with rewinding. `sparsity` is what counts; `fraction` a round follows from it.

    Args:
        rounds: trainings after the first. 10 rounds to 90% cut a fifth of the surviving weights each, as the papers do.
        scope: global (one ranking over all layers) or layer.
        rewind: weights, learning_rate (LRR) or none (fine-tuning); the table above.
        rewind_step: k, in optimiser steps of the first training. 0: the original ticket; ResNets need a later one.
        oneshot: cut all in one round, whatever `rounds` says: the training is T + (T - k) steps.
        control: what to compare a ticket with, taken at the last rewind of the weights. reinit: its mask, new weights
            drawn by the modules' own `reset_parameters`; random_layer or shuffle (one law under both names): its
            count in each layer, anywhere in it; random: its count, anywhere in the network.
    """

    rounds: int = 10
    scope: str = "global"
    rewind: str = "weights"
    rewind_step: int = 0
    oneshot: bool = False
    control: str = "none"

    card = Card(
        paper="The Lottery Ticket Hypothesis: finding sparse, trainable neural networks (2019)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="|w|",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for word, known in CHOICES.items():
            one_of(getattr(self, word), known, word)
        for word, least in (("rounds", 1), ("rewind_step", 0)):
            value = getattr(self, word)
            if type(value) is not int or value < least:
                raise BadInput(f"{value!r} is not a count", where=word, fix=f"give a whole number >= {least}")
        if self.control != "none" and self.rewind != "weights":
            what = f"{self.control} starts from rewound weights, and rewind is {self.rewind}"
            raise BadInput(what, where="control", fix="rewind=weights")

    @property
    def trainings(self) -> int:
        """How often the network is trained after the first time."""
        return 1 if self.oneshot else self.rounds

    @property
    def fraction(self) -> float:
        """Fraction of the surviving weights that each round cuts."""
        return 1 - self.density ** (1 / self.trainings)

    def length(self, steps: int) -> int:
        """T, the steps of the first training, of a run of `steps` in all.

        Raises:
            BadInput: no whole number of steps makes it, or the run ends before step k.
        """
        rounds, k = self.trainings, self.rewind_step
        if k > steps:
            fix = "rewind to an earlier step or train longer"
            raise BadInput(f"step {k} is never reached in {steps} steps", where="rewind_step", fix=fix)
        length, over = divmod(steps + rounds * k, rounds + 1)
        if over:
            lower, upper = steps - over, steps - over + rounds + 1
            near = f"{upper} steps do" if lower < max(k, 1) else f"{lower} or {upper} steps do"
            what = f"{steps} steps do not divide into {rounds + 1} trainings rewound to step {k}"
            raise BadInput(what, where="steps", fix=near)
        return length

    def events(self, net: Net) -> range:
        """The steps after which a round begins with a cut; one for all rounds where k = T leaves them no steps."""
        length = self.length(net.steps)
        every = length - self.rewind_step
        return range(length, net.steps, every) if every else range(length, length + 1)

    def prepare(self, net: Net) -> None:
        self.length(net.steps)
        left = sorted(net.weights.keys() - drawable(net.model)) if self.control == "reinit" else []
        if left:
            fix = "choose another control or skip this layer"
            raise Unsupported("its module has no reset_parameters to draw it anew", where=left[0], fix=fix)

    def start(self, net: Net) -> Masks:
        net.memory[_DONE] = torch.tensor(-1 if self.rewind_step else 0)
        if self.rewind == "weights":
            net.memory.update({_KEPT + name: tensor.clone() for name, tensor in net.state.items()})
        return dense(net)

    def due(self, net: Net) -> bool:
        return net.step == self.rewind_step or net.step in self.events(net)

    def revise(self, net: Net) -> Masks:
        done = int(net.memory[_DONE])
        if done < 0 and self.rewind == "weights":
            for name, tensor in net.state.items():
                net.memory[_KEPT + name].copy_(tensor)
        # counted from the clock, not by calls: a revision that a bad gradient put off finds its round all the same
        events = self.events(net)
        reached = sum(net.step >= event for event in events)
        reached = self.trainings if reached == len(events) else reached
        net.memory[_DONE].fill_(reached)
        if reached <= max(done, 0):
            return net.masks
        target = Schedule("rounds", 0, 1, self.trainings, 0.0, float(self.sparsity)).target(reached)
        masks = self._cut(net, target)
        self._back(net)
        last = reached == self.trainings
        return self._control(net, masks) if last and self.control != "none" else masks

    def _cut(self, net: Net, sparsity: float) -> Masks:
        """Of the surviving weights the smallest go; what is cut stays cut."""
        scores = {n: weight.abs().masked_fill(~net.masks[n], -1) for n, weight in net.weights.items()}
        wanted = sparsity if self.scope == "global" else dict.fromkeys(scores, sparsity)
        return keep_largest(scores, wanted, net.notes)

    def _back(self, net: Net) -> None:
        if self.rewind == "weights":
            for name, tensor in net.state.items():
                tensor.copy_(net.memory[_KEPT + name])
        net.rewind(net.step if self.rewind == "none" else self.rewind_step)

    def _control(self, net: Net, masks: Masks) -> Masks:
        stream = net.generator()
        if self.control == "reinit":
            draw_anew(net, int(torch.randint(1 << 62, (), generator=stream)))
            return masks
        if self.control == "random":
            draws = {n: torch.rand(m.shape, generator=stream).to(m.device) for n, m in masks.items()}
            size = sum(m.numel() for m in masks.values())
            cut = size - sum(int(m.sum()) for m in masks.values())
            # half a weight more than the count: the floor of its product is the count for any size
            return keep_largest(draws, (cut + 0.5) / size if cut else 0.0, net.notes)
        return {name: shuffled(mask, stream) for name, mask in masks.items()}


def shuffled(mask: Tensor, stream: torch.Generator) -> Tensor:
    """The entries of a mask in random order: the same count, any position as likely as any other."""
    order = torch.randperm(mask.numel(), generator=stream).to(mask.device)
    return mask.flatten()[order].view_as(mask)


def initialisers(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with a `reset_parameters`, in the model's order: a model with its own draws everything."""
    if callable(getattr(model, "reset_parameters", None)):
        return [model]
    return [found for child in model.children() for found in initialisers(child)]


def drawable(model: nn.Module) -> set[str]:
    """The names of the parameters that some module can draw anew."""
    drawn = {id(p) for module in initialisers(model) for p in module.parameters()}
    return {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in drawn}


def draw_anew(net: Net, seed: int) -> None:
    """New values for every module that can draw its own; the global random state is as it was.

    What no module draws (a bare parameter) stays as it is, and a note names it.
    """
    devices = sorted({t.device.index or 0 for t in net.state.values() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in initialisers(net.model):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
    left = sorted(dict(net.model.named_parameters()).keys() - drawable(net.model))
    if left:
        net.notes.append(f"reinit: not drawn anew, no reset_parameters: {', '.join(left)}")
