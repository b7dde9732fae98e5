"""The kernels as torch operators: y = x W' + bias with W packed, which torch.compile and torch.export see.

    secateur::bitmask_linear   secateur::nm_linear   secateur::block_linear   secateur::dense_linear

x is [..., C] on the CPU: float32, bfloat16 or float16, of any strides; y [..., R] is of x's dtype; sums are as exact as
float32's. A cut weight is not there: its place in x is not multiplied, so that NaN or Inf there does not reach y.
Whole-number weights do not round x to a byte: one column of x may be taken as whole numbers of 15 to 31 bits, as
many as are as good as float32's sums (off by at most 2^-20 of x's usual entry), or, where x is bfloat16, as good as an
eighth of its own rounding (2^-12). A few entries that are too large for that may be multiplied by themselves; where
none are as good, floats are multiplied (kernels/whole.h). With whole-number weights
entries of x beyond 1e29 may overflow. Where weights and x are bfloat16, entries below 2^-126 may count as zero.
Nothing here has a gradient.

`Product` is the same without the dispatcher, for a token at a time: some microseconds less a call. Where the compiled
kernels are missing, both expand some rows at a time and let torch multiply.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from secateur.errors import BadInput, Unsupported
from secateur.io.packed import Packed, kept_of, rows_of, unpack, untiled
from secateur.runtime import library

_HEAD = struct.Struct("5P8q")  # secateur_matrix of secateur.h
_KIND = {"bitmask": 0, "nm": 1, "1x4": 2, "16x1": 3, "dense": 4}
_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
_X = {torch.float32: 0, torch.bfloat16: 1}
_ROWS = 512  # expanded at a time where torch multiplies
_NAMESPACE = torch.library.Library("secateur", "DEF")


class Product:
    """x [..., C] -> y [..., R] for one packed matrix, ready to be called often: what kernels need is looked up once.

    Args:
        packed: what `check` of packed.py lets pass; its tensors must not be moved or resized afterwards.
        bias: [R] or None.

    Raises:
        BadInput: parts that do not fit together; in a call, x of another width or dtype, or that asks for a gradient.
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        self.packed, self.rows, self.columns = packed, *packed.shape
        self.bias = None if bias is None else bias.detach().float().contiguous()
        _parts_fit(packed, self.bias)
        self.operator = operator_of(packed, self.bias)
        loaded = library.load() if packed.values.device.type == "cpu" else None
        self.call = None if loaded is None else loaded.secateur_linear
        self.head = b"" if loaded is None else _head(packed, self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        call, code, shape, columns = self.call, _X.get(x.dtype), x.shape, self.columns
        if (
            torch.compiler.is_compiling()
            or call is None
            or type(x) is not Tensor
            or code is None
            or shape[-1:] != (columns,)
            or (x.requires_grad and torch.is_grad_enabled())
            or not x.is_cpu
            or x.is_neg()
        ):
            return self.operator(x)
        if not x.is_contiguous():
            x = x.contiguous()
        y = x.new_empty((*shape[:-1], self.rows))
        batch = x.numel() // columns if columns else math.prod(shape[:-1])
        code = call(self.head, x.data_ptr(), y.data_ptr(), batch, code, torch.get_num_threads())
        if code:
            raise refused(code, _named(self.packed))
        return y


def operator_of(packed: Packed, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x -> y through the registered operator of this kind of matrix."""
    ops, (rows, columns) = torch.ops.secateur, packed.shape
    values, mask, offsets, scales, group = (
        packed.values,
        packed.mask,
        packed.offsets,
        packed.scales,
        packed.group,
    )
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "bitmask": lambda x: ops.bitmask_linear(x, values, mask, offsets, scales, bias, columns, group),
        "nm": lambda x: ops.nm_linear(x, values, mask, scales, bias, packed.n, group),
        "1x4": lambda x: ops.block_linear(x, values, mask, offsets, scales, bias, rows, columns, group),
        "16x1": lambda x: ops.block_linear(x, values, mask, offsets, scales, bias, rows, columns, group),
        "dense": lambda x: ops.dense_linear(x, values, scales, bias, group),
    }
    call = calls[packed.kind]

    def function(x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise BadInput(
                "a packed weight has no gradient", where="x", fix="use torch.no_grad(), or unpack it"
            )
        return call(x)

    return function


def _bitmask(
    x: Tensor,
    values: Tensor,
    mask: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    columns: int,
    group: int = 0,
) -> Tensor:
    return _multiply(
        Packed("bitmask", (mask.shape[0], columns), values, mask, offsets, scales, 0, group), x, bias
    )


def _nm(
    x: Tensor,
    values: Tensor,
    mask: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    n: int,
    group: int = 0,
) -> Tensor:
    if not 1 <= n <= 4:
        raise BadInput(f"{n}:4 is no pattern", where="nm", fix="N is 1 to 4")
    shape = (values.shape[0], values.shape[1] // n * 4)
    return _multiply(Packed("nm", shape, values, mask, None, scales, n, group), x, bias)


def _block(
    x: Tensor,
    values: Tensor,
    mask: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    rows: int,
    columns: int,
    group: int = 0,
) -> Tensor:
    kind = "16x1" if values.shape[1] == 16 else "1x4"
    return _multiply(Packed(kind, (rows, columns), values, mask, offsets, scales, 0, group), x, bias)


def _dense(x: Tensor, values: Tensor, scales: Tensor | None, bias: Tensor | None, group: int = 0) -> Tensor:
    shape = (values.shape[0], values.shape[1] * (2 if values.dtype == torch.uint8 else 1))
    return _multiply(Packed("dense", shape, values, None, None, scales, 0, group), x, bias)


def _multiply(packed: Packed, x: Tensor, bias: Tensor | None) -> Tensor:
    _parts_fit(packed, bias)
    _x_fits(packed, x)
    loaded = library.load()
    if loaded is None or x.device.type != "cpu":
        return _by_torch(packed, x, bias)
    if bias is not None:
        bias = bias.float().contiguous()
    inner = x if x.dtype in _X else x.float()
    inner = inner.contiguous()
    y = inner.new_empty((*x.shape[:-1], packed.shape[0]))
    batch = math.prod(x.shape[:-1])
    head = _head(packed, bias)
    code = loaded.secateur_linear(
        head, inner.data_ptr(), y.data_ptr(), batch, _X[inner.dtype], torch.get_num_threads()
    )
    if code:
        raise refused(code, _named(packed))
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _by_torch(packed: Packed, x: Tensor, bias: Tensor | None) -> Tensor:
    """Some rows at a time: expanded, multiplied by torch in float32."""
    rows, columns = packed.shape
    flat = x.reshape(math.prod(x.shape[:-1]), columns).float()
    finite = packed.kind == "dense" or bool(flat.isfinite().all())
    parts = [flat.new_empty((len(flat), 0))]
    for first in range(0, rows, _ROWS):
        some = rows_of(packed, first, min(first + _ROWS, rows))
        weight = unpack(some).float()
        if finite:
            parts.append(flat @ weight.t())
            continue
        kept, zero = _kept_entries(some), flat.new_zeros(())
        exact = [torch.where(kept, weight * row, zero).sum(1) for row in flat]
        parts.append(torch.stack(exact) if exact else flat.new_empty((0, len(weight))))
    y = torch.cat(parts, 1)
    if bias is not None:
        y = y + bias.float()
    return y.view(*x.shape[:-1], rows).to(x.dtype)


def _kept_entries(packed: Packed) -> Tensor:
    """bool [R, C]."""
    kept = kept_of(packed)
    if packed.kind not in ("1x4", "16x1"):
        return kept
    wide = 4 if packed.kind == "1x4" else 16
    return untiled(kept.unsqueeze(2).expand(-1, -1, wide), packed.kind, packed.shape[0])


def refused(code: int, what: str) -> Exception:
    """What a kernel's answer means."""
    if code == 1:
        return BadInput(f"{what} does not fit together", where="weight")
    return MemoryError("no memory for a packed product")


def _named(packed: Packed) -> str:
    return f"packed {packed.kind} {list(packed.shape)}"


def _x_fits(packed: Packed, x: Tensor) -> None:
    columns = packed.shape[1]
    if x.dim() == 0 or x.shape[-1] != columns:
        raise BadInput(f"x is {list(x.shape)}, the weight takes {columns} columns", where=packed.kind)
    if x.dtype not in _X and x.dtype != torch.float16:
        raise BadInput(f"x is {x.dtype}", where=packed.kind, fix="use float32, bfloat16 or float16")


def _parts_fit(packed: Packed, bias: Tensor | None) -> None:
    """Shapes and dtypes, not bits: those are `check`'s."""
    rows, columns = packed.shape
    if bias is not None and tuple(bias.shape) != (rows,):
        raise BadInput(f"the bias is {list(bias.shape)}, not [{rows}]", where=packed.kind)
    if packed.values.dtype not in _DTYPE:
        raise Unsupported(f"values are {packed.values.dtype}", where=packed.kind)
    if packed.values.dim() != (1 if packed.kind == "bitmask" else 2):
        raise BadInput(f"values have {packed.values.dim()} dimensions", where=packed.kind)
    mask, offsets, scales = packed.mask, packed.offsets, packed.scales
    for part in (packed.values, mask, offsets, scales):
        if part is not None and not part.is_contiguous():
            raise BadInput("a part of the packed weight is not contiguous", where=packed.kind)
    units = -(-rows // 16) if packed.kind == "16x1" else rows
    width = columns // 4 if packed.kind == "1x4" else columns
    if mask is not None and (mask.dtype != torch.uint8 or tuple(mask.shape) != (units, -(-width // 8))):
        raise BadInput(f"the mask is {list(mask.shape)}, not [{units}, {-(-width // 8)}]", where=packed.kind)
    if offsets is not None and (offsets.dtype != torch.int64 or tuple(offsets.shape) != (units,)):
        raise BadInput(f"the offsets are {list(offsets.shape)}, not [{units}]", where=packed.kind)
    scaled = packed.values.dtype in (torch.int8, torch.uint8)
    many = 0 if not scaled else units * (columns // packed.group) if packed.group else rows
    if packed.group and packed.kind == "16x1":
        many *= 16
    if scaled != (scales is not None) or (scales is not None and scales.numel() != many):
        raise BadInput(f"{0 if scales is None else scales.numel()} scales, not {many}", where=packed.kind)
    if scales is not None and scales.dtype not in _X:
        raise BadInput(f"scales are {scales.dtype}", where=packed.kind, fix="use float32 or bfloat16")


def _head(packed: Packed, bias: Tensor | None) -> bytes:
    """secateur_matrix of secateur.h: pointers and numbers, 8 bytes each."""
    mask, offsets, scales = packed.mask, packed.offsets, packed.scales
    return _HEAD.pack(
        packed.values.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        *packed.shape,
        packed.values.numel() if packed.kind in ("nm", "dense") else len(packed.values),
        _KIND[packed.kind],
        _DTYPE[packed.values.dtype],
        0 if scales is None else _X[scales.dtype],
        packed.n,
        packed.group,
    )


def _shaped(x: Tensor, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _register(name: str, schema: str, kernel: Callable[..., Tensor], rows: Callable[..., int]) -> None:
    """An operator with its kernel, for whatever device the tensors are on, and its shape for tracing.

    Through torch.library.Library: the wrappers of custom_op take ten microseconds a call.
    """
    _NAMESPACE.define(f"{name}({schema}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _NAMESPACE.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"secateur::{name}", lambda x, *rest: _shaped(x, rows(*rest)), lib=_NAMESPACE)


_SPARSE = "Tensor x, Tensor values, Tensor mask, Tensor offsets, Tensor? scales, Tensor? bias"
_register(
    "bitmask_linear", f"{_SPARSE}, int columns, int group=0", _bitmask, lambda values, mask, *_: mask.shape[0]
)
_register(
    "nm_linear",
    "Tensor x, Tensor values, Tensor mask, Tensor? scales, Tensor? bias, int n, int group=0",
    _nm,
    lambda values, *_: values.shape[0],
)
_register(
    "block_linear",
    f"{_SPARSE}, int rows, int columns, int group=0",
    _block,
    lambda values, mask, offsets, scales, bias, rows, *_: rows,
)
_register(
    "dense_linear",
    "Tensor x, Tensor values, Tensor? scales, Tensor? bias, int group=0",
    _dense,
    lambda values, *_: values.shape[0],
)
