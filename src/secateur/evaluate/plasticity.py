"""Pruning plasticity: how well a network in training gets over a cut (sheet granet, part A).

    a copy:   cut a fraction of what survives  ->  (regrow as much)  ->  train on for a short, fixed budget
    another:  train on as it is
    plasticity = accuracy of the cut copy after the budget - accuracy of the uncut one at the same point

What is zero stays zero while a copy trains: its gradients are masked, and the masks applied again afterwards, so a
fresh optimiser in `train` keeps the zeros. The model itself is left as it was; accuracies are taken on copies.

Source: Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (2021), section 3 and its appendix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.regrow import last_linear
from secateur.core.select import cut_count, keep_top
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible, nearest
from secateur.sites.trainable import trainable_weights

CRITERIA = ("magnitude", "global")
Train = Callable[[nn.Module, int], Any]
Gradients = Callable[[nn.Module], Any]


def plasticity(
    model: nn.Module,
    train: Train,
    evaluate: Callable[[nn.Module], float],
    *,
    fraction: float,
    steps: int = 100,
    criterion: str = "magnitude",
    regrow: bool = False,
    structured: bool = False,
    backward: Gradients | None = None,
) -> dict[str, Any]:
    """Cut a copy of `model`, train it on and compare it with a copy that was not cut.

    Args:
        train: `train(model, steps)` trains the model it is given for `steps` steps, at the learning rate that a run
            has at this point, with an optimiser of its own. Called twice; let it draw the same batches both times.
        evaluate: the accuracy of a model, in [0, 1].
        fraction: of the surviving units (nonzero weights, or filters with a nonzero weight) to cut, in (0, 1).
        criterion: magnitude (this fraction of each layer) or global (one ranking over all layers).
        regrow: bring back as many zeros as were cut, those with the largest gradients, at weight 0.
        structured: cut filters (rows of [out, ...]) by their L1 norm and regrow them by the sum of their |gradients|:
            those of convolutions, else of linear layers, but never of the last one, whose rows are the classes.
        backward: for regrow: runs one batch forward and backward on the model it is given (gradients are there after).

    Returns:
        Accuracies: before, cut (right after), recovered and uncut (both after training on), plasticity = recovered -
        uncut, gain = recovered - before. Counts of units: units, alive (before), pruned, regrown.

    Raises:
        BadInput: a setting out of range, regrow without gradients.   Infeasible: there is nothing to cut.
    """
    _check(fraction, steps, criterion, regrow, backward)
    cut, uncut = deepcopy(model), deepcopy(model)
    weights, same = dict(trainable_weights(cut)), dict(trainable_weights(uncut))
    chosen = _filters(weights) if structured else list(weights)
    scores = {n: unit_scores(weights[n], structured) for n in chosen}
    alive = {n: score > 0 for n, score in scores.items()}
    kept, pruned = cut_survivors(scores, alive, fraction, criterion)
    if not sum(pruned.values()):
        raise Infeasible(f"{fraction:g} of what survives is no unit", where="fraction", fix="raise it")
    _zero(weights, {n: spread(kept[n], weights[n]) for n in chosen})
    found: dict[str, Any] = {"before": evaluate(deepcopy(model)), "cut": evaluate(deepcopy(cut))}
    grown = kept
    if backward is not None and regrow:
        growth = {n: unit_scores(g, structured) for n, g in _gradients_of(cut, chosen, backward).items()}
        grown = grow_back(kept, growth, pruned, criterion)
    for word, copy, held, units in (("recovered", cut, weights, grown), ("uncut", uncut, same, alive)):
        with _held(held, {n: spread(units[n], held[n]) for n in chosen}):
            train(copy, steps)
        found[word] = evaluate(deepcopy(copy))
    return {
        **found,
        "plasticity": found["recovered"] - found["uncut"],
        "gain": found["recovered"] - found["before"],
        "units": sum(a.numel() for a in alive.values()),
        "alive": _count(alive),
        "pruned": _count(alive) - _count(kept),
        "regrown": _count(grown) - _count(kept),
    }


def _count(units: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in units.values())


@contextmanager
def _held(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Masked weights get no gradient inside, and are zero after."""
    free = {n: mask for n, mask in masks.items() if weights[n].requires_grad}
    hooks = [weights[n].register_hook(lambda g, mask=mask: g * mask) for n, mask in free.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _zero(weights, masks)


@torch.no_grad()
def _zero(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0)


def _gradients_of(model: nn.Module, names: list[str], backward: Gradients) -> dict[str, Tensor]:
    """|gradient| of one batch, taken on a copy so that batch statistics and old gradients stay out of it."""
    copy = deepcopy(model)
    copy.zero_grad()
    backward(copy)
    found = {}
    for name in names:
        gradient = copy.get_parameter(name).grad
        if gradient is None or not bool(gradient.isfinite().all()):
            what = "has no gradient" if gradient is None else "has a gradient with NaN or Inf"
            raise BadInput(f"{what} after `backward`", where=name, fix="run one batch forward and backward")
        found[name] = gradient
    return found


def _filters(weights: Mapping[str, Tensor]) -> list[str]:
    """Layers whose output channels may be cut."""
    convolutions = [name for name, w in weights.items() if w.ndim > 2]
    last = last_linear([Site(name, tuple(w.shape)) for name, w in weights.items()])
    chosen = convolutions or [name for name in weights if name != last]
    if not chosen:
        raise Infeasible("no filters to cut but the classes", where="structured", fix="cut single weights")
    return chosen


def _check(fraction: float, steps: int, criterion: str, regrow: bool, backward: Gradients | None) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        fix = "0.5 cuts half of what survives"
        raise BadInput(f"{fraction!r} is not a fraction in (0, 1)", where="fraction", fix=fix)
    if type(steps) is not int or steps < 0:
        raise BadInput(f"{steps!r} steps", where="steps", fix="give a whole number, 0 or more")
    if criterion not in CRITERIA:
        raise BadInput(
            f"{criterion!r} is no criterion", where="criterion", fix=nearest(str(criterion), CRITERIA)
        )
    if regrow and backward is None:
        fix = "give backward=, which runs one batch forward and backward"
        raise BadInput("needs gradients", where="regrow", fix=fix)


def unit_scores(tensor: Tensor, structured: bool) -> Tensor:
    """|x| of each entry, or the sum of |x| over each row of [out, ...]: [out]."""
    return tensor.detach().abs().flatten(1).sum(1) if structured else tensor.detach().abs()


def spread(kept: Tensor, weight: Tensor) -> Tensor:
    """A mask of units in the shape of the weight."""
    if kept.shape == weight.shape:
        return kept
    return kept.view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).contiguous()


def cut_survivors(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], fraction: float, criterion: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Cut floor(fraction * alive) of the lowest scores of each layer, or of all layers together (global).

    A layer that lives keeps its best unit. Returns what is left, bool in the shapes of `alive`, and how many were cut.
    """
    kept = {name: a.clone() for name, a in alive.items()}
    for group in _groups(list(alive), criterion):
        live = torch.cat([alive[n].flatten() for n in group])
        values = torch.cat([scores[n].flatten().float() for n in group])
        places = live.nonzero().squeeze(1)
        stays = keep_top(values[places][None], cut_count(len(places), fraction))[0]
        live[places[~stays]] = False
        for name, part in zip(group, live.split([alive[n].numel() for n in group]), strict=True):
            kept[name] = part.view_as(alive[name]).clone()
            if bool(alive[name].any()) and not bool(part.any()):
                best = scores[name].masked_fill(~alive[name], -1).flatten().argmax()
                kept[name].view(-1)[best] = True
    return kept, {name: int(alive[name].sum()) - int(kept[name].sum()) for name in alive}


def grow_back(
    kept: Mapping[str, Tensor], growth: Mapping[str, Tensor], pruned: Mapping[str, int], criterion: str
) -> dict[str, Tensor]:
    """As many units as were cut (in each layer, or in all together) come back: the zeros of the highest growth."""
    grown = {name: k.clone() for name, k in kept.items()}
    for group in _groups(list(kept), criterion):
        live = torch.cat([kept[n].flatten() for n in group])
        values = torch.cat([growth[n].flatten().float() for n in group])
        free = (~live).nonzero().squeeze(1)
        comes = keep_top(values[free][None], len(free) - sum(pruned[n] for n in group))[0]
        live[free[comes]] = True
        for name, part in zip(group, live.split([kept[n].numel() for n in group]), strict=True):
            grown[name] = part.view_as(kept[name]).clone()
    return grown


def _groups(names: list[str], criterion: str) -> list[list[str]]:
    return [names] if criterion == "global" else [[name] for name in names]
