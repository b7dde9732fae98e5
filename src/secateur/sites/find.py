"""Where a model's weights can be cut, with no code for any one architecture.

Blocks: the list of repeated modules that holds most of the weights (decoder layers, encoder layers, stages).
Sites:  every Linear inside the blocks, every transposed Conv1D (GPT-2), every expert of a fused expert tensor.
Embeddings, norms, routers and heads lie outside and are left alone (sheet wanda). A tensor that several modules share
is one site, under its first name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core.units import Site
from secateur.errors import NoMatch, Unsupported, nearest


@dataclass(frozen=True)
class WeightSite:
    """One weight matrix: what the methods see of it, and where it lives.

    Args:
        site: name and shape [out, in].
        owner: the module that holds the parameter.
        parameter: its name there; `index`: which expert of a fused [experts, ., .] tensor, else None.
        transposed: the model stores it as [in, out].
        uses: under how many names the model holds this tensor (2 and more: tied or shared).
    """

    site: Site
    owner: nn.Module
    parameter: str = "weight"
    index: int | None = None
    transposed: bool = False
    uses: int = 1

    @property
    def name(self) -> str:
        return self.site.name

    def view(self) -> Tensor:
        """The weight as [out, in], sharing the parameter's storage: writing to it changes the model."""
        weight = getattr(self.owner, self.parameter).detach()
        weight = weight if self.index is None else weight[self.index]
        return weight.t() if self.transposed else weight

    def bias(self) -> Tensor | None:
        """The bias [out] that the model adds to this site's output, sharing storage."""
        bias = getattr(self.owner, "bias", None) if self.index is None else None
        return bias.detach() if isinstance(bias, Tensor) else None


@dataclass(frozen=True)
class Block:
    """A repeated stage of the model: the step of the walk."""

    name: str
    module: nn.Module
    sites: tuple[WeightSite, ...]


def find_blocks(model: nn.Module) -> list[Block]:
    """The model's blocks in order, each with its sites; a model that repeats nothing is one block.

    Raises:
        Unsupported: the model holds no weight matrix that can be cut.
    """
    best: tuple[int, list[tuple[str, nn.Module]]] = (0, [])
    listed: dict[tuple[object, ...], int] = {}  # every site inside some list
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
            continue
        listed |= {(id(s.owner), s.parameter, s.index): s.site.size for s in _sites_in(module, "", {})}
        if not _repeats(module):
            continue
        children = [(f"{name}.{child}" if name else child, m) for child, m in module.named_children()]
        size = sum(s.site.size for child, m in children for s in _sites_in(m, child, {}))
        if size > best[0]:  # an outer list comes first and wins a tie
            best = (size, children)
    # A small list inside blocks that cannot be walked one by one (listed twice, say) is not the model's depth.
    chosen = best[1] if 2 * best[0] >= sum(listed.values()) and best[1] else [("", model)]
    uses = _count_uses(model)
    blocks, seen = [], set()
    for name, module in chosen:
        sites = []
        for site in _sites_in(module, name, uses):
            key = (_storage(getattr(site.owner, site.parameter)), site.index)
            if key not in seen:
                seen.add(key)
                sites.append(site)
        blocks.append(Block(name, module, tuple(sites)))
    if not seen:
        raise Unsupported("no Linear, Conv1D or fused expert tensor to cut", where=type(model).__name__)
    return blocks


def pick(blocks: Sequence[Block], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Block]:
    """Blocks with the sites whose names match a glob of `only` (all if empty) and none of `skip`.

    Raises:
        NoMatch: a glob matches no site, or nothing is left.
    """
    names = [s.name for block in blocks for s in block.sites]

    def matches(
        name: str, glob: str
    ) -> bool:  # a full name matches itself: an expert's index [3] is no glob there
        return name == glob or fnmatch.fnmatchcase(name, glob)

    for glob in (*only, *skip):
        if not any(matches(name, glob) for name in names):
            tails = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise NoMatch(
                f"{glob!r} matches no site", where="sites", fix=nearest(glob.strip("*."), [*tails, *names])
            )

    def wanted(name: str) -> bool:
        return (not only or any(matches(name, g) for g in only)) and not any(matches(name, g) for g in skip)

    picked = [Block(b.name, b.module, tuple(s for s in b.sites if wanted(s.name))) for b in blocks]
    if not any(block.sites for block in picked):
        raise NoMatch("every site is skipped", where="sites", fix="loosen --only or --skip")
    return picked


def uncut_matrices(model: nn.Module, blocks: Sequence[Block]) -> list[str]:
    """Names of Linear layers outside the blocks (a second tower, a head): left dense, and worth telling the user."""
    inside = {id(m) for block in blocks for m in block.module.modules()}
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]


def _repeats(module: nn.Module) -> bool:
    """Two or more different modules of one type (a list may mix types where each holds weights: hybrid models)."""
    children = list(module.children())
    listed = [child for child in module._modules.values() if child is not None]
    if len(children) < 2 or len(listed) > len(children):  # a module listed twice runs out of the list's order
        return False
    if len({type(child) for child in children}) == 1:
        return True
    return isinstance(module, nn.ModuleList) and all(
        any(True for _ in _sites_in(child, "", {})) for child in children
    )


def _storage(parameter: Tensor) -> tuple[int, ...]:
    """The same for two parameters that share all their memory, be they one object or not."""
    if parameter.device.type == "meta" or not parameter.numel():
        return (id(parameter),)
    return (parameter.data_ptr(), parameter.numel())


def _count_uses(model: nn.Module) -> dict[tuple[int, ...], int]:
    uses: dict[tuple[int, ...], int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        key = _storage(parameter)
        uses[key] = uses.get(key, 0) + 1
    return uses


def _sites_in(module: nn.Module, prefix: str, uses: dict[tuple[int, ...], int]) -> Iterator[WeightSite]:
    routers = _routers(module)
    for name, owner in module.named_modules(prefix=prefix):
        weight = getattr(owner, "weight", None)
        if id(owner) in routers:
            continue
        if isinstance(owner, nn.Linear) and isinstance(weight, Tensor):
            shape = (weight.shape[0], weight.shape[1])
            yield WeightSite(Site(name, shape), owner, uses=uses.get(_storage(weight), 1))
        elif type(owner).__name__ == "Conv1D" and hasattr(owner, "nf") and isinstance(weight, Tensor):
            shape = (weight.shape[1], weight.shape[0])
            yield WeightSite(Site(name, shape), owner, transposed=True, uses=uses.get(_storage(weight), 1))
        elif hasattr(owner, "num_experts"):
            yield from _experts(owner, name, uses)


def _routers(module: nn.Module) -> set[int]:
    """Ids of the Linears that weigh experts: beside the experts, with one output for each of them, or one for all."""
    found: set[int] = set()
    for parent in module.modules():
        counts = {getattr(m, "num_experts", None) for m in (parent, *parent.children())} - {None}
        if counts:
            beside = [child for child in parent.children() if isinstance(child, nn.Linear)]
            found |= {id(child) for child in beside if child.out_features in counts | {1}}
    return found


def _experts(owner: nn.Module, prefix: str, uses: dict[tuple[int, ...], int]) -> Iterator[WeightSite]:
    """Fused [experts, out, in] parameters ([experts, in, out] where `is_transposed` says so), one site an expert."""
    transposed = bool(getattr(owner, "is_transposed", False))
    for name, parameter in owner.named_parameters(recurse=False):
        if parameter.dim() != 3 or "bias" in name:
            continue
        experts, a, b = parameter.shape
        shape = (b, a) if transposed else (a, b)
        for index in range(experts):
            site = Site(f"{prefix}.{name}[{index}]", shape)
            yield WeightSite(site, owner, name, index, transposed, uses.get(_storage(parameter), 1))


def check_dtype(site: WeightSite) -> None:
    """Refuse weights that are not plain floating-point parameters (packed integers, or computed at every forward)."""
    if site.parameter not in site.owner._parameters:
        raise Unsupported(
            "its weight is computed from other tensors",
            where=site.name,
            fix="remove the parametrisation or mask first",
        )
    dtype = getattr(site.owner, site.parameter).dtype
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise Unsupported(f"weights of type {dtype}", where=site.name, fix="load the model dequantised")
