"""Jensen-Shannon divergence between what a model says of an image and of its augmented copies: AugMix's loss.

    M = mean of the distributions p_i, clipped to [1e-7, 1];   JS = mean over i of KL(p_i || M)
    loss = cross entropy of the clean image + weight * JS

Shapes:  logits [N, C] each; labels int64 [N]; a scalar out, the mean over the batch, in nats.
Paper:   AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty (2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput


def jsd(logits: Sequence[Tensor]) -> Tensor:
    """The divergence of two or more sets of logits [N, C], in float32 at least; 0 where all agree, at most ln(how
    many).

    Raises:
        BadInput: fewer than two, or shapes that differ.
    """
    if len(logits) < 2 or any(one.shape != logits[0].shape for one in logits):
        shapes = ", ".join(str(list(one.shape)) for one in logits)
        raise BadInput(
            f"logits of {shapes or 'nothing'}", where="jsd", fix="give two or more of one shape [N, C]"
        )
    # In logarithms: a probability that underflows to 0 still has a finite gradient.
    logs = [F.log_softmax(one.float() if one.dtype.itemsize < 4 else one, dim=-1) for one in logits]
    probabilities = [log.exp() for log in logs]
    middle = torch.stack(probabilities).mean(0).clamp(1e-7, 1).log()
    parts = [(p * (log - middle)).sum(-1).mean() for p, log in zip(probabilities, logs, strict=True)]
    return torch.stack(parts).mean()


class JSDLoss(nn.Module):
    """Cross entropy of the clean logits plus `weight` times the divergence of clean and augmented."""

    def __init__(self, weight: float = 12.0) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise BadInput(f"weight {weight!r:.40}", where="JSDLoss", fix="the paper takes 12")
        self.weight = float(weight)

    def forward(self, clean: Tensor, augmented: Sequence[Tensor], labels: Tensor) -> Tensor:
        """clean [N, C], augmented: one or more [N, C], labels [N]; a scalar."""
        return F.cross_entropy(clean, labels) + self.weight * jsd([clean, *augmented])
