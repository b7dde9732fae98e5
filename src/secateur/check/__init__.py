"""check_method: the public battery. What every method in this library passes, and yours can too.

    from secateur.check import check_method
    for result in check_method(MyMethod):        # a registered name, or any subclass of OneShot
        print(result)

Each check is a small function named for what it asks, taking a `Probe` (probe.py): a tiny model and data in plain
torch. They stand in inputs.py (what is refused), decisions.py (what is cut) and models.py (what happens to the model),
and in training.py for methods that cut while a network trains.
A check that does not apply says why (`skipped`). What a method claims beyond the common duties is its class's `claims`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from secateur.apply.training import Training
from secateur.check import decisions, inputs, models, training
from secateur.check.probe import Oracle, Probe, Skip
from secateur.core.method import OneShot
from secateur.errors import NoMatch, nearest
from secateur.registry import find

__all__ = ["CheckResult", "Probe", "Skip", "check_method", "checks"]


@dataclass(frozen=True)
class CheckResult:
    """What one check found: `detail` is the reason of a skip, or what was wrong."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status != "failed"

    def __str__(self) -> str:
        return f"{self.status:8} {self.name}" + (f": {self.detail}" if self.detail else "")


Check = Callable[[Any], None]
_CHECKS: dict[str, Check] = {f.__name__: f for f in (*inputs.CHECKS, *decisions.CHECKS, *models.CHECKS)}
_TRAINING: dict[str, Check] = {f.__name__: f for f in training.CHECKS}


def checks(while_training: bool = False) -> dict[str, str]:
    """Every check's name, and what it asks in one line; those of methods that cut while a network trains on request.

    >>> checks()["undo"]
    'Undo gives back every bit, after every feed.'
    """
    return {
        name: (function.__doc__ or "").strip().splitlines()[0]
        for name, function in (_TRAINING if while_training else _CHECKS).items()
    }


def check_method(
    method: str | type[OneShot] | type[Training],
    *,
    only: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    oracle: Oracle | None = None,
) -> list[CheckResult]:
    """Run the battery on one method.

    Args:
        method: a registered name, or a subclass of `OneShot` or `Training` (yours need not be registered).
        only: names of the checks to run (see `checks()`); all if None.
        settings: settings without which the class cannot be made, or with which it should be tried.
        oracle: slow and plainly right: (method, weight, x, samples, bias, sparsity) -> keep, or (keep, new weight).

    Raises:
        NoMatch: no such method or check. A check that fails raises nothing: its result says so.

    >>> from secateur.methods.weights.magnitude import Magnitude
    >>> class Largest(Magnitude):                       # a method of your own
    ...     def score(self, weight, signal, site):
    ...         return -weight.abs().float()
    >>> [str(r) for r in check_method(Largest, only=["exact_counts", "nested", "undo"])]
    ['passed   exact_counts', 'passed   nested', 'passed   undo']
    """
    cls: Any = find(method) if isinstance(method, str) else method
    trains = isinstance(cls, type) and issubclass(cls, Training)
    table = _TRAINING if trains else _CHECKS
    for name in only or ():
        if name not in table:
            raise NoMatch(f"no check {name!r}", where="check_method", fix=nearest(name, table))
    probe: Any = training.TrainingProbe(cls, settings) if trains else Probe(method, settings, oracle)  # type: ignore[arg-type]
    results = []
    for name in table if only is None else only:
        start = time.perf_counter()
        status: Literal["passed", "failed", "skipped"] = "passed"
        detail, threads = "", torch.get_num_threads()
        try:
            table[name](probe)
        except Skip as reason:
            status, detail = "skipped", str(reason)
        except Exception as error:  # whatever a check meets is its finding
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            status, detail = "failed", f"{kind}{error}"
        finally:
            torch.set_num_threads(threads)
        results.append(CheckResult(name, status, detail, time.perf_counter() - start))
    return results
