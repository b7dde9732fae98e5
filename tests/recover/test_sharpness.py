from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.methods.weights.gmp import GMP
from secateur.recover.sharpness import ASAM, SAM, TwoPass, asam_step, channel_asam_step, sam_step

W, G = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0])


def slow_asam(
    ws: list[list[float]], gs: list[list[float]], rho: float, eta: float, scaled: list[bool]
) -> list[list[float]]:
    """The formula by loops over single numbers."""
    t = [[abs(w) + eta if flag else 1.0 for w in row] for row, flag in zip(ws, scaled, strict=True)]
    squares = [(a * g) ** 2 for ta, ga in zip(t, gs, strict=True) for a, g in zip(ta, ga, strict=True)]
    length = rho / (math.sqrt(sum(squares)) + 1e-12)
    return [[length * a * a * g for a, g in zip(ta, ga, strict=True)] for ta, ga in zip(t, gs, strict=True)]


class Net(nn.Module):
    """A convolution, batch norm, a linear layer; inputs [n, 1, 4, 4]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.bn, self.linear = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 4, 4, generator=stream), torch.randint(0, 4, (6,), generator=stream)


def again(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Callable[[], Tensor]:
    x, y = batch(seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> nn.Module:
    for seed in range(steps):
        closure = again(model, optimizer, seed)
        closure()
        optimizer.step(closure if isinstance(optimizer, TwoPass) else None)
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def same(one: nn.Module, other: nn.Module) -> bool:
    there = other.state_dict()
    return all(torch.equal(value, there[name]) for name, value in one.state_dict().items())


def test_hand_worked_steps() -> None:
    (e,) = asam_step([W], [G], 1.0)
    assert torch.allclose(e, torch.tensor([0.83205, 1.10940]), atol=5e-6)
    assert float(G @ e) == pytest.approx(13**0.5)  # g.e = ||T g||, the most the ball allows
    (e,) = sam_step([W], [G], 0.5)
    assert torch.allclose(e, torch.tensor([1.5, 0.5]) / 10**0.5)
    assert sam_step([], [], 1.0) == [] == asam_step([], [], 1.0)


def test_one_norm_over_all_tensors() -> None:
    parts = sam_step([W[:1], W[1:]], [G[:1], G[1:]], 0.5)
    assert torch.allclose(torch.cat(parts), sam_step([W], [G], 0.5)[0])
    parts = asam_step([W[:1], W[1:]], [G[:1], G[1:]], 1.0)
    assert torch.allclose(torch.cat(parts), asam_step([W], [G], 1.0)[0])


numbers = st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4)


@given(numbers, numbers, numbers, numbers, st.floats(0, 2), st.floats(0, 1), st.booleans())
def test_asam_is_the_loop(
    a: list[float], b: list[float], g: list[float], h: list[float], rho: float, eta: float, flag: bool
) -> None:
    kind = torch.float64
    ws, gs = [torch.tensor(a, dtype=kind), torch.tensor(b, dtype=kind)], [g, h]
    found = asam_step(ws, [torch.tensor(x, dtype=kind) for x in gs], rho, eta, [True, flag])
    wanted = slow_asam([a, b], gs, rho, eta, [True, flag])
    # the norm over several tensors is taken in float32
    assert torch.allclose(torch.cat(found), torch.tensor(wanted, dtype=kind).flatten(), rtol=1e-5, atol=1e-9)


def test_channel_step_is_asam_on_each_channel() -> None:
    stream = torch.Generator().manual_seed(0)
    w, g = torch.randn(3, 2, 2, 2, generator=stream), torch.randn(3, 2, 2, 2, generator=stream)
    rho = torch.tensor([0.5, 2.0, 0.0])
    found = channel_asam_step(w, g, rho)
    for i in range(3):
        assert torch.allclose(found[i], asam_step([w[i]], [g[i]], float(rho[i]))[0])
    assert not found[2].any()
    assert torch.allclose(found, channel_asam_step(w, g, rho.view(3, 1, 1, 1).expand_as(w)))
    one = w[:1], g[:1]
    assert torch.allclose(channel_asam_step(*one, torch.tensor([2.0])), asam_step([one[0]], [one[1]], 2.0)[0])


def test_asam_follows_a_rescaled_channel_and_sam_does_not() -> None:
    """w_i * c and the next layer / c: the same function, whose gradient is g_i / c."""
    stream = torch.Generator().manual_seed(1)
    w, g = torch.randn(2, 5, generator=stream), torch.randn(2, 5, generator=stream)
    c, rho = 8.0, torch.tensor([2.0, 2.0])
    assert torch.allclose(channel_asam_step(w * c, g / c, rho), c * channel_asam_step(w, g, rho))
    assert not torch.allclose(sam_step([w * c], [g / c], 0.05)[0], c * sam_step([w], [g], 0.05)[0])


def test_zero_weights_and_zero_gradients_stay() -> None:
    w, g = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    assert channel_asam_step(w, g, torch.ones(2)).tolist() == [[0, 0], [1, 0]]
    assert not asam_step([w], [g * 0], 1.0)[0].any() and not sam_step([w], [g * 0], 1.0)[0].any()


@pytest.mark.parametrize("wrapper", [SAM, ASAM])
def test_radius_zero_is_the_inner_optimiser_bit_for_bit(wrapper: type[SAM] | type[ASAM]) -> None:
    plain, wrapped = Net(), Net()
    train(plain, sgd(plain))
    train(wrapped, wrapper(sgd(wrapped), rho=0.0, model=wrapped))
    assert same(plain, wrapped)  # batch norm's statistics and batch counts too: the second pass leaves none


def test_sam_step_is_the_algorithm_by_hand() -> None:
    """Plain SGD: w - lr g(w + e), each pass done apart on a copy."""
    model, reference = Net(), Net()
    x, y = batch(0)
    F.cross_entropy(reference(x), y).backward()
    own = list(reference.parameters())
    grads = [p.grad.clone() for p in own if p.grad is not None]
    there = copy.deepcopy(reference)
    length = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))
    with torch.no_grad():
        for p, g in zip(there.parameters(), grads, strict=True):
            p.add_(0.2 * g / length)
            p.grad = None
    F.cross_entropy(there(x), y).backward()
    with torch.no_grad():
        for p, q in zip(own, there.parameters(), strict=True):
            assert q.grad is not None
            p.sub_(0.1 * q.grad)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2, model=model)
    closure = again(model, optimizer, 0)
    first = closure().item()
    assert optimizer.step(closure).item() > first  # uphill
    for p, q in zip(model.parameters(), own, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_weights_are_back_bit_for_bit_before_the_inner_step() -> None:
    model = Net()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=3.0, model=model)
    seen: list[bool] = []
    closure = again(model, optimizer, 0)
    before = copy.deepcopy(model)
    closure()
    statistics = [b.clone() for b in model.buffers()]
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
        )
    )
    optimizer.step(closure)
    assert seen == [True], "the hook runs once, on the weights of before"
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), statistics, strict=True))


def test_a_closure_that_fails_leaves_the_weights() -> None:
    model = Net()
    optimizer = ASAM(sgd(model), rho=2.0, model=model)
    again(model, optimizer, 0)()
    before = copy.deepcopy(model.state_dict())

    def broken() -> Tensor:
        model(batch(1)[0])
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(broken)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_first_gradient_that_is_not_finite_skips_the_step(bad: float) -> None:
    model = Net()
    optimizer = SAM(sgd(model), model=model)
    closure = again(model, optimizer, 0)
    closure()
    assert model.linear.bias.grad is not None
    model.linear.bias.grad[1] = bad
    before = copy.deepcopy(model)
    assert optimizer.step(closure) is None and optimizer.skipped == 1
    assert same(model, before) and all(p.grad is None for p in model.parameters())
    closure()
    assert optimizer.step(closure) is not None and optimizer.skipped == 1


def test_eta_and_t_go_by_the_name() -> None:
    """As in the authors' code: |w| + eta where the name holds "weight" (gamma too), T = 1 for a bias."""
    model = Net()
    optimizer = ASAM(sgd(model), rho=0.7, eta=0.3, model=model)
    again(model, optimizer, 0)()
    named = list(model.named_parameters())
    grads = [p.grad.flatten().tolist() for _, p in named if p.grad is not None]
    wanted = slow_asam(
        [p.flatten().tolist() for _, p in named],
        grads,
        0.7,
        0.3,
        [name.endswith("weight") for name, _ in named],
    )
    for (_, e), row in zip(optimizer.moves(), wanted, strict=True):
        assert torch.allclose(e.flatten(), torch.tensor(row), atol=1e-6)


def test_schedulers_and_state_dicts_take_it() -> None:
    model = Net()
    optimizer = SAM(sgd(model), model=model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for seed in range(2):
        closure = again(model, optimizer, seed)
        closure()
        optimizer.step(closure)
        schedule.step()
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.025) == optimizer.param_groups[0]["lr"]
    other = Net()
    resumed = SAM(sgd(other), model=other)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.025)
    assert torch.equal(
        resumed.state[other.linear.weight]["momentum_buffer"],
        optimizer.state[model.linear.weight]["momentum_buffer"],
    )
    assert optimizer.two_pass and optimizer.defaults is optimizer.inner.defaults
    assert "SAM around SGD" in repr(optimizer)
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [extra]})
    assert optimizer.inner.param_groups[1]["params"] == [extra]


def test_a_pruner_may_be_attached_to_it() -> None:
    model = Net()
    method = GMP(sparsity=0.5, end=0.5, every=1)
    pruner = method.attach(model, ASAM(sgd(model), rho=2.0, model=model), steps=6)
    for seed in range(6):
        closure = again(model, pruner.optimizer, seed)
        closure()
        pruner.optimizer.step(closure)
        pruner.step()
    assert pruner.skipped == 0 and pruner.density == pytest.approx(0.5, abs=0.05)
    assert all(torch.equal(w != 0, pruner.net.masks[name]) for name, w in pruner.net.weights.items())


def test_what_is_refused() -> None:
    model = Net()
    for rho in (-0.1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(BadInput, match="radius"):
            SAM(sgd(model), rho=rho, model=model)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="eta"):
        ASAM(sgd(model), eta=-1.0, model=model)
    with pytest.raises(BadInput, match="closure"):
        SAM(sgd(model), model=model).step()
    with pytest.raises(BadInput, match="cannot be wrapped"):
        SAM(SAM(sgd(model), model=model), model=model)
