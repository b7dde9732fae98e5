"""Which units stay at one site: exact counts, stable ties, every pattern. Nothing else in the library counts or sorts.

A *pattern* says how scores are compared. It splits a score matrix [out, in] into groups that compete among themselves:

    PerRow()       one group an output row           PerLayer()     one group, the whole matrix
    PerColumn()    one group an input column         NM(2, 4)       2 KEPT of every 4 consecutive inputs
    Blocks(r, c)   one group, whose units are r x c tiles (a tile's score is its mean)

From a group of n units ``cut_count(n, sparsity)`` are cut: the lowest scores, and among equal scores the lowest index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.errors import BadInput, Infeasible


def cut_count(n: int, sparsity: float) -> int:
    """How many of n units a sparsity cuts: floor(n * sparsity + 1e-9).

    The small term takes back what binary fractions lose: 100 * 0.29 is 28.999999999999996, and 29 are cut.
    """
    return math.floor(n * sparsity + 1e-9)


def check_sparsity(sparsity: float, where: str = "sparsity") -> float:
    """Refuse what is not a number in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise BadInput(
            f"{sparsity!r} is not a fraction in [0, 1)", where=where, fix="0.5 cuts half of the units"
        )
    return float(sparsity)


def keep_top(score: Tensor, cut: int, among: Tensor | None = None) -> Tensor:
    """Keep all but the `cut` lowest scores of each row.

    Args:
        score: [groups, n], finite.
        cut: how many to cut in every row, 0 <= cut <= n.
        among: bool [1, n], for one row: only these compete (n counts them alone), the others are False in the result.

    Returns:
        bool [groups, n], True = kept; exactly n - cut True in every row; of equal scores the lowest index is cut first.
    """
    if score.dtype in (torch.float16, torch.bfloat16):
        score = score.float()
    field = score if among is None else picked(score[0], among[0])[None]
    n = field.shape[1]
    if cut <= 0:
        return torch.ones_like(score, dtype=torch.bool) if among is None else among.clone()
    if cut >= n:
        return torch.zeros_like(score, dtype=torch.bool)
    # A selection finds the threshold in O(n); only ties at the threshold need an order, and they are rare.
    threshold = _kth_lowest(field, cut)
    keep = score > threshold if among is None else (score > threshold) & among
    surplus = (
        n - cut - keep.sum(dim=1)
    )  # of the units that tie at the threshold, this many stay: the last ones
    tied_rows = torch.nonzero(surplus > 0).squeeze(1)
    if len(tied_rows):
        tied = score[tied_rows] == threshold[tied_rows]
        tied = tied if among is None else tied & among
        rank_from_end = tied.flip(1).cumsum(1).flip(1)
        keep[tied_rows] |= tied & (rank_from_end <= surplus[tied_rows, None])
    return keep


def _kth_lowest(score: Tensor, k: int) -> Tensor:
    """The k-th lowest of each row [groups, 1]; in one long row a sample brackets it, so little is left to order."""
    n = score.shape[1]
    if len(score) == 1 and n >= 1 << 16:
        row = score[0]
        sample = row[:: n >> 13].contiguous()
        at, spread = k * len(sample) // n, len(sample) // 50
        low = sample.kthvalue(max(1, at - spread)).values
        high = sample.kthvalue(min(len(sample), at + spread + 1)).values
        middle, below = picked(row, (row >= low) & (row <= high)), int((row < low).sum())
        if below < k <= below + len(middle) and len(middle) <= n // 2:
            return middle.kthvalue(k - below).values.view(1, 1)
    return score.kthvalue(k, dim=1, keepdim=True).values


def picked(row: Tensor, where: Tensor) -> Tensor:
    """row[where], both of one dimension; NumPy takes a tenth of torch's time for it."""
    if row.device.type != "cpu":
        return row[where]
    return torch.from_numpy(row.detach().numpy().compress(where.numpy()))


class Pattern(Protocol):
    """How the units of a [out, in] matrix compete; see the module's table."""

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        """bool [out, in], True = kept."""
        ...

    def fits(self, shape: tuple[int, ...], name: str) -> None:
        """Raise `Infeasible` where the pattern does not divide a site's shape."""
        ...


@dataclass(frozen=True)
class PerRow:
    """The weights of one output row compete (Wanda's group)."""

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        return keep_top(score, cut_count(score.shape[1], sparsity))

    def fits(self, shape: tuple[int, ...], name: str) -> None:
        return None

    def __str__(self) -> str:
        return "row"


@dataclass(frozen=True)
class PerColumn:
    """The weights that read one input compete."""

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        return keep_top(score.t().contiguous(), cut_count(score.shape[0], sparsity)).t().contiguous()

    def fits(self, shape: tuple[int, ...], name: str) -> None:
        return None

    def __str__(self) -> str:
        return "column"


@dataclass(frozen=True)
class PerLayer:
    """All weights of the matrix compete."""

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        return keep_top(score.reshape(1, -1), cut_count(score.numel(), sparsity)).view(score.shape)

    def fits(self, shape: tuple[int, ...], name: str) -> None:
        return None

    def __str__(self) -> str:
        return "layer"


@dataclass(frozen=True)
class NM:
    """n KEPT of every m consecutive inputs of a row; the pattern alone fixes the sparsity, 1 - n/m."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (type(self.n) is type(self.m) is int and 0 < self.n <= self.m):
            raise BadInput(
                f"{self.n}:{self.m} keeps {self.n} of {self.m}", where="pattern", fix="N:M needs 0 < N <= M"
            )

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def select(self, score: Tensor, sparsity: float | None = None) -> Tensor:
        out, width = score.shape
        groups = score.reshape(out, width // self.m, self.m)
        if self.m > 16:
            return keep_top(groups.reshape(-1, self.m), self.m - self.n).view(out, width)
        # Small groups: a unit's rank is the number of units in its group that are cut before it.
        rank = torch.zeros(groups.shape, dtype=torch.uint8, device=score.device)
        for i in range(self.m):
            for j in range(i):
                later_wins = groups[..., i] >= groups[..., j]  # a tie cuts j, the lower index, first
                rank[..., i] += later_wins
                rank[..., j] += ~later_wins
        return (rank >= self.m - self.n).view(out, width)

    def fits(self, shape: tuple[int, ...], name: str) -> None:
        if shape[-1] % self.m:
            raise Infeasible(
                f"{self} does not divide {shape[-1]} inputs",
                where=name,
                fix="choose another M or skip this site",
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks:
    """r x c tiles compete over the whole matrix, each by the mean of its scores."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not (type(self.rows) is type(self.columns) is int) or self.rows < 1 or self.columns < 1:
            raise BadInput(f"a tile of {self}", where="pattern", fix="blocks need at least 1x1, as in 16x1")

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        out, width = score.shape
        tiles = (
            score.float()
            .reshape(out // self.rows, self.rows, width // self.columns, self.columns)
            .mean((1, 3))
        )
        keep = PerLayer().select(tiles, sparsity)
        return keep.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)

    def fits(self, shape: tuple[int, ...], name: str) -> None:
        if shape[0] % self.rows or shape[1] % self.columns:
            raise Infeasible(
                f"tiles of {self} do not divide {shape[0]} x {shape[1]}",
                where=name,
                fix="choose tiles that divide it",
            )

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


def parse_pattern(text: str | Pattern) -> Pattern:
    """'row', 'column', 'layer', '2:4' (2 kept of 4) or '16x1' (tiles) to a pattern; a pattern passes through."""
    if not isinstance(text, str):
        parts = (getattr(text, "select", None), getattr(text, "fits", None))
        if isinstance(text, type) or not all(callable(part) for part in parts):
            raise BadInput(
                f"{text!r} is no pattern", where="pattern", fix="use row, column, layer, 2:4 or 16x1"
            )
        return text
    plain = {"row": PerRow(), "column": PerColumn(), "layer": PerLayer()}
    if text in plain:
        return plain[text]
    for sign, make in ((":", NM), ("x", Blocks)):
        left, found, right = text.partition(sign)
        if found and left.isdecimal() and right.isdecimal():
            return make(int(left), int(right))
    raise BadInput(
        f"{text!r} is no pattern",
        where="pattern",
        fix="use row, column, layer, N:M such as 2:4, or RxC such as 16x1",
    )
