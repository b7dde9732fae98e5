"""sparsegpt: cut column by column, and let the columns to the right make up for each cut.

    H = (2/n) X X^T + damping * mean(diag) * I,   R upper triangular, R^T R = H^-1
    score[i, j] = W[i, j]^2 / R[j, j]^2           chosen for `blocksize` columns at a time, over all rows
    W[:, j:] -= (cut part of W[:, j] / R[j, j]) R[j, j:]

Shapes:  W [out, in]; X [in, tokens]; H, R [in, in].    Unit: weight.   Needs: input Hessian, one pass. Updates weights.
Departs: exact counts (the reference's inclusive threshold cuts one more a block); R comes from one Cholesky of the
         reversed H and a triangular inverse, half the work of the reference's three steps; damping is raised tenfold,
         up to 1, where H is not positive definite. A pattern other than `layer` chooses inside the same column blocks.
Oracle:  with damping 0, sum(err^2) / 2 times the samples equals ||(W' - W) X||_F^2; a diagonal H compensates nothing.
Paper:   SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot (2023), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.method import Card, Cut, OneShot
from secateur.core.select import NM, Blocks, Pattern, PerColumn, PerLayer, PerRow, cut_count
from secateur.core.units import Site, Unit
from secateur.errors import BadInput
from secateur.signals.hessian import InputHessian


@dataclass(frozen=True, kw_only=True)
class SparseGPT(OneShot):
    """SparseGPT.

    Args:
        blocksize: columns whose mask is chosen together, and whose update of the rest is delayed.
        damping: added to H's diagonal, as a fraction of its mean.
    """

    pattern: str | Pattern = PerLayer()
    blocksize: int = 128
    damping: float = 0.01

    card = Card(
        paper="SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot (2023)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="w^2 / [H^-1]_jj, conditional on the columns before",
    )
    needs = InputHessian
    updates = True
    feed = "layer"
    rounds = False
    claims = ("rows", "scale")  # later columns are chosen on weights that earlier cuts have changed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocksize < 1:
            raise BadInput(
                f"{self.blocksize} columns", where="blocksize", fix="use 1 or more; the paper has 128"
            )
        if not 0 <= self.damping <= 1:
            raise BadInput(f"{self.damping!r} is not in [0, 1]", where="damping", fix="the paper has 0.01")

    def score(self, weight: Tensor, signal: InputHessian, site: Site) -> Tensor:
        """W^2 / R_jj^2 on the weights as they came (inside a run it is taken on the weights as updated so far)."""
        alive = weight.float().masked_fill(
            signal.products.diagonal() == 0, 0
        )  # dead inputs' weights go first
        return (alive / signal.inverse_factor(self.damping, site.name, []).diagonal()).square()

    def cut(
        self, weight: Tensor, signal: InputHessian, site: Site, sparsity: float, bias: Tensor | None = None
    ) -> Cut:
        notes: list[str] = []
        factor = signal.inverse_factor(self.damping, site.name, notes)
        columns = weight.t().float().contiguous()  # [in, out]: a column of W is a row in memory
        columns[signal.products.diagonal() == 0] = 0
        before = signal.squared_error(columns.t())
        assert not isinstance(self.pattern, str)
        keep, scores, loss = solve(columns, factor, self.pattern, sparsity, self.blocksize)
        error = math.sqrt(loss / 2 * signal.samples / before) if before > 0 else 0.0
        return Cut(keep.t().contiguous(), columns.t(), score=scores.t(), error=error, notes=tuple(notes))


def solve(
    columns: Tensor, factor: Tensor, pattern: Pattern, sparsity: float, blocksize: int = 128, inner: int = 32
) -> tuple[Tensor, Tensor, float]:
    """Choose and compensate, in place.

    Args:
        columns: W transposed, [in, out] float32; holds the result afterwards, exact zeros where cut.
        factor: R [in, in], upper triangular.
        pattern, sparsity: what is cut; the counts of `row` and `layer` are exact over the whole matrix.
        blocksize, inner: columns between two delayed updates of the rest of the matrix, and of the rest of the block.

    Returns:
        keep bool [in, out], the scores chosen by [in, out], and sum(err^2).
    """
    width, out = columns.shape
    step = pattern.m if isinstance(pattern, NM) else pattern.columns if isinstance(pattern, Blocks) else 1
    blocksize, inner = (step * math.ceil(size / step) for size in (blocksize, inner))
    keep = torch.ones(width, out, dtype=torch.bool, device=columns.device)
    scores = torch.empty_like(columns)
    diagonal = factor.diagonal()
    loss = 0.0
    for a in range(0, width, blocksize):
        b = min(a + blocksize, width)
        errors = torch.empty_like(columns[a:b])
        if not isinstance(pattern, NM):
            scores[a:b] = (columns[a:b] / diagonal[a:b, None]).square()
            share = _share(pattern, out, a, b, sparsity)
            keep[a:b] = pattern.select(scores[a:b].t().contiguous(), share).t()
        for c in range(a, b, inner):
            d = min(c + inner, b)
            for i in range(c, d):
                if isinstance(pattern, NM) and i % pattern.m == 0:
                    group = slice(i, i + pattern.m)
                    scores[group] = (columns[group] / diagonal[group, None]).square()
                    keep[group] = pattern.select(scores[group].t()).t()
                error = errors[i - a]
                torch.div(columns[i].masked_fill(keep[i], 0), diagonal[i], out=error)
                columns[i + 1 : d].addr_(factor[i, i + 1 : d], error, alpha=-1)
            columns[d:b].addmm_(factor[c:d, d:b].t(), errors[c - a : d - a], alpha=-1)
        columns[a:b].masked_fill_(~keep[a:b], 0)
        columns[b:].addmm_(factor[a:b, b:].t(), errors, alpha=-1)
        loss += float(errors.square().sum(dtype=torch.float64))
    return keep, scores, loss


def _share(pattern: Pattern, out: int, a: int, b: int, sparsity: float) -> float:
    """The sparsity of columns a..b that keeps the running count exact: what is due up to b less what was by a."""
    if isinstance(pattern, PerColumn):
        return sparsity
    group = 1 if isinstance(pattern, PerRow) else out
    if isinstance(pattern, Blocks):
        group, a, b = out // pattern.rows, a // pattern.columns, b // pattern.columns
    due = cut_count(group * b, sparsity) - cut_count(group * a, sparsity)
    return (due + 0.25) / (group * (b - a)) if due else 0.0
