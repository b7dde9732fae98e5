"""SNIP, GraSP and SynFlow scores: against finite differences and path sums, and the network stays as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.training import keep_largest
from secateur.errors import BadInput
from secateur.signals.gradients import grasp_scores, snip_scores, synflow_scores
from secateur.sites.trainable import trainable_weights
from tests.oracles import slow_group


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(6, 4, generator=random, dtype=torch.float64),
            torch.randint(3, (6,), generator=random),
        )
        for _ in range(count)
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in trainable_weights(model).items()}


def total(model: nn.Module, temperature: float = 1.0) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x) / temperature, y)) for x, y in batches())


def slope(model: nn.Module, name: str, index: int, temperature: float = 1.0, h: float = 1e-5) -> float:
    """dL/dw by central difference."""
    flat = model.get_parameter(name).detach().view(-1)
    kept = float(flat[index])
    flat[index] = kept + h
    above = total(model, temperature)
    flat[index] = kept - h
    below = total(model, temperature)
    flat[index] = kept
    return (above - below) / (2 * h)


def test_snip_is_weight_times_the_slope_of_the_loss() -> None:
    model = net()
    found = snip_scores(model, weights(model), batches(), F.cross_entropy)
    for name, weight in weights(model).items():
        wanted = [abs(float(w) * slope(model, name, i)) for i, w in enumerate(weight.flatten())]
        assert found[name].shape == weight.shape
        torch.testing.assert_close(found[name].flatten(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-9)


def test_snip_ranks_alike_when_the_loss_is_multiplied() -> None:
    model = net()
    plain = keep_largest(snip_scores(model, weights(model), batches(), F.cross_entropy), 0.6)
    eight = keep_largest(
        snip_scores(model, weights(model), batches(), lambda o, t: 8 * F.cross_entropy(o, t)), 0.6
    )
    assert all(torch.equal(plain[n], eight[n]) for n in plain)


def test_grasp_is_weight_times_the_slope_of_half_the_flow() -> None:
    """H g = gradient of g^T g / 2: the difference quotient of the flow that the sheet's Hg is the slope of."""
    model, temperature, h = net(), 2.0, 1e-4
    names = list(weights(model))

    def flow() -> float:
        loss = sum(F.cross_entropy(model(x) / temperature, y) for x, y in batches())
        g = torch.autograd.grad(loss, [model.get_parameter(n) for n in names])  # type: ignore[arg-type]
        return float(sum((part**2).sum() for part in g)) / 2

    found = grasp_scores(model, weights(model), batches(), F.cross_entropy, temperature)
    for name in names:
        flat = model.get_parameter(name).detach().view(-1)
        for index in range(len(flat)):
            kept = float(flat[index])
            flat[index] = kept + h
            above = flow()
            flat[index] = kept - h
            below = flow()
            flat[index] = kept
            wanted = kept * (above - below) / (2 * h)
            assert float(found[name].flatten()[index]) == pytest.approx(wanted, rel=1e-4, abs=1e-8)


def path_sums(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """SynFlow of two linear layers without biases: the sum of |products| over all paths through a weight."""
    a, b = first.double().abs(), second.double().abs()
    found = {"0.weight": torch.zeros_like(a), "1.weight": torch.zeros_like(b)}
    for i in range(a.shape[1]):
        for j in range(a.shape[0]):
            for k in range(b.shape[0]):
                found["0.weight"][j, i] += a[j, i] * b[k, j]
                found["1.weight"][k, j] += a[j, i] * b[k, j]
    return found


def linear(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False))


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_synflow_is_the_sum_over_paths_round_by_round(rounds: int) -> None:
    model, sparsity = linear(), 0.7
    values = weights(model)
    found = synflow_scores(model, values, batches(1), sparsity=sparsity, rounds=rounds)
    masks = {name: torch.ones_like(w) for name, w in values.items()}
    for done in range(rounds):
        sums = path_sums(*(values[n] * masks[n] for n in values))
        if done < rounds - 1:
            dead = {n: sums[n].masked_fill(masks[n] == 0, -1) for n in sums}
            cut = int(35 * (1 - 0.3 ** ((done + 1) / rounds)) + 1e-9)
            flags = slow_group(torch.cat([s.flatten() for s in dead.values()]).tolist(), cut)
            first = masks["0.weight"].numel()
            parts = {"0.weight": flags[:first], "1.weight": flags[first:]}
            masks = {n: torch.tensor(parts[n]).view_as(masks[n]).float() for n in masks}
    top = max(float(s.max()) for s in sums.values())
    for name in values:
        wanted = torch.where(masks[name].bool(), sums[name] / top, -1.0)
        torch.testing.assert_close(found[name], wanted)
    assert sum(int(m.sum()) for m in keep_largest(found, sparsity).values()) == 11


def test_synflow_keeps_layers_that_a_single_round_empties() -> None:
    """Tanaka's theorem 3 in small: at very high sparsity, iterating spares the narrow layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 40, bias=False), nn.Linear(40, 40, bias=False), nn.Linear(40, 2, bias=False)
    )
    values = weights(model)
    notes: dict[int, list[str]] = {1: [], 100: []}
    for rounds, lines in notes.items():
        keep_largest(synflow_scores(model, values, batches(1), sparsity=0.995, rounds=rounds), 0.995, lines)
    assert notes[1] and not notes[100]


def test_the_network_stays_as_it_was_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    )
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    grad = torch.ones_like(model[4].weight)
    model[4].weight.grad = grad.clone()
    data = [(torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1]))]
    random = torch.get_rng_state()
    first = snip_scores(model, weights(model), data, F.cross_entropy)
    grasp_scores(model, weights(model), data, F.cross_entropy)
    synflow_scores(model, weights(model), data, sparsity=0.9, rounds=5)
    assert torch.equal(torch.get_rng_state(), random) and [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, grad) and model[0].weight.grad is None
    torch.manual_seed(99)  # dropout does not follow the global state
    again = snip_scores(model, weights(model), data, F.cross_entropy)
    assert all(torch.equal(again[n], first[n]) for n in first)


def test_other_values_can_stand_in_for_the_weights() -> None:
    model, other = net(0), net(1)
    with torch.no_grad():
        for mine, theirs in ((model[0].bias, other[0].bias), (model[2].bias, other[2].bias)):
            theirs.copy_(mine)
    swapped = snip_scores(model, weights(other), batches(), F.cross_entropy)
    own = snip_scores(other, weights(other), batches(), F.cross_entropy)
    assert all(torch.equal(swapped[n], own[n]) for n in own)


def test_what_is_missing_is_one_line() -> None:
    model = net()
    for score in (snip_scores, grasp_scores):
        with pytest.raises(BadInput, match="no batches to take gradients"):
            score(model, weights(model), [], F.cross_entropy)
        with pytest.raises(BadInput, match="no loss to take gradients"):
            score(model, weights(model), batches(), None)
    with pytest.raises(BadInput, match="no input of floats"):
        synflow_scores(model, weights(model), [], sparsity=0.5)
    with pytest.raises(BadInput, match="depends on the weights"):
        snip_scores(model, weights(model), batches(), lambda o, t: torch.tensor(1.0))
    with pytest.raises(BadInput, match=r"0\.weight"):
        snip_scores(model, weights(model), batches(), lambda o, t: F.cross_entropy(o, t) * float("nan"))
    with pytest.raises(BadInput, match="0 rounds"):
        synflow_scores(model, weights(model), batches(), sparsity=0.5, rounds=0)
