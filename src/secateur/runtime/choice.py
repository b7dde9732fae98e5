"""Which way a layer takes: each is raced against dense on this machine, on the layer's own weights and shape.

Two sizes of x are raced, the rows of a token (`batch`) and those of a prompt (`prompt`). A way is made, its answer
compared with the dense product, then it and dense take turns on copies that do not fit in the cache; its time is its
share of dense's, so that what slows the machine slows both. Only one way is in memory at a time.

    speed    the fastest for a token; where it would be slower than dense for a prompt, a second form is held for that
    memory   the fastest for a token of those that are no larger than dense, and nothing beside it

A way is taken for its speed only if it wins by MARGIN, more than what two turns of the same code differ by.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.io.files import write_atomic
from secateur.io.hub import cache_folder
from secateur.runtime import library
from secateur.runtime.linear import PackedLinear, bytes_of
from secateur.runtime.settle import settle
from secateur.runtime.sliver import sliver
from secateur.runtime.ways import Pattern, Target, build, error_of, tolerance_of, ways_of

VERSION = 4  # of this file's rules: another one makes every cached choice void
AIMS = ("speed", "memory")
MARGIN = 0.97  # of dense's time, at most
SECOND = 0.9  # a second form is held if it saves a tenth, or if the first is slower than dense
NEAR = 1.05  # of the fastest's time: as good as it
COLD = 64 << 20  # bytes of copies that one turn goes through: twice a large cache
COPIES = 128  # at most
SLICE = 0.003  # seconds of a turn, at least
LEAST = 1e-7  # seconds of a product
HELD = 2  # calls: a half of a layer runs as 20 operations of torch for one that is not packed, 60 us to a call's 10
ROUNDS = (9, 4)  # of turns: below and from 20 ms a call
CACHE = "accelerate.json"
clock = time.perf_counter


@dataclass(frozen=True)
class Terms:
    """What is asked: see `accelerate`. `inside`: for one row of x packed layers are run from within the kernels
    (runtime/native.py): they are not charged for a call of their own, and others are for what they hold up (HELD)."""

    values: str = "same"
    group: int | None = None
    tolerance: float | None = None
    aim: str = "speed"
    ways: tuple[str, ...] | None = None
    inside: bool = False


@dataclass(frozen=True)
class Raced:
    """One way: its share of dense's time and its seconds at (batch, prompt), its error, its bytes; why it is out."""

    way: str
    shares: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    error: float = 0.0
    bytes: int = 0
    out: str = ""


@dataclass(frozen=True)
class Choice:
    """What layers of one shape and pattern do: `few` below `rows` rows of x, `many` from there (rows 0: never)."""

    few: str = "dense"
    many: str = "dense"
    rows: int = 0
    sizes: tuple[int, int] = (1, 128)
    raced: tuple[Raced, ...] = ()
    cached: bool = field(default=False, compare=False)

    def of(self, way: str) -> Raced:
        return next(one for one in self.raced if one.way == way)


def choose(
    target: Target, pattern: Pattern, sizes: tuple[int, int], terms: Terms, cold: int = COLD
) -> Choice:
    """Race every way of one layer.

    Args:
        sizes: rows of x for a token and for a prompt.
        cold: bytes that the dense weights of the whole model have, if less than COLD: a small model stays in the cache.
    """
    weight = target.weight
    inputs = tuple(_x(weight, rows) for rows in dict.fromkeys(sizes))
    raced = [Raced("dense", (1.0,) * len(inputs), bytes=bytes_of(target.module))]
    seconds: list[list[float]] = [[] for _ in inputs]
    for way in itertools.islice(ways_of(target, pattern, terms.values, terms.group), 1, None):
        if terms.ways is not None and way not in terms.ways and way.partition(" ")[0] not in terms.ways:
            continue
        module = build(target, way, terms.group)
        error, size = error_of(target, module), bytes_of(module)
        bound = terms.tolerance if terms.tolerance is not None else tolerance_of(way, weight.dtype)
        if not error <= bound:
            raced.append(Raced(way, error=error, bytes=size, out=f"off by {error:.1e}"))
            continue
        found = [race(target.module, module, x, cold, terms.inside) for x in inputs]
        for kept, (dense, _) in zip(seconds, found, strict=True):
            kept.append(dense)
        raced.append(Raced(way, tuple(mine / dense for dense, mine in found), error=error, bytes=size))
        del module
    base = tuple(statistics.median(kept) if kept else 0.0 for kept in seconds)
    told = tuple(
        Raced(
            r.way,
            r.shares,
            tuple(s * b for s, b in zip(r.shares, base, strict=False)),
            r.error,
            r.bytes,
            r.out,
        )
        for r in raced
    )
    few, many = decide(told, terms.aim)
    rows = 0 if few == many else crossing(target, few, many, sizes, terms, cold)
    if rows and rows <= sizes[0]:  # no clear winner for a token after all
        few, rows = many, 0
    return Choice(few, many, rows, sizes, told)


def decide(raced: Sequence[Raced], aim: str) -> tuple[str, str]:
    """The way for a token and the one for a prompt, from what was raced; the first is dense."""
    dense = raced[0]
    usable = [r for r in raced[1:] if r.shares]
    if aim == "memory":
        most = dense.bytes
        best = _best(
            [r for r in usable if r.bytes < most or (r.bytes == most and r.shares[0] < MARGIN)], 0, dense
        )
        return best.way, best.way
    few = _best([r for r in usable if r.shares[0] < MARGIN], 0, dense)
    many = _best([r for r in usable if r.shares[-1] < MARGIN], -1, dense)
    if few.shares[-1] <= 1.0 and many.shares[-1] > SECOND * few.shares[-1]:
        many = few
    return few.way, many.way


def _best(ways: Sequence[Raced], at: int, other: Raced) -> Raced:
    """The fastest at this size; of those as good as it, one that no prompt needs dense for, and then the smallest."""
    if not ways:
        return other
    fastest = min(one.shares[at] for one in ways)
    near = [one for one in ways if one.shares[at] <= NEAR * fastest]
    return min(near, key=lambda one: (one.shares[-1] > 1.0, one.bytes))


def crossing(
    target: Target, few: str, many: str, sizes: tuple[int, int], terms: Terms, cold: int = COLD
) -> int:
    """From how many rows of x on `many` is the faster: raced at powers of 4 down from the prompt's, a line between."""
    one, other = (build(target, way, terms.group) for way in (few, many))
    low, high = sizes
    at, above = high, 0.0
    for size in (high, *(s for s in (256, 64, 16, 4) if low < s < high), low):
        first, second = race(one, other, _x(target.weight, size), cold, terms.inside)
        gap = first - second
        if gap <= 0:
            return at if above <= 0 else size + math.ceil((at - size) * -gap / (above - gap))
        at, above = size, gap
    return at


def race(
    one: nn.Module, other: nn.Module, x: Tensor, cold: int = COLD, inside: bool = False
) -> tuple[float, float]:
    """Seconds a call of each, the quickest of turns taken in turn: what else runs here only ever adds.

    Args:
        inside: see `Terms`.
    """
    modules = [one, other]
    if inside and x.shape[1] == 1:
        rows, columns = one.out_features, one.in_features
        modules.append(sliver(rows, columns, 0))  # type: ignore[arg-type]
    with torch.inference_mode():
        runners = [Runner(module, x, cold) for module in modules]
        slow = max(runner.seconds for runner in runners) >= 0.02
        times: list[list[float]] = [[] for _ in runners]
        for _ in range(ROUNDS[slow]):
            for runner, kept in zip(runners, times, strict=True):
                kept.append(runner.turn())
    least = [min(kept) for kept in times]
    if len(least) == 2:
        return least[0], least[1]
    first, second = (
        max(time - least[2], LEAST) if isinstance(module, PackedLinear) else time + HELD * least[2]
        for time, module in zip(least, (one, other), strict=False)
    )
    return first, second


class Runner:
    """Calls one module after the other on x; `seconds` is a first, rough time of a call."""

    def __init__(self, module: nn.Module, x: Tensor, cold: int) -> None:
        count = min(cold // max(bytes_of(module), 1), COPIES)
        copies = [module, *(copy.deepcopy(module) for _ in range(count))]
        for one in copies:
            settle(one)  # as it will lie; what it shares with dense is its own from now on
        self.x, self.next = x, itertools.cycle([one.forward for one in copies])
        for one in copies:
            one.forward(x)
        self.count = 1
        self.seconds = self.turn()
        self.count = max(1, min(500, round(SLICE / max(self.seconds, 1e-7))))

    def turn(self) -> float:
        start = clock()
        for _ in range(self.count):
            next(self.next)(self.x)
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        return (clock() - start) / self.count


def _x(weight: Tensor, rows: int) -> Tensor:
    """Any input of the shape that decoding has, [1, rows, columns]; like those of language models with one very large
    entry, for which kernels for whole numbers take more steps (kernels/whole.h)."""
    x = torch.randn(1, rows, weight.shape[1], generator=torch.Generator().manual_seed(rows))
    x[..., :1] = 40
    return x.to(weight.device, weight.dtype)


# --- what was chosen before -----------------------------------------------------------------------------------------


class Cache:
    """Choices made on this machine before, in a JSON of the cache folder; what cannot be read is as if not there."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / CACHE
        self.known = _read(self.path)
        self.machine = machine()

    def key(self, target: Target, pattern: Pattern, sizes: tuple[int, int], terms: Terms, cold: int) -> str:
        """Everything a choice depends on; density to the nearest twentieth."""
        weight = target.weight
        layer = {
            "shape": list(weight.shape),
            "dtype": str(weight.dtype),
            "device": _device(weight.device),
            "bias": target.bias is not None,
            "density": round(20 * pattern.density) / 20,
            "pattern": [pattern.n, *pattern.tiles],
        }
        asked = {**asdict(terms), "sizes": list(sizes), "cold": cold, "threads": torch.get_num_threads()}
        return json.dumps([VERSION, self.machine, layer, asked], sort_keys=True)

    def find(self, key: str) -> Choice | None:
        found = self.known.get(key)
        return None if found is None else _choice(found)

    def keep(self, made: dict[str, Choice]) -> None:
        """Add to what other processes may have written meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = {key: asdict(choice) for key, choice in made.items()}
        write_atomic(self.path, json.dumps(_read(self.path) | fresh, indent=1))


def machine() -> dict[str, Any]:
    """What the times of this machine depend on, besides the number of threads."""
    return {
        "cpu": _cpu(),
        "kernels": [library.digest(), library.features()["path"]],
        "torch": torch.__version__,
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cpu() -> list[str]:
    wanted = ("model name", "cpu family", "model", "stepping", "cache size")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return [platform.machine(), platform.processor()]
    facts = dict(part.split(":", 1) for part in lines.splitlines() if ":" in part)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    return [platform.machine(), *(named.get(key, "") for key in wanted)]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _choice(found: Any) -> Choice | None:
    """A choice from its JSON, or None if somebody has been at it."""
    try:
        raced = tuple(
            Raced(**{**one, "shares": tuple(one["shares"]), "seconds": tuple(one["seconds"])})
            for one in found["raced"]
        )
        made = Choice(found["few"], found["many"], int(found["rows"]), tuple(found["sizes"]), raced, True)
        return made if {made.few, made.many} <= {one.way for one in raced} else None
    except (KeyError, TypeError, ValueError):
        return None
