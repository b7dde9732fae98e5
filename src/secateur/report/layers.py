"""Names of sites as a grid: depth downwards, the kinds of linear layer across, whatever the architecture calls them.

`model.layers.3.self_attn.q_proj` lies in row "3", column "q". Experts of one block share a column and are averaged by
their size; sites outside the repeated blocks (an output head) stand apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report.groups import Group
from secateur.report.words import percent, plain

_STAGES = re.compile(r"(^|_)(layers?|h|blocks?|resblocks|stages?|stage_list|units)$")
_EXPERTS = re.compile(r"experts?$")


@dataclass(frozen=True)
class Cell:
    """One site, or the experts of one block: its figure, and the words shown on hovering."""

    value: float
    tip: str


@dataclass(frozen=True)
class Grid:
    """A figure of each site by block and kind; `outside` holds the sites that lie in no block."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], Cell]
    outside: tuple[tuple[str, Cell], ...]

    @property
    def values(self) -> list[float]:
        """All finite figures of the grid."""
        return [cell.value for cell in self.cells.values() if math.isfinite(cell.value)]


def place(name: str) -> tuple[tuple[int, ...], str]:
    """(indices of the block, path inside it); no indices for a site outside the blocks.

    >>> place("model.layers.3.self_attn.q_proj")
    ((3,), 'self_attn.q_proj')
    >>> place("encoder.stages.0.layers.1.pwconv1")
    ((0, 1), 'pwconv1')
    >>> place("layers.2.moe.experts.5.w1")
    ((2,), 'moe.experts.*.w1')
    """
    parts = name.split(".")
    last, indices = -1, []
    for at, part in enumerate(parts):
        if part.isdigit() and at and _STAGES.search(parts[at - 1]):
            indices.append(int(part[:9]))
            last = at
    if not indices:
        found = next((at for at, part in enumerate(parts[:-1]) if part.isdigit()), -1)
        if found >= 0 and not _EXPERTS.search(parts[found - 1]):
            indices, last = [int(parts[found][:9])], found
    rest = parts[last + 1 :]
    merged = [
        "*" if part.isdigit() and at and _EXPERTS.search(rest[at - 1]) else part
        for at, part in enumerate(rest)
    ]
    return tuple(indices), ".".join(merged) or name


def short_columns(paths: Sequence[str]) -> list[str]:
    """The shortest endings that tell the paths apart, without what they all share at the end (`_proj`).

    >>> short_columns(["self_attn.q_proj", "mlp.up_proj"])
    ['q', 'up']
    """
    names = list(paths)
    for index, path in enumerate(paths):
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            names[index] = ".".join(parts[-length:])
            ends = [other for other in paths if ("." + other).endswith("." + names[index])]
            if len(ends) == 1 and not parts[-length].isdigit():
                break
    if len(names) > 1 and all(name.endswith("_proj") and len(name) > 5 for name in names):
        names = [name.removesuffix("_proj") for name in names]
    return names


def _tip(name: str, field: str, value: float, shape: Any, count: int, seeds: int) -> str:
    words = [name]
    if shape:
        words.append(" × ".join(str(side) for side in shape))
    words.append(f"{percent(value)} cut" if field == "sparsity" else f"output error {plain(value)}")
    if count > 1:
        words.append(f"mean of {count} experts")
    if seeds > 1:
        words.append(f"mean of {seeds} seeds")
    return ", ".join(words)


def _size(layer: dict[str, Any]) -> float:
    return float(math.prod(layer.get("shape") or [1]))


def grid(group: Group, field: str) -> Grid | None:
    """The figure `field` ("sparsity" or "error") of every site, mean over seeds; None where no site reports it."""
    found: dict[tuple[tuple[int, ...], str], list[dict[str, Any]]] = {}
    for row in group.rows:
        for layer in row.get("layers") or []:
            if layer.get(field) is not None:
                found.setdefault(place(layer["name"]), []).append(layer)
    if not found:
        return None
    seeds = sum(1 for row in group.rows if row.get("layers"))
    blocks = sorted({indices for indices, _ in found if indices})
    kinds = list(dict.fromkeys(path for indices, path in found if indices))
    cells, outside = {}, []
    for (indices, path), layers in found.items():
        weights = [_size(layer) for layer in layers]
        value = sum(w * float(layer[field]) for w, layer in zip(weights, layers, strict=True)) / (
            sum(weights) or 1.0
        )
        experts = max(1, len({layer["name"] for layer in layers}))
        name = layers[0]["name"] if experts == 1 else ".".join([*map(str, indices), path])
        cell = Cell(value, _tip(name, field, value, layers[0].get("shape"), experts, seeds))
        if indices:
            cells[blocks.index(indices), kinds.index(path)] = cell
        else:
            outside.append((name, cell))
    rows = tuple(".".join(map(str, indices)) for indices in blocks)
    return Grid(rows, tuple(short_columns(kinds)), cells, tuple(outside))


def domain(grids: Sequence[Grid], field: str) -> tuple[float, float]:
    """The range of figures that one scale of shades covers, shared by all grids of a field.

    Sparsity: tens of a percent around what is there, at least 20 points wide. Error: from zero to the largest.
    """
    values = [value for one in grids for value in one.values]
    if not values:
        return 0.0, 1.0
    if field == "error":
        return 0.0, max(values) or 1.0
    low, high = math.floor(min(values) * 10 + 1e-6) / 10, math.ceil(max(values) * 10 - 1e-6) / 10
    if high - low < 0.2:
        low, high = max(0.0, low - 0.1), min(1.0, max(high, low) + 0.1)
    return low, high


def words_for(one: Grid, field: str) -> str:
    """A grid in one sentence, for who cannot see it: lowest, highest, and whether all are alike."""
    values = one.values
    if not values:
        return "Not finite."
    show = percent if field == "sparsity" else plain
    low, high = min(values), max(values)
    if show(low) == show(high):
        return f"All {len(values)} at {show(low)}."
    least = min(one.cells.items(), key=lambda item: item[1].value)[0]
    most = max(one.cells.items(), key=lambda item: item[1].value)[0]
    where = [f"block {one.rows[row]} {one.columns[column]}" for row, column in (least, most)]
    return f"From {show(low)} ({where[0]}) to {show(high)} ({where[1]})."
