"""Lottery jackpots against their sheet: the start, the swaps and their limit, the gradient, the frozen weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.errors import BadInput
from secateur.methods.weights.lottery_jackpots import LotteryJackpots, classifier, rate, swapped
from tests.oracles import floor_count, slow_group


def oracle(mask: list[bool], score: list[float], rate: float) -> list[bool]:
    """Sheet step 6 with lists: ties by index, the lowest cut first."""
    order = sorted(
        range(len(score)), key=lambda i: score[i]
    )  # stable: lowest score, then lowest index, first
    low = set(order[: mask.count(False)])
    revive = [i for i in reversed(order) if not mask[i] and i not in low]
    drop = [i for i in order if mask[i] and i in low]
    assert len(revive) == len(drop)
    q = max(1, math.ceil(rate * len(revive) - 1e-9)) if revive else 0
    return [(flag or i in revive[:q]) and i not in drop[:q] for i, flag in enumerate(mask)]


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 2),
            nn.Flatten(),
            nn.Linear(6, 4),
        )


def attach(model: nn.Module, steps: int = 10, lr: float = 0.1, **settings: Any) -> Pruner:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return LotteryJackpots(**settings).attach(model, optimizer, steps=steps)


def train(pruner: Pruner, count: int) -> Iterator[int]:
    for step in range(count):
        x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(pruner.net.model(x), x.flatten(1)[:, :4].argmax(1)).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
        yield step


def counts(pruner: Pruner) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in pruner.net.masks.items()}


LAYERS = ("0.weight", "3.weight", "5.weight")  # 144, 192 and 24 weights; the last is the classifier


def test_the_hand_case_of_the_sheet() -> None:
    mask = torch.tensor([False, True, True, False])
    assert swapped(mask, torch.tensor([0.99, 1.0, 1.0, 0.99]), 1.0).tolist() == [False, True, True, False]
    for share in (1.0, 0.5, 1e-6):
        assert swapped(mask, torch.tensor([1.05, 0.97, 1.02, 0.98]), share).tolist() == [
            True,
            False,
            True,
            False,
        ]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=1, max_size=30),
    st.sampled_from([0.0, 1e-9, 0.25, 0.5, 0.75, 1.0]),
)
def test_swaps_equal_the_slow_rendering_and_never_change_the_count(
    units: list[tuple[bool, int]], share: float
) -> None:
    mask, score = [kept for kept, _ in units], [value / 4 for _, value in units]  # many ties
    found = swapped(torch.tensor(mask), torch.tensor(score), share).tolist()
    assert found == oracle(mask, score, share) and sum(found) == sum(mask)


def test_one_whole_swap_is_top_k_and_a_tiny_one_moves_a_single_pair() -> None:
    stream = torch.Generator().manual_seed(0)
    mask, score = torch.rand(9, 11, generator=stream) < 0.4, torch.randn(9, 11, generator=stream)
    cut = int((~mask).sum())
    top = torch.tensor(slow_group(score.flatten().tolist(), cut)).view(9, 11)
    assert torch.equal(swapped(mask, score, 1.0), top)
    seen = mask
    for left in range(int((top & ~mask).sum()), 0, -1):
        after = swapped(seen, score, 1e-6)
        assert int((after ^ seen).sum()) == 2 and int((top & ~seen).sum()) == left
        worst = score[seen & ~after].item()
        assert worst == score[seen & ~top].min() and score[after & ~seen].item() == score[top & ~seen].max()
        seen = after
    assert torch.equal(seen, top) and torch.equal(swapped(top, score, 1.0), top)


def test_the_rates() -> None:
    assert [rate("cosine", p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert rate("cosine", 1 / 3) == pytest.approx(0.75)
    assert [rate("quartic", p) for p in (0, 0.5, 1)] == [1, 1 / 16, 0]
    assert [rate("none", p) for p in (0, 0.5, 1)] == [1, 1, 1]


def test_it_starts_as_the_magnitude_mask_ranked_over_all_layers_but_the_classifier() -> None:
    model = network()
    weights = {n: dict(model.named_parameters())[n].detach().clone() for n in LAYERS}
    pruner = attach(model, sparsity=0.83)
    flat = [abs(v) for n in LAYERS[:2] for v in weights[n].flatten().tolist()]
    wanted = slow_group(flat, floor_count(336, 0.83))
    for name, part in (("0.weight", wanted[:144]), ("3.weight", wanted[144:]), ("5.weight", [True] * 24)):
        mask, score = pruner.net.masks[name], pruner.net.memory[f"score/{name}"]
        assert mask.flatten().tolist() == part
        assert torch.equal(score, torch.where(mask, 1.0, 0.99)), "the ranking of the scores is the mask's"
        assert torch.equal(pruner.net.weights[name], weights[name] * mask)


def test_uniform_cuts_the_same_share_of_every_searched_layer() -> None:
    assert counts(attach(network(), sparsity=0.75, layers="uniform")) == {
        "0.weight": 36,
        "3.weight": 48,
        "5.weight": 24,
    }
    all_of_them = attach(network(), sparsity=0.75, layers="uniform", dense_classifier=False)
    assert counts(all_of_them) == {"0.weight": 36, "3.weight": 48, "5.weight": 6}


def test_the_classifier_is_the_last_linear_layer_of_the_model() -> None:
    assert classifier(network()) == "5.weight"
    assert classifier(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 1, 1))) == "0.weight"
    assert classifier(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 1))) == "1.weight"
    skipped = attach(network(), sparsity=0.5, layers="uniform", skip=("5",))
    assert counts(skipped) == {"0.weight": 72, "3.weight": 96}, (
        "a skipped classifier makes no other layer dense"
    )
    with pytest.raises(BadInput, match="dense_classifier=False"):
        attach(nn.Linear(4, 4))


@pytest.mark.parametrize("restriction", ["cosine", "quartic", "none"])
def test_every_step_makes_the_swaps_of_the_sheet_and_the_counts_stay(restriction: str) -> None:
    pruner = attach(network(), steps=8, lr=0.5, sparsity=0.8, restriction=restriction)
    start, before, moved = counts(pruner), {n: m.clone() for n, m in pruner.net.masks.items()}, 0
    for step in train(pruner, 8):
        share = {
            "cosine": (1 + math.cos(math.pi * step / 8)) / 2,
            "quartic": (1 - step / 8) ** 4,
            "none": 1.0,
        }[restriction]
        for name, mask in pruner.net.masks.items():
            score = pruner.net.memory[f"score/{name}"].flatten().tolist()
            assert mask.flatten().tolist() == oracle(before[name].flatten().tolist(), score, share)
            moved += int((mask ^ before[name]).sum())
        assert counts(pruner) == start
        before = {n: m.clone() for n, m in pruner.net.masks.items()}
    assert moved > 20


def test_weights_biases_and_norms_are_the_same_bytes_afterwards() -> None:
    model = network()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    pruner = attach(model, sparsity=0.8)
    list(train(pruner, 10))
    assert all(torch.equal(pruner.net.memory[f"weight/{n}"], before[n]) for n in LAYERS)
    frozen = ("0.bias", "1.weight", "1.bias", "3.bias", "5.bias")
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in frozen)
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"]), (
        "statistics follow"
    )


def test_detach_leaves_the_found_network_ready_for_tuning() -> None:
    model = network()
    pruner = attach(model, sparsity=0.8)
    list(train(pruner, 5))
    pruner.detach()
    held = [p for group in pruner.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} and all(p.requires_grad for p in held)
    for name, mask in pruner.net.masks.items():
        assert torch.equal(dict(model.named_parameters())[name], pruner.net.memory[f"weight/{name}"] * mask)


def test_sparsity_0_is_the_trained_network() -> None:
    model = network().eval()
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = model(x).detach()
    pruner = attach(model, sparsity=0.0)
    assert torch.equal(model(x), wanted)
    list(train(pruner, 3))
    assert torch.equal(model(x), wanted)


def test_the_score_s_gradient_is_that_of_a_real_valued_mask() -> None:
    """Finite differences with b replaced by a real tensor, at kept and at cut positions."""
    model = network().double().eval()
    pruner = attach(model, sparsity=0.8, lr=1.0)
    pruner.optimizer.param_groups[0]["weight_decay"] = 0.0
    x, y = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8) % 4
    name, mask = "3.weight", pruner.net.masks["3.weight"].clone()
    b = mask.double()
    frozen, score = pruner.net.memory[f"weight/{name}"], pruner.net.memory[f"score/{name}"]

    def loss(b: Tensor) -> float:
        with torch.no_grad():
            out = torch.func.functional_call(model, {name: frozen * b}, (x,))
            return float(nn.functional.cross_entropy(out, y))

    before = score.clone()
    nn.functional.cross_entropy(model(x), y).backward()
    pruner.optimizer.step()
    gradient = (before - score).flatten()  # momentum's first step is the gradient
    for position in (*mask.flatten().nonzero()[:4].flatten(), *(~mask).flatten().nonzero()[:8].flatten()):
        nudge = torch.zeros(mask.numel(), dtype=torch.float64)
        nudge[position] = 1e-6
        nudge = nudge.view_as(mask)
        numeric = (loss(b + nudge) - loss(b - nudge)) / 2e-6
        assert gradient[position].item() == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_settings_that_mean_nothing_are_refused() -> None:
    for word, value in (("layers", "l2"), ("restriction", "linear"), ("sparsity", 1.2)):
        with pytest.raises(BadInput, match=word):
            LotteryJackpots(**{word: value})  # type: ignore[arg-type]
