"""A forecast beside what is then measured, for one cut model: the same layouts, the same values, the same machine.

found = beside(model)                       # a cut model, held dense: packed for the measurement, then put back
found = beside(model, load_packed(folder))  # a dense model, and the folder that was made of it
print(found.line)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.errors import BadInput
from secateur.runtime.accelerate import model_bytes
from secateur.runtime.embedding import PackedEmbedding
from secateur.runtime.forecast import Case, Report, Row, forecast
from secateur.runtime.linear import VALUES, PackedLinear
from secateur.runtime.pace import Pace, pace
from secateur.runtime.ways import FEW, Target, group_of, pattern_of, targets

_NAMES = {dtype: name for name, dtype in VALUES.items()}
_NM = "nm"


@dataclass(frozen=True)
class Cut:
    """One linear layer: which layouts hold its zeros, the best first; its values, the fraction cut, its entries;
    whether it is packed."""

    name: str
    kinds: tuple[str, ...]
    values: str
    sparsity: float
    entries: int
    packed: bool


@dataclass(frozen=True)
class Beside:
    """`case` as it was forecast (`row`) and as it was measured, before and after that (`paces`), with its bytes."""

    case: Case
    row: Row
    paces: tuple[Pace, Pace]
    bytes: int

    @property
    def token(self) -> float:
        """Measured seconds of a token."""
        return (self.paces[0].token + self.paces[1].token) / 2

    @property
    def prompt(self) -> float:
        """Measured seconds of the prompt."""
        return (self.paces[0].prompt + self.paces[1].prompt) / 2

    @property
    def off(self) -> float:
        """Tokens a second: forecast over measured, less 1."""
        return self.token / self.row.token - 1

    @property
    def line(self) -> str:
        return (
            f"{self.case.name}: forecast {self.row.rate:.1f} tokens/s, measured {1 / self.token:.1f}, "
            f"off by {self.off:+.0%}; prompt of {self.paces[0].length}: forecast {1e3 * self.row.prompt:.0f} ms, "
            f"measured {1e3 * self.prompt:.0f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "way": self.case.name,
            "forecast": {"tokens_per_second": self.row.rate, "prompt_seconds": self.row.prompt},
            "measured": {"tokens_per_second": 1 / self.token, "prompt_seconds": self.prompt},
            "bytes": self.bytes,
            "prompt": self.paces[0].length,
            "off": self.off,
        }


def beside(
    model: nn.Module,
    packed: nn.Module | None = None,
    *,
    case: Case | None = None,
    prompt: int = 128,
    report: Report | None = None,
) -> Beside:
    """Forecast a cut model from the shapes of `model`, and measure it before and after that.

    Args:
        model: held dense; cut, unless `packed` is given. It is left as it was.
        packed: what is measured; None: `model`, packed meanwhile.
        case: how it is packed then; None: as its zeros lie, with its own values.
        prompt, report: as for `forecast`.

    Raises:
        Unsupported: no language model with a cache, no kernels.   BadInput: nothing packed, shapes that do not go.
    """
    cuts = cuts_of(model if packed is None else packed)
    case = case or case_of(cuts)
    if packed is not None and not any(cut.packed for cut in cuts):
        raise BadInput(
            "holds nothing packed",
            where=type(packed).__name__,
            fix="write it with `secateur export --to sparse`",
        )
    if packed is not None and not all(cut.packed for cut in cuts):
        case = replace(case, uncut="torch")
    held: Any = packing(model, case) if packed is None else nullcontext(lambda: nullcontext(packed))
    with held as swapped:
        with swapped() as made:
            first = pace(made, prompt=prompt)
            size = model_bytes(made)
        found = forecast(
            model, prompt=prompt, chosen=[case], cut={cut.name for cut in cuts if cut.kinds}, report=report
        )
        if not found.rows:
            raise BadInput(found.notes[-1], where=case.name)
        with swapped() as made:
            return Beside(case, found.rows[0], (first, pace(made, prompt=prompt)), size)


def cuts_of(model: nn.Module) -> list[Cut]:
    """Every linear layer of a model, packed or dense."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and not isinstance(module, PackedEmbedding):
            kind = f"{module.n}:4" if module.kind == _NM else module.kind
            kinds = () if kind == "dense" else (kind,)
            size = module.out_features * module.in_features
            found.append(Cut(name, kinds, _NAMES[module.values.dtype], 1 - module.density, size, True))
    for target in targets(model)[0]:
        pattern = pattern_of(target.weight)
        kinds = () if pattern.density > FEW else (*pattern.tiles, "bitmask")
        kinds = (f"{pattern.n}:4", *kinds) if pattern.n and kinds else kinds
        values = str(target.weight.dtype).removeprefix("torch.")
        found.append(Cut(target.name, kinds, values, 1 - pattern.density, target.weight.numel(), False))
    return found


def case_of(cuts: list[Cut]) -> Case:
    """The one case that speaks for all layers: the best layout that all cut ones have, else bitmask; their mean
    sparsity; the values that most entries have."""
    if not cuts:
        raise BadInput("holds no linear layers", where="model")
    counts: Counter[str] = Counter()
    for cut in cuts:
        counts[cut.values] += cut.entries
    values = counts.most_common(1)[0][0]
    cut_ones = [cut for cut in cuts if cut.kinds]
    if not cut_ones:
        return Case(f"dense {values}", "dense", values)
    common = [kind for kind in cut_ones[0].kinds if all(kind in cut.kinds for cut in cut_ones)]
    kind = common[0] if common else "bitmask"
    sparsity = sum(cut.sparsity * cut.entries for cut in cut_ones) / sum(cut.entries for cut in cut_ones)
    return Case(f"{sparsity:.0%} {kind} {values}", kind, values, sparsity)


Swap = Callable[[], Any]


@contextmanager
def packing(model: nn.Module, case: Case) -> Iterator[Swap]:
    """Gives `swapped`: while `with swapped() as made` runs, the model's layers are packed as the case says."""
    pairs = [(target, packed_layer(target, case)) for target in targets(model)[0]]

    @contextmanager
    def swapped() -> Iterator[nn.Module]:
        try:
            for target, new in pairs:
                _put(target, new)
            yield model
        finally:
            for target, _ in pairs:
                _put(target, target.module)

    yield swapped


def packed_layer(target: Target, case: Case) -> nn.Module:
    """One layer in the case's layout, or `dense` where little of it is cut; for "torch" the layer itself."""
    if case.kind == "torch":
        return target.module
    dense = not case.sparsity or pattern_of(target.weight).density > FEW
    same = str(target.weight.dtype) == f"torch.{case.values}"
    return PackedLinear.from_linear(
        target.module,
        kind="dense" if dense else case.kind,
        values=None if same else case.values,
        group=group_of(case.values, None),
    ).eval()


def _put(target: Target, module: nn.Module) -> None:
    for parent, name in target.places:
        setattr(parent, name, module)
