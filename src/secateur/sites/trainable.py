"""The weights that training may cut: those of linear and convolution layers, by parameter name.

Embeddings, norms and biases stay dense (sheet sparseland, counting rules). A tied parameter counts once, under its
first name; names are those of the bare model, whatever DistributedDataParallel or torch.compile has wrapped around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from secateur.errors import NoMatch, nearest

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def bare(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def trainable_weights(
    model: nn.Module, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Parameter name -> weight [out, in, ...] of every layer that may be cut, in the model's order.

    Args:
        only, skip: globs of parameter or module names; empty `only` means all.

    Raises:
        NoMatch: nothing is left, or a glob matches nothing.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        is_layer = isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"
        if is_layer and isinstance(weight, nn.Parameter) and id(weight) not in seen | tables:
            seen.add(id(weight))
            found[f"{name}.weight" if name else "weight"] = weight

    def fits(name: str, globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, g) or fnmatchcase(name.removesuffix(".weight"), g) for g in globs)

    for glob in (*only, *skip):
        if not any(fits(name, [glob]) for name in found):
            raise NoMatch(f"{glob!r} matches no layer", where="only, skip", fix=nearest(glob, found))
    chosen = {n: w for n, w in found.items() if (not only or fits(n, only)) and not fits(n, skip)}
    if not chosen:
        raise NoMatch("no linear or convolution layer to cut", where="model", fix="see --only and --skip")
    return chosen
