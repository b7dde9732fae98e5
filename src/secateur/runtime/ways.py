"""The ways to multiply one layer that give the same answer: which there are, how each is made, how far off it is.

dense              the module as it is
prepacked          dense bfloat16 in oneDNN's order (runtime/prepacked.py)
packed VALUES      every weight, in our kernels                              VALUES: float32, bfloat16, int8, int4
bitmask VALUES     the kept weights and a bit for each
2:4 VALUES         where the zeros lie so: N of every 4 are kept (also 1:4, 3:4)
1x4, 16x1 VALUES   where the zeros lie so: in tiles of rows x columns
2:4 on CUDA        torch's semi-structured tensors
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.io.packed import FLOATS, bands
from secateur.runtime import library
from secateur.runtime.linear import PackedLinear, is_conv1d, weight_of
from secateur.runtime.prepacked import PrepackedLinear, prepacks

SAME = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}
ROUNDED = {"bfloat16": 5e-3, "int8": 2e-2, "int4": 0.2}
VALUES = ("same", *ROUNDED)
CUDA = "2:4 on CUDA"
FEW = 0.95  # of the weights kept: with more, masks cost more than zeros do
TILED = 1.1  # zeros lie in tiles where these hold at most so many times the kept weights
_ROWS = 4096  # compared at a time
# their own code reads the weights of their Linears, past any forward pass
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Pattern:
    """How the zeros lie: `density` of the weights; `n` kept of every 4 at most (0: 4, or no fours); tiles kept."""

    density: float
    n: int = 0
    tiles: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        if self.density > FEW:
            return "dense"
        named = ([f"{self.n}:4"] if self.n else []) + list(self.tiles)
        return f"{1 - self.density:.0%} zeros" + (f", {', '.join(named)}" if named else "")


@dataclass(frozen=True)
class Target:
    """A Linear or Conv1D that may be replaced, and every place that holds it: (parent, name there)."""

    name: str
    module: nn.Module
    places: tuple[tuple[nn.Module, str], ...]
    tied: bool = False

    @property
    def weight(self) -> Tensor:
        """[out, in], on the module's memory."""
        return weight_of(self.module)

    @property
    def bias(self) -> Tensor | None:
        bias: Any = self.module.bias
        return None if bias is None else bias.detach()


def targets(model: nn.Module) -> tuple[list[Target], list[str]]:
    """What may be replaced, in the model's order, and a line for what may not be.

    Left: subclasses of Linear, modules with hooks or parametrisations, those whose weights other code reads.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for child, module in parent._modules.items():
            places.setdefault(id(module), []).append((parent, child))
    left: list[str] = []
    readers = {id(m) for module in model.modules() if isinstance(module, _READERS) for m in module.modules()}
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[parameter.data_ptr()] = uses.get(parameter.data_ptr(), 0) + 1
    found = []
    for name, module in model.named_modules():
        if not (isinstance(module, nn.Linear) or is_conv1d(module)) or module is model:
            continue
        why = _refused(module, id(module) in readers)
        if why:
            left.append(f"{name} stays dense: {why}")
            continue
        tied = uses[module.weight.data_ptr()] > len(places[id(module)])  # type: ignore[operator]
        found.append(Target(name, module, tuple(places[id(module)]), tied))
    return found, left


def pattern_of(weight: Tensor) -> Pattern:
    """How the zeros of a matrix [R, C] lie; -0.0, which a mask that was multiplied in leaves, is one."""
    if not weight.numel():
        return Pattern(1.0)
    kept = (weight != 0).contiguous()
    density = int(kept.sum()) / kept.numel()
    if density > FEW:
        return Pattern(density)
    n, tiles = 0, []
    if weight.shape[1] % 4 == 0:
        fours = kept.view(torch.int32)  # 4 bytes of 0 or 1: multiplied, their sum stands in the highest
        most = int((fours * 0x01010101 >> 24).max())
        n = most if most < 4 else 0
        if float((fours != 0).float().mean()) <= TILED * density:
            tiles.append("1x4")
    if float(bands(kept).any(1).float().mean()) <= TILED * density:
        tiles.append("16x1")
    return Pattern(density, n, tuple(tiles))


def ways_of(target: Target, pattern: Pattern, values: str, group: int | None) -> Iterator[str]:
    """Every way there is for this layer on this machine, dense first; `values` other than "same" add theirs."""
    yield "dense"
    weight = target.weight
    dtype, columns = weight.dtype, weight.shape[1]
    if not weight.numel():
        return
    if weight.is_cuda:
        if pattern.n and pattern.n <= 2:
            yield CUDA
        return
    if weight.device.type != "cpu":
        return
    if dtype == torch.bfloat16 and prepacks():
        yield "prepacked"
    if library.load() is None:
        return
    names = [str(dtype).removeprefix("torch.")] if dtype in FLOATS else []
    if values != "same" and values not in names and fits(values, columns, group):
        names.append(values)
    for name in names:
        yield f"packed {name}"
        if name == "int4" or pattern.density > FEW:
            continue
        yield f"bitmask {name}"
        if pattern.n:
            yield f"{pattern.n}:4 {name}"
        yield from (f"{tile} {name}" for tile in pattern.tiles)


def fits(values: str, columns: int, group: int | None) -> bool:
    """Whether groups of scales divide the columns."""
    width = group_of(values, group)
    return not width or columns % width == 0


def group_of(values: str, group: int | None) -> int:
    """Columns that share a scale: as asked, else 32 for int4 and the row (0) for int8; none for floats."""
    if values not in ("int8", "int4"):
        return 0
    return group if group is not None else 32 if values == "int4" else 0


def build(target: Target, way: str, group: int | None = None) -> nn.Module:
    """The module of a way.

    Raises:
        BadInput: NaN to be rounded.   Unsupported: a way this torch does not have.
    """
    if way == "dense":
        return target.module
    if way == "prepacked":
        return PrepackedLinear.from_linear(target.module)
    if way == CUDA:
        return semi_structured(target)
    kind, _, values = way.partition(" ")
    same = str(target.weight.dtype) == f"torch.{values}"
    try:
        return PackedLinear.from_linear(
            target.module,
            kind="dense" if kind == "packed" else kind,
            values=None if same else values,
            group=group_of(values, group),
        )
    except BadInput as error:
        raise BadInput(error.what, where=target.name, fix=error.fix) from error


def semi_structured(target: Target) -> nn.Module:
    """A Linear whose weight is torch's 2:4 tensor, for CUDA's sparse tensor cores.

    Raises:
        Unsupported: a shape, dtype or card it does not take.
    """
    try:
        sparse = torch.sparse.to_sparse_semi_structured(target.weight.contiguous())
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise Unsupported(
            f"no 2:4 tensor of it ({' '.join(str(error).split())[:80]})", where=target.name
        ) from error
    rows, columns = target.weight.shape
    made = nn.Linear(columns, rows, bias=target.bias is not None, device="meta")
    made.weight = nn.Parameter(sparse, requires_grad=False)
    if target.bias is not None:
        made.bias = nn.Parameter(target.bias, requires_grad=False)
    return made.eval()


def tolerance_of(way: str, dtype: torch.dtype) -> float:
    """The relative error a way may have: what sums in another order do in this dtype, and what rounding does."""
    return max(ROUNDED.get(way.rpartition(" ")[2], 0.0), SAME.get(dtype, 5e-3))


@torch.no_grad()
def error_of(target: Target, module: nn.Module, rows: int = 2, seed: int = 0) -> float:
    """||y - W x - b|| / ||W x + b|| over `rows` random x, against the product of the real weights in float64."""
    weight, bias = target.weight, target.bias
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    found = module(x).double()
    wide = x.double()
    parts = [
        wide @ weight[at : at + _ROWS].double().t() for at in range(0, len(weight), _ROWS)
    ]  # a whole head in float64 would be the largest tensor of all
    wanted = torch.cat(parts, 1) if parts else found
    if bias is not None:
        wanted = wanted + bias.double()
    size = float(wanted.norm())
    off = float((found - wanted).norm())
    return off / size if size else off


def _refused(module: nn.Module, read: bool) -> str:
    if type(module) is not nn.Linear and not is_conv1d(module):
        return f"it is a {type(module).__name__}"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    if not isinstance(module._parameters.get("weight"), Tensor):
        return "its weight is computed from other tensors"
    if module.weight.device.type == "meta":
        return "its weight is not in memory"
    return "torch's attention reads its weight" if read else ""


def check_settings(values: str, group: int | None, batch: int, prompt: int) -> None:
    """Refuse settings before anything is measured."""
    if group is not None and group not in (0, 32, 64, 128):
        raise BadInput(f"groups of {group}", where="group", fix="choose 32, 64, 128 or 0")
    if values == "int4" and group == 0:
        raise BadInput("int4 needs a group", where="group", fix="choose 32, 64 or 128")
    if min(batch, prompt) < 1:
        raise BadInput("batch and prompt are 1 or more", where="accelerate")
