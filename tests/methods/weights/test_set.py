"""SET: smallest |w| go, random ones come; counts, seeds, resumption."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Net
from secateur.errors import BadInput
from secateur.methods.weights.set import SET


def oracle(weight: list[float], mask: list[bool], zeta: float, chance: list[float]) -> list[bool]:
    """Algorithm 1 with one ranking of |w|, by sorted lists."""
    active = sorted((i for i, m in enumerate(mask) if m), key=lambda i: abs(weight[i]))
    count = int(zeta * len(active) + 1e-9)
    kept = set(active[count:])
    free = sorted((i for i in range(len(mask)) if i not in kept), key=lambda i: chance[i])
    return [i in kept | set(free[len(free) - count :]) for i in range(len(mask))]


def run(steps: int, seed: int = 0, **settings: object) -> tuple[nn.Module, Pruner, list[Tensor]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner = SET(sparsity=0.8, seed=seed, every=5, **settings).attach(model, optimizer, steps=steps)  # type: ignore[arg-type]
    seen = [pruner.net.masks["0.weight"].clone()]
    data = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        pruner.step()
        seen.append(pruner.net.masks["0.weight"].clone())
    return model, pruner, seen


def test_an_event_equals_the_oracle() -> None:
    random = torch.Generator().manual_seed(5)
    weight = torch.randn(7, 9, generator=random)
    mask = torch.rand(7, 9, generator=random) < 0.4
    net = Net(nn.Module(), {"w": weight * mask}, {}, {"w": mask}, steps=100, seed=3, step=10)
    found = SET(zeta=0.3).revise(net)["w"]
    chance = torch.rand(7, 9, generator=net.generator())
    wanted = oracle(
        (weight * mask).flatten().tolist(), mask.flatten().tolist(), 0.3, chance.flatten().tolist()
    )
    assert found.flatten().tolist() == wanted and not torch.equal(found, mask)


def test_masks_move_at_events_only_and_the_counts_never_change() -> None:
    model, pruner, seen = run(30)
    moved = [i for i in range(1, 31) if not torch.equal(seen[i], seen[i - 1])]
    assert moved == [5, 10, 15, 20, 25], "nothing moves after the last step"
    assert {int(m.sum()) for m in seen} == {int(seen[0].sum())}
    report = pruner.report()
    assert report["peak_density"] == report["density"] == pytest.approx(1 - 144 / 180)
    assert report["explored_fraction"] > report["density"] and not any(pruner.dense_steps.values())
    for name, mask in pruner.net.masks.items():
        assert not bool(model.get_parameter(name)[~mask].any())


def test_no_zeta_is_static_and_a_seed_gives_one_run() -> None:
    _, _, still = run(20, zeta=0.0)
    assert all(torch.equal(m, still[0]) for m in still)
    first, again, other = run(20)[2], run(20)[2], run(20, seed=1)[2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[-1], other[-1])


def test_what_is_wrong_is_one_line() -> None:
    for bad in ({"zeta": 1.2}, {"every": 0}, {"layers": "owl"}):
        with pytest.raises(BadInput):
            SET(**bad)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no event every 5 steps in a training of 5"):
        run(5)
