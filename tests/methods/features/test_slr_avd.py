"""slr_avd: the sheet's oracles, and its experiment on synthetic towers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from secateur.apply.heads import Shots, Texts, columns
from secateur.errors import BadInput
from secateur.registry import make
from tests.methods.features.towers import towers


def oracle(texts: Texts, shots: Shots, weight: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient [C, F] at W, sample by sample in float64."""
    u = columns(texts, "avd")[1].double()
    loss, gradient = 0.0, torch.zeros(len(texts.classes), len(u), dtype=torch.float64)
    for h, y in zip(shots.embeddings.double(), shots.labels.tolist(), strict=True):
        z = texts.scale * (u @ h)
        p = torch.softmax(weight.double() @ z, 0)
        loss -= math.log(float(p[y]))
        p[y] -= 1
        gradient += torch.outer(p, z)
    return loss / len(shots), gradient / len(shots)


@pytest.fixture(scope="module")
def world():
    return towers()


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_the_optimality_conditions_hold(world, share: float) -> None:
    shots = world.shots(4, seed=0)
    _, start = oracle(world.texts, shots, torch.zeros(10, 70))
    lam = share * float(start.abs().max())
    head = make("slr_avd", lam=lam, tol=1e-5).fit(world.texts, shots)
    assert head.coefficients is not None
    loss, gradient = oracle(world.texts, shots, head.coefficients)
    off = head.coefficients == 0
    assert float(gradient[off].abs().max()) <= lam * (1 + 1e-3)
    at = gradient[~off] + lam * head.coefficients[~off].sign()
    assert float(at.abs().max()) <= 1e-3 * lam
    objective = loss + lam * float(head.coefficients.abs().sum())
    assert dict(head.facts)["objective"] == pytest.approx(objective, rel=1e-5)


def test_the_ends_of_the_path(world) -> None:
    shots = world.shots(4, seed=0)
    _, start = oracle(world.texts, shots, torch.zeros(10, 70))
    most = float(start.abs().max())
    nothing = make("slr_avd", lam=most * 1.001).fit(world.texts, shots)
    assert nothing.used == 0 and not bool(nothing.weight.any())
    path = make("slr_avd", count=12, factor=0.6).path(world.texts, shots)
    used = [point.used for point in path]
    assert used[0] < used[-1] and path[-1].loss < 0.05 < path[0].loss
    assert all(a.objective >= b.objective for a, b in pairwise(path))


def test_folding_and_permuting_leave_predictions_alone(world) -> None:
    shots, x = world.shots(4, seed=0), world.shots(3, seed=5).embeddings
    head = make("slr_avd", lam=0.02).fit(world.texts, shots)
    assert head.coefficients is not None
    cosines = x @ columns(world.texts, "avd")[1].t()
    torch.testing.assert_close(
        world.texts.scale * cosines @ head.coefficients.t(), head.logits(x), rtol=1e-5, atol=1e-5
    )
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    t = world.texts
    other = Texts(
        t.classes, t.prompts, tuple(t.words[i] for i in order), t.rows[order], t.owner[order], t.scale
    )
    moved = make("slr_avd", lam=0.02).fit(other, shots)
    torch.testing.assert_close(moved.logits(x), head.logits(x), rtol=1e-2, atol=1e-2)


def test_it_agrees_with_scikit_learns_saga(world) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    shots = world.shots(4, seed=0)
    lam, n = 0.05, len(shots)
    z = world.texts.scale * shots.embeddings.double() @ columns(world.texts, "avd")[1].double().t()
    settings = {
        "C": 1 / (lam * n),
        "fit_intercept": False,
        "tol": 1e-10,
        "max_iter": 20_000,
        "solver": "saga",
    }
    try:
        model = linear.LogisticRegression(l1_ratio=1.0, **settings)
        model.fit(z.numpy(), shots.labels.numpy())
    except (TypeError, ValueError):  # before scikit-learn 1.8
        model = linear.LogisticRegression(penalty="l1", **settings).fit(z.numpy(), shots.labels.numpy())
    theirs = torch.from_numpy(model.coef_)
    loss, _ = oracle(world.texts, shots, theirs)
    wanted = loss + lam * float(theirs.abs().sum())
    head = make("slr_avd", lam=lam, tol=1e-6).fit(world.texts, shots)
    assert dict(head.facts)["objective"] == pytest.approx(wanted, abs=1e-5)


def test_the_support_is_the_classes_own_attributes_and_holds_on_shifted_images() -> None:
    """The sheet's experiment, three seeds, k = 4: out of domain above ridge and linear probe."""
    shares, ours, ridge, probe = [], [], [], []
    for seed in range(3):
        world = towers(seed)
        shots, shifted = world.shots(4, seed), world.shots(40, 100 + seed, shifted=True)

        def right(method: str, world=world, shots=shots, shifted=shifted, **settings: float) -> float:
            head = make(method, **settings).fit(world.texts, shots)
            return float((head.logits(shifted.embeddings).argmax(1) == shifted.labels).float().mean())

        head = make("slr_avd", lam=0.02).fit(world.texts, shots)
        assert head.coefficients is not None
        weights = head.coefficients.clamp(min=0)
        owner = torch.cat([world.texts.owner, torch.arange(10)])
        own = weights * (owner == torch.arange(10)[:, None])
        shares.append(float(own.sum() / weights.sum()))
        ours.append(right("slr_avd", lam=0.02))
        ridge.append(right("ridge_probe", alpha=1e-2))
        probe.append(right("linear_probe", C=100.0))
    assert min(shares) > 0.8, shares
    assert sum(ours) >= max(sum(ridge), sum(probe)), (ours, ridge, probe)


def test_lam_is_the_best_on_held_out_shots_and_of_equals_the_sparsest(world) -> None:
    shots, held = world.shots(4, seed=0, noise=1.5), world.shots(10, seed=1, noise=1.5)
    method = make("slr_avd", count=8)
    head = method.fit(world.texts, shots, held)
    heads = [method.head(world.texts, point) for point in method.path(world.texts, shots)]
    right = [int((h.logits(held.embeddings).argmax(1) == held.labels).sum()) for h in heads]
    first = right.index(max(right))
    assert dict(head.facts)["lam"] == pytest.approx(dict(heads[first].facts)["lam"])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lam": 0.0}, "lam"),
        ({"features": "x"}, "features"),
        ({"penalty": "l3"}, "penalty"),
        ({"factor": 1.0}, "factor"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        make("slr_avd", **settings)


def test_mistakes_are_one_line(world) -> None:
    shots = world.shots(2, seed=0)
    with pytest.raises(BadInput, match="nothing is held out"):
        make("slr_avd").fit(world.texts, shots)
    with pytest.raises(BadInput, match="no images"):
        make("slr_avd", lam=0.1).fit(world.texts, None)
    with pytest.raises(BadInput, match="32 wide, the texts 64"):
        wrong = Shots(torch.nn.functional.normalize(shots.embeddings[:, :32], dim=1), shots.labels)
        make("slr_avd", lam=0.1).fit(world.texts, wrong)
