"""The second moment of a site's inputs: the Hessian of its squared output error, shared by all output rows."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from secateur.core.scores import finite
from secateur.errors import BadInput


def gram(x: Tensor, smallest: int = 256) -> Tensor:
    """x [tokens, in] to x^T x [in, in], computing one triangle only.

    Splitting the columns in halves skips a quarter of the products at every level; below `smallest` one call is faster.
    """
    width = x.shape[1]
    if width <= smallest:
        return x.t() @ x
    half = width // 2
    left, right = x[:, :half], x[:, half:]
    out = torch.empty(width, width, dtype=x.dtype, device=x.device)
    out[:half, :half] = gram(left, smallest)
    out[half:, half:] = gram(right, smallest)
    torch.mm(left.t(), right, out=out[:half, half:])
    out[half:, :half] = out[:half, half:].t()
    return out


class InputHessian:
    """H = (2 / sequences) X^T X [in, in], float32 (sheet l-obs, step B1); the inputs' sum for the bias row of L-OBS."""

    def __init__(self, width: int) -> None:
        self.products = torch.zeros(width, width)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.tokens = 0
        self.samples = 1

    @staticmethod
    def measure(x: Tensor) -> tuple[Tensor, ...]:
        """What one product adds: x [tokens, in] to (x^T x [in, in], sum of x [in])."""
        x = x.float()
        return gram(x), x.sum(0, dtype=torch.float64)

    def add(self, measured: tuple[Tensor, ...], tokens: int) -> None:
        self.products = measured[0].clone() if self.tokens == 0 else self.products.add_(measured[0])
        self.total = self.total.to(measured[1].device) + measured[1]
        self.tokens += tokens

    def tensors(self) -> list[Tensor]:
        """What several workers sum."""
        return [self.products, self.total]

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
        change = change.float()
        return float((change @ self.products).mul_(change).sum(dtype=torch.float64).clamp_min(0))

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
        hessian = self.products * (2 / self.samples)
        diagonal = hessian.diagonal()
        diagonal[diagonal == 0] = 1.0
        mean, used, added = float(diagonal.mean()), damping, 0.0
        while True:
            diagonal += used * mean - added
            added = used * mean
            # J H J = M M^T with J the reversal, so H = U U^T with U = J M J upper triangular, and R = U^-1.
            lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
            if not int(failed):
                eye = torch.eye(len(hessian), device=hessian.device)
                upper = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
                if bool(torch.isfinite(upper).all()):
                    return upper.contiguous(), used
            if used >= 1:
                raise BadInput(
                    "Hessian cannot be factored even at damping 1",
                    where=name,
                    fix="use more calibration samples",
                )
            used = min(1.0, max(used, 1e-4) * 10)
