"""One token through a model built like Llama, with as few calls as possible.

What transformers runs for one token costs as much as the weights of a small model: 75 small operations a layer,
keyword arguments through six functions, caches and masks that are looked up again and again. Here a layer is 20
operations and its linear modules, whatever these are: they are called, their weights are never read.

    x = norm(h);  h += o(softmax(turn(q(x)) K' * scale) V), K and V with turn(k(x)) and v(x) added
    x = norm(h);  h += down(act(gate(x)) * up(x))

Departs from transformers' own step in the order of some sums: norms by a dot product, and the queries that share a
key are rows of one product, so that half precision never takes torch's slow grouped path (7x at 2,048 positions).
Oracle: the model's own forward pass; `Decoder` compares the two before it uses this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
STILL = ("default", "linear", "llama3", "yarn")  # rotary angles that do not change with the length
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED = ("gate_proj", "up_proj", "down_proj")
_MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}


def fits(model: nn.Module) -> bool:
    """Whether the model is one of CLASSES, has layers, the parts these have and no others, and no hooks on them."""
    base: Any = getattr(model, "model", None)
    if (
        type(model).__name__ not in CLASSES
        or not _parts(model, {"model", "lm_head"})
        or not _parts(base, _MODEL)
        or not len(base.layers)
    ):
        return False
    if getattr(base.rotary_emb, "rope_type", None) not in STILL:
        return False
    for layer in base.layers:
        if not (
            _parts(layer, _LAYER)
            and _parts(layer.self_attn, {*ATTENTION})
            and _parts(layer.mlp, {*FEED, "act_fn"})
        ) or not all(hasattr(layer.self_attn, name) for name in ("head_dim", "scaling")):
            return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Lean:
    """The step of a model that `fits`, on the keys and values of its layers.

    Args:
        keys, values: one tensor a layer, [1, key heads, positions, head size], written in place.
        fused: for torch.compile: norms in the form that it fuses.

    The modules are bound here: one that is replaced in the model later is not seen.
    """

    def __init__(
        self, model: Any, keys: Sequence[Tensor], values: Sequence[Tensor], *, fused: bool = False
    ) -> None:
        base = model.model
        first = base.layers[0].self_attn
        weight = base.embed_tokens.weight
        self.size, self.scale = first.head_dim, first.scaling
        self.shared = keys[0].shape[1]
        self.embed, self.head = base.embed_tokens.forward, model.lm_head.forward
        self.last = norm_of(base.norm, weight.dtype, fused)
        self.parts: list[Any] = [
            (
                (
                    norm_of(layer.input_layernorm, weight.dtype, fused),
                    *(getattr(layer.self_attn, name).forward for name in ATTENTION),
                    key,
                    value,
                ),
                (
                    norm_of(layer.post_attention_layernorm, weight.dtype, fused),
                    *(getattr(layer.mlp, name).forward for name in (*FEED, "act_fn")),
                ),
            )
            for layer, key, value in zip(base.layers, keys, values, strict=True)
        ]
        self.cos, self.sin = angles(base.rotary_emb, weight, keys[0].shape[2])

    def __call__(self, token: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        """Logits [vocabulary] of what follows `token` [1, 1], which stands at position `at` [1].

        Args:
            seen: any tensor of as many entries as there are positions so far, this one included. Only its length
                counts: as a tensor's it may change without torch.compile starting again.
        """
        return self.head(self.last(self.through(self.embed(token), at, seen)))[0, -1]

    def through(self, hidden: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        """What the layers make of the token's row [1, 1, hidden size]."""
        for layer in range(len(self.parts)):
            hidden = self.feed(layer, self.attend(layer, hidden, at, seen))
        return hidden

    def attend(self, layer: int, hidden: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        """A layer's first half; its keys and values are added."""
        size, shared, span = self.size, self.shared, seen.shape[0]
        before, q, k, v, o, keys, values = self.parts[layer][0]
        x = before(hidden)
        # queries and keys [1, heads, 1, size], turned together
        both = torch.cat((q(x), k(x)), -1).view(1, -1, 1, size)
        both = both * self.cos[at] + torch.roll(both, size // 2, -1) * self.sin[at]
        heads = both.shape[1] - shared
        keys.index_copy_(2, at, both.narrow(1, heads, shared))
        values.index_copy_(2, at, v(x).view(1, shared, 1, size))
        queries = both.narrow(1, 0, heads).view(1, shared, heads // shared, size)
        mixed = F.scaled_dot_product_attention(
            queries, keys.narrow(2, 0, span), values.narrow(2, 0, span), scale=self.scale
        )
        return hidden + o(mixed.reshape(1, 1, heads * size))

    def feed(self, layer: int, hidden: Tensor) -> Tensor:
        """A layer's second half."""
        after, gate, up, down, act = self.parts[layer][1]
        x = after(hidden)
        return hidden + down(act(gate(x)) * up(x))


def angles(rotary: Any, like: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [positions, head size] of every position, in the dtype of `like`.

    A turned vector is (a, b) -> (a cos - b sin, b cos + a sin) in halves: with the sign in the sines, and the halves
    swapped by a roll, that is x * cos + roll(x) * sin.
    """
    cos, sin = rotary(like, torch.arange(positions, device=like.device)[None])
    cos, sin = cos[0].to(like.dtype), sin[0].to(like.dtype)
    half = sin.shape[-1] // 2
    return cos.contiguous(), torch.cat((-sin[:, :half], sin[:, half:]), -1)


def norm_of(module: Any, dtype: torch.dtype, fused: bool) -> Callable[[Tensor], Tensor]:
    """weight * x / sqrt(mean(x^2) + eps), in float32 and rounded where the module rounds: 5 operations, not 8."""
    weight, size = module.weight, module.weight.shape[0]
    epsilon = torch.tensor(module.variance_epsilon, dtype=torch.float32, device=weight.device)

    def plain(x: Tensor) -> Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(dtype)

    def single(x: Tensor) -> Tensor:
        flat = x.view(size)
        return x * torch.rsqrt(torch.add(epsilon, torch.dot(flat, flat), alpha=1 / size)) * weight

    def half(x: Tensor) -> Tensor:
        wide = x.float()
        flat = wide.view(size)
        return (wide * torch.rsqrt(torch.add(epsilon, torch.dot(flat, flat), alpha=1 / size))).to(
            dtype
        ) * weight

    return plain if fused or dtype == torch.float64 else single if dtype == torch.float32 else half


def _parts(module: Any, names: set[str]) -> bool:
    return module is not None and {name for name, _ in module.named_children()} == names
