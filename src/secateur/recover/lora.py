"""LoRA on a cut network, such that the zeros hold while it trains and after the merge (peft).

Plain LoRA adds B A to the weight, which fills its zeros. Here each adapted layer computes with
W + scaling (B A) * mask, in training as after the merge: the merged network is the trained one, and has its pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported, require


class Adapted:
    """A network with adapters: train `model` (only the adapters need gradients), then `merge()`."""

    def __init__(self, model: nn.Module, layers: dict[str, Any]) -> None:
        self.model, self._layers = model, layers
        self.masks = {name: layer.get_base_layer().weight != 0 for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.forward = _masked(layer, self.masks[name])

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' parameters, for an optimiser."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write the masked update into the weights and take the adapters out; the network as it was loaded, trained."""
        for name, layer in self._layers.items():
            weight = layer.get_base_layer().weight
            weight.add_((_delta(layer) * self.masks[name]).to(weight.dtype))
            del layer.forward
        owner: Any = self.model
        return owner.unload()


def lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> Adapted:
    """Put adapters on the linear layers of a cut network.

    Args:
        targets: module names as peft takes them.   seed: of the adapters' first values; the global state is kept.

    Raises:
        Unsupported: a target that is no Linear.   BadInput: no such target, or a rank below 1.
    """
    peft = require("peft", "train")
    if rank < 1:
        raise BadInput(f"rank {rank}", where="lora", fix="use 1 or more")
    wanted = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=wanted, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as error:
            raise BadInput(f"{str(error).splitlines()[0]:.120}", where="lora targets") from error
    layers = {name: m for name, m in adapted.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    for name, layer in layers.items():
        if not isinstance(layer.get_base_layer(), nn.Linear):
            adapted.unload()
            raise Unsupported("is no Linear", where=name, fix="leave it out of targets")
    return Adapted(adapted, layers)


def _delta(layer: Any) -> Tensor:
    """scaling * B A [out, in] of the active adapters."""
    each = [
        layer.scaling[a] * (layer.lora_B[a].weight @ layer.lora_A[a].weight) for a in layer.active_adapters
    ]
    return torch.stack(each).sum(0)


def _masked(layer: Any, mask: Tensor) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = layer.get_base_layer()
        return F.linear(x, base.weight + (_delta(layer) * mask).to(base.weight.dtype), base.bias)

    return forward
