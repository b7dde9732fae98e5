"""Input norms: how strongly each input feature of a site is driven by real data."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.scores import finite


class InputNorms:
    """Per input feature j, the root of (sum over all tokens of x_j^2) / sequences (sheet wanda, step 3a).

    Streaming and mergeable: any split of the tokens gives the same sums up to the last bits of a float64.
    """

    def __init__(self, width: int) -> None:
        self.square_sum = torch.zeros(width, dtype=torch.float64)
        self.tokens = 0
        self.samples = 1

    @staticmethod
    def measure(x: Tensor) -> tuple[Tensor, ...]:
        """What one product adds: x [tokens, in] to sums of squares [in]."""
        square_sum = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        for part in x.split(
            256
        ):  # float32 over 256 tokens, float64 across; chunks that fit the cache are 5x faster
            square_sum += part.float().square().sum(0)
        return (square_sum,)

    def add(self, measured: tuple[Tensor, ...], tokens: int) -> None:
        self.square_sum = self.square_sum.to(measured[0].device) + measured[0]
        self.tokens += tokens

    def take(self, x: Tensor) -> None:
        """add(measure(x), len(x))."""
        self.add(self.measure(x), len(x))

    def tensors(self) -> list[Tensor]:
        """What several workers sum."""
        return [self.square_sum]

    def check(self, name: str) -> None:
        """Refuse NaN or Inf in what was measured."""
        finite(self.square_sum, name, "input activations (sums of squares)")

    @property
    def empty(self) -> bool:
        """True when no token arrived, or only zeros."""
        return self.tokens == 0 or not bool(self.square_sum.any())

    @property
    def norm(self) -> Tensor:
        """float32 [in]."""
        return (self.square_sum / self.samples).sqrt().float()
