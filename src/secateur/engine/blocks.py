"""Go through a model block by block, with the model's own forward and no code for any one architecture.

`Walk` replays the model up to one block: the blocks before it hand back what the last one returned, and the block
itself stops the replay, so that everything between the blocks (embeddings, rotary tables, masks, per-layer arguments)
is computed by the model, exactly as it does in use. What it costs is that glue once a block and batch: about nothing.

`Watch` sees every product of an activation with a site's weight, whatever module or function computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core.scores import finite
from secateur.engine import workers
from secateur.engine.memory import release
from secateur.errors import BadInput, Unsupported
from secateur.sites.find import Block, WeightSite

RELEASE = 8  # steps after which the holes in the heap go back to the system: 40 MB less on SmolLM2-135M

Batch = dict[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]

_PRODUCTS = {
    torch.nn.functional.linear: (0, 1),
    torch.addmm: (1, 2),
    torch.mm: (0, 1),
    torch.bmm: (0, 1),
    torch.matmul: (0, 1),
    Tensor.mm: (0, 1),
    Tensor.bmm: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.__matmul__: (0, 1),
}


class Watch(TorchFunctionMode):
    """Calls `see(site, x)` with x [tokens, in] just before each product x W of a site's weight.

    Weights are known by their address, so a functional call, an expert's slice of a fused tensor and a module used
    twice are all seen; `see` may change the weight, and the product then uses the new one.
    """

    def __init__(self, sites: Sequence[WeightSite], see: Callable[[WeightSite, Tensor], None]) -> None:
        super().__init__()
        self.see = see
        self.sites = {(site.view().data_ptr(), site.site.size): site for site in sites}
        self.fused: dict[tuple[int, int], list[WeightSite]] = {}
        for site in sites:
            if site.index is not None:
                whole = getattr(site.owner, site.parameter)
                self.fused.setdefault((whole.data_ptr(), whole.numel()), []).append(site)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = _PRODUCTS.get(func)
        if where is not None and len(args) > where[1]:
            x, weight = args[where[0]], args[where[1]]
            if isinstance(x, Tensor) and isinstance(weight, Tensor):
                key = (weight.data_ptr(), weight.numel())
                if key in self.sites:
                    self.see(self.sites[key], x.detach().reshape(-1, x.shape[-1]))
                elif key in self.fused and x.dim() == 3:
                    for site in self.fused[key]:
                        assert site.index is not None
                        self.see(site, x.detach()[site.index])
        return func(*args, **(kwargs or {}))


class _Reached(Exception):
    """The replay has come to the block it was looking for."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = (args, kwargs)


class Walk:
    """The position of every calibration batch in the model: before block `index`, with what the block before returned.

    Use as a context manager: it puts the model into evaluation mode without caches, and gives everything back.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch]) -> None:
        self.model, self.blocks, self.batches = model, blocks, batches
        self.index = 0
        self.outputs: list[Any] = [None] * len(batches)
        self._steps = 0

    def __enter__(self) -> Walk:
        self._stack = ExitStack()
        self._stack.enter_context(torch.no_grad())
        self._stack.enter_context(_as_in_use(self.model))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def call(self, batch: int) -> Call:
        """The arguments with which the model calls block `index` for this batch."""
        block = self.blocks[self.index]
        if not block.name:
            return (), dict(self.batches[batch])
        with _stubs(self.blocks, self.index, self.outputs[batch]), _readable(self.index == 0):
            try:
                self.model(**self.batches[batch])
            except _Reached as reached:
                if self.index > 1 and batch == 0:
                    self._check_chain(reached.call)
                return reached.call
        raise Unsupported(
            "the model's forward never reaches this block", where=block.name, fix="use feed none, or skip it"
        )

    def _check_chain(self, call: Call) -> None:
        """Refuse blocks that read more than the last output: the older ones come back as NaN during the replay."""
        for value in tree_leaves(call):
            if isinstance(value, Tensor) and value.is_floating_point() and bool(torch.isnan(value).any()):
                raise Unsupported(
                    "reads what an earlier block returned, so the blocks are no chain",
                    where=self.blocks[self.index].name,
                    fix="pass the model in parts, or skip these blocks",
                )

    def forward(self, batch: int) -> Any:
        """What block `index` returns for this batch, run for real."""
        args, kwargs = self.call(batch)
        block = self.blocks[self.index]
        with _readable(not block.name):
            return block.module(*args, **kwargs)

    def step(self, batch: int) -> None:
        """Take one batch through block `index`: what the block returns replaces what the one before returned."""
        self.outputs[batch] = check_output(self.forward(batch), self.blocks[self.index])
        self._steps += 1
        if self._steps % RELEASE == 0:
            release()

    def advance(self) -> None:
        """Go on to the next block, once every batch has been stepped through this one."""
        self.index += 1


@contextmanager
def _readable(samples: bool) -> Iterator[None]:
    """Where the model reads the samples: whatever it raises over them becomes one line."""
    try:
        yield
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError, AttributeError) as error:
        if not samples:
            raise
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise BadInput(
            f"the model cannot read the samples ({said:.90})",
            where="calibration",
            fix="check names, ids and shapes",
        ) from error


@contextmanager
def _stubs(blocks: Sequence[Block], index: int, carried: Any) -> Iterator[None]:
    def skip(*args: Any, **kwargs: Any) -> Any:
        return carried

    def too_old(*args: Any, **kwargs: Any) -> Any:
        return tree_map(_poison, carried)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Reached(args, kwargs)

    def too_early(*args: Any, **kwargs: Any) -> Any:
        name = blocks[index].name
        raise Unsupported(
            "a later block runs before this one", where=name, fix="the blocks must run in the listed order"
        )

    modules = [block.module for block in blocks]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for place, module in enumerate(modules):
            module.forward = (
                stop
                if place == index
                else skip
                if place == index - 1
                else too_old
                if place < index
                else too_early
            )
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            if old is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = old


def _poison(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.new_full((), float("nan")).expand_as(value)
    return value


@contextmanager
def _as_in_use(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no key-value cache, experts one by one (so that their tokens can be seen); then as before."""
    modes = [(module, module.training) for module in model.modules()]
    configs: list[Any] = list(
        {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    )
    caches = [(c, c.use_cache) for c in configs if isinstance(getattr(c, "use_cache", None), bool)]
    owner: Any = model
    experts = getattr(owner, "get_experts_implementation", None)
    chosen = experts() if callable(experts) else None
    has_experts = any(hasattr(module, "num_experts") for module in model.modules())
    try:
        model.eval()
        for config, _ in caches:
            config.use_cache = False
        if chosen is not None and has_experts:
            owner.set_experts_implementation("eager")
        yield
    finally:
        for module, training in modes:
            module.training = training
        for config, value in caches:
            config.use_cache = value
        if chosen is not None and has_experts:
            owner.set_experts_implementation(chosen)


def identity(x: Tensor) -> tuple[Any, ...]:
    """Equal for two looks at the same unchanged values, as long as the tensor is held."""
    return (x.data_ptr(), tuple(x.shape), x.stride(), 0 if x.is_inference() else x._version)


class Measure:
    """Accumulates one signal a site over any number of products.

    Sites fed by the same tensor (q, k and v; gate and up) share the work, and, when every one of their products had
    the same input, the signal itself.
    """

    def __init__(self, kind: type, sites: Sequence[WeightSite]) -> None:
        self.kind = kind
        self.signals: dict[str, Any] = {site.name: kind(site.site.shape[1]) for site in sites}
        self._history: dict[str, list[int]] = {site.name: [] for site in sites}
        self._last: tuple[Any, Tensor, Any] | None = None
        self._inputs = 0

    def see(self, site: WeightSite, x: Tensor) -> None:
        """Take in x [tokens, in], the input of one product."""
        key = identity(x)
        if self._last is None or self._last[0] != key:
            self._inputs += 1
            self._last = (key, x, self.kind.measure(x))  # holding x keeps its address from being used again
        self.signals[site.name].add(self._last[2], len(x))
        self._history[site.name].append(self._inputs)

    def finish(self, samples: int) -> dict[str, Any]:
        """The signals by site name, summed over the workers, checked; sites with the same inputs share one object."""
        self._last = None
        workers.merge(self.signals.values())
        by_history: dict[tuple[int, ...], Any] = {}
        for name, signal in self.signals.items():
            signal.samples = max(1, samples)
            signal.check(name)
            if self._history[name]:
                self.signals[name] = by_history.setdefault(tuple(self._history[name]), signal)
        return self.signals


def check_output(output: Any, block: Block) -> Any:
    """Refuse a block whose output holds NaN or Inf, naming its first bad weight if it has one; returns the output."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    if isinstance(first, Tensor) and first.is_floating_point() and not bool(torch.isfinite(first).all()):
        for name, parameter in block.module.named_parameters(prefix=block.name):
            finite(parameter, name)
        finite(first, block.name or "model", "outputs")
    return output
