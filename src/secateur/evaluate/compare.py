"""compare: several methods on equal terms: the same dense weights, calibration tokens and evaluation tokens for all.

One row for the dense model, then one a method and seed. A seed decides the calibration windows (and the draw of a
method that draws); a method that neither measures nor draws is run once, since every seed gives the same cut.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateur.core.method import OneShot
from secateur.errors import BadInput
from secateur.evaluate.bench import Bench, Keep, label
from secateur.evaluate.results import Row, check_page
from secateur.evaluate.terms import Calibrate, Terms, finish
from secateur.io.store import Model, as_loaded, save
from secateur.registry import one_shot


def compare(
    model: Model,
    methods: Sequence[OneShot | str],
    *,
    seeds: Sequence[int] = (0,),
    terms: Terms | None = None,
    out: str | Path | None = None,
    save_models: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Several methods on equal terms: results.json as a dict. With `out`, tables and page are written there.

    Args:
        save_models: also write every cut model as a checkpoint folder under `out`.
        command: what the page says made it.

    Raises:
        BadInput: no method, two methods that are the same, or a seed given twice; and all that cutting raises.
    """
    chosen = [one_shot(method) for method in methods]
    _check(chosen, seeds)
    if out is not None:
        check_page()
    terms = terms or Terms()
    loaded = as_loaded(model, tell=terms.loading(model))
    bench, calibrate = terms.bench(loaded), terms.calibrate(loaded)

    def keep(name: str, seed: int) -> Keep:
        folder = Path(out or ".") / re.sub(r"[^\w.-]+", "-", f"{name}-seed{seed}".replace("%", ""))
        return lambda found, row: save(
            loaded.model, folder, tokenizer=loaded.tokenizer, plan=found, source=loaded.folder, overwrite=True
        )

    rows = compare_rows(bench, chosen, calibrate, seeds, keep if save_models and out is not None else None)
    used = calibrate(seeds[0]).source if any(map(measures, chosen)) else ""
    if len(seeds) > 1:
        used = used.replace(f"seed {seeds[0]}", f"seeds {', '.join(map(str, seeds))}")
    title = f"{len(chosen)} methods on equal terms" if len(chosen) > 1 else label(chosen[0])
    return finish(rows, bench, loaded, title=title, command=command, calibration=used, out=out)


def compare_rows(
    bench: Bench,
    methods: Sequence[OneShot],
    calibrate: Calibrate | None = None,
    seeds: Sequence[int] = (0,),
    keep: Callable[[str, int], Keep] | None = None,
) -> list[Row]:
    """Rows of results.json, dense first.

    Args:
        calibrate: the calibration set of a seed; asked once a seed, and shared by all methods.
        keep: for a row's name and seed, what saves the cut model (see `Bench.cut`).
    """
    names = [label(method) for method in methods]
    drawn = {seed: calibrate(seed) for seed in seeds} if calibrate and any(map(measures, methods)) else {}
    rows = [bench.dense()]
    for name, method in zip(names, methods, strict=True):
        for seed in seeds if measures(method) or draws(method) else seeds[:1]:
            seeded = dataclasses.replace(method, seed=seed) if draws(method) else method  # type: ignore[call-arg]
            how = keep(name, seed) if keep else None
            rows.append(bench.cut(seeded, drawn.get(seed), name=name, seed=seed, keep=how))
    return rows


def _check(methods: Sequence[OneShot], seeds: Sequence[int]) -> None:
    if not methods or not seeds:
        raise BadInput("nothing to compare", where="compare", fix="name at least one method and one seed")
    names = [label(method) for method in methods]
    for kind, listed in (("method", names), ("seed", [str(seed) for seed in seeds])):
        twice = next((item for item in listed if listed.count(item) > 1), None)
        if twice is not None:
            raise BadInput(f"{kind} {twice} is given twice", where="compare", fix="give each one once")


def measures(method: OneShot) -> bool:
    """Whether the method looks at calibration data."""
    return method.needs is not None or method.allocate == "owl"


def draws(method: OneShot) -> bool:
    """Whether the method draws random numbers."""
    return any(field.name == "seed" for field in dataclasses.fields(method))
