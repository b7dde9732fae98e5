"""sweep: quality at every sparsity of a grid, each cut made on the dense weights, and where the curve breaks down.

The knee is read off the mean loss, not the perplexity, whose last points drown all others (see evaluate/knee.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.core.budget import parse_fraction
from secateur.core.method import OneShot
from secateur.core.select import NM, check_sparsity
from secateur.engine.calibrate import Calibration
from secateur.errors import BadInput
from secateur.evaluate.bench import Bench
from secateur.evaluate.compare import measures
from secateur.evaluate.knee import RULES, knee
from secateur.evaluate.results import Row, check_page
from secateur.evaluate.terms import Terms, finish
from secateur.io.store import Model, as_loaded
from secateur.registry import name_of, one_shot

Knees = dict[str, float | None]
GRID = "0.1:0.9:0.1"


def sweep(
    model: Model,
    method: OneShot | str,
    grid: str | Sequence[float] = GRID,
    *,
    patterns: Sequence[str] = (),
    seed: int = 0,
    terms: Terms | None = None,
    out: str | Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """One method at every sparsity of `grid`, or every one of `patterns` ("2:4", ...), and where quality breaks down.

    Args:
        grid: as `read_grid` takes it, or sparsities.
        seed: of the calibration windows.

    Returns:
        results.json as a dict; its "knee" holds the sparsity of each of three rules (evaluate/knee.py), or None. With
        `out`, tables and page are written there.
    """
    points = sweep_points(one_shot(method), grid, patterns)
    if out is not None:
        check_page()
    terms = terms or Terms()
    loaded = as_loaded(model, tell=terms.loading(model))
    bench = terms.bench(loaded)
    drawn = terms.calibrate(loaded)(seed) if measures(points[0]) else None
    rows, found = sweep_rows(bench, points, drawn, seed)
    name = name_of(points[0])
    return finish(
        rows,
        bench,
        loaded,
        title=f"{name} swept",
        command=command,
        calibration=drawn.source if drawn else "",
        out=out,
        knee={name: found},
    )


def sweep_points(method: OneShot, grid: str | Sequence[float], patterns: Sequence[str] = ()) -> list[OneShot]:
    """The method once for each pattern, or once for each sparsity of the grid; sparsities rising.

    Raises:
        BadInput: fewer than two points, or a grid for a method whose pattern fixes the sparsity.
    """
    if patterns:
        made = [replace(method, pattern=pattern, sparsity=None) for pattern in patterns]
        made.sort(key=lambda m: m.pattern.sparsity if isinstance(m.pattern, NM) else float(m.sparsity))  # type: ignore[arg-type]
    elif isinstance(method.pattern, NM):
        raise BadInput(
            f"{method.pattern} has one sparsity", where="grid", fix="pass --patterns, as 1:2,2:4,3:4"
        )
    else:
        numbers = read_grid(grid) if isinstance(grid, str) else sorted(set(grid) - {0.0})
        made = [replace(method, sparsity=number) for number in numbers]
    if len(made) < 2:
        raise BadInput(f"{len(made)} points", where="sweep", fix="give two or more, as --grid 0.1:0.9:0.1")
    return made


def sweep_rows(
    bench: Bench, points: Sequence[OneShot], calibration: Calibration | None = None, seed: int | None = None
) -> tuple[list[Row], Knees]:
    """Measure the dense model and every point.

    Args:
        points: one method in several amounts or patterns (see `sweep_points`).
        seed: of the calibration, for the rows.

    Returns:
        The rows, dense first and sparsities rising, and the knee by each rule (None: no knee).

    Raises:
        BadInput: fewer than two points, or nothing to judge quality by.
    """
    if len(points) < 2:
        raise BadInput(
            f"{len(points)} points", where="sweep", fix="give a grid of at least two, as 0.1:0.9:0.1"
        )
    if bench.text is None:
        raise BadInput("no text to measure quality on", where="sweep", fix="pass --text")
    rows = [bench.dense()]
    rows += [bench.cut(point, calibration, seed=seed) for point in points]
    return rows, knees(rows)


def knees(rows: Sequence[Row]) -> Knees:
    """The knee by every rule, from the rows' measured sparsity and mean loss; points of one sparsity count once."""
    curve = {
        row["sparsity"]: math.log(row["metrics"]["perplexity"])
        for row in sorted(rows, key=lambda row: row["sparsity"])
        if math.isfinite(row["metrics"]["perplexity"])
    }
    if len(curve) < 3:
        return {}
    return {rule: knee(list(curve), list(curve.values()), rule, higher_is_better=False) for rule in RULES}


def read_grid(text: str) -> list[float]:
    """'0:0.9:0.1' (both ends included) or '0.1,0.5,70%' to sparsities, rising; 0 is the dense model and is left out.

    >>> read_grid("0:0.4:0.2")
    [0.2, 0.4]

    Raises:
        BadInput: not numbers, a step that is not above 0, or a sparsity outside [0, 1).
    """
    parts = text.split(":") if ":" in text else text.split(",")
    numbers = [float(parse_fraction(part.strip())) for part in parts]
    if ":" in text:
        if (
            len(numbers) != 3
            or not all(map(math.isfinite, numbers))
            or numbers[2] <= 0
            or numbers[1] < numbers[0]
        ):
            raise BadInput(f"{text!r} is no grid", where="grid", fix="write start:stop:step, as 0:0.9:0.1")
        start, stop, step = numbers
        count = min(math.floor((stop - start) / step + 1e-9), 10_000)
        numbers = [round(start + i * step, 10) for i in range(count + 1)]
    return sorted({check_sparsity(number, "grid") for number in numbers} - {0.0})
