"""l1_softmax: multinomial logistic regression with an L1 (or squared L2) penalty, for falling lam.

    min_W  (1/n) sum_i CE(softmax(s W z_i + b), y_i) + lam sum |W|          z_i = U h_i, W [C, F]
                                                     (+ lam / 2 sum W^2 for penalty="l2")
    G = (s/n) (P - Y)^T H U^T            lam_max = max |G| at W = 0
    W = 0 exactly where |G| < lam;  G = -lam sign(W) where W != 0           the residual: the largest breach, over lam

FISTA in float64 with a step found by backtracking, restarted where it turns back, from the solution of the lam before.
Features are as given (U = None: z = h) or factors, embeddings h [n, d] and texts U [F, d]; then z [n, F] is never
formed, so a step takes n C d + C F d products.

Shapes:  H [n, d], U [F, d], W [C, F], b [C], not penalised. lam is in units of s z: z -> a z needs lam -> a lam.
Oracle:  the conditions above by plain arithmetic; scikit-learn's saga.
Papers:  Beck and Teboulle (2009), FISTA; O'Donoghue and Candes (2015), restarts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.core.scores import finite
from secateur.errors import BadInput, one_of

GROW, EASE = 2.0, 0.9  # of the step's inverse: where a step was too long, and after each one that was not
CHECK = 10  # steps between two looks at the residual


@dataclass(frozen=True, eq=False)
class Point:
    """The solution at one lam.

    Attributes:
        weight: W, float64 [C, F].   bias: float64 [C], with an intercept.
        loss, objective: mean cross-entropy; with the penalty.
        residual: largest breach of the optimality conditions over all entries, divided by lam.
        used: entries of W that are not 0.   steps: of FISTA.
    """

    lam: float
    weight: Tensor
    bias: Tensor | None
    loss: float
    objective: float
    residual: float
    used: int
    steps: int


@torch.no_grad()
def fit_path(
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
    limit: int = 10_000,
) -> list[Point]:
    """The solutions for falling lam, each started from the one before.

    Args:
        embeddings: [n, d].   labels: [n], 0..C-1.
        texts: U [F, d]; None: the coordinates of the embeddings are the features.
        lams: which; None: `count` values lam_max * factor ** 1, 2, ...
        penalty: l1 or l2.
        classes, scale, intercept: C (None: the largest label + 1), s, and whether there is b.
        tol: the residual to reach.   limit: steps at one lam; the point's residual tells whether they were enough.

    Raises:
        BadInput: shapes that do not agree, NaN or Inf, labels out of range.
    """
    one_of(penalty, ("l1", "l2"), "penalty")
    problem = Problem(embeddings, labels, texts, classes, scale, intercept)
    weight = problem.null()
    steepest = float((problem.slope(weight)[1].abs() * problem.penalised).max())
    asked = [steepest * factor**k for k in range(1, count + 1)] if lams is None else list(lams)
    points, inverse = [], 1.0
    for lam in asked:
        weight, point, inverse = solve(problem, weight, float(lam), penalty == "l1", tol, limit, inverse)
        points.append(point)
    return points


class Problem:
    """The data; the loss and its gradient."""

    def __init__(
        self,
        embeddings: Any,
        labels: Any,
        texts: Tensor | None,
        classes: int | None,
        scale: float,
        intercept: bool,
    ) -> None:
        h, y = torch.as_tensor(embeddings).double(), torch.as_tensor(labels).long()
        if h.ndim != 2 or not len(h) or y.shape != (len(h),):
            raise BadInput(
                f"{tuple(h.shape)} with {tuple(y.shape)} labels", where="embeddings", fix="give [n, d]"
            )
        if texts is not None and (texts.ndim != 2 or texts.shape[1] != h.shape[1]):
            raise BadInput(f"{tuple(texts.shape)} for embeddings {h.shape[1]} wide", where="texts")
        self.h, self.y = finite(h, "embeddings", "values"), y
        self.classes = classes or max(int(y.max()) + 1, 2)
        if int(y.min()) < 0 or int(y.max()) >= self.classes:
            raise BadInput(f"labels {int(y.min())}..{int(y.max())} of {self.classes} classes", where="labels")
        self.texts = None if texts is None else scale * finite(texts.double(), "texts", "values")
        self.scale, self.intercept = (1.0 if texts is not None else scale), intercept
        features = h.shape[1] if texts is None else len(texts)
        self.penalised = torch.ones(features + intercept, dtype=torch.float64)
        self.penalised[features:] = 0

    def null(self) -> Tensor:
        """W = 0, with the intercept at the logarithm of the classes' shares."""
        weight = torch.zeros(self.classes, len(self.penalised), dtype=torch.float64)
        if self.intercept:
            counts = torch.bincount(self.y, minlength=self.classes)
            if not bool(counts.all()):
                where = f"class {int(counts.argmin())}"
                raise BadInput("no row", where=where, fix="give one, or no intercept")
            weight[:, -1] = (counts / len(self.y)).double().log()
        return weight

    def _logits(self, weight: Tensor) -> Tensor:
        w = weight[:, :-1] if self.intercept else weight
        folded = self.scale * w if self.texts is None else w @ self.texts
        return self.h @ folded.t() + (weight[:, -1] if self.intercept else 0)

    def loss(self, weight: Tensor) -> float:
        """Mean cross-entropy."""
        return float(torch.nn.functional.cross_entropy(self._logits(weight), self.y))

    def slope(self, weight: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy and its gradient [C, F]."""
        logits = self._logits(weight)
        loss = float(torch.nn.functional.cross_entropy(logits, self.y))
        p = torch.softmax(logits, 1)
        p[torch.arange(len(p)), self.y] -= 1
        inner = p.t() @ self.h / len(p)
        out = self.scale * inner if self.texts is None else inner @ self.texts.t()
        return loss, torch.cat([out, p.mean(0)[:, None]], 1) if self.intercept else out


def solve(
    problem: Problem, weight: Tensor, lam: float, l1: bool, tol: float, limit: int, inverse: float
) -> tuple[Tensor, Point, float]:
    """FISTA at one lam from `weight`; `inverse` is that of the step, and goes on to the next lam."""
    bars = lam * problem.penalised
    ridge = torch.zeros_like(bars) if l1 else bars
    ahead, theta, residual, steps = weight, 1.0, math.inf, 0
    for steps in range(limit + 1):
        loss, slope = problem.slope(ahead)
        smooth = slope + ridge * ahead
        if steps % CHECK == 0:
            gradient = problem.slope(weight)[1]
            residual = breach(weight, gradient, bars, l1) / lam
            if residual <= tol or steps == limit:
                break
        value = loss + float((ridge * ahead.square()).sum()) / 2
        while True:
            new = ahead - smooth / inverse
            new = shrunk(new, bars / inverse) if l1 else new
            change = new - ahead
            bound = value + float((smooth * change).sum()) + inverse / 2 * float(change.square().sum())
            if problem.loss(new) + float((ridge * new.square()).sum()) / 2 <= bound + 1e-12 * (
                1 + abs(value)
            ):
                break
            inverse *= GROW
        back = float(((ahead - new) * (new - weight)).sum()) > 0
        nearer = 1.0 if back else (1 + math.sqrt(1 + 4 * theta**2)) / 2
        ahead = new if back else new + (theta - 1) / nearer * (new - weight)
        weight, theta, inverse = new, nearer, inverse * EASE
    loss = problem.loss(weight)
    cost = float((bars * weight.abs()).sum()) if l1 else float((bars * weight.square()).sum()) / 2
    w, bias = (weight[:, :-1], weight[:, -1]) if problem.intercept else (weight, None)
    point = Point(lam, w, bias, loss, loss + cost, residual, int((w != 0).sum()), steps)
    return weight, point, inverse


def shrunk(values: Tensor, bars: Tensor) -> Tensor:
    """Each value nearer to 0 by its bar, and 0 where that would pass it: the proximal map of |W|."""
    return values.sign() * (values.abs() - bars).clamp(min=0)


def breach(weight: Tensor, gradient: Tensor, bars: Tensor, l1: bool) -> float:
    """The largest breach of the optimality conditions."""
    if not l1:
        return float((gradient + bars * weight).abs().max())
    on = (gradient + bars * weight.sign()).abs()
    return float(torch.where(weight != 0, on, (gradient.abs() - bars).clamp(min=0)).max())
