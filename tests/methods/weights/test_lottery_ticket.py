"""Lottery tickets against their sheet: counts, nesting, what each kind of rewinding brings back, the controls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Masks, Net
from secateur.errors import BadInput, Unsupported
from secateur.methods.weights.lottery_ticket import LotteryTicket
from tests.oracles import floor_count


def oracle(weights: dict[str, Tensor], masks: dict[str, Tensor], cut: int) -> dict[str, Tensor]:
    """Sheet step 1 in a loop over single weights, one ranking: `cut` in all, smallest |w| first."""
    masks = {name: mask.clone() for name, mask in masks.items()}
    alive = [
        (abs(float(weights[name].flatten()[i])), place, i, name)
        for place, (name, mask) in enumerate(masks.items())
        for i in range(mask.numel())
        if mask.flatten()[i]
    ]
    already = sum(int((~mask).sum()) for mask in masks.values())
    for _, _, i, name in sorted(alive)[: cut - already]:
        masks[name].view(-1)[i] = False
    return masks


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 10), nn.BatchNorm1d(10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def small(seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def batch(position: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(position)
    x = torch.randn(16, 12, generator=stream)
    return x, (x[:, :4] + x[:, 4:8]).argmax(1)


def optimiser(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def steps(pruner: Pruner, count: int) -> Iterator[int]:
    """Take `count` steps, each on the batch of the clock's position; yields the step that is done."""
    model = pruner.net.model
    for _ in range(count):
        x, y = batch(pruner.position)
        nn.functional.cross_entropy(model(x), y).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
        yield pruner.net.step


def run(count: int, seen: Callable[[Pruner], None] = lambda _: None, **settings: Any) -> Pruner:
    model = small()
    pruner = LotteryTicket(**settings).attach(model, optimiser(model), steps=count)
    for _ in steps(pruner, count):
        seen(pruner)
    return pruner


def state(pruner: Pruner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pruner.net.state.items()}


def masked(pruner: Pruner, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a network of these values looks like under the pruner's masks."""
    masks = pruner.net.masks
    return {name: tensor * masks[name] if name in masks else tensor for name, tensor in kept.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def left(sparsity: float) -> float:
    """Density of `Small` after a global cut: it has 160 weights."""
    return (160 - floor_count(160, sparsity)) / 160


def test_a_fifth_a_round_gives_the_list_of_the_paper() -> None:
    table = {1: 0.8, 2: 0.64, 3: 0.512, 4: 0.4096, 10: 0.1074, 15: 0.0352, 20: 0.0115}
    for rounds, wanted in table.items():
        ticket = LotteryTicket(sparsity=1 - 0.8**rounds, rounds=rounds)
        assert ticket.fraction == pytest.approx(0.2) and ticket.density == pytest.approx(wanted, abs=5e-5)
    densities: list[float] = []
    run(12, lambda p: densities.append(p.density), sparsity=1 - 0.8**5, rounds=5)
    assert densities[::2] == pytest.approx([left(1 - 0.8**r) for r in range(6)])
    assert densities[1::2] == [*densities[2::2], densities[-1]], (
        "a round begins with the cut; no cut at the end"
    )


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_every_round_cuts_the_smallest_surviving_weights_of_its_own_training(scope: str) -> None:
    before: dict[str, Tensor] = {}

    class Watched(LotteryTicket):
        def revise(self, net: Net) -> Masks:
            before.update({n: w.clone() for n, w in net.weights.items()})
            return super().revise(net)

    model = small()
    pruner = Watched(sparsity=0.8, rounds=3, scope=scope).attach(model, optimiser(model), steps=12)
    masks, count = dict(pruner.net.masks), 0
    for step in steps(pruner, 12):
        if step in (3, 6, 9):
            count += 1
            share = 1 - 0.2 ** (count / 3)
            if scope == "global":
                masks = oracle(before, masks, floor_count(160, share))
            else:
                parts = [
                    oracle({n: before[n]}, {n: m}, floor_count(m.numel(), share)) for n, m in masks.items()
                ]
                masks = {name: mask for part in parts for name, mask in part.items()}
        assert same(dict(pruner.net.masks), masks)
    assert count == 3


def test_masks_are_nested_and_what_is_cut_stays_zero_under_momentum_and_decay() -> None:
    masks: list[dict[str, Tensor]] = []

    def look(pruner: Pruner) -> None:
        masks.append({n: m.clone() for n, m in pruner.net.masks.items()})
        for name, mask in pruner.net.masks.items():
            assert not pruner.net.weights[name][~mask].any()

    run(20, look, sparsity=0.9, rounds=4)
    assert len({int(m["first.weight"].sum()) for m in masks}) == 5
    for earlier, later in pairwise(masks):
        assert all(bool((later[n] <= earlier[n]).all()) for n in later)


def test_rewinding_to_the_start_is_bitwise_and_takes_everything_along() -> None:
    model = small()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = LotteryTicket(sparsity=0.9, rounds=2).attach(model, optimiser(model), steps=9)
    positions = []
    for step in steps(pruner, 9):
        positions.append(pruner.position)
        back = same(state(pruner), masked(pruner, first))
        assert back == (step in (3, 6)), (
            "norm statistics, biases and counters go back with the weights, and only then"
        )
        if back:
            assert not pruner.optimizer.state, "the optimiser starts afresh"
    assert positions == [1, 2, 0, 1, 2, 0, 1, 2, 3]


def test_late_rewinding_goes_back_to_step_k() -> None:
    model, kept = small(), {}
    pruner = LotteryTicket(sparsity=0.9, rounds=2, rewind_step=2).attach(model, optimiser(model), steps=11)
    positions = []  # T = 5, then twice 3
    for step in steps(pruner, 11):
        positions.append(pruner.position)
        if step == 2:
            kept = state(pruner)
            assert pruner.optimizer.state, "the first training goes on undisturbed"
        if step in (5, 8):
            assert same(state(pruner), masked(pruner, kept))
    assert positions == [1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5]
    assert pruner.density == pytest.approx(left(0.9))


def test_a_round_equals_a_plain_masked_training_from_there() -> None:
    """Nothing of the first training is left behind: the second is a fresh loop under a mask, bit for bit."""
    pruner = run(8, sparsity=0.5, rounds=1)
    model, masks = small(), pruner.net.masks
    optimizer = optimiser(model)
    for position in range(4):
        with torch.no_grad():
            for name, mask in masks.items():
                dict(model.named_parameters())[name].mul_(mask)
        x, y = batch(position)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for name, mask in masks.items():
            gradient = dict(model.named_parameters())[name].grad
            assert gradient is not None
            gradient.mul_(mask)
        optimizer.step()
    wanted = masked(pruner, dict(model.state_dict()))
    for name, tensor in pruner.net.state.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rewind", "positions"), [("learning_rate", [1, 2, 3, 1, 2, 3, 4]), ("none", [1, 2, 3, 4, 5, 6, 7])]
)
def test_learning_rate_rewinding_and_fine_tuning_keep_the_weights(rewind: str, positions: list[int]) -> None:
    model = small()
    ticket = LotteryTicket(sparsity=0.6, rounds=1, rewind=rewind, rewind_step=1)
    pruner = ticket.attach(model, optimiser(model), steps=7)
    plain, found = small(), []
    whole = LotteryTicket(sparsity=0.0, rounds=1, rewind="none", rewind_step=1)
    dense = whole.attach(plain, optimiser(plain), steps=7)
    for step, _ in zip(steps(pruner, 7), steps(dense, 7), strict=True):
        found.append(pruner.position)
        if step == 4:
            assert same(state(pruner), masked(pruner, state(dense))), "trained weights, statistics and all"
            assert pruner.density < 0.41 and not pruner.optimizer.state
    assert found == positions


def test_with_k_at_the_end_nothing_comes_after_the_cut_and_the_kinds_agree() -> None:
    ends = {}
    for rewind in ("weights", "learning_rate", "none"):
        pruner = run(5, sparsity=0.9, rounds=3, rewind=rewind, rewind_step=5)
        ends[rewind] = state(pruner)
        assert pruner.position == 5 and pruner.density == pytest.approx(left(0.9))
    assert same(ends["weights"], ends["learning_rate"]) and same(ends["weights"], ends["none"])
    dense = run(5, sparsity=0.0, rounds=1, rewind_step=5)
    assert same(ends["weights"], masked(pruner, state(dense))), "all that happened is the cut"


def test_one_shot_is_one_round_whatever_rounds_says() -> None:
    assert LotteryTicket(oneshot=True, rounds=7, sparsity=0.9).fraction == pytest.approx(0.9)
    one, other = run(6, sparsity=0.8, rounds=7, oneshot=True), run(6, sparsity=0.8, rounds=1)
    assert same(state(one), state(other)) and one.density == pytest.approx(0.2)


# -- controls ----------------------------------------------------------------------------------------------------------


def at_the_last_rewind(control: str, seed: int = 0) -> Pruner:
    model = small()
    ticket = LotteryTicket(sparsity=0.8, rounds=2, control=control, seed=seed)
    pruner = ticket.attach(model, optimiser(model), steps=9)
    for step in steps(pruner, 6):
        if step == 3:
            assert same(state(pruner), masked(pruner, dict(small().state_dict()))), "at first a ticket's"
    return pruner


@pytest.mark.parametrize("control", ["reinit", "random_layer", "shuffle", "random"])
def test_controls_act_at_the_last_rewind_and_their_mask_then_stays(control: str) -> None:
    ticket, pruner = at_the_last_rewind("none"), at_the_last_rewind(control)
    first, masks = dict(small().state_dict()), dict(pruner.net.masks)
    if control == "reinit":
        assert same(masks, dict(ticket.net.masks)) and pruner.position == 0
        for name, mask in masks.items():
            values = pruner.net.weights[name]
            assert not values[~mask].any() and bool((values != first[name])[mask].all())
            assert values.abs().max() <= values.shape[1] ** -0.5, "the law of nn.Linear"
        assert not pruner.net.state["norm.running_mean"].any() and pruner.net.state["norm.weight"].eq(1).all()
    else:
        assert same(state(pruner), masked(pruner, first)) and not same(masks, dict(ticket.net.masks))
        assert sum(int(m.sum()) for m in masks.values()) == sum(
            int(m.sum()) for m in ticket.net.masks.values()
        )
        if control != "random":
            assert {n: int(m.sum()) for n, m in masks.items()} == {
                n: int(m.sum()) for n, m in ticket.net.masks.items()
            }
    for _ in steps(pruner, 3):
        assert same(dict(pruner.net.masks), masks)


def test_a_random_mask_over_the_network_takes_the_same_share_of_every_layer() -> None:
    shares = [at_the_last_rewind("random", seed).report()["layers"] for seed in range(20)]
    for name in ("first.weight", "last.weight"):
        assert sum(s[name] for s in shares) / 20 == pytest.approx(0.2, abs=0.04)
    assert len({s["last.weight"] for s in shares}) > 3, "the count of a layer is left to chance"


def test_controls_repeat_with_their_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for control in ("reinit", "shuffle", "random"):
        a, b, other = (at_the_last_rewind(control, seed) for seed in (1, 1, 2))
        assert same(state(a), state(b)) and not same(state(a), state(other))
    assert torch.equal(torch.get_rng_state(), before)


def test_reinit_names_what_no_module_draws_and_refuses_weights_it_cannot_draw() -> None:
    class Tokens(Small):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.shift)

    model = Tokens()
    pruner = LotteryTicket(rounds=1, control="reinit").attach(model, optimiser(model), steps=2)
    list(steps(pruner, 2))
    assert any("shift" in note for note in pruner.net.notes)
    assert not any("first" in note for note in pruner.net.notes)

    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

    bad = nn.Sequential(Conv1D())
    with pytest.raises(Unsupported, match="reset_parameters"):
        LotteryTicket(control="reinit").attach(bad, torch.optim.SGD(bad.parameters(), lr=0.1), steps=11)


# -- the run as a whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_at", [1, 2, 3, 4, 5, 8, 9])
def test_a_resumed_run_is_the_same_bit_for_bit(cut_at: int) -> None:
    settings: dict[str, Any] = {
        "sparsity": 0.9,
        "rounds": 2,
        "rewind_step": 2,
        "control": "shuffle",
        "seed": 3,
    }
    whole = run(11, **settings)
    model = small()
    pruner = LotteryTicket(**settings).attach(model, optimiser(model), steps=11)
    list(steps(pruner, cut_at))
    saved = copy.deepcopy((model.state_dict(), pruner.optimizer.state_dict(), pruner.state_dict()))
    model = small(9)
    pruner = LotteryTicket(**settings).attach(model, optimiser(model), steps=11)
    model.load_state_dict(saved[0])
    pruner.optimizer.load_state_dict(saved[1])
    pruner.load_state_dict(saved[2])
    list(steps(pruner, 11 - cut_at))
    assert same(state(pruner), state(whole)) and pruner.position == whole.position == 5


@pytest.mark.parametrize("bad", [2, 5])
def test_a_bad_gradient_at_step_k_or_at_a_cut_puts_it_off_by_one_step(bad: int) -> None:
    model = small()
    pruner = LotteryTicket(sparsity=0.9, rounds=2, rewind_step=2).attach(model, optimiser(model), steps=11)
    kept, densities = {}, []
    for _ in range(11):
        x, y = batch(pruner.position)
        nn.functional.cross_entropy(model(x), y).backward()
        if pruner.net.step + 1 == bad:
            assert model.first.weight.grad is not None
            model.first.weight.grad.fill_(torch.nan)
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
        if pruner.net.step == (3 if bad == 2 else 2):
            kept = state(pruner)
        densities.append(pruner.density)
        if pruner.net.step == (5 if bad == 2 else 6):
            assert same(state(pruner), masked(pruner, kept)) and pruner.density < 0.5
    assert pruner.skipped == 1 and densities[-1] == pytest.approx(left(0.9))


@given(rounds=st.integers(1, 6), k=st.integers(0, 12), length=st.integers(1, 20))
def test_steps_divide_into_one_training_and_rounds_of_the_rest(rounds: int, k: int, length: int) -> None:
    ticket = LotteryTicket(rounds=rounds, rewind_step=min(k, length))
    steps = length + rounds * (length - ticket.rewind_step)
    assert ticket.length(steps) == length
    with pytest.raises(BadInput, match=rf"\b{steps}( or \d+)? steps do"):
        ticket.length(steps + 1)


def test_settings_that_mean_nothing_are_refused() -> None:
    wrong = {"rounds": 0, "rewind_step": -1, "rewind": "weight", "scope": "row", "control": "reinitialise"}
    for word, value in [*wrong.items(), ("rounds", True)]:
        with pytest.raises(BadInput, match=word):
            LotteryTicket(**{word: value})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="rewind=weights"):
        LotteryTicket(control="shuffle", rewind="none")
    with pytest.raises(BadInput, match="never reached"):
        LotteryTicket(rewind_step=50).length(40)


def test_a_layer_that_would_vanish_keeps_its_largest_weight_and_is_named() -> None:
    model = small()
    with torch.no_grad():
        model.last.weight.mul_(1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pruner = LotteryTicket(sparsity=0.8, rounds=1).attach(model, optimizer, steps=2)
    list(steps(pruner, 2))
    assert int(pruner.net.masks["last.weight"].sum()) == 1 and "last.weight" in pruner.net.notes[0]
