"""A small transformer of our own, and the walk done slowly: hooks on the real forward, one rerun for every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.calibrate import Calibration
from tests.oracles import slow_select

Inputs = dict[str, list[Tensor]]


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=i > 1) for i in range(4))

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        q, k, v = self.q(x) * turn, self.k(x) * turn, self.v(x)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(mask, -1e9).softmax(-1)
        return self.o(weights @ v)


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(0.4)
        self.attention = Attention(width)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor, *, mask: Tensor, turn: Tensor) -> tuple[Tensor, int]:
        x = x + self.drop(self.attention(self.norm1(x), mask, turn))
        h = self.norm2(x)
        return x + self.drop(self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))), 7


class Transformer(nn.Module):
    """Causal, with a local mask in every other layer, as Gemma's: what reaches a block differs from block to block."""

    def __init__(self, layers: int = 3, width: int = 16) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(40, width), nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 40, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1])
        causal = places[None, :] > places[:, None]
        local = causal | (places[:, None] - places[None, :] > 2)
        turn = torch.cos(places[:, None] * torch.linspace(0.1, 1, self.embed.embedding_dim))
        x = self.embed(input_ids)
        for index, layer in enumerate(self.layers):
            x, _ = layer(x, mask=local if index % 2 else causal, turn=turn)
        return self.head(self.norm(x))


def transformer(seed: int = 0, **shape: Any) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(**shape)


def tokens(samples: int = 6, length: int = 9, vocabulary: int = 40, seed: int = 0) -> Calibration:
    stream = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (samples, length), generator=stream)
    return Calibration(tuple({"input_ids": row} for row in ids), "random tokens")


def hooked(model: nn.Module, names: Sequence[str], data: Calibration) -> dict[str, Tensor]:
    """The inputs [tokens, in] of modules in one forward of the real model, a sample at a time, evaluation mode."""
    seen: Inputs = {name: [] for name in names}
    handles = []
    for name in names:

        def hook(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            seen[name].append(args[0].detach().reshape(-1, args[0].shape[-1]).clone())

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        for sample in data.samples:
            model(**{key: value[None] for key, value in sample.items()})
    for handle in handles:
        handle.remove()
    for module, mode in modes:
        module.training = mode
    return {name: torch.cat(parts) for name, parts in seen.items() if parts}


Decide = Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor, Tensor | None]]


def slow_walk(
    model: nn.Module, steps: Sequence[Sequence[str]], data: Calibration, decide: Decide
) -> dict[str, Tensor]:
    """Cut step by step: before each step the WHOLE model is run again and the inputs of the step's sites are recorded.

    steps: [all sites] is feed none, [sites of each block] feed block, [each site] feed layer.
    decide: (weight [out, in], x, bias, samples) -> (keep, new weight, new bias).
    """
    masks: dict[str, Tensor] = {}
    for step in steps:
        inputs = hooked(model, step, data)
        for name in step:
            module: Any = model.get_submodule(name)
            turned = type(module).__name__ == "Conv1D"
            weight = module.weight.data.t() if turned else module.weight.data
            old = None if module.bias is None else module.bias.data
            keep, new, bias = decide(weight, inputs[name], old, len(data.samples))
            weight.copy_(new)
            if bias is not None:
                module.bias.data.copy_(bias)
            masks[name] = keep
    return masks


def by_wanda(pattern: Any, sparsity: float = 0.5) -> Decide:
    def decide(weight: Tensor, x: Tensor, bias: Tensor | None, samples: int) -> tuple[Tensor, Tensor, None]:
        score = weight.double().abs() * x.double().square().sum(0).div(samples).sqrt()
        keep = slow_select(score, pattern, sparsity)
        return keep, weight * keep, None

    return decide


def steps_of(plan_sites: Sequence[str], feed: str, depth: int = 2) -> list[list[str]]:
    """Sites in the plan's order, grouped as a feed measures them; a block is the first `depth` parts of their names."""
    if feed == "none":
        return [list(plan_sites)]
    if feed == "layer":
        return [[name] for name in plan_sites]
    grouped: dict[str, list[str]] = {}
    for name in plan_sites:
        grouped.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return list(grouped.values())
