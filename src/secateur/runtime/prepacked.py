"""Dense bfloat16 in oneDNN's own order of bytes: torch's best product on a CPU, which F.linear does not take.

torch reorders a weight at every call of F.linear; here it is done once. 2 bytes a weight, as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.runtime.linear import dense_module, later, weight_of


class PrepackedLinear(nn.Module):
    """Dense bfloat16 with the weight in oneDNN's order. Its tensor is no buffer: state_dict has the plain weight.

    Raises:
        Unsupported: this torch or processor has no such product.   BadInput: a weight of another dtype.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False) -> None:
        super().__init__()
        if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
            raise BadInput(f"{weight.dtype} on {weight.device}", where="weight", fix="use bfloat16, CPU")
        if not prepacks():
            raise Unsupported("this torch has no oneDNN with bfloat16 here", where="PrepackedLinear")
        self.out_features, self.in_features = weight.shape
        self.transposed, self.dtype = transposed, weight.dtype
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.held = _reordered(weight)

    @classmethod
    def from_linear(cls, linear: nn.Module) -> Self:
        bias: Any = linear.bias
        return cls(weight_of(linear), bias, transposed=hasattr(linear, "nf"))

    @property
    def weight(self) -> Tensor:
        return later(self)

    @property
    def nbytes(self) -> int:
        return 2 * self.out_features * self.in_features + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise BadInput(f"x is {x.dtype}", where="PrepackedLinear", fix="use bfloat16")
        if torch.compiler.is_compiling():  # its tensors are not for the compiler
            return torch.compiler.disable(_pointwise)(x, self.held, self.bias)  # type: ignore[call-arg]
        return _pointwise(x, self.held, self.bias)

    def dense(self) -> nn.Module:
        return dense_module(self._weight(), self.bias, self.transposed)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def _weight(self) -> Tensor:
        weight = self.held.to_dense()
        return weight.t() if self.transposed else weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        likeness = fn(torch.empty(0, dtype=torch.bfloat16))
        if likeness.dtype != torch.bfloat16 or likeness.device.type != "cpu":
            raise Unsupported(
                f"prepacked weights are bfloat16 on the CPU, not {likeness.dtype} on {likeness.device}",
                where="PrepackedLinear",
                fix="undo the acceleration before the move",
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._weight().contiguous()

    def _load_from_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        missing, unexpected = rest[2], rest[3]
        super()._load_from_state_dict(state_dict, prefix, *rest)
        weight = state_dict.get(f"{prefix}weight")
        if weight is None:
            missing.append(f"{prefix}weight")
            return
        if f"{prefix}weight" in unexpected:
            unexpected.remove(f"{prefix}weight")
        self.held = _reordered((weight.t() if self.transposed else weight).bfloat16())

    def __getstate__(self) -> dict[str, Any]:
        """oneDNN's tensors cannot be copied: the plain weight travels."""
        return {**self.__dict__, "held": self.held.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "held": _reordered(state["held"])})


def prepacks() -> bool:
    """Whether torch has oneDNN's prepacked product and the processor is quick at bfloat16."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _reordered(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)


def _pointwise(x: Tensor, held: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, held, bias, "none", [], "")
