"""A CARD is its kind of method, bit for bit, with the paper's settings; the binary card has three values a layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Training
from secateur.engine.train import Fit, fit
from secateur.errors import BadInput
from secateur.methods.weights.biprop import Biprop
from secateur.methods.weights.cards import CARD, KINDS, fifths
from secateur.methods.weights.edge_popup import EdgePopup
from secateur.methods.weights.gmp import GMP
from secateur.methods.weights.lottery_ticket import LotteryTicket
from secateur.registry import name_of
from tests.oracles import floor_count

STEPS = 12
PLAIN: dict[str, Training] = {
    "lrr": LotteryTicket(sparsity=0.8, rounds=2, rewind="learning_rate", seed=3),
    "lth": LotteryTicket(sparsity=0.8, rounds=2, rewind="weights", seed=3),
    "edge_popup": EdgePopup(sparsity=0.8, seed=3),
    "biprop": Biprop(sparsity=0.8, seed=3, ramp=0.5, scope="global"),
    "gmp": GMP(sparsity=0.8, every=2, seed=3),
    "fine_tune": LotteryTicket(sparsity=0.8, oneshot=True, rewind="none", seed=3),
}
MORE: dict[str, dict[str, Any]] = {
    "lrr": {"rounds": 2},
    "lth": {"rounds": 2},
    "biprop": {"ramp": 0.5, "scope": "global"},
    "gmp": {"interval": 2},
}
KIND = pytest.mark.parametrize("kind", KINDS)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


def attach(method: Training) -> Pruner:
    model = network()
    return method.attach(model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), steps=STEPS)


def train(pruner: Pruner, count: int) -> list[tuple[float, int]]:
    """`count` steps; density and clock after each."""
    seen = []
    for _ in range(count):
        x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(pruner.position))
        nn.functional.cross_entropy(pruner.net.model(x), x.flatten(1)[:, :5].argmax(1)).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.net.model.zero_grad()
        seen.append((pruner.density, pruner.position))
    return seen


def oracle(kind: str) -> tuple[list[tuple[float, int]], dict[str, Tensor]]:
    """Densities, clock and weights of the method itself, without a card."""
    pruner = attach(PLAIN[kind])
    return train(pruner, STEPS), dict(pruner.net.model.state_dict())


def card(kind: str, **settings: Any) -> CARD:
    return CARD(**{"kind": kind, "sparsity": 0.8, "seed": 3, **MORE.get(kind, {}), **settings})


@KIND
def test_a_card_is_its_kind_of_method_bit_for_bit(kind: str) -> None:
    pruner = attach(card(kind))
    assert pruner.method.trains == PLAIN[kind].trains and pruner.method.rewires == PLAIN[kind].rewires
    seen, weights = oracle(kind)
    assert train(pruner, STEPS) == seen
    found = pruner.net.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert sum(int(m.sum()) for m in pruner.net.masks.values()) == pytest.approx(0.2 * 228, abs=2)
    pruner.detach()


@KIND
def test_a_card_resumes(kind: str) -> None:
    whole, first, again = (attach(card(kind)) for _ in range(3))
    train(whole, STEPS)
    train(first, 7)
    held = copy.deepcopy(first.state_dict())
    again.net.model.load_state_dict(first.net.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    again.load_state_dict(held)
    train(again, STEPS - 7)
    state = again.net.model.state_dict()
    assert all(torch.equal(state[name], t) for name, t in whole.net.model.state_dict().items())
    for pruner in (whole, first, again):
        pruner.detach()


def test_a_binary_card_has_three_values_a_layer_and_keeps_its_count() -> None:
    pruner = attach(CARD(kind="biprop", sparsity=0.9))
    train(pruner, STEPS)
    pruner.detach()
    for weight in pruner.net.weights.values():
        alpha = weight.abs().max()
        assert set(weight.unique().tolist()) <= {-float(alpha), 0.0, float(alpha)}
        kept = int(weight.count_nonzero())
        assert kept == weight.numel() - floor_count(weight.numel(), 0.9)
        assert abs(kept - 0.1 * weight.numel()) <= 1


def test_the_paper_s_card_cuts_a_fifth_a_round_to_5_percent() -> None:
    method = CARD()
    assert (method.sparsity, method.kind) == (0.95, "lrr")
    inner = method.inner
    assert isinstance(inner, LotteryTicket) and inner.scope == "global" and inner.rewind == "learning_rate"
    assert inner.rounds == 13 and inner.fraction == pytest.approx(0.2, abs=0.01)
    assert [fifths(d) for d in (1.0, 0.8, 0.64, 0.2, 0.05)] == [1, 1, 2, 7, 13]
    assert all(fifths(0.8**r) == r for r in range(1, 30))


def test_only_kinds_that_train_several_times_say_how_long_the_first_is() -> None:
    assert {kind for kind in KINDS if card(kind).length is not None} == {"lrr", "lth", "fine_tune"}
    for kind, parts in (("lrr", 3), ("lth", 3), ("fine_tune", 2)):
        length = card(kind).length
        assert length is not None and length(STEPS) == STEPS // parts


def test_fine_tuning_moves_under_a_step_schedule() -> None:
    """What the top of the file says of the learning rate: held at its last value, not at 0."""
    method = CARD(kind="fine_tune", sparsity=0.5)
    assert method.length is not None
    how = Fit(epochs=4, batch=8, lr=0.1, schedule="step", cycle=method.length(16) / 4)
    images, labels = torch.rand(32, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5
    model = network()
    optimizer = how.make(model)
    pruner = method.attach(model, optimizer, steps=16)
    history = fit(model, images, labels, how, optimizer=optimizer, pruner=pruner)
    assert [row["lr"] for row in history] == pytest.approx([0.1, 0.001, 0.001, 0.001])
    assert [row["density"] for row in history] == pytest.approx([1.0, 0.5, 0.5, 0.5])
    pruner.detach()


def test_layers_are_left_out_and_settings_survive_json() -> None:
    pruner = attach(card("lrr", skip="3"))
    train(pruner, STEPS)
    assert list(pruner.net.masks) == ["0.weight"]
    settings = pruner.method.settings()
    assert settings["kind"] == "lrr" and settings["rounds"] == 2 and settings["scope"] is None
    assert CARD(**settings) == pruner.method
    assert name_of(pruner.method) in ("cards", "card")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kind": "lr"}, "kind"),
        ({"kind": "gmp", "rounds": 3}, "gmp has no rounds"),
        ({"kind": "fine_tune", "rounds": 3}, "fine_tune has no rounds"),
        ({"kind": "lrr", "ramp": 0.1}, "lrr has no ramp"),
        ({"interval": 5}, "lrr has no interval"),
        ({"kind": "edge_popup", "begin": 0.1}, "edge_popup has no begin"),
        ({"kind": "lrr", "rounds": 0}, "rounds"),
        ({"kind": "biprop", "ramp": 2.0}, "ramp"),
        ({"kind": "lth", "scope": "row"}, "scope"),
        ({"sparsity": 1.0}, "sparsity"),
    ],
)
def test_settings_that_a_kind_does_not_have_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words) as error:
        CARD(**settings)
    assert "\n" not in str(error.value)


def test_a_run_that_does_not_divide_is_refused_before_anything_changes() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadInput, match="steps"):
        CARD().attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=15)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
