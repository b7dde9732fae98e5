"""The lean step (runtime/lean.py) with whole layers in the compiled kernels: one call where it makes twenty a layer.

A half of a layer (attention, or the gated MLP) whose matrices are all packed runs there (kernels/step.c), with its
norm, rotary turns, attention and gate; neighbouring halves are one call. Other halves run as in the lean step, on the
same keys and values. What a token takes beside its weights, SmolLM2-135M: docs/serve.md.

Departs from the lean step in rounding less: in half precision turned heads and attention are rounded once.
Oracle: the lean step, and the model's own pass, with which `Decoder` compares it before it uses it.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.runtime import lean, library
from secateur.runtime.linear import PackedLinear, TwoWays
from secateur.runtime.ops import Product, refused

_LAYER = struct.Struct("11P2d3q")  # secateur_layer of secateur.h
_STACK = struct.Struct("3Pd5q")  # secateur_stack
_DTYPE = {torch.float32: 0, torch.bfloat16: 1}
_MOST = 512  # HEAD of kernels/internal.h


def fits(model: nn.Module) -> bool:
    """Whether the model is one for the lean step, on the CPU, and at least half a layer can run in the kernels."""
    return suits(model) and any(_halves(model))


def suits(model: nn.Module) -> bool:
    """Whether layers of the model would run in the kernels if they were packed."""
    if not lean.fits(model) or library.load() is None:
        return False
    weight, size = _like(model)
    return weight.dtype in _DTYPE and weight.device.type == "cpu" and size % 2 == 0 and size <= _MOST


class Native(lean.Lean):
    """The step of a model that `fits`; arguments and result as for `Lean`.

    Packed matrices are bound here: see `current`.
    """

    def __init__(self, model: Any, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__(model, keys, values)
        layers = model.model.layers
        weight = model.model.embed_tokens.weight
        loaded: Any = library.load()
        self.call = loaded.secateur_step
        self.held: list[Any] = [keys, values]  # what the addresses below point into
        self.bound: list[tuple[PackedLinear, Product]] = []
        native = _halves(model)
        packed = [
            self._layer(layer, key, value, halves)
            for layer, key, value, halves in zip(
                layers, keys, values, zip(native[::2], native[1::2], strict=True), strict=True
            )
        ]
        self.stack = _STACK.pack(
            self._address(b"".join(packed)),
            self.cos.data_ptr(),
            self.sin.data_ptr(),
            self.scale,
            len(layers),
            _DTYPE[weight.dtype],
            weight.shape[1],
            self.size,
            keys[0].shape[2],
        )
        runs = itertools.groupby(enumerate(native), key=lambda half: half[1])
        self.runs = [(there, [at for at, _ in run]) for there, run in runs]

    def current(self) -> bool:
        """Whether the packed layers still hold what was bound: not if they were moved, or loaded with other weights."""
        return all(layer.product is product for layer, product in self.bound)

    def through(self, hidden: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        position = seen.shape[0] - 1
        hidden = hidden.clone()  # written in place; an embedding may give what it holds
        for there, halves in self.runs:
            if there:
                code = self.call(
                    self.stack,
                    hidden.data_ptr(),
                    halves[0],
                    halves[-1] + 1,
                    position,
                    torch.get_num_threads(),
                )
                if code:
                    raise refused(code, "a layer")
                continue
            for half in halves:
                layer = half // 2
                hidden = self.feed(layer, hidden) if half % 2 else self.attend(layer, hidden, at, seen)
            hidden = hidden.contiguous()
        return hidden

    def _layer(self, layer: Any, keys: Tensor, values: Tensor, halves: Sequence[bool]) -> bytes:
        """secateur_layer; null where a half is not run there."""
        modules = [getattr(layer.self_attn, name) for name in lean.ATTENTION]
        modules += [getattr(layer.mlp, name) for name in lean.FEED]
        there = [halves[0]] * len(lean.ATTENTION) + [halves[1]] * len(lean.FEED)
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        return _LAYER.pack(
            *(self._matrix(module) if runs else 0 for module, runs in zip(modules, there, strict=True)),
            *(self._kept(norm.weight.detach().contiguous()) for norm in norms),
            self._kept(keys),
            self._kept(values),
            *(norm.variance_epsilon for norm in norms),
            modules[0].out_features // self.size if halves[0] else 0,
            keys.shape[1],
            modules[4].out_features if halves[1] else 0,
        )

    def _matrix(self, module: nn.Module) -> int:
        packed = _packed(module)
        assert packed is not None
        self.bound.append((packed, packed.product))
        return self._address(packed.product.head)

    def _kept(self, tensor: Tensor) -> int:
        self.held.append(tensor)
        return tensor.data_ptr()

    def _address(self, content: bytes) -> int:
        room = ctypes.create_string_buffer(content, len(content))
        self.held.append(room)
        return ctypes.addressof(room)


def _packed(module: nn.Module) -> PackedLinear | None:
    """What multiplies one row of x, where that is a packed matrix."""
    if type(module) is TwoWays and module.rows > 1:
        module = module.few
    return module if type(module) is PackedLinear else None


def _like(model: Any) -> tuple[Tensor, int]:
    """The embedding, in whose dtype the model computes, and the entries of a head."""
    return model.model.embed_tokens.weight, model.model.layers[0].self_attn.head_dim


def _halves(model: Any) -> list[bool]:
    """Two of each layer: whether it can run in the kernels."""
    base = model.model
    first = base.layers[0]
    weight, size = _like(model)
    found = []
    for layer in base.layers:
        norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
        same = all(norm.dtype == weight.dtype for norm in norms) and layer.self_attn.head_dim == size
        same = same and layer.self_attn.scaling == first.self_attn.scaling
        gated = type(layer.mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")
        found.append(same and all(_packed(getattr(layer.self_attn, name)) for name in lean.ATTENTION))
        found.append(same and gated and all(_packed(getattr(layer.mlp, name)) for name in lean.FEED))
    return found
