"""LoRA on a cut network, such that the zeros hold while it trains and after the merge (peft).

Plain LoRA adds B A to the weight, which fills its zeros. Here each adapted layer computes with
W + scaling (B A) * mask, in training as after the merge: the merged network is the trained one, and has its pattern.

    adapted = lora(model, rank=8)
    finetune(adapted, batches, steps=200, lr=1e-4)      or any loop over adapted.model and adapted.parameters()
    model = adapted.merge()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported, require


class Adapted:
    """A network with adapters: train `model` (only the adapters need gradients), then `merge()`.

    Attributes:
        model: peft's, around the network.
        masks: bool [out, in] by layer, True where the weight is not zero; the update is zero elsewhere.
    """

    def __init__(self, model: Any, layers: dict[str, Any], free: dict[nn.Parameter, bool]) -> None:
        self.model, self._layers, self._free = model, layers, free
        self.masks = {name: layer.get_base_layer().weight != 0 for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.forward = _masked(layer, self.masks[name])

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' parameters, for an optimiser."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Write the masked update into the weights and take the adapters out; the network as it was loaded, trained.

        Raises:
            BadInput: merged before.
        """
        if not self._layers:
            raise BadInput("is merged already", where="lora", fix="use what merge() gave")
        for name, layer in self._layers.items():
            weight = layer.get_base_layer().weight
            weight.add_(_update(layer, self.masks[name]))
        network = self.model.get_base_model()
        _take_out(network, self._free)
        self._layers = {}
        return network


def lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> Adapted:
    """Put adapters on the linear layers of a cut network. On an error the network is as it was.

    Args:
        rank: of B [out, rank] and A [rank, in].   alpha: scaling = alpha / rank.
        targets: module names as peft takes them; "all-linear" means all but the output layer of a transformers model.
        seed: of the adapters' first values; the global state is kept.

    Raises:
        Unsupported: a target that is no Linear, or whose weight is tied to another module's.
        BadInput: no such target, a rank below 1, or adapters in the network already.
    """
    peft = require("peft", "train")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise BadInput(f"rank {rank!r}", where="lora", fix="use 1 or more")
    if not 0 < alpha < math.inf:
        raise BadInput(f"alpha {alpha!r}", where="lora", fix="use a number above 0")
    if _adapted_layers(model):
        raise BadInput("has adapters already", where="lora", fix="merge them first")
    free = {p: p.requires_grad for p in model.parameters()}
    names = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    wanted = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=wanted, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, config)
            layers = _adapted_layers(model)
            for name, layer in layers.items():
                base = layer.get_base_layer()
                if not isinstance(base, nn.Linear):
                    raise Unsupported(
                        f"is a {type(base).__name__}, no Linear", where=name, fix="leave it out of targets"
                    )
                if names.count(id(base.weight)) > 1:
                    what = "shares its weight with another module, which would change too"
                    raise Unsupported(what, where=name, fix="leave it out of targets")
        except BaseException as error:
            _take_out(model, free)
            if not isinstance(error, ValueError):
                raise
            # peft's own words, to the first full stop
            what = " ".join(str(error).split()).split(". ")[0][:120]
            kind = Unsupported if "not supported" in str(error) else BadInput
            raise kind(what, where="lora targets", fix="name linear layers") from error
    return Adapted(adapted, layers, free)


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    kind = require("peft", "train").tuners.tuners_utils.BaseTunerLayer
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _take_out(model: nn.Module, free: dict[nn.Parameter, bool]) -> None:
    """Put the bare layers back where adapters stand, and make trainable what was."""
    for name, layer in _adapted_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        delattr(model, "peft_config")
    for parameter, value in free.items():
        parameter.requires_grad_(value)


def _update(layer: Any, mask: Tensor) -> Tensor:
    """scaling * B A of the active adapters where the mask is True, else 0: [out, in] in the weight's dtype."""
    weight = layer.get_base_layer().weight
    each = [
        layer.scaling[a] * (layer.lora_B[a].weight @ layer.lora_A[a].weight) for a in layer.active_adapters
    ]
    return (torch.stack(each).sum(0) * mask.to(weight.device)).to(weight.dtype)


def _masked(layer: Any, mask: Tensor) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = layer.get_base_layer()
        return F.linear(x, base.weight + _update(layer, mask), base.bias)

    return forward
