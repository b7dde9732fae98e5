"""The next token from a row of logits: the likeliest, or a seeded draw.

As transformers does it, in this order: temperature, top_k, top_p. A draw costs one pass over the vocabulary, and no
sort of it: only where the likeliest FIRST hold less than top_p are all of them sorted.
Oracle: transformers' own logits processors (which tokens are left), and counts of draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import BadInput

FIRST = 256  # candidates sorted before all are
LEAST = -1e4  # a score below this has probability 0 in float64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0: the likeliest token.
        top_k: from the k likeliest; 0: from all.
        top_p: from the fewest of these that hold this much of their probability.
        seed: of the draw; None: another draw each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise BadInput(f"{self.temperature} is not in [0, 100]", where="temperature")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"{self.top_p} is not in (0, 1]", where="top_p")
        if self.top_k < 0:
            raise BadInput(f"{self.top_k} is below 0", where="top_k", fix="0 takes all tokens")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise BadInput(f"{self.seed} is no 64-bit number", where="seed")


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """The next token from logits [vocabulary]; ties go to the lowest id.

    Raises:
        BadInput: NaN or +Inf among the logits that decide.
    """
    if sampling.temperature == 0:
        token = int(logits.float().cpu().numpy().argmax())  # a tenth of the time of torch's
        if not bool(logits[token].isfinite()):
            raise not_finite(float(logits[token]))
        return token
    scores = logits.float().cpu()
    top = scores.max()
    if not bool(top.isfinite()):
        raise not_finite(float(top))
    scores = ((scores - top).double() / sampling.temperature).clamp_min(LEAST)
    order = None
    if sampling.top_k or sampling.top_p < 1:
        scores, order = _likeliest(scores, sampling)
    summed = scores.exp().cumsum(0)
    point = torch.rand((), generator=random, dtype=torch.float64) * summed[-1]
    at = min(int(torch.searchsorted(summed, point, right=True)), len(summed) - 1)
    return at if order is None else int(order[at])


def _likeliest(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What top_k and top_p leave, likeliest first: scores and token ids. Few are sorted where few are enough."""
    size = len(scores)
    count = min(sampling.top_k or min(FIRST, size), size)
    values, order = scores.topk(count)
    total = (values if sampling.top_k else scores).exp().sum()
    if sampling.top_p < 1:
        if not sampling.top_k and values.exp().sum() < sampling.top_p * total:
            values, order = scores.sort(descending=True, stable=True)
        before = values.exp().cumsum(0) - values.exp()
        kept = max(int((before < sampling.top_p * total).sum()), 1)
        values, order = values[:kept], order[:kept]
    return values, order


def not_finite(value: float) -> BadInput:
    return BadInput(
        f"the likeliest logit is {value}", where="the model", fix="its weights or activations hold NaN or Inf"
    )
