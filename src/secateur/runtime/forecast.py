"""What cutting or rounding a model would gain on this machine, before anything is cut: bytes, tokens a second, prompt.

    seconds of a token = what is not weights + sum over the linear layers of a kernel's seconds for that shape

Both are measured here and now. The kernels run on random weights of the model's own shapes (runtime/probes.py). What is
not weights (attention, norms, the
choice of a token, Python) is the model's own loop with its linear layers replaced (runtime/stubs.py). Where the kernels
run whole layers: by matrices of which a quarter is kept, and each kernel counts with what it takes longer than such a
matrix; the quarter is there because weights push the rest's data and code out of the caches, and slow it down. Else
by stubs that give back zeros and read memory as int8 weights would; the seconds of that reading are taken off. What
is multiplied is what the layers multiply in the model as it is: x with a few very large entries, as language models
have them, takes kernels for whole numbers longer. Nothing is said about quality.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import Unsupported
from secateur.runtime import library
from secateur.runtime.accelerate import model_bytes
from secateur.runtime.linear import VALUES
from secateur.runtime.native import suits
from secateur.runtime.pace import Pace, pace
from secateur.runtime.probes import KEPT, Case, Layer, Probe, noise, probes
from secateur.runtime.stubs import inputs, stubs, thin
from secateur.runtime.ways import Target, group_of, targets
from secateur.sites.find import find_blocks

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Native:
    """Seconds of a token in the kernels, with matrices that keep nothing and with such that keep KEPT."""

    bare: float
    thin: float


@dataclass(frozen=True)
class Row:
    """A forecast: bytes of the whole model, seconds of a token and of the prompt, and by what share they may be off."""

    name: str
    plain: bool
    bytes: int
    token: float
    prompt: float
    spread: float

    @property
    def rate(self) -> float:
        return 1 / self.token


@dataclass
class Forecast:
    """`rows`, the first as the model is; `other`: seconds of a token and a prompt that are not weights; `packed`: of a
    token where all layers are packed and the kernels run them whole, else None."""

    rows: list[Row]
    other: tuple[float, float]
    packed: float | None
    bandwidth: float
    threads: int
    length: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> list[str]:
        """For each cut, whether plain rounding of at most the same bytes would be as fast."""
        return verdicts(self.rows)


def forecast(
    model: nn.Module,
    *,
    prompt: int = 128,
    chosen: Sequence[Case] | None = None,
    cut: Collection[str] | None = None,
    report: Report | None = None,
) -> Forecast:
    """Forecast every case for a causal language model in evaluation mode, which is left as it was.

    Args:
        prompt: tokens of the prompt; also how far back attention looks.
        chosen: the cases; None: `cases`.   cut: names of the layers that are cut; None: all of the blocks.
        report: called with (done, of, what).

    Raises:
        Unsupported: no language model with a cache, no kernels.   BadInput: a model in training mode.
    """
    start = time.perf_counter()
    told = report or (lambda done, of, what: None)
    if library.load() is None:
        raise Unsupported("no compiled kernels to probe", where="forecast", fix="install with a C compiler")
    found, notes = targets(model)
    if not found:
        raise Unsupported("no Linear or Conv1D to cut", where=type(model).__name__)
    dtype = found[0].weight.dtype
    chosen = cases(str(dtype).removeprefix("torch.")) if chosen is None else chosen
    told(0, len(chosen) + 1, "stubs")
    with stubs(found) as traffic:
        other = pace(model, prompt=prompt, count=24, clock=traffic.clock)
    native = in_kernels(model, found, prompt)
    layers = layers_of(model, found, cut, inputs(model, found))
    base = model_bytes(model) - sum(
        layer.count * layer.rows * layer.columns * dtype.itemsize for layer in layers if not layer.tied
    )
    rows, random = [], noise(layers)
    for at, case in enumerate(chosen):
        told(at + 1, len(chosen) + 1, case.name)
        why = misfit(case, layers)
        if why:
            notes.append(f"{case.name} is left out: {why}")
            continue
        whole = None if "torch" in (case.kind, case.uncut) else native
        probed = probes(case, layers, dtype, other.length, random)
        rows.append(_row(case, layers, probed, dtype, base, other, whole))
    speed = library.bandwidth(64, 3)
    return Forecast(
        rows,
        (other.token, other.prompt),
        None if native is None else native.bare,
        speed,
        torch.get_num_threads(),
        other.length,
        time.perf_counter() - start,
        notes,
    )


def in_kernels(model: nn.Module, found: list[Target], prompt: int) -> Native | None:
    """What a token takes where all layers are packed, or None where the kernels do not run whole layers."""
    if not suits(model):
        return None
    with thin(found, 0):
        bare = pace(model, prompt=prompt, count=16, reread=False)
    if bare.way != "native":
        return None
    with thin(found, KEPT):
        return Native(bare.token, pace(model, prompt=prompt, count=16, reread=False).token)


def cases(dtype: str) -> list[Case]:
    """As the model is first, then plain rounding, then cuts."""
    plain = [Case(f"dense {dtype}, torch", "torch", dtype)]
    if dtype != "bfloat16":
        plain.append(Case("dense bfloat16", "dense", "bfloat16"))
    plain += [Case("dense int8", "dense", "int8"), Case("dense int4", "dense", "int4")]
    cut = [Case("50% bfloat16", "bitmask", "bfloat16", 0.5), Case("50% int8", "bitmask", "int8", 0.5)]
    if dtype == "float32":
        cut.insert(0, Case("50% float32", "bitmask", "float32", 0.5))
    return [
        *plain,
        *cut,
        Case("2:4 bfloat16", "2:4", "bfloat16", 0.5),
        Case("2:4 int8", "2:4", "int8", 0.5),
        Case("70% int8", "bitmask", "int8", 0.7),
        Case("70% 16x1 int8", "16x1", "int8", 0.7),
        Case("30% channels bfloat16", "dense", "bfloat16", channels=0.3),
        Case("30% channels int8", "dense", "int8", channels=0.3),
    ]


def layers_of(
    model: nn.Module,
    found: list[Target],
    cut_ones: Collection[str] | None = None,
    rows_of_x: Mapping[str, Tensor] | None = None,
) -> list[Layer]:
    """The linear layers by shape; of the blocks those are cut that may be (or `cut_ones`), the head is not.

    `rows_of_x`: by the layers' names, what they multiply."""
    sites = cut_ones
    if sites is None:
        sites = {site.name for block in find_blocks(model) for site in block.sites}
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    counts: dict[tuple[Any, ...], int] = {}
    xs: dict[tuple[Any, ...], list[Tensor]] = {}
    for target in found:
        rows, columns = target.weight.shape
        cut = target.name in sites
        side = (
            ""
            if not cut or rows == columns
            else "rows"
            if rows == inner
            else "columns"
            if columns == inner
            else ""
        )
        key = (rows, columns, cut, side, target.tied, target.module is head)
        counts[key] = counts.get(key, 0) + len(target.places)
        xs.setdefault(key, [])
        if rows_of_x is not None and target.name in rows_of_x:
            xs[key].append(rows_of_x[target.name])
    return [
        Layer(rows, columns, counts[key], cut, side, tied, last, xs[key])
        for key in counts
        for rows, columns, cut, side, tied, last in [key]
    ]


def misfit(case: Case, layers: list[Layer]) -> str:
    """Why a case does not go with these shapes."""
    group = group_of(case.values, None)
    for layer in layers:
        columns = layer.columns
        if group and columns % group:
            return f"groups of {group} do not divide {columns} columns"
        if layer.cut and case.kind in ("1:4", "2:4", "3:4", "1x4") and columns % 4:
            return f"{columns} columns do not come in fours"
    if case.channels and not any(layer.inner for layer in layers):
        return "no MLP with an inner width was found"
    return ""


def _row(
    case: Case,
    layers: list[Layer],
    probed: list[Probe],
    dtype: torch.dtype,
    base: int,
    other: Pace,
    native: Native | None,
) -> Row:
    """`native`: where the kernels run whole layers."""
    token, least = (other.token, other.token) if native is None else (native.thin, native.bare)
    prompt = other.prompt
    size, unsure = base, 0.0
    for layer, probe in zip(layers, probed, strict=True):
        if not (layer.tied and dtype == VALUES[case.values]):  # else the embedding's memory serves both
            size += layer.count * probe.bytes
        token += layer.count * (probe.token if native is None else probe.token - probe.call)
        prompt += layer.count * probe.prompt
        unsure += layer.count * probe.spread * probe.token
    token = max(token, least)
    return Row(case.name, case.plain, size, token, prompt, unsure / token)


def verdicts(rows: list[Row]) -> list[str]:
    """One line a cut: beaten by plain rounding of at most 1.02 of its bytes, or by how much it is faster."""
    lines = []
    for row in (row for row in rows if not row.plain):
        rivals = [r for r in rows if r.plain and r.bytes <= 1.02 * row.bytes]
        best = min(rivals, key=lambda r: r.token, default=None)
        if best is None:
            lines.append(f"{row.name}: smaller than every plain rounding")
        elif best.token <= row.token:
            lines.append(
                f"{row.name}: plain {best.name} is as small ({best.bytes / 1e6:.0f} of {row.bytes / 1e6:.0f} MB) "
                f"and faster ({best.rate:.0f} against {row.rate:.0f} tokens a second)"
            )
        else:
            lines.append(
                f"{row.name}: {best.token / row.token:.2f}x the speed of {best.name}, the best plain rounding as small"
            )
    return lines
