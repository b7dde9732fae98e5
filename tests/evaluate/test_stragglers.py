"""Straggler layers: a bump by hand, a permuted layer repaired, flat paths, verdicts, nothing chosen on shifted."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.engine.train import Fit, fit
from secateur.errors import BadInput
from secateur.evaluate.classify import accuracy, to_batch
from secateur.evaluate.stragglers import (
    HELD,
    Labelled,
    Line,
    Settings,
    accuracy_and_loss,
    analyse,
    barrier,
    largest,
    layer_rows,
    outliers,
    picks,
    repaired,
    verdict,
)
from secateur.io.classifiers import load_classifier
from secateur.io.images import load_images

QUICK = Settings(points=5, draws=4, ascent=3, limit=100, rho=0.02)


@pytest.fixture(scope="module")
def images() -> dict[str, Labelled]:
    test = load_images("digits", "test")
    x, y = to_batch(test.images), torch.as_tensor(test.labels)
    turned = torch.rot90(x[250:], 1, (2, 3))
    parts = {"choose": (x[:250], y[:250]), "held": (x[250:], y[250:]), "turned": (turned, y[250:])}
    return {name: Labelled(*part) for name, part in parts.items()}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """mlp-32-24 on the digits."""
    learn = load_images("digits", "train")
    mean, std = learn.statistics()
    model = load_classifier("mlp-32-24", channels=1, size=8, classes=10, seed=0, mean=mean, std=std)
    fit(model, to_batch(learn.images), torch.as_tensor(learn.labels), Fit(epochs=12, batch=64, lr=0.1))
    return model


def permuted(model: nn.Module) -> nn.Module:
    """A copy with the units of the second hidden layer in another order: it computes the same."""
    copy: Any = deepcopy(model)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        copy.hidden[1].weight.copy_(copy.hidden[1].weight[order])
        copy.hidden[1].bias.copy_(copy.hidden[1].bias[order])
        copy.linear.weight.copy_(copy.linear.weight[:, order])
    return copy


def three(images: dict[str, Labelled]) -> tuple[Labelled, Labelled, dict[str, Labelled]]:
    return images["choose"], images["held"], {"turned": images["turned"]}


def test_equal_ends_are_flat_and_have_no_straggler(trained: nn.Module, images: dict[str, Labelled]) -> None:
    found = analyse(trained, deepcopy(trained), *three(images), how=replace(QUICK, repair="difference"))
    for row in found["path"]["sets"].values():
        assert len(set(row["accuracy"])) == len(set(row["loss"])) == 1
    assert [(r["barrier"], r["moved"], r["straggler"]) for r in found["layers"]] == [(0.0, 0.0, False)] * 3
    assert found["stragglers"] == [] and "repair" not in found and "stragglers" not in found["sharpness"]
    assert found["picks"]["sets"]["turned"]["verdict"] == "between"
    json.dumps(found, allow_nan=False)


def test_figures_are_those_of_the_networks(trained: nn.Module, images: dict[str, Labelled]) -> None:
    tuned = permuted(trained)
    before = deepcopy(trained.state_dict())
    found = analyse(trained, tuned, *three(images), how=QUICK)
    assert found["path"]["alphas"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    held = images["held"]
    row = found["path"]["sets"][HELD]
    assert row["accuracy"][0] == row["accuracy"][-1] == accuracy(trained, held.images, held.labels)
    with torch.no_grad():
        losses = [
            float(nn.functional.cross_entropy(m(held.images).double(), held.labels)) for m in (trained, tuned)
        ]
    assert [row["loss"][0], row["loss"][-1]] == pytest.approx(losses)
    assert row["loss"][2] > row["loss"][0] + 0.2, (
        "in the middle units are averaged that have nothing in common"
    )
    assert all(torch.equal(before[n], t) for n, t in trained.state_dict().items())
    layers = {r["name"]: r for r in found["layers"]}
    assert (
        layers["hidden.0"]["moved"] == layers["hidden.0"]["barrier"] == 0.0
        and layers["hidden.1"]["weights"] == 792
    )
    ends = [torch.cat([p.detach().flatten() for p in m.hidden[1].parameters()]) for m in (trained, tuned)]
    way, length = ends[1] - ends[0], ends[0]
    assert layers["hidden.1"]["moved"] == pytest.approx(float(way.norm() / length.norm()), rel=1e-5)
    assert found["stragglers"] and "hidden.0" not in found["stragglers"]
    sharp = found["sharpness"]
    assert set(sharp) == {"0", "0.5", "1", "stragglers"} and sharp["0"]["worst"] > sharp["0"]["average"] > 0
    (name,) = found["stragglers"]
    assert sharp["stragglers"] == {k: layers[name][k] for k in ("average", "error", "worst")}
    assert layers[name]["worst"] <= sharp["0.5"]["worst"] * 1.01


class Bump(nn.Module):
    """Logits [8 w (1 - w), 0] and a layer of no effect: the loss of class 1 bulges between w = 0 and w = 1."""

    def __init__(self, w: float, other: float) -> None:
        super().__init__()
        self.bump, self.flat = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.bump.weight, w)
        nn.init.constant_(self.flat.weight, other)

    def forward(self, x: Tensor) -> Tensor:
        w = self.bump.weight.sum() + 0 * self.flat(x.flatten(1)[:, :1]).sum()
        return torch.stack([8 * w * (1 - w), 0 * w]).expand(len(x), 2)


def bump_images() -> Labelled:
    return Labelled(torch.rand(4, 1, 2, 2), torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize("others", ["middle", "path"])
def test_the_barrier_of_a_bump_by_hand(others: str) -> None:
    zero, tuned, data = Bump(0.0, 1.0), Bump(1.0, 5.0), bump_images()
    how = replace(QUICK, others=others, normalise=False, repair="difference", sparsities=(0.0, 1.0))
    found = analyse(zero, tuned, data, data, how=how)
    height = math.log1p(math.exp(2)) - math.log(2)
    # alone, the bump bulges and the flat layer does not; all but one: it is the flat one that is left behind
    wanted = {"bump": height, "flat": 0.0} if others == "middle" else {"bump": 0.0, "flat": height}
    assert {r["name"]: r["barrier"] for r in found["layers"]} == pytest.approx(wanted)
    assert found["stragglers"] == ["bump" if others == "middle" else "flat"]
    plain, cut = found["repair"]
    assert plain["path"] == found["path"] and plain["cut"] == [] and cut["sparsity"] == 1.0
    losses = cut["path"]["sets"][HELD]["loss"]
    if others == "middle":
        assert losses == [losses[0]] * 5, "with the straggler at theta_0 the path is flat"
    else:
        assert losses == found["path"]["sets"][HELD]["loss"]


def test_sharpness_as_the_rule() -> None:
    zero, tuned, data = Bump(0.2, 1.0), Bump(0.3, 5.0), bump_images()
    found = analyse(zero, tuned, data, data, how=replace(QUICK, rule="sharpness"))
    rows = {r["name"]: r for r in found["layers"]}
    assert rows["flat"]["average"] == rows["flat"]["worst"] == 0.0
    assert "sharpness" in found["definition"] and found["stragglers"] == [], "two layers have no outlier"


def test_nothing_is_chosen_on_shifted_images(trained: nn.Module, images: dict[str, Labelled]) -> None:
    tuned, how = permuted(trained), replace(QUICK, repair="difference", sparsities=(0.5, 0.9))
    choose, held, _ = three(images)
    wrong = Labelled(images["turned"].images, (images["turned"].labels + 1) % 10)
    found = [
        analyse(trained, tuned, choose, held, {"turned": turned}, how) for turned in (images["turned"], wrong)
    ]
    for key in ("layers", "stragglers", "sharpness"):
        assert found[0][key] == found[1][key]
    assert found[0]["picks"]["alpha"] == found[1]["picks"]["alpha"]
    assert found[0]["picks"]["sets"][HELD] == found[1]["picks"]["sets"][HELD]
    assert [r["picks"]["alpha"] for r in found[0]["repair"]] == [
        r["picks"]["alpha"] for r in found[1]["repair"]
    ]
    assert found[0]["picks"]["sets"]["turned"] != found[1]["picks"]["sets"]["turned"]


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_permuted_layer_cut_to_zero_shot_mends_the_path(
    method: str, trained: nn.Module, images: dict[str, Labelled]
) -> None:
    how = replace(QUICK, repair="difference", method=method)
    line = Line(trained, permuted(trained), images["choose"], how)
    sets = {"choose": images["choose"]}
    losses = {}
    for sparsity in (0.0, 0.9, 1.0):
        row = repaired(line, ["hidden.1", "linear"], sparsity, sets)
        losses[sparsity] = row["path"]["sets"]["choose"]["loss"]
    assert losses[1.0] == [losses[1.0][0]] * 5 == [losses[0.0][0]] * 5
    assert losses[0.9][2] < losses[0.0][2]
    assert row["cut"] == ["hidden.1.weight", "linear.weight"] and row["uncut"] == []


def test_cutting_tuned_weights_leaves_the_zero_shot_end(
    trained: nn.Module, images: dict[str, Labelled]
) -> None:
    line = Line(trained, permuted(trained), images["choose"], replace(QUICK, repair="tuned"))
    row = repaired(line, ["hidden.1"], 0.9, {"choose": images["choose"]})
    first, *_, last = row["path"]["sets"]["choose"]["accuracy"]
    assert first == accuracy(trained, images["choose"].images, images["choose"].labels) > last + 0.02
    assert int((line.model.hidden[1].weight == 0).sum()) == math.floor(0.9 * 24 * 32), (
        "theta(1), which was last"
    )


def test_batch_norm_is_restated_between_the_ends_only(images: dict[str, Labelled]) -> None:
    learn = load_images("digits", "train")
    ends: list[Any] = []
    for seed in (0, 1):
        model = load_classifier("conv-8-8", channels=1, size=8, classes=10, seed=seed)
        fit(model, to_batch(learn.images), torch.as_tensor(learn.labels), Fit(epochs=2, batch=64, lr=0.1))
        ends.append(model)
    choose = images["choose"]
    lines = [Line(*ends, choose, replace(QUICK, restate=restate)) for restate in (False, True)]
    for line in lines:
        line.at(1.0)
        assert all(torch.equal(ends[1].state_dict()[n], t) for n, t in line.model.state_dict().items())
    means = [line.at(0.5).stages[0][0].bn.running_mean for line in lines]
    average = sum(end.stages[0][0].bn.running_mean for end in ends) / 2
    torch.testing.assert_close(means[0], average)
    conv, few = lines[1].model.stages[0][0].conv, lines[1].few.images
    with torch.no_grad():
        torch.testing.assert_close(means[1], conv((few - 0.5) / 0.5).mean((0, 2, 3)))
    assert not torch.allclose(means[0], means[1], atol=1e-3)


def test_fisher_weights_reach_the_path(trained: nn.Module, images: dict[str, Labelled]) -> None:
    tuned: Any = deepcopy(trained)
    with torch.no_grad():
        tuned.linear.bias.add_(1.0)
        tuned.hidden[0].weight.mul_(1.5)
    line = Line(trained, tuned, images["choose"], replace(QUICK, fisher=True))
    assert [len(f) for f in line.fishers] == [6, 6]
    name = "hidden.0.weight"
    f0, f1 = (f[name].clamp_min(1e-8) for f in line.fishers)
    share = 0.25 * f1 / (0.75 * f0 + 0.25 * f1)
    wanted = trained.state_dict()[name] * (1 + 0.5 * share)
    torch.testing.assert_close(line.at(0.25).state_dict()[name], wanted)
    assert all(row["barrier"] >= 0 for row in layer_rows(line))


def test_images_for_layers_are_few_and_of_every_class(
    trained: nn.Module, images: dict[str, Labelled]
) -> None:
    line = Line(trained, trained, images["choose"], replace(QUICK, limit=20))
    counts = torch.bincount(images["choose"].labels) * 20 / 250
    found = torch.bincount(line.few.labels, minlength=10)
    assert len(line.few.labels) == 20 and float((found - counts).abs().max()) < 1
    images_8 = (images["choose"].images * 255).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(
        Labelled(images_8.numpy(), images["choose"].labels).some(20, 0).images, line.few.images
    )


def test_barrier_by_hand() -> None:
    assert barrier([0, 0.5, 1], [1.0, 3.0, 2.0]) == 1.5
    assert barrier([0, 0.5, 1], [1.0, 1.0, 2.0]) == 0.0, "below the line"
    assert barrier([0, 0.25, 1], [0.1, 0.1, 0.1]) == 0.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_a_barrier_is_never_negative(losses: list[float]) -> None:
    alphas = [i / (len(losses) - 1) for i in range(len(losses))]
    assert barrier(alphas, losses) >= 0
    assert barrier(alphas, [losses[0]] * len(losses)) == 0


def test_which_layers_are_stragglers() -> None:
    ranks = [(0.0, 1.0), None, (0.0, 3.0), (0.5, 0.0), (0.0, 2.0)]
    assert largest(ranks, 0.1) == [3], "at least one, by barrier"
    assert largest(ranks, 0.5) == [2, 3], "then the sharper"
    assert largest(ranks, 1.0) == [0, 2, 3, 4] and largest([None, None], 0.5) == []
    assert largest([(float(i), 0.0) for i in range(20)], 0.1) == [18, 19]
    assert largest([(1.0,), (1.0,)], 0.5) == [0]
    # median 2, deviations 1 1 0 0 98: 1.4826 of their median 1
    assert outliers([1.0, 3.0, 2.0, 2.0, None, 100.0]) == [5]
    assert outliers([1.0, 2.0, 3.0, 4.0]) == [] == outliers([None])


def test_verdicts_by_hand() -> None:
    alphas = [0.0, 0.5, 1.0]
    assert verdict(alphas, [0.5, 0.9, 0.8])["verdict"] == "success"
    below = verdict(alphas, [0.5, 0.6, 0.8])
    assert below == {"gain": pytest.approx(-0.2), "dip": pytest.approx(0.05), "verdict": "failure"}
    assert (
        verdict(alphas, [0.5, 0.7, 0.8])["verdict"]
        == verdict(alphas, [0.5, 0.65, 0.8])["verdict"]
        == "between"
    )
    mixed = verdict([0, 0.25, 0.5, 0.75, 1], [0.5, 0.3, 0.5, 0.6, 0.5])
    assert mixed == {"gain": pytest.approx(0.1), "dip": pytest.approx(0.2), "verdict": "mixed"}


def test_images_of_some_classes_are_judged_among_these() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[3.0, 2.0, 1.0]]).expand(len(x), 3)

    images, labels = torch.rand(4, 1, 2, 2), torch.tensor([1, 1, 2, 1])
    right, loss = accuracy_and_loss(Fixed(), Labelled(images, labels), 4)
    assert right == 0.0
    found = accuracy_and_loss(Fixed(), Labelled(images, labels, (1, 2)), 4)
    assert found[0] == 0.75 and found[1] == pytest.approx(math.log(1 + math.exp(-1)) + 0.25)
    assert loss > found[1] and Labelled(images, labels, (1, 2)).some(2, 0).only == (1, 2)


def test_picks_by_hand() -> None:
    accuracies = {"choose": [0.8, 0.9, 0.9], HELD: [0.7, 0.8, 0.9], "far": [0.6, 0.5, 0.4]}
    path = {"alphas": [0.0, 0.5, 1.0], "sets": {n: {"accuracy": a, "loss": a} for n, a in accuracies.items()}}
    found = picks(path)
    assert found["alpha"] == 0.5, "of equal ones the nearest to zero-shot"
    far = found["sets"]["far"]
    assert (far["zero"], far["half"], far["tuned"], far["chosen"]) == (0.6, 0.5, 0.4, 0.5)
    assert (far["oracle"], far["oracle_alpha"]) == (0.6, 0.0)
    assert found["sets"][HELD]["oracle_alpha"] == 1.0 and found["sets"][HELD]["chosen"] == 0.8


@pytest.mark.parametrize(
    "wrong,line",
    [
        ({"points": 4}, "points"),
        ({"points": 1}, "points"),
        ({"measure": "layer"}, "measure"),
        ({"others": "end"}, "others"),
        ({"rule": "flatness"}, "rule"),
        ({"share": 0.0}, "share"),
        ({"rho": -1.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"draws": 3}, "draws"),
        ({"ascent": 0}, "ascent"),
        ({"limit": 0}, "limit"),
        ({"batch": 0}, "batch"),
        ({"repair": "all"}, "repair"),
        ({"repair": "tuned", "sparsities": (1.0,)}, "sparsity"),
        ({"sparsities": (1.1,)}, "sparsity"),
        ({"sparsities": ("0.5",)}, "sparsity"),
        ({"method": "gmp"}, "while a network trains"),
        ({"restate": 1}, "restate"),
    ],
)
def test_settings_that_are_none(wrong: dict, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        Settings(**wrong)


def test_other_mistakes_are_one_line(trained: nn.Module, images: dict[str, Labelled]) -> None:
    choose, held, _ = three(images)
    with pytest.raises(BadInput, match=r"hidden\.0\.weight"):
        analyse(trained, load_classifier("mlp-16", channels=1, size=8, classes=10), choose, held, how=QUICK)
    with pytest.raises(BadInput, match="labels 0 to 10, and the model knows 10 classes"):
        analyse(trained, trained, choose, Labelled(held.images, held.labels + (held.labels == 9)), how=QUICK)
    with pytest.raises(BadInput, match="call it otherwise"):
        analyse(trained, trained, choose, held, {HELD: held}, QUICK)
    for labels in (held.labels[1:], held.labels.float()):
        with pytest.raises(BadInput, match="one whole number each"):
            Labelled(held.images, labels)


def test_definitions_say_what_was_done() -> None:
    by_block = Settings(measure="block").definition
    assert by_block.startswith("the 10% of layers (by block) with the largest barrier while it alone moves")
    assert "while all but it move," in Settings(others="path").definition
    facts = Settings(method="wanda", sparsities=(0.5, 0.9)).facts()
    assert facts["method"] == "wanda" and facts["sparsities"] == [0.5, 0.9]
    assert facts["method_settings"]["pattern"] == "row"
    json.dumps(facts, allow_nan=False)
