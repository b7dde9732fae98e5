"""l1_softmax: multinomial logistic regression with an L1 (or squared L2) penalty, for falling lam.

    min_W  (1/n) sum_i CE(softmax(s W z_i + b), y_i) + lam sum |W|          z_i = U h_i, W [C, F]
                                                     (+ lam / 2 sum W^2 for penalty="l2")
    G = (s/n) (P - Y)^T H U^T            lam_max = max |G| at W = 0
    W = 0 exactly where |G| < lam;  G = -lam sign(W) where W != 0           the residual: the largest breach, over lam

L1: FISTA whose steps are exact in the curvature of each class (class_metric.py), on those features of a class that are
in use or ask to be; every step looks at the gradient of all entries of W, so the residual is never of some only.
Stretch is raised where the gradient changed by more than the metric allows; a step that ends higher is taken back.
L2: FISTA with a step found by backtracking, restarted where it turns back. Both start at the solution before.
Features are as given (U = None: z = h) or factors, embeddings h [n, d] and texts U [F, d] (softmax_problem.py).

Shapes:  H [n, d], U [F, d], W [C, F], b [C], not penalised. lam is in units of s z: z -> a z needs lam -> a lam.
Oracle:  the conditions above by plain arithmetic; scikit-learn's saga.
Papers:  Beck and Teboulle (2009), FISTA; O'Donoghue and Candes (2015), restarts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BadInput, one_of
from secateur.recover.class_metric import Metric, Sample, measure, step
from secateur.recover.softmax_problem import Problem

GROW, EASE = 2.0, 0.9  # L2: of the step's inverse, where a step was too long, and after each one that was not
CHECK = 10  # L2: steps between two looks at the residual
# A feature joins from NEAR lam on; a class that has fewer than FEWEST may take that many more.
NEAR, FEWEST = 0.8, 10
FAR, STRIDE, ROUGH = 0.3, 0.5, 0.1  # a lam below FAR of the last is reached in strides, each solved to ROUGH
MOVED = 0.2  # share by which the loss may change before the metric is measured again
STRETCH, RELAX = 1.2, 0.8  # what stretch grows by at least, and falls by from lam to lam
PATIENCE = 50  # steps without a lower residual or objective after which rounding is all that is left


@dataclass(frozen=True, eq=False)
class Point:
    """The solution at one lam.

    Attributes:
        weight: W, float64 [C, F].   bias: float64 [C], with an intercept.
        loss, objective: mean cross-entropy; with the penalty.
        residual: largest breach of the optimality conditions over all entries, divided by lam.
        used: entries of W that are not 0.   steps: gradients taken.
    """

    lam: float
    weight: Tensor
    bias: Tensor | None
    loss: float
    objective: float
    residual: float
    used: int
    steps: int


def fit_path(embeddings: Any, labels: Any, texts: Tensor | None = None, **settings: Any) -> list[Point]:
    """The solutions for falling lam, each started from the one before. Arguments and errors as for `walk_path`."""
    return list(walk_path(embeddings, labels, texts, **settings))


@torch.no_grad()
def walk_path(
    embeddings: Any,
    labels: Any,
    texts: Tensor | None = None,
    *,
    lams: Sequence[float] | None = None,
    count: int = 30,
    factor: float = 0.8,
    penalty: str = "l1",
    classes: int | None = None,
    scale: float = 1.0,
    intercept: bool = False,
    tol: float = 1e-4,
    limit: int = 1_000,
    dtype: torch.dtype | None = None,
) -> Iterator[Point]:
    """`fit_path`, one solution at a time: W is [C, F], and a path of them may be more than fits in memory.

    Args:
        embeddings: [n, d], a tensor (on any device) or an array; a memory-mapped one is read a chunk at a time.
        labels: [n], 0..C-1.
        texts: U [F, d]; None: the coordinates of the embeddings are the features.
        lams: which; None: `count` values lam_max * factor ** 1, 2, ...
        penalty: l1 or l2.
        classes, scale, intercept: C (None: the largest label + 1), s, and whether there is b.
        tol: the residual to reach.   limit: steps at one lam; the point's residual tells whether they were enough.
        dtype: of the sums over images; None: float64, and float32 where n C is above 2^24 (its rounding allows a tol of
            about 1e-3).

    Raises:
        BadInput: shapes that do not agree, NaN or Inf, labels out of range, a lam that is not above 0.
    """
    one_of(penalty, ("l1", "l2"), "penalty")
    problem = Problem(embeddings, labels, texts, classes, scale, intercept, dtype)
    weight = problem.null()
    steepest = float((problem.slope(weight)[1].abs() * problem.penalised).max())
    asked = [steepest * factor**k for k in range(1, count + 1)] if lams is None else [float(x) for x in lams]
    if not all(0 < lam < math.inf for lam in asked):
        what = f"{min(asked)!r}" if lams else "no feature tells the classes apart"
        raise BadInput(what, where="lam", fix="give values above 0" if lams else "look at the embeddings")
    solve = (
        Descent(problem, steepest, tol, limit).solve if penalty == "l1" else Ridge(problem, tol, limit).solve
    )
    for lam in asked:
        weight, loss, residual, steps = solve(weight, lam)
        yield _point(problem, weight, lam, penalty == "l1", loss, residual, steps)


def _point(
    problem: Problem, weight: Tensor, lam: float, l1: bool, loss: float, residual: float, steps: int
) -> Point:
    bars = lam * problem.penalised
    cost = float((bars * weight.abs()).sum()) if l1 else float((bars * weight.square()).sum()) / 2
    w, bias = (weight[:, :-1], weight[:, -1]) if problem.intercept else (weight, None)
    return Point(lam, w, bias, loss, loss + cost, residual, int((w != 0).sum()), steps)


# -- L1 ---------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Place:
    """A W that was looked at: its gradient, loss, objective (rounding moves it by `blur`) and breach of each entry."""

    weight: Tensor
    slope: Tensor
    loss: float
    objective: float
    blur: float
    off: Tensor

    @property
    def worst(self) -> float:
        return float(self.off.max())


class Descent:
    """FISTA in the metric of the classes."""

    def __init__(self, problem: Problem, last: float, tol: float, limit: int) -> None:
        self.problem, self.last, self.tol, self.limit = problem, last, tol, limit
        self.sample, self.stretch = Sample(problem), 1.0
        self.known: Place | None = None
        self.blur = 4 * torch.finfo(problem.dtype).eps
        self.reach = float(self.sample.z.abs().max())

    def solve(self, weight: Tensor, lam: float) -> tuple[Tensor, float, float, int]:
        """W at this lam, from that at the last, with its loss, its residual and the steps it took.

        A lam far below the last is reached in strides: its own curvature says little of what lies between.
        """
        steps = 0
        while lam < FAR * self.last and steps < self.limit:
            self.last *= STRIDE
            here, more = self.descend(weight, self.last, max(ROUGH, self.tol), self.limit - steps)
            weight, steps = here.weight, steps + more
        here, more = self.descend(weight, lam, self.tol, self.limit - steps)
        self.last = lam
        return here.weight, here.loss, here.worst / lam, steps + more

    def descend(self, weight: Tensor, lam: float, tol: float, limit: int) -> tuple[Place, int]:
        bars = lam * self.problem.penalised
        here = self.look(weight, bars)
        best, least, idle, steps = here, here.worst, 0, 0
        before, theta, metric, measured_at = here.weight, 1.0, None, here
        while here.worst > tol * lam and steps < limit and idle < PATIENCE:
            if metric is None or self.outdated(metric, measured_at, here):
                metric, theta, before, measured_at = self.measured(here, lam), 1.0, here.weight, here
            new, plain = self.stepped(here, metric, bars), theta == 1
            ahead, theta = self.ahead(here.weight, new, before, theta, metric)
            before, last, here = new, here, self.look(ahead, bars)
            steps += 1
            rose = here.objective > best.objective + here.blur
            if self.checked(last, here, metric, rose and plain) or rose:
                if rose:
                    here, metric = best, None  # it may use features that this one lacks
                before, theta = here.weight, 1.0
            better = here.worst < 0.99 * least or here.objective < best.objective - here.blur
            idle = 0 if better else idle + 1
            best, least = (here if here.objective <= best.objective else best), min(least, here.worst)
        self.stretch = min(max(1.0, self.stretch * RELAX), 2.0)
        if here.worst > tol * lam:
            here = min(here, best, key=lambda place: place.worst)
        self.known = here
        return here, steps

    def look(self, weight: Tensor, bars: Tensor) -> Place:
        if self.known is not None and self.known.weight is weight:  # where the lam before ended
            loss, slope, self.known = self.known.loss, self.known.slope, None
        else:
            loss, slope = self.problem.slope(weight)
        cost = float((bars * weight.abs()).sum())
        blur = self.blur * (loss + cost + self.reach * float(weight.abs().sum(1).max()))
        return Place(weight, slope, loss, loss + cost, blur, breach(weight, slope, bars))

    def outdated(self, metric: Metric, then: Place, here: Place) -> bool:
        """Whether what presses most is not in the metric, or the loss is another than where it was measured."""
        outside = float(here.off.scatter(1, metric.places, 0.0).max())
        return outside > here.worst / 2 or abs(here.loss - then.loss) > MOVED * then.loss

    def measured(self, here: Place, lam: float) -> Metric:
        """The metric on the features of each class that are in use or press hardest to be."""
        held = (here.weight != 0) | (self.problem.penalised == 0)
        press = torch.where(held, math.inf, here.slope.abs())
        joining = ((press > NEAR * lam) & ~held).sum(1)
        size = int((held.sum(1) + joining.minimum(held.sum(1).clamp(min=FEWEST))).max())
        places = press.topk(max(1, min(size, press.shape[1])), 1).indices
        found = measure(self.problem, self.sample, here.weight, places)
        found.stretch = self.stretch
        return found

    def stepped(self, here: Place, metric: Metric, bars: Tensor) -> Tensor:
        v, g = here.weight.gather(1, metric.places), here.slope.gather(1, metric.places)
        slack = 0.03 * self.tol * float(bars.max())
        found = step(metric, v, g, bars[metric.places], slack)
        return torch.zeros_like(here.weight).scatter_(1, metric.places, found)

    def ahead(
        self, start: Tensor, new: Tensor, before: Tensor, theta: float, metric: Metric
    ) -> tuple[Tensor, float]:
        """Where to look next, and theta: beyond `new`, with its signs; `new` itself where the step turned back."""
        made, moved = (start - new).gather(1, metric.places), (new - before).gather(1, metric.places)
        if metric.inner(made, moved) > 0:
            return new, 1.0
        nearer = (1 + math.sqrt(1 + 4 * theta**2)) / 2
        beyond = new + (theta - 1) / nearer * (new - before)
        return torch.where((beyond * new > 0) | (self.problem.penalised == 0), beyond, 0.0), nearer

    def checked(self, last: Place, here: Place, metric: Metric, failed: bool) -> bool:
        """Raise stretch if the gradient bent more than the metric between two places, or a step failed."""
        d = (here.weight - last.weight).gather(1, metric.places)
        bent = float((d * (here.slope - last.slope).gather(1, metric.places)).sum())
        allowed = metric.inner(d, d)
        if not failed and bent <= allowed * (1 + 1e-6):
            return False
        factor = bent / allowed if allowed > 0 else GROW
        self.stretch = metric.stretch = metric.stretch * min(max(factor, GROW if failed else STRETCH), 100.0)
        return True


def breach(weight: Tensor, gradient: Tensor, bars: Tensor) -> Tensor:
    """By how much each entry breaks the optimality conditions."""
    on = (gradient + bars * weight.sign()).abs()
    return torch.where(weight != 0, on, (gradient.abs() - bars).clamp(min=0))


# -- L2 ---------------------------------------------------------------------------------------------------------------


class Ridge:
    """FISTA with one step length for all."""

    def __init__(self, problem: Problem, tol: float, limit: int) -> None:
        self.problem, self.tol, self.limit, self.inverse = problem, tol, limit, 1.0

    def solve(self, weight: Tensor, lam: float) -> tuple[Tensor, float, float, int]:
        """W at this lam, from another, with its loss, its residual and the steps it took."""
        problem, bars = self.problem, lam * self.problem.penalised
        ahead, theta, residual, steps = weight, 1.0, math.inf, 0
        for steps in range(self.limit + 1):
            if steps % CHECK == 0 or steps == self.limit:
                residual = float((problem.slope(weight)[1] + bars * weight).abs().max()) / lam
                if residual <= self.tol or steps == self.limit:
                    break
            new = self.stepped(ahead, bars)
            back = float(((ahead - new) * (new - weight)).sum()) > 0
            nearer = 1.0 if back else (1 + math.sqrt(1 + 4 * theta**2)) / 2
            ahead = new if back else new + (theta - 1) / nearer * (new - weight)
            weight, theta, self.inverse = new, nearer, self.inverse * EASE
        return weight, problem.loss(weight), residual, steps

    def stepped(self, ahead: Tensor, bars: Tensor) -> Tensor:
        """A gradient step from `ahead`, so short that the loss stays below its parabola."""
        loss, slope = self.problem.slope(ahead)
        slope = slope + bars * ahead
        value = loss + float((bars * ahead.square()).sum()) / 2
        while True:
            new = ahead - slope / self.inverse
            bound = value - float(slope.square().sum()) / self.inverse / 2
            found = self.problem.loss(new) + float((bars * new.square()).sum()) / 2
            if found <= bound + 1e-12 * (1 + abs(value)):
                return new
            self.inverse *= GROW
