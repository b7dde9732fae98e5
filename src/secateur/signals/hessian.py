"""The second moment of a site's inputs: the Hessian of its squared output error, shared by all output rows."""

from __future__ import annotations

from functools import cache, cached_property

import torch
from torch import Tensor

from secateur.core.scores import finite
from secateur.errors import BadInput


@cache
def triangle(width: int, smallest: int = 256) -> tuple[tuple[slice, slice], ...]:
    """The blocks (rows, columns) of a symmetric [width, width] matrix on and above its diagonal.

    Halving the columns skips a quarter of the products at every level; below `smallest` one call is faster.
    """

    def halves(a: int, b: int) -> list[tuple[slice, slice]]:
        if b - a <= smallest:
            return [(slice(a, b), slice(a, b))]
        half = (a + b) // 2
        return [*halves(a, half), *halves(half, b), (slice(a, half), slice(half, b))]

    return tuple(halves(0, width))


class InputHessian:
    """H = (2 / sequences) X^T X [in, in], float32 (sheet l-obs, step B1); the inputs' sum for the bias row of L-OBS."""

    def __init__(self, width: int) -> None:
        self._sums = torch.zeros(width, width)  # on and above the diagonal; `products` mirrors it
        self.total = torch.zeros(width, dtype=torch.float64)
        self.tokens = 0
        self.samples = 1

    @staticmethod
    def measure(x: Tensor) -> tuple[Tensor, ...]:
        """What one product adds: x [tokens, in] to the blocks of x^T x named by `triangle`, and the sum of x [in]."""
        x = x.float()
        blocks = (x[:, rows].t() @ x[:, columns] for rows, columns in triangle(x.shape[1]))
        return (*blocks, x.sum(0).double())

    def add(self, measured: tuple[Tensor, ...], tokens: int) -> None:
        *blocks, total = measured
        self._sums, self.total = self._sums.to(total.device), self.total.to(total.device) + total
        for place, block in zip(triangle(len(total)), blocks, strict=True):
            self._sums[place] += block
        self.tokens += tokens
        self.__dict__.pop("products", None)

    def take(self, x: Tensor) -> None:
        """add(measure(x), len(x)) without the blocks in between: a fifth less time."""
        x = x.float()
        self._sums, self.total = (
            self._sums.to(x.device),
            self.total.to(x.device) + x.sum(0).double(),
        )
        for rows, columns in triangle(x.shape[1]):
            self._sums[rows, columns].addmm_(x[:, rows].t(), x[:, columns])
        self.tokens += len(x)
        self.__dict__.pop("products", None)

    @cached_property
    def products(self) -> Tensor:
        """X^T X [in, in], float32."""
        for rows, columns in triangle(len(self.total)):
            if rows != columns:
                self._sums[columns, rows] = self._sums[rows, columns].t()
        return self._sums

    def tensors(self) -> list[Tensor]:
        """What several workers sum."""
        return [self._sums, self.total]

    def check(self, name: str) -> None:
        """Refuse NaN or Inf in what was measured."""
        finite(self.products, name, "input activations (products)")

    @property
    def empty(self) -> bool:
        """True when no token arrived, or only zeros."""
        return self.tokens == 0 or not bool(self.products.diagonal().any())

    @property
    def norm(self) -> Tensor:
        """float32 [in]: the same input norms that `InputNorms` measures."""
        return (self.products.diagonal().clamp_min(0) / self.samples).sqrt()

    def squared_error(self, change: Tensor) -> float:
        """||change X^T||_F^2 for a change of the weights [out, in], summed over the tokens."""
        change, total = change.float(), torch.zeros((), dtype=torch.float64, device=change.device)
        for rows, columns in triangle(
            len(self.total)
        ):  # a block off the diagonal stands for its mirror image too
            part = (change[:, rows] @ self._sums[rows, columns]).mul_(change[:, columns])
            total += part.sum(dtype=torch.float64) * (1 if rows == columns else 2)
        return float(total.clamp_min(0))

    @cached_property
    def factors(self) -> dict[float, tuple[Tensor, float]]:
        """Inverse factors by damping, filled by `inverse_factor`: sites that share their input share them."""
        return {}

    def inverse_factor(self, damping: float, name: str, notes: list[str]) -> Tensor:
        """R, upper triangular, with R^T R = (H + damping * mean(diag H) * I)^-1 and dead inputs' diagonal set to 1.

        Where the factorisation fails, damping is raised tenfold up to 1, and a note says so.

        Raises:
            BadInput: it fails at damping 1 too (the inputs are not finite).
        """
        if damping not in self.factors:
            self.factors[damping] = self._factor(damping, name)
        factor, used = self.factors[damping]
        if used > damping:
            notes.append(f"{name}: Hessian not positive definite at damping {damping:g}, raised to {used:g}")
        return factor

    def _factor(self, damping: float, name: str) -> tuple[Tensor, float]:
        """With J the reversal, J H J = M M^T, so H = U U^T with U = J M J upper triangular, and R = U^-1."""
        diagonal = self.products.diagonal() * (2 / self.samples)
        diagonal[diagonal == 0] = 1.0
        mean, used = diagonal.mean(), damping
        while True:
            upper = _reversed_inverse(self.products, 2 / self.samples, diagonal + used * mean)
            if upper is not None:
                return upper, used
            if used >= 1:
                raise BadInput(
                    "Hessian cannot be factored even at damping 1",
                    where=name,
                    fix="use more calibration samples",
                )
            used = min(1.0, max(used, 1e-4) * 10)


def _reversed_inverse(products: Tensor, scale: float, diagonal: Tensor) -> Tensor | None:
    """U^-1 of `InputHessian._factor`, or None where there is none; holds no more matrices at a time than it must."""
    hessian = products.flip(0, 1).mul_(scale)
    hessian.diagonal().copy_(diagonal.flip(0))
    lower, failed = torch.linalg.cholesky_ex(hessian)
    del hessian
    if int(failed):
        return None
    _invert(lower)
    upper = lower.flip(0, 1).contiguous()
    return upper if bool(torch.isfinite(upper).all()) else None


def _invert(lower: Tensor, smallest: int = 96) -> None:
    """L^-1 in place, [n, n] lower triangular: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]].

    Products instead of a triangular solve against the identity: 28 ms instead of 80 at n = 1536 on one thread.
    """
    half = len(lower) // 2
    if len(lower) <= smallest:
        eye = torch.eye(len(lower), device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    first, last, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert(first, smallest)
    _invert(last, smallest)
    below.copy_((last @ below @ first).neg_())
