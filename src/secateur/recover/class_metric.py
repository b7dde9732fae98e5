"""class_metric: steps of softmax regression with an L1 penalty in the curvature of each class, exactly.

    argmin_x  <g, x - v> + 1/2 |x - v|_M^2 + sum_cj bar_cj |x_cj|          v, g, x [C, a]: a class's own a features
    |D|_M^2 = stretch min_beta (1/n) sum_ic q_ic (D_c z_ic - beta)^2       q = p (1 - p), images i, classes c
            = stretch (sum_c D_c^T A_c D_c - (sum_c u_c D_c)^2 / t)
    A_c     = (1/n) sum_i q_ic z_ic z_ic^T,  u_c = (1/n) sum_i q_ic z_ic,  t = (1/n) sum_ic q_ic

beta stands for what all logits of all images may have in common, which the loss does not see. Cosines of CLIP lie in a
narrow band, so every feature of every class moves it, and without beta the classes hold each other back a thousandfold.
The Hessian is at most M for stretch 2: diag(p) - p p^T <= 2 diag(p (1 - p)), as the difference is diagonally dominant.

The minimum has a sign pattern; given the pattern it solves linear equations, one system a class, tied by beta. The
pattern is found by block principal pivoting (Judice and Pires, 1994): all entries that contradict theirs change it
together, and one alone in a class where that no longer makes them fewer. beta is found around it, as the zero of a
rising line of pieces.

Oracle:  the optimality of x by plain arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.recover.softmax_problem import Problem

# Values of beta; rounds at each; those that may fail to bring contradictions down.
SHIFTS, ROUNDS, TRIES = 40, 100, 3
TWINS = 1e-6  # ridge for features that are nearly the same: a share of what the mean feature varies by
# Ridge for what rounding leaves: a share of the mean diagonal.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}
FLOOR = 0.02  # q is at least this share of |p - y|: an image that is far off will bend once it moves
SAMPLE, MOST = 8192, 2**28  # images that the metric is taken from; bytes of their features


class Sample:
    """Images that the metric is taken from: all of them, or evenly many of each class."""

    def __init__(self, problem: Problem) -> None:
        most = max(256, MOST // (problem.width * problem.dtype.itemsize))
        count = min(problem.n, SAMPLE, most)
        order = torch.argsort(problem.y, stable=True)
        at = order[torch.arange(count) * problem.n // count].sort().values
        self.h, self.y = problem.rows(at), problem.y[at]
        self.z = problem.features(at)

    def bends(self, problem: Problem, weight: Tensor) -> Tensor:
        """q [C, images]."""
        p = problem.chances(weight, self.h).t().contiguous()
        off = p.clone()
        off[self.y, torch.arange(len(self.y))] -= 1
        return torch.maximum(p * (1 - p), FLOOR * off.abs())


@dataclass(eq=False)
class Metric:
    """M. places [C, a] of each class's features; A [C, a, a], u [C, a], t as above, float64, without the stretch."""

    places: Tensor
    curve: Tensor
    common: Tensor
    total: float
    stretch: float = 1.0

    def times(self, d: Tensor) -> Tensor:
        """M d, [C, a]."""
        out = torch.bmm(self.curve, d[:, :, None])[:, :, 0]
        return self.stretch * (out - self.common * (float((self.common * d).sum()) / self.total))

    def inner(self, d: Tensor, e: Tensor) -> float:
        """<d, M e>."""
        return float((d * self.times(e)).sum())


def measure(problem: Problem, sample: Sample, weight: Tensor, places: Tensor) -> Metric:
    """The metric at W for these features of each class."""
    q = sample.bends(problem, weight)
    count, (classes, size) = len(sample.y), places.shape
    curve = torch.empty(classes, size, size, dtype=torch.float64)
    common = torch.empty(classes, size, dtype=torch.float64)
    for c in range(classes):
        z = sample.z[places[c]]
        bent = z * q[c]
        curve[c], common[c] = bent @ z.t(), bent.sum(1)
    curve, common, mass = curve / count, common / count, q.double().sum(1, keepdim=True) / count
    diagonal = curve.diagonal(dim1=1, dim2=2)
    varied = (diagonal - common.square() / mass.clamp(min=1e-300)).clamp(min=0)
    ridge = (TWINS * varied + ROUNDING[problem.dtype] * diagonal).mean(1, keepdim=True) + 1e-30
    diagonal += ridge
    while bool(torch.linalg.cholesky_ex(curve).info.any()):  # rounding left one that is not positive definite
        diagonal += ridge
        ridge = 10 * ridge
    return Metric(places, curve, common, max(float(mass.sum()), 1e-30))


def step(metric: Metric, v: Tensor, g: Tensor, bars: Tensor, slack: float) -> Tensor:
    """x [C, a], the minimum. bars [C, a] >= 0.   slack: by how much |gradient| may be above the bar where x is 0."""
    g, bars, slack = g / metric.stretch, bars / metric.stretch, slack / metric.stretch  # all over stretch
    pattern, total = Pattern(metric, v, g, bars, slack), metric.total
    reach = float(pattern.common.abs().max())
    d, beta, low, high = v - v, 0.0, -math.inf, math.inf
    for _ in range(SHIFTS):
        d, lean = pattern.settle(beta)
        # total beta - sum common d rises with beta, piece by piece a straight line, and is 0 at the minimum
        above = total * beta - float((pattern.common * d).sum())
        low, high = (low, beta) if above > 0 else (beta, high)
        rise = max(total - float((pattern.common * lean).sum()), 1e-13 * total)
        ahead = beta - above / rise
        if not low < ahead < high:
            ahead = (low + high) / 2 if math.isfinite(low + high) else ahead
        if abs(ahead - beta) * reach <= slack or ahead in (low, high):
            break
        beta = ahead
    x = v + d
    return torch.where((x * pattern.signs > 0) | pattern.free, x, 0.0)


class Pattern:
    """The signs of x, one row a class. For a given beta the classes do not know of each other."""

    def __init__(self, metric: Metric, v: Tensor, g: Tensor, bars: Tensor, slack: float) -> None:
        self.v, self.g, self.bars, self.slack, self.free = v, g, bars, slack, bars == 0
        self.curve, self.common = metric.curve, metric.common
        self.signs = torch.where(v != 0, v.sign(), -g.sign() * (g.abs() > bars))
        self.base, self.lean = torch.zeros_like(v), torch.zeros_like(v)
        self.stale = torch.arange(len(v))

    def settle(self, beta: float) -> tuple[Tensor, Tensor]:
        """d = x - v at beta, and its derivative by beta."""
        best = torch.full((len(self.v),), self.v.shape[1] + 1)
        tries, d = torch.full_like(best, TRIES), self.base
        for _ in range(ROUNDS):
            self.refresh()
            d = self.base + beta * self.lean
            slope = self.g + torch.bmm(self.curve, d[:, :, None])[:, :, 0] - beta * self.common
            on = self.signs != 0
            wrong = torch.where(on, (self.v + d) * self.signs < 0, slope.abs() > self.bars + self.slack)
            wrong = wrong & ~self.free
            count = wrong.sum(1)
            self.stale = count.nonzero().flatten()
            if not len(self.stale):
                break
            tries = torch.where(count < best, TRIES, tries - 1)
            best = torch.minimum(best, count)
            new = torch.where(on, 0.0, -slope.sign())
            self.signs = torch.where(_chosen(wrong, tries), new, self.signs)
        return d, self.lean

    def refresh(self) -> None:
        """base and lean of the classes whose signs changed: d = base + beta * lean; x = 0 where there is no sign."""
        at = self.stale
        on = (self.signs[at] != 0) | self.free[at]
        gone = torch.where(on, 0.0, -self.v[at])
        push = torch.bmm(self.curve[at], gone[:, :, None])[:, :, 0]
        sides = -self.g[at] - self.bars[at] * self.signs[at] - push, self.common[at]
        base, self.lean[at] = solve(self.curve[at], on, *sides)
        self.base[at] = base + gone


def solve(curve: Tensor, on: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
    """The solutions [B, a] of curve x = side within the entries that are on; 0 elsewhere."""
    pairs = on[:, :, None] & on[:, None, :]
    inside = torch.where(pairs, curve, 0.0) + torch.diag_embed((~on).to(curve.dtype))
    right = torch.stack([side * on for side in sides], 2)
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(inside).L).unbind(2)


def _chosen(wrong: Tensor, tries: Tensor) -> Tensor:
    """All that are wrong, and the last of them alone in a class that has no tries left."""
    last = (wrong * torch.arange(1, wrong.shape[1] + 1)).argmax(1, keepdim=True)
    alone = torch.zeros_like(wrong).scatter_(1, last, True)
    return wrong & (alone | (tries >= 0)[:, None])
