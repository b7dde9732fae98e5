"""Calibration passes with bfloat16 products: float32 in, float32 out, the multiplications in between at half width.

A CPU with AVX-512-BF16 or AMX multiplies bfloat16 about twice as fast. Activations, norms, attention and all signals
stay float32; only what enters and leaves a Linear's matrix product is rounded, to 8 bits of mantissa, and the norms
that decide are sums over thousands of such values. Measured on SmolLM2-135M: docs/speed.md.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secateur.engine.blocks import identity

Products = Literal["auto", "float32", "bfloat16"]
PRODUCTS = ("auto", "float32", "bfloat16")
_WEIGHTS = 8  # rounded weights held: those of a block of a language model


def has_fast_bfloat16() -> bool:
    """True where this CPU multiplies bfloat16 in hardware."""
    able: Any = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def choose(products: Products) -> Literal["float32", "bfloat16"]:
    """What `auto` means on this machine; the other two are themselves."""
    return ("bfloat16" if has_fast_bfloat16() else "float32") if products == "auto" else products


def products(kind: Literal["float32", "bfloat16"]) -> AbstractContextManager[Any]:
    """Within this context, the CPU's float32 Linear products are computed as `kind`.

    One context may be entered by several threads, as long as one runs at a time.
    """
    return _BFloat16Products() if kind == "bfloat16" else nullcontext()


class _BFloat16Products(TorchFunctionMode):
    """Rounds both factors of `linear`: inputs once for all the layers that read them (q, k and v), weights once for
    all the batches that they are multiplied with before they change."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Any, Tensor, Tensor] | None = None
        self._weights: OrderedDict[int, tuple[Any, Any, Tensor]] = OrderedDict()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs and len(args) >= 2:
            x, weight = args[0], args[1]
            if x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu":
                out = torch.nn.functional.linear(self._rounded(x), self._weight(weight)).float()
                return out if len(args) < 3 or args[2] is None else out.add_(args[2])
        return func(*args, **(kwargs or {}))

    def _weight(self, weight: Tensor) -> Tensor:
        """The weight rounded; the tensor itself is not kept alive, and one that has changed is rounded again."""
        key, held = identity(weight), self._weights.pop(id(weight), None)
        if held is None or held[0]() is not weight or held[1] != key:
            held = (weakref.ref(weight), key, weight.bfloat16())
        self._weights[id(weight)] = held
        while len(self._weights) > _WEIGHTS:
            self._weights.popitem(last=False)
        return held[2]

    def _rounded(self, x: Tensor) -> Tensor:
        key = identity(x)
        if self._last is None or self._last[0] != key:
            self._last = (key, x, x.bfloat16())
        return self._last[2]
