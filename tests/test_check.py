"""The battery over the whole registry; a toy method of a third party; and saboteurs, which each check must catch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from secateur.check import CheckResult, check_method, checks
from secateur.check.probe import Oracle
from secateur.core.method import Cut, OneShot
from secateur.core.units import Site
from secateur.errors import BadInput, NoMatch
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.wanda import Wanda
from secateur.registry import find, names
from secateur.signals.norms import InputNorms


def oracle_of(name: str) -> Oracle:
    """The function `oracle` of a method's own test file: secateur.methods.G.M has its in tests/methods/G/test_M.py."""
    folder, _, module = find(name).__module__.replace("secateur.", "tests.", 1).rpartition(".")
    return importlib.import_module(f"{folder}.test_{module}").oracle


# The only reasons for which a check may be skipped here; `oracle` never, since every method has one.
REASONS = {
    "measures nothing": lambda cls: cls.needs is None,
    "its class does not claim 'nested'": lambda cls: cls.updates,
    "its class does not claim 'rows'": lambda cls: cls.card.criterion == "none",
    "its class does not claim 'columns'": lambda cls: cls.updates or cls.card.criterion == "none",
}


@pytest.mark.parametrize("check", list(checks()))
@pytest.mark.parametrize("name", names("once"))
def test_every_method_passes_every_check(name: str, check: str) -> None:
    (result,) = check_method(name, only=[check], oracle=oracle_of(name))
    assert result.status != "failed", str(result)
    if result.status == "skipped":
        assert REASONS[result.detail](find(name)), f"a skip without a reason: {result}"


def test_battery_has_at_least_25_checks_each_with_its_question() -> None:
    assert len(checks()) >= 25
    assert all(len(question) > 20 for question in checks().values())


@dataclass(frozen=True, kw_only=True)
class Near(OneShot):
    """A third party's method: five lines."""

    card: ClassVar[Any] = Magnitude.card

    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return -(weight.float() - weight.float().mean(1, keepdim=True)).abs()


def test_third_party_method_passes_without_registration() -> None:
    results = check_method(Near)
    assert [str(r) for r in results if not r.ok] == []
    skipped = {r.name for r in results if r.status == "skipped"}
    assert skipped == {"unknown_setting", "nan_signal", "sample_order", "oracle", "batch_split"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wanda", {"pattern": "2:4"}),
        ("sparsegpt", {"pattern": "1:4"}),
        ("sparsegpt", {"blocksize": 4, "pattern": "row"}),
        pytest.param("l_obs", {"exact": True}, marks=pytest.mark.slow),
        ("essential_sparsity", {"pattern": "2:4"}),
        ("magnitude", {"allocate": "global"}),
        ("wanda", {"allocate": "owl", "pattern": "layer"}),
        ("random", {"allocate": "erk", "seed": 3}),
    ],
)
def test_methods_pass_with_other_settings_too(name: str, settings: dict[str, Any]) -> None:
    results = check_method(name, settings=settings)
    assert [str(r) for r in results if not r.ok] == []
    assert sum(r.status == "passed" for r in results) >= 25


class Writes(Magnitude):
    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return weight.abs_().float()


class OneMore(Magnitude):
    def select(self, score: Tensor, sparsity: float) -> Tensor:
        keep = super().select(score, sparsity)
        keep.reshape(-1)[keep.reshape(-1).nonzero()[0]] = False
        return keep


class Thresholds(Magnitude):
    def select(self, score: Tensor, sparsity: float) -> Tensor:
        return score > score.quantile(sparsity)


class Topk(Magnitude):
    def select(self, score: Tensor, sparsity: float) -> Tensor:
        flat = torch.ones(score.numel(), dtype=torch.bool)
        flat[score.reshape(-1).topk(int(score.numel() * sparsity), largest=False).indices] = False
        return flat.view(score.shape)


class Unseeded(Magnitude):
    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return torch.rand(weight.shape)


class ByPosition(Magnitude):
    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return (torch.arange(weight.numel()) * 7919 % 1009).float().view(weight.shape)


class FarFromOne(Magnitude):
    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return (weight.float().abs() - 1).abs()


class Shrinks(Magnitude):
    """Changes weights that stay, and does not say so."""

    def cut(
        self, weight: Tensor, signal: Any, site: Site, sparsity: float, bias: Tensor | None = None
    ) -> Cut:
        cut = super().cut(weight, signal, site, sparsity, bias)
        return Cut(cut.keep, weight * cut.keep * 0.5, score=cut.score)


class Leaves(Magnitude):
    """Returns new weights that are not zero where cut."""

    def cut(
        self, weight: Tensor, signal: Any, site: Site, sparsity: float, bias: Tensor | None = None
    ) -> Cut:
        cut = super().cut(weight, signal, site, sparsity, bias)
        return Cut(cut.keep, weight + 1e-3, score=cut.score)


class FirstSample(InputNorms):
    """Remembers only the first product it sees."""

    def add(self, measured: tuple[Tensor, ...], tokens: int) -> None:
        if not self.tokens:
            super().add(measured, tokens)


class Forgetful(Wanda):
    needs = FirstSample


class Overflows(Magnitude):
    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return weight.abs().float() / 0


@dataclass(frozen=True, kw_only=True)
class Untyped(Magnitude):
    factor: Any = 1.0

    def score(self, weight: Tensor, signal: Any, site: Site) -> Tensor:
        return weight.abs().float() * float(self.factor)


class Typeless(Magnitude):
    def settings(self) -> dict[str, Any]:
        return {}


SABOTEURS = [
    (Writes, "read_only_weights"),
    (Writes, "plan_leaves_model"),
    (OneMore, "exact_counts"),
    (Thresholds, "ties"),
    (Thresholds, "exact_counts"),
    (Topk, "exact_counts"),
    (Unseeded, "repeats"),
    (Unseeded, "nested"),
    (ByPosition, "row_order"),
    (ByPosition, "column_order"),
    (FarFromOne, "scale"),
    (Shrinks, "save_load_apply"),
    (Leaves, "exact_counts"),
    (Leaves, "every_feed"),
    (Forgetful, "sample_order"),
    (Forgetful, "batch_split"),
    (Overflows, "exact_counts"),
    (Untyped, "hostile_settings"),
    (Typeless, "config_round_trip"),
]


@pytest.mark.parametrize(("method", "check"), SABOTEURS)
def test_the_battery_bites(method: type[OneShot], check: str) -> None:
    (result,) = check_method(method, only=[check])
    assert result.status == "failed" and result.detail, str(result)


def test_an_oracle_that_disagrees_is_a_failure() -> None:
    (result,) = check_method("magnitude", only=["oracle"], oracle=lambda method, weight, *rest: weight > 0)
    assert result.status == "failed" and "positions differ" in result.detail


def test_what_is_no_method_or_no_check_is_refused() -> None:
    with pytest.raises(NoMatch, match="wanda"):
        check_method("wnada")
    with pytest.raises(NoMatch, match="exact_counts"):
        check_method("wanda", only=["exact_count"])
    with pytest.raises(BadInput, match="no method"):
        check_method(dict)  # type: ignore[arg-type]


def test_result_reads_as_one_line() -> None:
    assert str(CheckResult("ties", "skipped", "no ties")) == "skipped  ties: no ties"
    assert CheckResult("ties", "skipped").ok and not CheckResult("ties", "failed").ok
