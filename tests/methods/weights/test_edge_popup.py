"""Edge-popup against its sheet: the scores' law and gradient, exact masks, weights that never change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.errors import BadInput
from secateur.methods.weights.edge_popup import EdgePopup, random_weight
from tests.oracles import floor_count, slow_group


def oracle(scores: dict[str, Tensor], sparsity: float, scope: str) -> dict[str, list[bool]]:
    """Sheet step 7 by a stable sort: of each layer, or of all, the lowest scores go, of equal ones the first."""
    flat = {name: [float(v) for v in score.flatten()] for name, score in scores.items()}
    if scope == "layer":
        return {name: slow_group(values, floor_count(len(values), sparsity)) for name, values in flat.items()}
    together = [v for values in flat.values() for v in values]
    flags = iter(slow_group(together, floor_count(len(together), sparsity)))
    return {name: [next(flags) for _ in values] for name, values in flat.items()}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5, bias=False)
        )


def attach(model: nn.Module, steps: int = 10, **settings: Any) -> Pruner:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=5e-4)
    return EdgePopup(**settings).attach(model, optimizer, steps=steps)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, x.flatten(1)[:, :5].argmax(1)


def train(pruner: Pruner, count: int) -> None:
    for step in range(count):
        x, y = batch(step)
        nn.functional.cross_entropy(pruner.net.model(x), y).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()


def scores(pruner: Pruner) -> dict[str, Tensor]:
    return {name: pruner.net.memory[f"score/{name}"] for name in pruner.net.weights}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.29, 0.5, 0.9])
def test_the_mask_is_the_largest_scores_after_every_step(scope: str, sparsity: float) -> None:
    pruner = attach(network(), scope=scope, sparsity=sparsity)
    seen = set()
    for _ in range(4):
        wanted = oracle(scores(pruner), sparsity, scope)
        for name, mask in pruner.net.masks.items():
            assert mask.flatten().tolist() == wanted[name]
            effective = pruner.net.memory[f"weight/{name}"] * mask
            assert torch.equal(pruner.net.weights[name], effective), "the network computes with w * mask"
        seen.add(str(wanted))
        train(pruner, 1)
    assert len(seen) == 4, "the scores move the mask"


def test_equal_scores_are_cut_from_the_front_and_a_score_below_zero_comes_last() -> None:
    pruner = attach(nn.Linear(6, 1), sparsity=0.5)
    score = pruner.net.memory["score/weight"]
    for values, kept in (
        ([1.0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]),
        ([-3.0, 2, -1, 0, 1, -2], [0, 1, 0, 1, 1, 0]),
    ):
        score.copy_(torch.tensor([values]))
        assert pruner.method.revise(pruner.net)["weight"].int().tolist() == [kept]


def test_a_score_gets_the_gradient_of_its_effective_weight_times_its_weight() -> None:
    model = network()
    pruner = attach(model, sparsity=0.7)
    x, y = batch()
    twin = network()
    twin.load_state_dict(model.state_dict())  # a plain network that holds the effective weights
    nn.functional.cross_entropy(twin(x), y).backward()
    nn.functional.cross_entropy(model(x), y).backward()
    for group in pruner.optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0
    before = {name: score.clone() for name, score in scores(pruner).items()}
    pruner.optimizer.step()
    for name, score in scores(pruner).items():
        gradient = dict(twin.named_parameters())[name].grad
        assert gradient is not None
        wanted = gradient * pruner.net.memory[f"weight/{name}"]
        torch.testing.assert_close(before[name] - score, wanted, rtol=1e-4, atol=1e-6)
        assert bool((wanted[~pruner.net.masks[name]] != 0).any()), "cut positions learn too"


def test_scores_start_as_magnitudes_of_kaiming_uniform_with_a_sqrt_5() -> None:
    pruner = attach(nn.Sequential(nn.Conv2d(16, 64, 3), nn.Linear(50, 200)))
    for name, fan_in in (("0.weight", 144), ("1.weight", 50)):
        score = pruner.net.memory[f"score/{name}"]
        bound = 1 / math.sqrt(fan_in)  # gain sqrt(2 / (1 + 5)) times sqrt(3 / fan_in)
        assert 0 <= float(score.min()) < 0.01 * bound and 0.99 * bound < float(score.max()) <= bound
        assert float(score.mean()) == pytest.approx(bound / 2, rel=0.03)


def test_seeds_decide_scores_and_weights_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    runs = [attach(network(), weights="kaiming_normal", seed=seed).net.memory for seed in (1, 1, 2)]
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]) and not torch.equal(runs[0][name], runs[2][name])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_laws() -> None:
    stream = torch.Generator().manual_seed(0)
    plain = torch.randn(400, 8, 3, 3, generator=stream)
    plain[0, 0, 0, 0] = 0.0
    constant = random_weight(plain, "signed_constant", stream)
    assert torch.equal(constant.sign()[plain != 0], plain.sign()[plain != 0]) and constant[0, 0, 0, 0] > 0
    torch.testing.assert_close(constant.abs(), torch.full_like(plain, math.sqrt(2 / 72)), rtol=1e-6, atol=0)
    normal = random_weight(plain, "kaiming_normal", stream)
    assert (
        float(normal.std()) == pytest.approx(math.sqrt(2 / 72), rel=0.02) and abs(float(normal.mean())) < 0.01
    )
    model = network()
    own = model[0].weight.detach().clone()
    assert torch.equal(attach(model, weights="own").net.memory["weight/0.weight"], own)


@pytest.mark.parametrize("weights", ["own", "kaiming_normal", "signed_constant"])
def test_nothing_but_scores_and_running_statistics_ever_changes(weights: str) -> None:
    model = network()
    pruner = attach(model, weights=weights)
    frozen = {n: t.clone() for n, t in pruner.net.memory.items() if n.startswith("weight/")}
    others = {n: t.clone() for n, t in model.named_parameters() if n not in pruner.net.weights}
    train(pruner, 6)
    assert all(torch.equal(pruner.net.memory[n], t) for n, t in frozen.items())
    assert all(torch.equal(dict(model.named_parameters())[n], t) for n, t in others.items())
    assert int(model.state_dict()["1.num_batches_tracked"]) == 6
    pruner.detach()
    for name, mask in pruner.net.masks.items():
        assert torch.equal(pruner.net.weights[name], frozen[f"weight/{name}"] * mask)


def test_sparsity_0_is_the_untouched_random_network() -> None:
    model = network()
    wanted = {n: t.clone() for n, t in model.state_dict().items()}
    pruner = attach(model, sparsity=0.0, weights="own")
    assert all(torch.equal(t, wanted[n]) for n, t in model.state_dict().items())
    train(pruner, 3)
    model.eval()
    assert pruner.density == 1 and torch.equal(model[4].weight, wanted["4.weight"])


def test_until_a_score_passes_zero_its_steps_are_those_of_the_published_code() -> None:
    """The code trains s of either sign, ranks |s| and sends the gradient through the magnitude."""
    model = network()
    pruner = attach(model, steps=20)
    for group in pruner.optimizer.param_groups:
        group["lr"] = 0.02
    stream = torch.Generator().manual_seed(1)
    signs = {
        n: torch.where(torch.rand(s.shape, generator=stream) < 0.5, -1.0, 1.0)
        for n, s in scores(pruner).items()
    }
    signed = {n: nn.Parameter(s.clone() * signs[n]) for n, s in scores(pruner).items()}
    twin, frozen = network(), {n: pruner.net.memory[f"weight/{n}"].clone() for n in signed}
    optimizer = torch.optim.SGD(signed.values(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for step in range(8):
        effective = {}
        for name, score in signed.items():
            keep = torch.tensor(oracle({name: score.detach().abs()}, 0.5, "layer")[name]).view_as(score)
            # forward the mask, backward the magnitude
            effective[name] = (keep + score.abs() - score.abs().detach()) * frozen[name]
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(torch.func.functional_call(twin, effective, (x,)), y).backward()
        optimizer.step()
    train(pruner, 8)
    for name, score in scores(pruner).items():
        stayed = (signed[name] * signs[name] > 0) & (score > 0)
        assert float(stayed.float().mean()) > 0.9
        if bool(stayed.all()):
            torch.testing.assert_close(score, signed[name].detach().abs(), rtol=1e-3, atol=1e-5)
    assert any(bool((signed[n] * signs[n] > 0).all()) for n in signed)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_it_learns_without_touching_a_weight(scope: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 5, bias=False))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    pruner, losses = attach(model, steps=80, scope=scope), []
    for _ in range(80):
        loss = nn.functional.cross_entropy(model(x), x[:, :5].argmax(1))
        losses.append(loss.item())
        loss.backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
    assert losses[-1] < 0.3 * losses[0], "scores that learn the wrong way make it rise"


def test_a_layer_that_would_vanish_is_named_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruner = attach(model, sparsity=0.5, scope="global", weights="own")
    pruner.net.memory["score/1.weight"].mul_(1e-6)
    for _ in range(3):
        masks = pruner.method.revise(pruner.net)
        assert int(masks["1.weight"].sum()) == 1
    assert sum("1.weight" in note for note in pruner.net.notes) == 1


def test_settings_that_mean_nothing_are_refused() -> None:
    for word, value in (("scope", "row"), ("weights", "constant"), ("sparsity", 1.0)):
        with pytest.raises(BadInput, match=word):
            EdgePopup(**{word: value})  # type: ignore[arg-type]
