"""Apply a plan of weights as zeros in the model's own tensors: shapes, names and dtypes stay as they are."""

from __future__ import annotations

from torch import nn

from secateur.apply.undo import Undo
from secateur.core.plan import Plan
from secateur.errors import BadInput
from secateur.sites.find import check_dtype, find_blocks


def apply(model: nn.Module, plan: Plan, *, masks_only: bool = False) -> Undo:
    """Zero what the plan cuts; the result's `undo()` brings every bit back.

    Raises:
        NoMatch, BadInput: the plan is for another model (nothing has changed then), or it comes from a method that
            also updates the weights that stay, and `masks_only` was not given.
    """
    if plan.updates and not masks_only:
        raise BadInput(
            f"a plan of {plan.method} holds its mask but not its weight updates",
            where="plan",
            fix="run compress instead, or apply the bare mask with masks_only=True (--masks-only)",
        )
    model = getattr(model, "_orig_mod", model)
    sites = {site.name: site for block in find_blocks(model) for site in block.sites}
    plan.expect({name: site.site.shape for name, site in sites.items()})
    for name in plan.sites:
        check_dtype(sites[name])
    with Undo() as undo:
        for name, kept in plan.sites.items():
            view = sites[name].view()
            undo.write(view, view.masked_fill(~kept.mask().to(view.device), 0))
    return undo
