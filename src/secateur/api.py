"""The public functions, which do in Python what the commands do.

Wherever a model is asked for, a name (embedded, folder, .gguf, hub), what `load` gave or any torch.nn.Module will do;
wherever a method is asked for, a configured one (`Wanda(sparsity=0.5)`) or a registered name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur import registry
from secateur.apply.mask import apply as apply_mask
from secateur.apply.undo import Undo
from secateur.core.method import OneShot
from secateur.core.plan import Plan
from secateur.engine import run, workers
from secateur.engine.calibrate import Calibration
from secateur.engine.calibrate import calibration as draw_calibration
from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput, NoMatch, nearest
from secateur.evaluate.compare import compare, measures
from secateur.evaluate.measure import evaluate
from secateur.evaluate.perplexity import vocabulary_size
from secateur.evaluate.sweep import sweep
from secateur.evaluate.terms import Terms
from secateur.io import hub
from secateur.io.plans import load_plan
from secateur.io.store import Model, as_loaded, check_out, load, save
from secateur.registry import one_shot

__all__ = [
    "Result",
    "Terms",
    "apply",
    "compare",
    "compress",
    "evaluate",
    "list_methods",
    "load",
    "plan",
    "save",
    "sweep",
]


@dataclass
class Result:
    """What a cut gives back: the plan, the cut model (None after streaming), the folder if one was written, seconds."""

    plan: Plan
    model: nn.Module | None = None
    tokenizer: Any = None
    folder: Path | None = None
    seconds: float = 0.0
    _undo: Undo = field(default_factory=Undo, repr=False)

    def undo(self) -> None:
        """Put the dense weights back into the model (after `undo=False` there is nothing to put back)."""
        self._undo.undo()


@dataclass(frozen=True)
class Draw:
    """How calibration windows are drawn from text (engine/calibrate.py)."""

    samples: int
    length: int
    seed: int
    field: str

    def __call__(
        self, method: OneShot, source: Any, tokenizer: Any, vocabulary: int | None
    ) -> Calibration | None:
        """The calibration set, for a method that looks at one."""
        if source is None or not measures(method):
            return None
        how = {"samples": self.samples, "length": self.length, "seed": self.seed, "field": self.field}
        return draw_calibration(source, tokenizer, vocab_size=vocabulary, **how)


def compress(
    model: Model,
    method: OneShot | str,
    calibration: Any = None,
    *,
    out: str | Path | None = None,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    field: str = "text",
    feed: str = "auto",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    batch: int = 1,
    products: str = "auto",
    tokenizer: Any = None,
    dtype: str = "auto",
    undo: bool = True,
    listen: Listener = silent,
    format: str = "dense",
    max_shard: int | None = None,
    overwrite: bool = False,
    stream: bool = False,
    resume: bool = False,
) -> Result:
    """Cut a model and, with `out`, write it.

    Args:
        model: a module is changed in place; an exception leaves it as it was.
        calibration: text, ids, samples or a Calibration (engine/calibrate.py); for a model by name, the embedded text.
        samples, length, seed, field: how windows are drawn from text.   tokenizer: for text, with a bare module.
        feed, only, skip, batch, products, undo, listen: see secateur.engine.run.Options.   dtype: of a model by name.
        out, format, max_shard, overwrite: see `save`.
        stream, resume: from folder to folder, one block in memory at a time; `resume` goes on after a kill.

    Raises:
        BadInput, NoMatch, Infeasible, Unsupported, Damaged, Locked: one line; model and `out` are as they were.
    """
    chosen = one_shot(method)
    options = run.Options(feed, only, skip, batch, products, undo, listen)  # type: ignore[arg-type]
    draw = Draw(samples, length, seed, field)
    if out is not None:
        check_out(out, overwrite, format)
    if stream or resume:
        if out is None or not isinstance(model, str | Path) or max_shard is not None or dtype != "auto":
            raise BadInput(
                "streaming keeps a folder's shards and dtype", where="stream", fix="name model and out"
            )
        return _stream(str(model), Path(out), chosen, calibration, draw, options, resume, format)
    loaded = as_loaded(model, tokenizer, dtype, lambda done: listen(Event("load", done, 1, str(model))))
    if calibration is None and not isinstance(model, nn.Module):
        calibration = "embedded"
    drawn = draw(chosen, calibration, loaded.tokenizer, vocabulary_size(loaded.model))
    found = run.compress(loaded.model, chosen, drawn, options)
    result = Result(found.plan, found.model, loaded.tokenizer, None, found.seconds, found.undo)
    if out is not None and workers.rank() == 0:
        listen(Event("save", 0, 1, str(out)))
        result.folder = _write(result, out, loaded.folder, format, max_shard, overwrite)
        listen(Event("save", 1, 1, str(out)))
    return result


def plan(
    model: Model,
    method: OneShot | str,
    calibration: Any = None,
    *,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    field: str = "text",
    feed: str = "auto",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    batch: int = 1,
    products: str = "auto",
    tokenizer: Any = None,
    listen: Listener = silent,
) -> Plan:
    """What `compress` would cut, with the model left as it was. Arguments and errors as there."""
    result = compress(
        model,
        method,
        calibration,
        samples=samples,
        length=length,
        seed=seed,
        field=field,
        feed=feed,
        only=only,
        skip=skip,
        batch=batch,
        products=products,
        tokenizer=tokenizer,
        listen=listen,
    )
    result.undo()
    return result.plan


def apply(
    plan: Plan | str | Path,
    model: Model,
    *,
    out: str | Path | None = None,
    masks_only: bool = False,
    format: str = "dense",
    max_shard: int | None = None,
    overwrite: bool = False,
) -> Result:
    """Zero in a model what a plan, or a plan file, cuts; with `out`, write it.

    Raises:
        BadInput: the plan is of a method that also updates weights, and `masks_only` was not given.
        NoMatch, BadInput: the plan is for another model.   Damaged: the plan file is.
    """
    start = time.perf_counter()
    if out is not None:
        check_out(out, overwrite, format)
    chosen = plan if isinstance(plan, Plan) else load_plan(plan)
    loaded = as_loaded(model)
    undo = apply_mask(loaded.model, chosen, masks_only=masks_only)
    result = Result(chosen, loaded.model, loaded.tokenizer, None, time.perf_counter() - start, undo)
    if out is not None:
        result.folder = _write(result, out, loaded.folder, format, max_shard, overwrite)
    return result


def list_methods(
    unit: str | None = None, when: str | None = None, needs: str | None = None, purpose: str | None = None
) -> list[dict[str, Any]]:
    """The registered methods and where each stands; filtered by what is given.

    Returns:
        name, unit, when, purpose, needs, updates, criterion, paper, what (one line each).

    Raises:
        NoMatch: no method has that unit, moment, need or purpose; the known ones are named.
    """
    rows: list[dict[str, Any]] = []
    for name in registry.names():
        cls = registry.find(name)
        reads: Any = getattr(cls, "needs", None)
        rows.append(
            {
                "name": name,
                "unit": str(cls.card.unit),
                "when": cls.card.when,
                "purpose": cls.card.purpose,
                "needs": reads.__name__ if reads is not None else "nothing",
                "updates": getattr(cls, "updates", True),
                "criterion": cls.card.criterion,
                "paper": cls.card.paper,
                "what": (sys.modules[cls.__module__].__doc__ or "")
                .partition("\n")[0]
                .partition(":")[2]
                .strip(),
            }
        )
    wished = {"unit": unit, "when": when, "needs": needs, "purpose": purpose}
    for key, wanted in {key: value for key, value in wished.items() if value is not None}.items():
        known = sorted({row[key] for row in rows})
        if wanted.lower() not in [value.lower() for value in known]:
            raise NoMatch(f"no method has {key} {wanted!r}", where="list", fix=nearest(wanted, known))
        rows = [row for row in rows if row[key].lower() == wanted.lower()]
    return rows


def _write(
    result: Result, out: str | Path, source: Path | None, format: str, max_shard: int | None, overwrite: bool
) -> Path:
    assert result.model is not None
    return save(
        result.model,
        out,
        tokenizer=result.tokenizer,
        plan=result.plan,
        source=source,
        format=format,
        max_shard=max_shard,
        overwrite=overwrite,
    )


def _stream(
    model: str,
    out: Path,
    method: OneShot,
    source: Any,
    draw: Draw,
    options: run.Options,
    resume: bool,
    format: str,
) -> Result:
    from secateur.engine.stream import stream

    start = time.perf_counter()
    folder = hub.resolve_folder(model)
    tokenizer = hub.load_tokenizer(folder)
    drawn = draw(method, "embedded" if source is None else source, tokenizer, None)
    made = stream(folder, out, method, drawn, options, resume=resume, format=format)
    return Result(made, None, tokenizer, out, time.perf_counter() - start)
