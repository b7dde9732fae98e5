"""Straggler layers: which layers keep the average of two networks from being better than both.

    path         accuracy and loss of theta(a) = (1 - a) theta_0 + a theta_1, a = 0 .. 1, on every set of images
    sharpness    average and worst case (evaluate/sharpness.py); total: all weights move; of a layer: only its own
    barrier_l    max over a of L_l(a) - ((1 - a) L_l(0) + a L_l(1)); in L_l only layer l goes from end to end while the
                 others stand at a = 1/2 (`others="middle"`), or all but l go and l stands there ("path")
    stragglers   the tenth of the layers with the largest barrier (of equal ones, such as 0 where the loss of a layer is
                 convex, the sharpest at theta(1/2)), or the outliers of that sharpness
    repair       the stragglers cut (recover/interpolate.py), and the path once more

Layers, alpha and everything else that is chosen are chosen on the images of `choose`; shifted images are only reported
on, but for the rows called oracle. Loss: cross-entropy; for sharpness of logits scaled to deviation 1 over the classes.
Departs: the abstract defines no straggler, so the definition is ours; it is configurable and goes into every result.
Source: In Search of the Successful Interpolation: On the Role of Sharpness in CLIP Generalization (2024), abstract.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.method import OneShot, check_kinds
from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput, one_of
from secateur.evaluate.classify import logits, to_batch
from secateur.evaluate.sharpness import average_sharpness, parts_of, worst_sharpness
from secateur.io.images import stratified
from secateur.recover.interpolate import (
    CUTS,
    MEASURES,
    check_pair,
    cut_layers,
    fisher,
    interpolate,
    layer_groups,
    restate_batch_norm,
)
from secateur.registry import name_of, one_shot

CHOOSE, HELD = "choose", "in distribution"


@dataclass(frozen=True, eq=False)
class Labelled:
    """images: uint8 [N, H, W, C] or float [N, C, H, W] in [0, 1]; labels: whole numbers [N], kept as int64.

    only: the classes that these images can be of, where they are not all: the logits of others do not count.
    """

    images: np.ndarray | Tensor
    labels: Tensor
    only: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        labels = torch.as_tensor(self.labels)
        if labels.is_floating_point() or labels.shape != (len(self.images),) or not len(labels):
            what = f"labels are {labels.dtype} {list(labels.shape)} for {len(self.images)} images"
            raise BadInput(what, where="stragglers", fix="give one whole number each, and at least one image")
        object.__setattr__(self, "labels", labels.long().cpu())

    def some(self, count: int, seed: int) -> Labelled:
        """At most so many of the images, as floats, every class by its share."""
        places = stratified(self.labels.numpy(), min(count, len(self.labels)), seed)
        return Labelled(to_batch(self.images[places]), self.labels[places], self.only)


Sets = Mapping[str, Labelled]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How stragglers are looked for.

    Args:
        points: values of alpha, ends included; odd, so that 1/2 is one.
        measure: what a layer is, matrix or block (see `layer_groups`).
        others: where the other layers stand while one moves, middle; or path: all move but the one.
        rule: barrier (the `share` of the layers with the largest, at least one; of equal ones the sharpest) or
            sharpness (its outliers, see `outliers`). Layers that are the same at both ends are never stragglers.
        rho: of relative perturbations.   draws: even.   ascent: steps of sign ascent.
        normalise: scale logits to deviation 1 over the classes before the loss of sharpness.
        limit: images that barrier and sharpness are measured on.   batch: images at a time.
        restate: measure batch norms' statistics anew on `choose` in every network between the ends.
        fisher: weight the path by the Fisher values of both ends on these images.
        repair: empty (none), difference or tuned: what of the stragglers is cut.   sparsities: each tried.
        method: cuts; one that measures inputs measures those of `choose`.
        seed: of draws and of the images.
    """

    points: int = 11
    measure: str = "matrix"
    others: str = "middle"
    rule: str = "barrier"
    share: float = 0.1
    rho: float = 1e-3
    draws: int = 20
    ascent: int = 20
    normalise: bool = True
    limit: int = 1024
    batch: int = 256
    restate: bool = False
    fisher: bool = False
    repair: str = ""
    sparsities: tuple[float, ...] = (0.5,)
    method: OneShot | str = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        one_of(self.measure, MEASURES, "measure")
        one_of(self.others, ("middle", "path"), "others")
        one_of(self.rule, ("barrier", "sharpness"), "rule")
        one_of(self.repair or CUTS[0], CUTS, "repair")
        for word in ("ascent", "limit", "batch"):
            if getattr(self, word) < 1:
                raise BadInput(f"{getattr(self, word)}", where=word, fix="use 1 or more")
        if self.points < 3 or self.points % 2 == 0:
            raise BadInput(f"{self.points} values of alpha", where="points", fix="use 3, 5 .. 11: 1/2 is one")
        if self.draws < 2 or self.draws % 2:
            raise BadInput(f"{self.draws} draws", where="draws", fix="use an even number: they come in pairs")
        if not 0 < self.share <= 1 or not self.rho >= 0:
            what = f"share {self.share}, rho {self.rho}"
            raise BadInput(what, where="stragglers", fix="0 < share <= 1, rho >= 0")
        one_shot(self.method)
        for s in self.sparsities:
            if not isinstance(s, (int, float)) or not 0 <= s <= 1 or (s == 1 and self.repair == "tuned"):
                raise BadInput(f"{s!r}", where="sparsity", fix="0 to 1; tuned weights are never all cut")

    @property
    def alphas(self) -> list[float]:
        return [i / (self.points - 1) for i in range(self.points)]

    @property
    def definition(self) -> str:
        """What a straggler is by these settings, in words."""
        if self.rule == "sharpness":
            return f"outliers of average sharpness at alpha 0.5, rho {self.rho:g}, by {self.measure}"
        moved = "it alone moves" if self.others == "middle" else "all but it move"
        most = f"the {self.share:.0%} of layers (by {self.measure}) with the largest barrier while {moved}"
        return f"{most}, of equal ones the sharpest at alpha 0.5"

    def facts(self) -> dict[str, Any]:
        """The settings as JSON values."""
        method = one_shot(self.method)
        words = {"method": name_of(method), "method_settings": method.settings()}
        return {**asdict(self), "sparsities": list(self.sparsities), **words}


class Line:
    """Two ends, and one working copy that takes any weights between them. The networks given are not changed."""

    def __init__(self, zero: nn.Module, tuned: nn.Module, choose: Labelled, how: Settings) -> None:
        self.how = how
        ends = [{n: t.detach().clone() for n, t in m.state_dict().items()} for m in (zero, tuned)]
        check_pair(*ends)
        self.zero, self.tuned = ends
        self.model = deepcopy(zero).eval().requires_grad_(True)
        self.layers = layer_groups(self.model, how.measure)
        self.few = choose.some(how.limit, how.seed)
        few = torch.as_tensor(self.few.images), self.few.labels
        self.batches = few[0].to(next(self.model.parameters()).device).split(how.batch)
        self.fishers: tuple[dict[str, Tensor], ...] = ()
        if how.fisher:
            self.fishers = tuple(fisher(self.take(end, False), *few) for end in ends)
        self.parts = parts_of(self.model, *few, how.batch, how.normalise)
        self.middle = self.between(self.zero, self.tuned, 0.5)

    def between(
        self, zero: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
    ) -> dict[str, Tensor]:
        """theta(alpha) of some entries or all."""
        own = [{n: f for n, f in fishers.items() if n in zero} for fishers in self.fishers]
        return interpolate(zero, tuned, alpha, fishers=(own[0], own[1]) if own else None)

    def take(self, state: Mapping[str, Tensor], merged: bool) -> nn.Module:
        """The working copy with these weights; the statistics of a merged network may be measured anew."""
        self.model.load_state_dict(state)
        if merged and self.how.restate:
            restate_batch_norm(self.model, self.batches)
        return self.model

    def at(self, alpha: float, tuned: Mapping[str, Tensor] | None = None) -> nn.Module:
        """theta(alpha), towards the tuned end or another one."""
        return self.take(self.between(self.zero, tuned or self.tuned, alpha), 0 < alpha < 1)

    def with_layer(self, layer: str, alpha: float) -> nn.Module:
        """Only this layer at theta(alpha) and the rest in the middle, or the other way round (`others`)."""
        entries = self.layers[layer]
        if self.how.others == "path":
            moved = self.between(self.zero, self.tuned, alpha)
            return self.take(moved | {n: self.middle[n] for n in entries}, True)
        zero, tuned = ({n: end[n] for n in entries} for end in (self.zero, self.tuned))
        return self.take(self.middle | self.between(zero, tuned, alpha), True)

    def weights(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """The parameters of these layers in the working copy."""
        named = dict(self.model.named_parameters())
        return {n: named[n] for layer in layers for n in self.layers[layer] if n in named}

    def moved(self, layer: str) -> float:
        """Length of the way between the ends in this layer's weights, over the length of those of the zero-shot end."""
        names = list(self.weights([layer]))
        ways = [(self.tuned[n].double() - self.zero[n]).square().sum() for n in names]
        lengths = [self.zero[n].double().square().sum() for n in names]
        return math.sqrt(float(sum(ways))) / (math.sqrt(float(sum(lengths))) or 1.0)

    def sharpness(self, layers: Sequence[str]) -> dict[str, float]:
        """Of the working copy as it stands, when these layers move."""
        how, weights = self.how, self.weights(layers)
        mean, error = average_sharpness(self.parts, weights, how.rho, how.draws, how.seed)
        return {
            "average": mean, "error": error, "worst": worst_sharpness(self.parts, weights, how.rho, how.ascent)
        }  # fmt: skip


def analyse(
    zero: nn.Module,
    tuned: nn.Module,
    choose: Labelled,
    held: Labelled,
    shifted: Sets | None = None,
    how: Settings | None = None,
    listen: Listener = silent,
) -> dict[str, Any]:
    """Everything at the top of this file, for two classifiers of one shape.

    Args:
        zero, tuned: images in [0, 1] to logits, on one device; not changed.
        choose: alpha, layers, and what a method measures come from these in-distribution images.
        held: other in-distribution images, and `shifted` sets by name: reported on.

    Returns:
        settings, definition, path {alphas, sets {name: {accuracy, loss}}}, picks (see `picks`), sharpness {"0", "0.5",
        "1", "stragglers": {average, error, worst}}, layers (rows: name, weights, moved, barrier, average, error,
        worst, straggler), stragglers, repair (rows: sparsity, cut, uncut (layers without a weight), path, picks).

    Raises:
        BadInput: networks of two shapes, labels out of range, losses that are not finite.
    """
    how = how or Settings()
    line = Line(zero, tuned, choose, how)
    sets = {CHOOSE: choose, HELD: held, **(shifted or {})}
    if len(sets) < 2 + len(shifted or {}):
        raise BadInput(f"a set is called {CHOOSE!r} or {HELD!r}", where="shifted", fix="call it otherwise")
    path = walk(line, line.tuned, sets, "path", listen)
    rows = layer_rows(line, listen)
    found = [row["name"] for row in rows if row["straggler"]]
    sharp = {}
    for alpha in (0.0, 0.5, 1.0):
        line.at(alpha)
        sharp[f"{alpha:g}"] = line.sharpness(list(line.layers))
        if alpha == 0.5 and found:
            sharp["stragglers"] = line.sharpness(found)
    out: dict[str, Any] = {
        "settings": how.facts(), "definition": how.definition, "path": path, "picks": picks(path),
        "sharpness": sharp, "layers": rows, "stragglers": found,
    }  # fmt: skip
    if how.repair and found:
        out["repair"] = [repaired(line, found, s, sets, listen) for s in how.sparsities]
    return out


def walk(
    line: Line, tuned: Mapping[str, Tensor], sets: Sets, stage: str, listen: Listener = silent
) -> dict[str, Any]:
    """Accuracy and loss on every set on the way to `tuned`: {alphas, sets {name: {accuracy, loss}}}."""
    how = line.how
    found: dict[str, dict[str, list[float]]] = {name: {"accuracy": [], "loss": []} for name in sets}
    for done, alpha in enumerate(how.alphas, 1):
        model = line.at(alpha, tuned)
        for name, data in sets.items():
            right, loss = accuracy_and_loss(model, data, how.batch)
            found[name]["accuracy"].append(right)
            found[name]["loss"].append(loss)
        listen(Event(stage, done, how.points, f"alpha {alpha:g}"))
    return {"alphas": how.alphas, "sets": found}


def layer_rows(line: Line, listen: Listener = silent) -> list[dict[str, Any]]:
    """One row a layer: barrier and, at theta(1/2), sharpness; stragglers are marked."""
    how, rows = line.how, []
    for done, layer in enumerate(line.layers, 1):
        moved = (line.with_layer(layer, alpha) for alpha in how.alphas)
        losses = [accuracy_and_loss(model, line.few, how.batch)[1] for model in moved]
        line.at(0.5)
        row = {"name": layer, "weights": sum(p.numel() for p in line.weights([layer]).values())}
        row |= {"moved": line.moved(layer), "barrier": barrier(how.alphas, losses)}
        rows.append(row | line.sharpness([layer]))
        listen(Event("layers", done, len(line.layers), layer))
    ranks = [(row["barrier"], row["average"]) if row["moved"] else None for row in rows]
    chosen = largest(ranks, how.share) if how.rule == "barrier" else outliers([r and r[1] for r in ranks])
    return [{**row, "straggler": i in chosen} for i, row in enumerate(rows)]


def repaired(
    line: Line, layers: Sequence[str], sparsity: float, sets: Sets, listen: Listener = silent
) -> dict[str, Any]:
    """The path to the fine-tuned network with these layers cut."""
    how = line.how
    line.take(line.tuned, False)
    entries = {layer: line.layers[layer] for layer in layers}
    state, cut = cut_layers(
        line.model, line.zero, entries, how.method, sparsity, of=how.repair, batches=line.batches
    )
    path = walk(line, state, sets, f"repair at {sparsity:g}", listen)
    uncut = [layer for layer in layers if not set(entries[layer]) & set(cut)]
    return {"sparsity": sparsity, "cut": cut, "uncut": uncut, "path": path, "picks": picks(path)}


# -- pure -------------------------------------------------------------------------------------------------------------


def accuracy_and_loss(model: nn.Module, data: Labelled, batch: int) -> tuple[float, float]:
    """(accuracy, mean cross-entropy) on labelled images."""
    found, labels = logits(model, data.images, batch), data.labels
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= found.shape[1]:
        what = f"labels {low} to {high}, and the model knows {found.shape[1]} classes"
        raise BadInput(what, where="stragglers", fix="give images of the classes it was trained on")
    if data.only:
        asked = torch.zeros(found.shape[1], dtype=torch.bool)
        asked[list(data.only)] = True
        found = found.masked_fill(~asked.to(found.device), -math.inf)
    right = int((found.argmax(1) == labels).sum()) / len(labels)
    return right, float(F.cross_entropy(found.double(), labels))


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> float:
    """How far the losses rise above the line between their ends, at most; 0 or more."""
    first, last = losses[0], losses[-1]
    inner = list(zip(alphas, losses, strict=True))[1:-1]
    return max([0.0, *(v - (first + a * (last - first)) for a, v in inner)])


def largest(ranks: Sequence[tuple[float, ...] | None], share: float) -> list[int]:
    """Places of the largest `share` of the ranks, at least one; None never counts, and of equal ones the first does."""
    known = [i for i, rank in enumerate(ranks) if rank is not None]
    order = sorted(known, key=lambda i: ranks[i] or (), reverse=True)
    return sorted(order[: max(1, math.floor(share * len(known) + 1e-9))])


def outliers(values: Sequence[float | None]) -> list[int]:
    """Places of values more than three deviations (1.4826 times the median absolute one) above the median."""
    known = [v for v in values if v is not None]
    middle = statistics.median(known or [0.0])
    spread = 1.4826 * statistics.median([abs(v - middle) for v in known] or [0.0])
    return [i for i, v in enumerate(values) if v is not None and v > middle + 3 * spread]


def picks(path: Mapping[str, Any]) -> dict[str, Any]:
    """What a user gets from a path.

    Returns:
        alpha: the one of the highest accuracy on the images of `choose` (of equal ones the nearest to zero-shot), and
        sets {name: {zero, tuned, half, chosen, oracle, oracle_alpha, gain, dip, verdict}}: accuracies at 0, 1, 1/2 and
        alpha; the oracle's is the best on the set itself, so never a result; the rest as `verdict` says.
    """
    alphas = path["alphas"]

    def best(values: Sequence[float]) -> int:
        return max(range(len(values)), key=lambda i: (values[i], -i))

    at = best(path["sets"]["choose"]["accuracy"])
    sets = {}
    for name, row in path["sets"].items():
        values = row["accuracy"]
        top = best(values)
        sets[name] = {
            "zero": values[0], "tuned": values[-1], "half": values[len(values) // 2], "chosen": values[at],
            "oracle": values[top], "oracle_alpha": alphas[top], **verdict(alphas, values),
        }  # fmt: skip
    return {"alpha": alphas[at], "sets": sets}


def verdict(alphas: Sequence[float], accuracies: Sequence[float]) -> dict[str, Any]:
    """Of three points or more. gain: of the best inner point over the better end; dip: how far the path falls below the
    line between its ends, at most; verdict: success (gain), failure (dip), mixed (both) or between (neither)."""
    first, last = accuracies[0], accuracies[-1]
    inner = list(zip(alphas, accuracies, strict=True))[1:-1]
    gain = max(v for _, v in inner) - max(first, last)
    dip = max(0.0, *(first + a * (last - first) - v for a, v in inner))
    dip = dip if dip > 1e-12 else 0.0
    word = ("mixed" if dip else "success") if gain > 0 else ("failure" if dip else "between")
    return {"gain": gain, "dip": dip, "verdict": word}
