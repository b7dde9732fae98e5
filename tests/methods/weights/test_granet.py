"""GraNet against its sheet: the ramp, the hand case, GMP and regrowth alone as its limits, the digits experiment."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Net, Training
from secateur.errors import BadInput, Infeasible
from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.classifiers import load_classifier
from secateur.io.images import load_images
from secateur.methods.weights.gmp import GMP
from secateur.methods.weights.granet import GraNet
from secateur.methods.weights.random_pruning import RandomPruning

Lists = dict[str, list]


def oracle(weights: Lists, masks: Lists, gradients: Lists, sparsity: float, r: float) -> tuple[Lists, Lists]:
    """Sheet granet, steps 4 and 5, in loops: masks and weights after one event."""
    places = [(name, i) for name in weights for i in range(len(weights[name]))]
    places.sort(key=lambda p: abs(weights[p[0]][p[1]]) if masks[p[0]][p[1]] else -1)
    for name, i in places[: int(len(places) * sparsity + 1e-9)]:
        masks[name][i], weights[name][i] = False, 0.0
    for name, mask in masks.items():
        active = sorted((i for i in range(len(mask)) if mask[i]), key=lambda i: abs(weights[name][i]))
        count = math.ceil(r * len(active) - 1e-9)
        kept = set(active[count:])
        free = sorted((i for i in range(len(mask)) if i not in kept), key=lambda i: abs(gradients[name][i]))
        new = kept | set(free[len(free) - count :])
        masks[name] = [i in new for i in range(len(mask))]
        weights[name] = [w if i in new else 0.0 for i, w in enumerate(weights[name])]
    return masks, weights


def tiny_net(
    weights: dict[str, Tensor], masks: dict[str, Tensor], gradients: dict[str, Tensor], step: int
) -> Net:
    return Net(nn.Module(), weights, {}, masks, steps=100, step=step, gradients=gradients)


def test_the_ramp_to_the_digit() -> None:
    weight = torch.ones(2, 2)
    net = tiny_net({"w": weight}, {"w": weight.bool()}, {}, 0)
    ramp = GraNet(sparsity=0.9, every=5, begin=0.01, end=0.51).schedule(net)
    assert (ramp.begin, ramp.events) == (1, 10)
    found = [ramp.target(1 + 5 * j) for j in (0, 1, 5, 9, 10)]
    assert found == pytest.approx([0, 0.2439, 0.7875, 0.8991, 0.9], abs=5e-5)


@pytest.mark.parametrize(("own", "kept"), [(2.0, [0, 2, 3]), (4.0, [0, 1, 2])])
def test_the_hand_case(own: float, kept: list[int]) -> None:
    weight = torch.tensor([[5.0, 1, 4, 0, 0]])
    mask = torch.tensor([[True, True, True, False, False]])
    gradient = torch.tensor([[9.0, own, 9, 3, 1]])
    method = GraNet(sparsity=0.4, initial_sparsity=0.4, every=10, regrow=1 / 3, regrow_end=1 / 3)
    found = method.revise(tiny_net({"w": weight}, {"w": mask}, {"w": gradient}, 50))
    assert found["w"][0].nonzero().squeeze(1).tolist() == kept
    assert weight[0, 3] == 0 and weight[0, 1] == 1, "index 1 keeps its value if it comes back"


@pytest.mark.parametrize("step", [1, 31, 41, 61])
def test_an_event_equals_the_oracle(step: int) -> None:
    random = torch.Generator().manual_seed(step)
    masks = {n: torch.rand(s, generator=random) < 0.7 for n, s in (("a", (5, 8)), ("b", (3, 5)))}
    weights = {n: torch.randn(m.shape, generator=random) * m for n, m in masks.items()}
    gradients = {n: torch.randn(m.shape, generator=random) for n, m in masks.items()}
    method = GraNet(sparsity=0.8, initial_sparsity=0.2, every=10)
    r = 0.005 + 0.495 * (1 + math.cos(math.pi * step / 100)) / 2
    done = min(4, step // 10)  # events at 1, 11, .. 41: four parts
    target = 0.8 - 0.6 * (1 - done / 4) ** 3
    lists = [{n: t.flatten().tolist() for n, t in part.items()} for part in (weights, masks, gradients)]
    wanted_masks, wanted_weights = oracle(*lists, target, r)
    found = method.revise(tiny_net(weights, masks, gradients, step))
    for name, mask in found.items():
        assert mask.flatten().tolist() == wanted_masks[name]
        assert (weights[name] * mask).flatten().tolist() == wanted_weights[name]


def run(
    method: Training, steps: int = 60, sizes: tuple[int, int] = (6, 20), momentum: float = 0.9
) -> tuple[nn.Module, Pruner, list[dict[str, Tensor]]]:
    torch.manual_seed(1)
    inputs, width = sizes
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=momentum)
    pruner = method.attach(model, optimizer, steps=steps)
    seen = [{n: m.clone() for n, m in pruner.net.masks.items()}]
    data = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.randn(16, inputs, generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        pruner.step()
        seen.append({n: m.clone() for n, m in pruner.net.masks.items()})
        for name, mask in pruner.net.masks.items():
            assert not bool(model.get_parameter(name)[~mask].any())
            moment = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
            assert moment is None or not bool(moment[~mask].any())
    return model, pruner, seen


def total(masks: dict[str, Tensor]) -> int:
    return sum(int(m.sum()) for m in masks.values())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_without_regrowth_it_is_global_gmp_bit_for_bit() -> None:
    mine, _, seen = run(GraNet(sparsity=0.9, every=5, regrow=0.0))
    gmp, _, wanted = run(GMP(sparsity=0.9, every=5, end=0.5, scope="global"))
    assert same(mine, gmp)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(seen, wanted, strict=True) for n in a)


class Moves(GraNet):
    """DST: regrowth alone."""

    def prune(self, net: Net) -> dict[str, Tensor]:
        return net.masks


def test_at_one_sparsity_it_only_regrows() -> None:
    mine, pruner, seen = run(GraNet(sparsity=0.7, initial_sparsity=0.7, every=5))
    alone, _, _ = run(Moves(sparsity=0.7, initial_sparsity=0.7, every=5))
    assert same(mine, alone)
    erk = run(RandomPruning(sparsity=0.7))[2][0]
    assert all(torch.equal(seen[0][n], mask) for n, mask in erk.items())
    assert all(int(after[n].sum()) == int(seen[0][n].sum()) for after in seen for n in after)
    assert any(not torch.equal(seen[-1][n], seen[0][n]) for n in seen[0])
    assert pruner.peak_density == pruner.density


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_counts_follow_the_ramp_and_layers_keep_theirs_when_regrowing(initial: float) -> None:
    method = GraNet(sparsity=0.9, initial_sparsity=initial, every=5)
    _, pruner, seen = run(method)
    ramp = method.schedule(pruner.net)
    for step in range(1, 61):
        wanted = 180 - int(180 * ramp.target(step) + 1e-9)
        assert total(seen[step]) == wanted
    assert all(total(b) <= total(a) for a, b in pairwise(seen))
    assert pruner.peak_density == pytest.approx(1 - initial)
    moved = {i for i in range(1, 61) for n in seen[i] if not torch.equal(seen[i][n], seen[i - 1][n])}
    assert moved <= {*range(1, 60, 5)} and max(moved) > 31, "regrowth goes on after the ramp"
    assert pruner.report()["explored_fraction"] > 1 - initial or not initial


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_weight_pruned_and_regrown_in_one_event_starts_from_nothing(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        if name == "sgd"
        else torch.optim.Adam(model.parameters(), 0.01)
    )
    method = GraNet(sparsity=0.9, every=4, regrow=0.5, end=0.8)
    pruner = method.attach(model, optimizer, steps=20)
    again = 0
    for step in range(1, 20):
        x = torch.randn(16, 20)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        pruner.net.step += 1
        pruned = {n: m & ~method.prune(pruner.net)[n] for n, m in pruner.net.masks.items()}
        pruner.net.step -= 1
        pruner.step()
        if step % 4 != 1 or step == 1:
            continue
        for key, mask in pruner.net.masks.items():
            back, weight = pruned[key] & mask, model.get_parameter(key)
            again += int(back.sum())
            assert not bool(weight[back].any())
            for value in optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    assert not bool(value[back].any()) and bool(value[mask & ~back].any())
    assert again > 20


@pytest.mark.parametrize("cut_at", [16, 23, 41])
def test_a_resumed_run_ends_with_the_same_bytes(cut_at: int) -> None:
    """Also right after an event (16, 41), when regrown weights have not been trained yet."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        method = GraNet(sparsity=0.9, initial_sparsity=0.5, every=5)
        return model, optimizer, method.attach(model, optimizer, steps=60)

    def train(
        model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, begin: int, end: int
    ) -> None:
        for step in range(begin, end):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
            pruner.step()

    whole, first, second = made(), made(), made()
    train(*whole, 0, 60)
    train(*first, 0, cut_at)
    saved = [deepcopy(part.state_dict()) for part in first]
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    train(*second, cut_at, 60)
    assert same(whole[0], second[0])
    assert all(torch.equal(m, second[2].net.masks[n]) for n, m in whole[2].net.masks.items())


def test_uniform_keeps_the_classifier_at_a_fifth() -> None:
    method = GraNet(sparsity=0.9, every=5, scope="layer")
    _, pruner, seen = run(method, sizes=(30, 40))
    final = {n: int(m.sum()) for n, m in seen[-1].items()}
    rest = (0.9 * 1_320 - 0.8 * 120) / 1_200
    assert final == {"0.weight": 1_200 - int(1_200 * rest + 1e-9), "2.weight": 24}
    assert method.targets(pruner.net, 0.79) == {"0.weight": 0.79, "2.weight": 0.79}
    sparse = run(GraNet(sparsity=0.9, initial_sparsity=0.5, every=5, scope="layer"), sizes=(30, 40))[2]
    assert {n: int(m.sum()) for n, m in sparse[0].items()} == {"0.weight": 600, "2.weight": 60}
    assert {n: int(m.sum()) for n, m in sparse[-1].items()} == final
    assert all(int(b[n].sum()) <= int(a[n].sum()) for a, b in pairwise(sparse) for n in a)


def test_what_is_wrong_is_one_line() -> None:
    for bad in (
        {"initial_sparsity": 0.95},
        {"initial_sparsity": 1.0},
        {"regrow": 1.5},
        {"regrow_end": -0.1},
        {"every": 0},
        {"scope": "row"},
    ):
        with pytest.raises(BadInput):
            GraNet(**bad)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="hold no event every 100 steps"):
        run(GraNet())
    with pytest.raises(Infeasible, match=r"2\.weight: at density 0\.2 it alone"):
        run(GraNet(sparsity=0.98, every=5, scope="layer"), sizes=(1, 20))


@pytest.mark.slow
def test_on_digits_it_beats_moving_alone_which_beats_a_static_mask() -> None:
    """The sheet's experiment: MLP 64-256-256-10, density .02, 3 seeds; and within a point of global GMP, on average."""
    train, test = load_images("digits", "train"), load_images("digits", "test")
    x, y = to_batch(train.images), torch.as_tensor(train.labels)

    def trained(method: Training, seed: int) -> float:
        model = load_classifier("mlp-256-256", channels=1, size=8, classes=10, seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        pruner = method.attach(model, optimizer, steps=600)
        order = torch.Generator().manual_seed(seed)
        for _ in range(600):
            pick = torch.randperm(len(x), generator=order)[:64]
            optimizer.zero_grad()
            F.cross_entropy(model(x[pick]), y[pick]).backward()
            optimizer.step()
            pruner.step()
        return accuracy(model, test.images, test.labels)

    means = [
        sum(trained(make(seed), seed) for seed in (0, 1, 2)) / 3
        for make in (
            lambda s: RandomPruning(sparsity=0.98, seed=s),
            lambda s: GraNet(sparsity=0.98, initial_sparsity=0.98, every=20, seed=s),
            lambda s: GraNet(sparsity=0.98, every=20, seed=s),
            lambda s: GMP(sparsity=0.98, every=20, end=0.5, scope="global", seed=s),
        )
    ]
    static, moving, granet, gmp = means
    assert granet > moving > static and abs(granet - gmp) < 0.01, means
