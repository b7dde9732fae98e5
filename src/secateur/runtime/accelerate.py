"""secateur.accelerate(model): every linear layer takes the way that was measured as its fastest, with the same answer.

    found = secateur.accelerate(model)                    # in place
    print(found.explain())
    found.undo()

What is raced, and how a way wins: runtime/choice.py. Layers of one shape and equally sparse are raced once, and what
was found is kept for the next time. Every layer's answer is compared with its dense product before it is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadInput, one_of
from secateur.runtime import library, native
from secateur.runtime.choice import AIMS, COLD, Cache, Choice, Terms, choose
from secateur.runtime.linear import PackedLinear, TwoWays, bytes_of
from secateur.runtime.prepacked import PrepackedLinear
from secateur.runtime.settle import settle
from secateur.runtime.ways import (
    VALUES,
    Pattern,
    Target,
    build,
    check_settings,
    error_of,
    pattern_of,
    targets,
    tolerance_of,
)

Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Group:
    """Layers that were given one choice: their names, what they share, the largest error among them."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    pattern: Pattern
    choice: Choice
    error: float
    before: int
    after: int


@dataclass
class Place:
    """Where a module was put, and the one that was there, as long as it is held."""

    parent: nn.Module
    name: str
    new: nn.Module
    old: nn.Module | None
    tied: bool


@dataclass
class Acceleration:
    """What was done to a model; `undo()` takes it back.

    Attributes:
        groups: layers by shape and pattern, with their choice.
        before, after: bytes of all the model's tensors, shared ones once.
        difference: relative difference of the outputs on `example`, or None.
        notes: what was left as it was, and why.
    """

    groups: list[Group]
    before: int
    after: int
    notes: list[str]
    threads: int
    difference: float | None = None
    _places: list[Place] = field(default_factory=list, repr=False)

    @property
    def share(self) -> tuple[float, float]:
        """Time of all products that were raced, as a share of dense: a token's, a prompt's."""
        return self._share(0), self._share(-1)

    def undo(self) -> None:
        """Put dense modules back: the same bits, or where whole numbers were asked for, the rounded weights."""
        made: dict[int, nn.Module] = {}
        for place in self._places:
            if place.parent._modules.get(place.name) is place.new:
                new: Any = place.new
                setattr(place.parent, place.name, place.old or made.setdefault(id(new), new.dense()))
        self._places.clear()

    def rows(self) -> list[dict[str, Any]]:
        """One a group: layers, shape, dtype, zeros, ways, seconds, bytes, error, and every way that was raced."""
        return [_row(group) for group in self.groups]

    def explain(self, full: bool = False) -> str:
        """A table of the choices; `full` has every way that was raced, with its time and what speaks against it."""
        from secateur.runtime import table

        return table.explained(self, full)

    def _share(self, at: int) -> float:
        mine = dense = 0.0
        for group in self.groups:
            base = group.choice.of("dense").seconds
            if base:
                way = group.choice.few if at == 0 else group.choice.many
                mine += len(group.names) * group.choice.of(way).seconds[at]
                dense += len(group.names) * base[at]
        return mine / dense if dense else 1.0


def accelerate(
    model: nn.Module,
    example: Tensor | Mapping[str, Any] | tuple[Any, ...] | None = None,
    *,
    values: str = "same",
    group: int | None = None,
    tolerance: float | None = None,
    aim: str = "speed",
    batch: int = 1,
    prompt: int = 128,
    ways: tuple[str, ...] | None = None,
    cache: bool = True,
    again: bool = False,
    report: Report | None = None,
) -> Acceleration:
    """Replace the linear layers of a model by the fastest ways of the same products, in place.

    Args:
        model: in evaluation mode. Weights become buffers that have no gradient; what is packed already stays so.
        example: an input (ids, keywords, a tuple): its rows are `prompt`, and outputs are compared on it.
        values: "same": no weight is changed. "bfloat16", "int8" or "int4" allow ways that round to these.
        group: columns that share a scale, 32, 64 or 128; 0: a row; None: a row for int8, 32 for int4.
        tolerance: relative error of a layer's product, at most; None: 1e-5 in float32, 5e-3 in bfloat16, and where
            rounding was asked for 5e-3 (bfloat16), 2e-2 (int8), 0.2 (int4).
        aim: "speed": never slower than dense, for which dense weights may be held as well; "memory": one form a layer.
        batch, prompt: rows of x that are raced: sequences written at once, tokens of a prompt.
        ways: only these (runtime/ways.py), such as ("bitmask", "2:4 int8").
        cache: use what was found on this machine before, and keep what is found.   again: race all the same.
        report: called with ("measure" or "pack", done, of, layer).

    Raises:
        BadInput: a model in training mode, a word or number that is none.
    """
    one_of(values, VALUES, "values")
    one_of(aim, AIMS, "aim")
    check_settings(values, group, batch, prompt)
    if model.training:
        raise BadInput("is in training mode", where=type(model).__name__, fix="call model.eval()")
    terms = Terms(values, group, tolerance, aim, ways, inside=batch == 1 and native.suits(model))
    found, notes = targets(model)
    before = model_bytes(model)
    seen, wanted = _run(model, found, example)
    done = Acceleration([], before, before, notes + _general(found, model), torch.get_num_threads())
    told = report or (lambda stage, done, of, what: None)
    planned = _choices(
        found, {t.name: (batch, seen.get(t.name, prompt)) for t in found}, terms, (cache, again), told
    )
    found.clear()
    try:
        _swap(planned, terms, done, told)
        done.after = model_bytes(model)
        if wanted is not None:
            done.difference = difference(wanted, _output(model, example))
    except BaseException:
        done.undo()
        raise
    for place in done._places:
        place.old = place.old if place.tied else None
    settle(model)
    return done


Planned = list[tuple[Pattern, Choice, list[Target]]]


def _choices(
    found: list[Target],
    sizes: dict[str, tuple[int, int]],
    terms: Terms,
    cache: tuple[bool, bool],
    told: Report,
) -> Planned:
    """The layers by their choice: known from before, or raced on the first layer of its kind."""
    use, again = cache
    store = Cache()
    total = sum(bytes_of(target.module) for target in found)
    grouped: dict[str, tuple[Pattern, list[Target]]] = {}
    for target in found:
        pattern = pattern_of(target.weight)
        key = store.key(target, pattern, sizes[target.name], terms, min(COLD, total))
        grouped.setdefault(key, (pattern, []))[1].append(target)
    planned, made = [], {}
    for at, (key, (pattern, members)) in enumerate(grouped.items()):
        told("measure", at, len(grouped), members[0].name)
        choice = store.find(key) if use and not again else None
        if choice is None:
            choice = made[key] = choose(members[0], pattern, sizes[members[0].name], terms, min(COLD, total))
        planned.append((pattern, choice, members))
    if use and made:
        store.keep(made)
    return planned


def _swap(planned: Planned, terms: Terms, done: Acceleration, told: Report) -> None:
    """Make the modules and put them in, one layer after the other, so that two forms of one layer are the most.

    Rounded weights cannot be given back: there the old modules are held until all is done, in case something fails.
    """
    shared: dict[tuple[int, int], nn.Module] = {}
    total, count = sum(len(members) for *_, members in planned), 0
    for pattern, choice, members in planned:
        weight = members[0].weight
        shape, dtype = (weight.shape[0], weight.shape[1]), str(weight.dtype).removeprefix("torch.")
        del weight
        before, after, worst = 0, 0, 0.0
        kept: list[str] = []
        while members:  # no list may hold what was replaced
            target = members.pop(0)
            told("pack", count, total, target.name)
            count += 1
            size = model_bytes(target.module)
            key = (target.weight.data_ptr(), 0 if target.bias is None else target.bias.data_ptr())
            new, error = (shared[key], 0.0) if key in shared else _made(target, choice, terms)
            if new is None:
                done.notes.append(f"{target.name} stays dense: {choice.few} is off by {error:.1e} there")
                continue
            worst, before, after = max(worst, error), before + size, after + model_bytes(new)
            kept.append(target.name)
            if new is target.module:
                continue
            if target.tied:
                shared[key] = new
            _put(target, new, target.tied or terms.values != "same", done)
            del target
        if kept:
            done.groups.append(Group(tuple(kept), shape, dtype, pattern, choice, worst, before, after))


def _made(target: Target, choice: Choice, terms: Terms) -> tuple[nn.Module | None, float]:
    """The module of a choice and its error; None where this layer's weights put it beyond its tolerance."""
    few = build(target, choice.few, terms.group)
    if few is target.module and choice.many == choice.few:
        return few, 0.0
    many = few if choice.many == choice.few else build(target, choice.many, terms.group)
    worst = 0.0
    for way, module in {choice.few: few, choice.many: many}.items():
        if module is target.module:
            continue
        error = error_of(target, module)
        bound = terms.tolerance if terms.tolerance is not None else tolerance_of(way, target.weight.dtype)
        if not error <= bound:
            return None, error
        worst = max(worst, error)
    return (few if many is few else TwoWays(few, many, choice.rows)).eval(), worst


def _put(target: Target, new: nn.Module, keep: bool, done: Acceleration) -> None:
    for parent, name in target.places:
        done._places.append(Place(parent, name, new, target.module if keep else None, target.tied))
        setattr(parent, name, new)


def model_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a model, each memory once."""
    held = {
        (tensor.data_ptr(), tensor.nbytes): tensor.nbytes
        for tensor in (*model.parameters(), *model.buffers())
    }
    packed = sum(2 * m.held.numel() for m in model.modules() if isinstance(m, PrepackedLinear))
    return sum(held.values()) + packed


def difference(wanted: Tensor, found: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    size = float(wanted.double().norm())
    off = float((found.double() - wanted.double()).norm())
    return off / size if size else off


def _run(model: nn.Module, found: list[Target], example: Any) -> tuple[dict[str, int], Tensor | None]:
    """Rows of x that each layer sees of the example, and the model's output; nothing without an example."""
    if example is None:
        return {}, None
    seen: dict[str, int] = {}
    handles = []
    for target in found:

        def see(module: nn.Module, inputs: tuple[Any, ...], name: str = target.name) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim():
                seen[name] = max(seen.get(name, 1), inputs[0].numel() // max(inputs[0].shape[-1], 1))

        handles.append(target.module.register_forward_pre_hook(see))
    try:
        return seen, _output(model, example)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _output(model: nn.Module, example: Any) -> Tensor:
    """The first tensor that the model gives: logits, of a language model."""
    if isinstance(example, Mapping):
        out = model(**example)
    else:
        out = model(*example) if isinstance(example, tuple) else model(example)
    out = getattr(out, "logits", out)
    while isinstance(out, tuple | list | dict):
        out = next(iter(out.values() if isinstance(out, dict) else out))
    if not isinstance(out, Tensor):
        raise BadInput(f"the model gives a {type(out).__name__}", where="example", fix="leave it out")
    return out


def _general(found: list[Target], model: nn.Module) -> list[str]:
    packed = sum(isinstance(module, PackedLinear) for module in model.modules())
    notes = [f"{packed} layers are packed already and stay as they are"] if packed else []
    if not found:
        return [*notes, f"{type(model).__name__} holds no Linear or Conv1D that may be replaced"]
    if any(t.weight.device.type == "cpu" for t in found) and library.load() is None:
        notes.append("no compiled kernels here: packed ways are out")
    if any(t.weight.dtype == torch.float16 and t.weight.device.type == "cpu" for t in found):
        notes.append("float16 weights stay dense on a CPU; load the model as float32 or bfloat16")
    return notes


def _row(group: Group) -> dict[str, Any]:
    choice = group.choice
    return {
        "layers": list(group.names),
        "shape": list(group.shape),
        "dtype": group.dtype,
        "zeros": 1 - group.pattern.density,
        "pattern": group.pattern.words,
        "token": choice.few,
        "prompt": choice.many,
        "from_rows": choice.rows,
        "sizes": list(choice.sizes),
        "cached": choice.cached,
        "error": group.error,
        "before": group.before,
        "after": group.after,
        "raced": [
            {
                "way": one.way,
                "seconds": list(one.seconds),
                "of_dense": list(one.shares),
                "error": one.error,
                "bytes": one.bytes,
                "out": one.out,
            }
            for one in choice.raced
        ],
    }
