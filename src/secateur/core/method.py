"""What a method is. The one table of all of them is secateur/registry.py.

A method is a frozen dataclass: its fields are its settings (and its flags on the command line), checked when it is
made; `score` is the paper's formula. The engine owns everything else: calibration, the walk, hooks, saving, progress.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from secateur.core import allocate
from secateur.core.budget import Budget, parse_fraction
from secateur.core.select import NM, Pattern, PerRow, check_sparsity, parse_pattern
from secateur.core.units import Site, Unit
from secateur.errors import BadInput, nearest

ALLOCATIONS = ("uniform", "er", "erk", "global", "owl")
# What the battery holds a method to unless its class says otherwise: masks of rising sparsity are nested; permuted
# rows or columns of the weights permute the mask; scaled weights keep it.
CLAIMS = ("nested", "rows", "columns", "scale")


@dataclass(frozen=True)
class Card:
    """Where a method stands on the axes of the sparsity vocabulary (sheet sparseland), and where it comes from."""

    paper: str
    unit: Unit
    when: Literal["before", "during", "after"]
    criterion: str
    start: Literal["dense", "sparse"] = "dense"
    topology: Literal["static", "dynamic", "conditional"] = "static"
    purpose: Literal["inference", "training", "robustness"] = "inference"
    retrains: bool = False


@dataclass(frozen=True)
class Cut:
    """What a method decided at one site.

    Attributes:
        keep: bool [out, in], True = kept.
        weight, bias: new values, where the method updates them ([out, in] and [out]); None = unchanged.
        score: what was ranked, for the digest.
        error: relative output error ||(W' - W) X||_F / ||W X||_F, where the signal tells it.
        notes: lines for the report.
        facts: figures by name, for `conclude`.
    """

    keep: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    score: Tensor | None = None
    error: float | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, float] | None = None


def check_kinds(config: Any) -> None:
    """Refuse a setting of the wrong kind in a dataclass: `share="no"` would otherwise count as yes."""
    kinds = {"bool": bool, "int": int, "float": (int, float), "str": str}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        words = (f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "")).split(" | ")
        if value is None and "None" in words:
            continue
        known = [word for word in words if word != "None"]
        if any(word not in kinds for word in known):
            continue
        right = any(isinstance(value, kinds[w]) and isinstance(value, bool) == (w == "bool") for w in known)
        if not right:
            raise BadInput(f"{value!r} is no {' or '.join(known)}", where=f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{value!r} is no finite number", where=f.name)


@dataclass(frozen=True, kw_only=True)
class OneShot(ABC):
    """A method that cuts weights of a trained network once, without gradients.

    Args:
        sparsity: fraction to cut, in [0, 1); "50%" works, so does a `Budget`. Default: what the pattern says, else 0.5.
        pattern: what competes with what: row, column, layer, N:M (N kept of M) or RxC tiles.
        allocate: how the sparsity is split over the sites: uniform, er, erk, global or owl.
        owl_m, owl_lambda: OWL's outlier threshold (times the mean score) and the half-width of its band.
    """

    sparsity: float | str | Budget | None = None
    pattern: str | Pattern = PerRow()
    allocate: str = "uniform"
    owl_m: float = 5.0
    owl_lambda: float = 0.08

    card: ClassVar[Card]
    needs: ClassVar[type | None] = None
    updates: ClassVar[bool] = False
    feed: ClassVar[Literal["block", "layer", "none"]] = "none"
    rounds: ClassVar[bool] = True  # its masks survive calibration products in bfloat16 (docs/quality.md)
    claims: ClassVar[tuple[str, ...]] = CLAIMS

    def __post_init__(self) -> None:
        check_kinds(self)
        pattern = parse_pattern(self.pattern)
        object.__setattr__(self, "pattern", pattern)
        sparsity = parse_fraction(self.sparsity) if isinstance(self.sparsity, str) else self.sparsity
        if isinstance(sparsity, dict):  # a budget that went through JSON
            known = [f.name for f in dataclasses.fields(Budget)]
            for key in sparsity:
                if key not in known:
                    raise BadInput(f"{key!r} is no amount", where="sparsity", fix=nearest(str(key), known))
            sparsity = Budget(**sparsity)
        if isinstance(pattern, NM):
            if sparsity is None:
                sparsity = pattern.sparsity
            if isinstance(sparsity, Budget) or abs(check_sparsity(sparsity) - pattern.sparsity) > 1e-9:
                raise BadInput(
                    f"{pattern} cuts {pattern.sparsity:g}, not {sparsity}",
                    where="sparsity",
                    fix="leave one of the two out",
                )
            if self.allocate != "uniform":
                raise BadInput(
                    f"{pattern} fixes every site's sparsity", where="allocate", fix="use allocate=uniform"
                )
        elif sparsity is None:
            sparsity = 0.5
        if not isinstance(sparsity, Budget):
            sparsity = check_sparsity(sparsity)
        object.__setattr__(self, "sparsity", sparsity)
        if self.allocate not in ALLOCATIONS:
            raise BadInput(
                f"{self.allocate!r} is no allocation",
                where="allocate",
                fix=nearest(self.allocate, ALLOCATIONS),
            )
        if not self.owl_m > 0 or not 0 <= self.owl_lambda < 0.5:
            raise BadInput(
                f"m {self.owl_m}, lambda {self.owl_lambda}", where="owl", fix="m > 0 and 0 <= lambda < 0.5"
            )

    @abstractmethod
    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        """The paper's formula.

        Args:
            weight: [out, in], never changed.
            signal: what `needs` measured at this site, None for a method that needs nothing.
            site: name and shape.

        Returns:
            [out, in], higher = keep.
        """

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        """bool [out, in], True = kept, by this method's pattern."""
        assert not isinstance(self.pattern, str)
        return self.pattern.select(score, sparsity)

    def cut(
        self, weight: Tensor, signal: Any, site: Site, sparsity: float, bias: Tensor | None = None
    ) -> Cut:
        """Decide one site; nothing is changed. A method that updates weights overrides this."""
        score = self.score(weight, signal, site)
        return Cut(keep=self.select(score, sparsity), score=score)

    def conclude(self, facts: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Lines for the report once every site is cut, from the sites' `Cut.facts` in the order of the model."""
        return []

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values."""
        out = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Budget):
                value = {k: v for k, v in dataclasses.asdict(value).items() if v is not None}
            out[f.name] = (
                value if isinstance(value, (int, float, bool, dict)) or value is None else str(value)
            )
        return out


def site_sparsity(method: OneShot, sites: list[Site], sparsity: float) -> dict[str, float]:
    """Split a sparsity over the sites by the allocations that need only shapes (uniform, er, erk)."""
    if method.allocate == "uniform":
        return allocate.uniform(sites, sparsity)
    return allocate.erk(sites, sparsity, kernel=method.allocate == "erk")
