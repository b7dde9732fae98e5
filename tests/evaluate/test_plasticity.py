"""Pruning plasticity: hand cases of the cuts, what is held while a copy trains, and the digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BadInput, Infeasible
from secateur.evaluate.plasticity import cut_survivors, grow_back, plasticity, spread, unit_scores

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(4))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))


def backward(model: nn.Module) -> None:
    F.cross_entropy(model(X), Y).backward()


def trainer(seen: list[nn.Module]) -> Callable[[nn.Module, int], None]:
    def train(model: nn.Module, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
        seen.append(model)

    return train


def score(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(X).argmax(1) == Y).float().mean())


def test_the_structured_hand_case() -> None:
    weight = torch.tensor([[1.0, -2], [0, 0], [1, 0], [-1, 1]])
    scores = {"w": unit_scores(weight, structured=True)}
    assert scores["w"].tolist() == [3, 0, 1, 2]
    kept, pruned = cut_survivors(scores, {"w": scores["w"] > 0}, 0.4, "magnitude")
    assert kept["w"].tolist() == [True, False, False, True] and pruned == {"w": 1}
    for gradients, back in (([9.0, 2, 1, 9], 1), ([9.0, 1, 2, 9], 2)):
        grown = grow_back(kept, {"w": torch.tensor(gradients)}, pruned, "magnitude")["w"]
        assert (grown & ~kept["w"]).nonzero().tolist() == [[back]]
    assert spread(kept["w"], weight).tolist() == [[True] * 2, [False] * 2, [False] * 2, [True] * 2]


def slow_cut(scores: dict[str, list[float]], fraction: float, together: bool) -> dict[str, list[bool]]:
    kept = {n: [v > 0 for v in values] for n, values in scores.items()}
    for group in [list(scores)] if together else [[n] for n in scores]:
        alive = [(n, i) for n in group for i, v in enumerate(scores[n]) if v > 0]
        for n, i in sorted(alive, key=lambda p: scores[p[0]][p[1]])[: int(len(alive) * fraction + 1e-9)]:
            kept[n][i] = False
        for n in group:
            if any(v > 0 for v in scores[n]) and not any(kept[n]):
                kept[n][scores[n].index(max(scores[n]))] = True
    return kept


@given(st.data())
def test_cuts_equal_their_slow_rendering(data: st.DataObject) -> None:
    values = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=12)
    scores = {"a": data.draw(values), "b": data.draw(values)}
    fraction = data.draw(st.floats(0.01, 0.99))
    for criterion in ("magnitude", "global"):
        tensors = {n: torch.tensor(v) for n, v in scores.items()}
        kept, pruned = cut_survivors(tensors, {n: t > 0 for n, t in tensors.items()}, fraction, criterion)
        assert {n: k.tolist() for n, k in kept.items()} == slow_cut(scores, fraction, criterion == "global")
        grown = grow_back(kept, tensors, pruned, criterion)
        assert sum(int((grown[n] & ~kept[n]).sum()) for n in kept) == sum(pruned.values())
        assert all(bool(grown[n][kept[n]].all()) for n in kept)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("criterion", ["magnitude", "global"])
def test_the_model_is_left_alone_and_zeros_hold(structured: bool, regrow: bool, criterion: str) -> None:
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model[0].weight.grad = torch.ones_like(model[0].weight)
    seen: list[nn.Module] = []
    report = plasticity(
        model,
        trainer(seen),
        score,
        fraction=0.5,
        steps=10,
        criterion=criterion,
        regrow=regrow,
        structured=structured,
        backward=backward,
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model[0].weight.grad is not None and bool((model[0].weight.grad == 1).all())
    cut, uncut = seen
    units = 20 if structured else 180
    assert (report["units"], report["alive"], report["pruned"]) == (units, units, units // 2)
    assert report["regrown"] == (units // 2 if regrow else 0)
    zeros = sum(int((cut.get_parameter(n) == 0).sum()) for n in ("0.weight", "3.weight"))
    wanted = 0 if regrow else (10 * 6 if structured else 90)
    assert zeros < 10 if regrow else zeros == wanted
    assert not any(bool((p == 0).all()) for p in uncut.parameters())
    assert report["plasticity"] == report["recovered"] - report["uncut"]
    assert report["gain"] == report["recovered"] - report["before"]
    assert not cut.get_parameter("0.weight")._backward_hooks, "no hook stays"


def test_without_a_step_the_cut_copy_is_the_cut_and_regrown_weights_are_zero() -> None:
    seen: list[nn.Module] = []
    report = plasticity(
        net().eval(), trainer(seen), score, fraction=0.5, steps=0, regrow=True, backward=backward
    )
    assert report["recovered"] == report["cut"] and report["uncut"] == report["before"]
    assert int((seen[0].get_parameter("0.weight") == 0).sum()) == 60


def test_a_second_cut_takes_a_fraction_of_what_survives() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[:10] = 0
    seen: list[nn.Module] = []
    report = plasticity(model, trainer(seen), score, fraction=0.5, steps=5, structured=True)
    assert (report["units"], report["alive"], report["pruned"]) == (20, 10, 5)
    alive = [int(copy.get_parameter("0.weight").detach().abs().sum(1).count_nonzero()) for copy in seen]
    assert alive == [5, 10], "the uncut copy keeps the zeros that it came with"


def test_convolutions_lose_filters_and_linear_layers_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5), nn.Linear(5, 3))
    images = torch.rand(9, 1, 4, 4)
    seen: list[nn.Module] = []

    def value(model: nn.Module) -> float:
        seen.append(model)
        return float(model(images).detach().mean())

    report = plasticity(model, lambda m, s: None, value, fraction=0.25, structured=True)
    assert report["pruned"] == 2 and report["units"] == 8
    filters = seen[1].get_parameter("0.weight").flatten(1).abs().sum(1)
    gone = model[0].weight.flatten(1).abs().sum(1).argsort()[:2]
    assert sorted((filters == 0).nonzero().squeeze(1).tolist()) == sorted(gone.tolist())


def test_what_is_wrong_is_one_line() -> None:
    model, train = net(), trainer([])
    for bad in (
        {"fraction": 0.0},
        {"fraction": 1.0},
        {"criterion": "gradient"},
        {"regrow": True},
        {"steps": -1},
    ):
        settings = {"fraction": 0.5, **bad}
        with pytest.raises(BadInput):
            plasticity(model, train, score, **settings)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"0\.weight: has no gradient"):
        plasticity(model, train, score, fraction=0.5, regrow=True, backward=lambda m: None)
    with pytest.raises(Infeasible, match="no unit"):
        plasticity(model, train, score, fraction=0.001)
    with pytest.raises(Infeasible, match="no filters"):
        plasticity(nn.Sequential(nn.Linear(6, 3)), train, score, fraction=0.5, structured=True)


def test_a_small_cut_is_got_over_and_a_large_one_less() -> None:
    """Plasticity falls with the fraction, and what was cut is worse right away than after training on."""
    found: dict[float, dict[str, float]] = {}
    model = net()
    trainer([])(model, 60)
    for fraction in (0.2, 0.97):
        found[fraction] = plasticity(
            model, trainer([]), score, fraction=fraction, steps=40, criterion="global"
        )
    assert found[0.2]["plasticity"] > found[0.97]["plasticity"]
    assert found[0.97]["recovered"] > found[0.97]["cut"]


def test_scores_of_units() -> None:
    tensor: Tensor = torch.tensor([[[1.0, -2]], [[0.5, 0]]])
    assert unit_scores(tensor, True).tolist() == [3, 0.5]
    assert unit_scores(tensor, False).tolist() == [[[1, 2]], [[0.5, 0]]]
