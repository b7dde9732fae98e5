"""Linear modules whose weights are held as the runtime multiplies them; drop-in for nn.Linear and transformers' Conv1D.

    PackedLinear   one of the layouts of io/packed.py, through the kernels of runtime/ops.py; on the CPU
    TwoWays        one module for few rows of x (a token at a time), another one for many (a prompt)

They have in_features, out_features, bias, `weight` (made when somebody computes with it), `nbytes`, and `dense()`, the
module they stand for (runtime/prepacked.py has a third one). What is stored is exact: dense() gives the kept weights
back bit for bit, or for whole numbers the rounded ones. None has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.errors import BadInput, Damaged, Unsupported, one_of, require
from secateur.io.pack import pack_bitmask, pack_blocks, pack_dense, pack_nm
from secateur.io.packed import FLOATS, KINDS, Packed, check, unpack
from secateur.runtime.ops import Product, operator_of

PATTERNS = ("bitmask", "1:4", "2:4", "3:4", "1x4", "16x1", "dense")
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "int4": torch.uint8}
_PARTS = ("layout", "values", "mask", "offsets", "scales", "bias")


class PackedLinear(nn.Module):
    """y = x W' + bias with W [out, in] packed; `layout`, `values`, `mask`, `offsets`, `scales`, `bias` are buffers.

    Args:
        packed: refused where it does not fit together.
        bias: [out] or None.   dtype: that of the module it stands for; default: of the values, or float32.
        transposed: it stands for a Conv1D, whose weight is [in, out].
        checked: `check` has let it pass before.

    x is float32, bfloat16 or float16 on the CPU, and y has its dtype. state_dict holds all of it: `layout` is kind,
    rows, columns, n, group, and another layer's state may be loaded whatever it is. `.to(dtype)` rounds float values
    as it does a Linear's; whole numbers and scales stay.

    Raises:
        Damaged: what `check` refuses.   Unsupported: a move off the CPU, or to a dtype the kernels do not have.
    """

    layout: Tensor
    values: Tensor
    mask: Tensor | None
    offsets: Tensor | None
    scales: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        packed: Packed,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        transposed: bool = False,
        checked: bool = False,
    ) -> None:
        super().__init__()
        self.transposed = transposed
        self.dtype = dtype or (packed.values.dtype if packed.values.dtype in FLOATS else torch.float32)
        self._product: Product | None = None
        for name in _PARTS:
            self.register_buffer(name, None)
        self._put(packed, None if bias is None else bias.detach(), checked)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        mask: Tensor | None = None,
        *,
        kind: str = "bitmask",
        values: str | None = None,
        group: int = 0,
    ) -> Self:
        """The same as `linear` (nn.Linear or Conv1D), cut where `mask` [out, in] is False.

        Args:
            mask: None: cut are the zeros, -0.0 too, which a mask that was multiplied in leaves.
            kind: of PATTERNS.
            values: of VALUES; None: as they are. int8 and int4 round, int4 only `dense` with a group.
            group: columns that share a scale, 32, 64 or 128; 0: the row.

        Raises:
            BadInput: a kind, dtype, mask or group that does not fit.
        """
        weight = weight_of(linear)
        if mask is None and kind in ("1x4", "16x1"):
            weight = weight + 0.0  # tiles that hold a kept weight stay whole; the others have no bit set then
        elif mask is None and kind != "dense":
            mask = weight != 0
        packed = packed_as(weight, mask, kind=kind, values=values, group=group)
        bias: Any = linear.bias
        return cls(packed, bias, dtype=weight.dtype, transposed=hasattr(linear, "nf"))

    @property
    def packed(self) -> Packed:
        """The matrix, on the buffers' own memory."""
        return Packed(
            self.kind,
            (self.out_features, self.in_features),
            self.values,
            self.mask,
            self.offsets,
            self.scales,
            self.n,
            self.group,
        )

    @property
    def weight(self) -> Tensor:
        """What the weight of the dense module would be. Only computing with it expands it, each time anew."""
        return self._weight() if torch.compiler.is_compiling() else later(self)

    @property
    def nbytes(self) -> int:
        return self.packed.bytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def density(self) -> float:
        """Entries held of all; 1 for an empty matrix."""
        entries = self.values.numel() * (2 if self.values.dtype == torch.uint8 else 1)
        return min(1.0, entries / max(self.out_features * self.in_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return operator_of(self.packed, self.bias)(x)
        product = self._product
        return (product if product is not None else self._ready())(x)

    @property
    def product(self) -> Product:
        """What `forward` calls; another one once the buffers are moved or loaded anew."""
        return self._product if self._product is not None else self._ready()

    def dense(self) -> nn.Module:
        """An nn.Linear (or Conv1D) with the weights this one multiplies."""
        return dense_module(self._weight(), self.bias, self.transposed)

    def extra_repr(self) -> str:
        values = next(name for name, dtype in VALUES.items() if dtype == self.values.dtype)
        pattern = f"{self.n}:4" if self.kind == "nm" else self.kind
        group = f" by {self.group}" if self.group else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{pattern} {values}{group}, density={self.density:.3g}, bytes={self.nbytes}"
        )

    def _put(self, packed: Packed, bias: Tensor | None, checked: bool = False) -> None:
        self.kind, self.n, self.group = packed.kind, packed.n, packed.group
        self.out_features, self.in_features = packed.shape
        if bias is not None and tuple(bias.shape) != packed.shape[:1]:
            raise BadInput(f"the bias is {list(bias.shape)}, not [{packed.shape[0]}]", where="bias")
        parts = {**packed.tensors, "bias": bias, "layout": _layout(packed)}
        for name in _PARTS:  # detached: a view's base would hold the memory that `settle` moves out of
            part = parts.get(name)
            setattr(self, name, None if part is None else part.detach())
        self._product = None
        self._ready(checked)

    def _ready(self, checked: bool = False) -> Product:
        """The kernels trust what they are given: it is checked here, whatever became of the buffers before."""
        packed = self.packed
        if not checked:
            check(packed, "PackedLinear")
        self._product = Product(packed, self.bias)
        return self._product

    def moved(self) -> None:
        """The buffers, checked before, lie elsewhere in memory now."""
        if self._product is not None:
            self._ready(checked=True)

    def _weight(self) -> Tensor:
        weight = unpack(self.packed).to(self.dtype)
        return weight.t() if self.transposed else weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        likeness = fn(torch.empty(0, dtype=self.dtype, device=self.values.device))
        if likeness.device.type != "cpu":
            raise Unsupported(
                f"packed layers run on the CPU, not on {likeness.device}",
                where="PackedLinear",
                fix="undo the acceleration before the move",
            )
        if likeness.dtype not in FLOATS and self.values.dtype in FLOATS:
            raise Unsupported(
                f"values of {likeness.dtype}", where="PackedLinear", fix="use float32 or bfloat16"
            )
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales if likeness.dtype != self.dtype else self.scales
        self.dtype, self._product = likeness.dtype, None
        return self

    def _load_from_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        found = {name: state_dict.get(prefix + name) for name in _PARTS}
        layout, values = found["layout"], found["values"]
        if layout is None or values is None:
            super()._load_from_state_dict(state_dict, prefix, *rest)  # which says what is missing
            return
        own = {name: None if t is None else t.detach().cpu().clone() for name, t in found.items()}
        if layout.dtype != torch.int64 or tuple(layout.shape) != (5,) or not 0 <= int(layout[0]) < len(KINDS):
            raise Damaged("no layout of a packed matrix", where=f"{prefix}layout")
        kind, rows, columns, n, group = (int(number) for number in layout)
        packed = Packed(
            KINDS[kind],
            (rows, columns),
            values=own["values"],  # type: ignore[arg-type]
            mask=own["mask"],
            offsets=own["offsets"],
            scales=own["scales"],
            n=n,
            group=group,
        )
        check(packed, prefix.rstrip("."))
        self._put(packed, own["bias"])
        if packed.values.dtype in FLOATS:
            self.dtype = packed.values.dtype

    def __getstate__(self) -> dict[str, Any]:
        """Without what points into memory: copies and other processes make their own."""
        return {**self.__dict__, "_product": None}


class TwoWays(nn.Module):
    """`few` where x has fewer than `rows` rows, `many` from there on: two forms of the same weights, both held."""

    def __init__(self, few: nn.Module, many: nn.Module, rows: int) -> None:
        super().__init__()
        self.few, self.many, self.rows = few, many, rows
        self.in_features: int = few.in_features  # type: ignore[assignment]
        self.out_features: int = few.out_features  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:
        return self.many.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.many.bias  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return bytes_of(self.few) + bytes_of(self.many)

    def forward(self, x: Tensor) -> Tensor:
        return self.few(x) if x.numel() < self.rows * self.in_features else self.many(x)

    def dense(self) -> nn.Module:
        plain = [way for way in (self.many, self.few) if not hasattr(way, "dense")]
        way: Any = self.many
        return plain[0] if plain else way.dense()

    def extra_repr(self) -> str:
        return f"rows={self.rows}"


class Weight(Tensor):
    """Shape, dtype and device of a weight; any operation gets the tensor itself, made for it."""

    layer: Any

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def made(value: Any) -> Any:
            return value.layer._weight() if isinstance(value, cls) else value

        return func(*tree_map(made, args), **tree_map(made, kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"the weight of {self.layer}"


def later(layer: Any) -> Tensor:
    """The weight of a layer with `_weight()`, not made yet."""
    shape = (layer.out_features, layer.in_features)
    shape = shape[::-1] if layer.transposed else shape
    made = Tensor._make_wrapper_subclass(Weight, shape, dtype=layer.dtype)  # type: ignore[attr-defined]
    made.layer = layer
    return made


def packed_as(
    weight: Tensor, mask: Tensor | None = None, *, kind: str, values: str | None = None, group: int = 0
) -> Packed:
    """`weight` [out, in] in one of PATTERNS; see `PackedLinear.from_linear`."""
    one_of(kind, PATTERNS, "kind")
    if values is not None:
        one_of(values, VALUES, "values")
    if values == "int4" and kind != "dense":
        raise BadInput("int4 is for dense weights", where="values", fix="use int8")
    how: dict[str, Any] = {"dtype": None if values is None else VALUES[values], "group": group}
    if kind == "dense":
        return pack_dense(weight if mask is None else weight * mask, **how)
    if kind == "bitmask":
        return pack_bitmask(weight, mask, **how)
    return (
        pack_nm(weight, int(kind[0]), mask, **how) if ":" in kind else pack_blocks(weight, kind, mask, **how)
    )


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a Linear or Conv1D as [out, in], on its own memory.

    Raises:
        BadInput: another module.
    """
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor) or not (isinstance(linear, nn.Linear) or is_conv1d(linear)):
        raise BadInput(f"{type(linear).__name__} is no Linear or Conv1D", where="linear")
    return weight.detach().t() if is_conv1d(linear) else weight.detach()


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a Linear with its weight [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def dense_module(weight: Tensor, bias: Tensor | None, transposed: bool) -> nn.Module:
    """A Linear, or a Conv1D (`weight` [in, out] then), without gradients, on these tensors."""
    if transposed:
        made: Any = require("transformers.pytorch_utils", "hf").Conv1D(*reversed(weight.shape))
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return made.eval()


def bytes_of(module: nn.Module) -> int:
    """Bytes of its weight and bias."""
    nbytes = getattr(module, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sum(p.nbytes for p in module.parameters())


def _layout(packed: Packed) -> Tensor:
    return torch.tensor([KINDS.index(packed.kind), *packed.shape, packed.n, packed.group])
