"""One amount to cut, in the user's currency, turned into one sparsity of the units that may be cut.

    Budget(sparsity=0.5)   Budget(density=0.5)   Budget(keep=1_000_000)        units
    Budget(params=80e6)    Budget(bytes=300e6)   Budget(flops=2e8)             what the whole model may weigh afterwards

Unstructured zeros change parameters and FLOPs as counted, and bytes only in the sparse format; see docs/tour.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from secateur.core.select import check_sparsity
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible


@dataclass(frozen=True)
class Budget:
    """Exactly one of the fields is given; the others stay None."""

    sparsity: float | None = None
    density: float | None = None
    keep: int | None = None
    params: float | None = None
    flops: float | None = None
    bytes: float | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            raise BadInput(
                f"{len(given)} amounts given ({', '.join(given) or 'none'})",
                where="budget",
                fix="give exactly one",
            )
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
            return
        amount = getattr(self, given[0])
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise BadInput(f"{amount!r} is no number", where=given[0])
        if self.density is not None and not 0 < self.density <= 1:
            raise BadInput(
                f"{self.density!r} is not a fraction in (0, 1]", where="density", fix="0.5 keeps half"
            )
        if not amount > 0:
            raise BadInput(f"{amount!r} is not above 0", where=given[0])

    def resolve(self, sites: Sequence[Site], fixed: float = 0.0, unit_cost: float = 1.0) -> float:
        """The sparsity over `sites` that meets this budget.

        Args:
            sites: where units may be cut.
            fixed: what the rest of the model costs, in the budget's currency; it cannot be cut.
            unit_cost: what one kept unit costs (1 parameter, 2 FLOPs, 4 bytes, ...), times its site's price.

        Raises:
            Infeasible: even an empty model would be too big, or nothing needs to be cut; names the nearest value.
        """
        if self.sparsity is not None:
            return self.sparsity
        if self.density is not None:
            return 1 - self.density
        units = sum(site.size for site in sites)
        if self.keep is not None:
            limit, fixed, total = float(self.keep), 0.0, float(units)
        else:
            limit = float(next(a for a in (self.params, self.flops, self.bytes) if a is not None))
            total = sum(site.size * site.price for site in sites) * unit_cost
        if not fixed < limit:
            raise Infeasible(
                f"{limit:.0f} is not reached even with every unit cut",
                where="budget",
                fix=f"at least {fixed + 1:.0f}",
            )
        if limit > fixed + total:
            raise Infeasible(
                f"{limit:.0f} is more than the model has",
                where="budget",
                fix=f"at most {fixed + total:.0f}",
            )
        return 1 - (limit - fixed) / total


def parse_fraction(text: str | float) -> float:
    """'0.5', '50%' or 0.5 to 0.5."""
    if not isinstance(text, str):
        return text
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BadInput(f"{text!r} is no fraction", where="sparsity", fix="write 0.5 or 50%") from None
