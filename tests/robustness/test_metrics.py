from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput
from secateur.robustness import metrics
from secateur.robustness.severities import NAMES


def cells(value: Any) -> dict[str, dict[int, float]]:
    return {name: {s: value(name) for s in range(1, 6)} for name in NAMES}


def rows(confidence: list[float], classes: int = 4) -> np.ndarray:
    """Probabilities whose first class has the given confidence."""
    rest = [(1 - c) / (classes - 1) for c in confidence]
    return np.array([[c, *[r] * (classes - 1)] for c, r in zip(confidence, rest, strict=True)])


def test_alexnet_scores_100() -> None:
    table = cells(metrics.ALEXNET.__getitem__)
    assert metrics.mce(table) == pytest.approx(100)
    assert metrics.relative_mce(table, metrics.ALEXNET_CLEAN) == pytest.approx(100)
    assert sum(metrics.ALEXNET.values()) / 15 == pytest.approx(0.7889, abs=1e-3)


def test_mce_is_the_mean_of_quotients_not_the_quotient_of_means() -> None:
    table = cells(lambda name: metrics.ALEXNET[name] / 2 if name == "fog" else metrics.ALEXNET[name])
    assert metrics.mce(table) == pytest.approx(100 * (14 + 0.5) / 15)
    uneven = cells(metrics.ALEXNET.__getitem__)
    uneven["fog"] = dict(enumerate((0.2, 0.3, 0.5, 0.6, 0.9), 1))
    assert metrics.mce(uneven) == pytest.approx(100 * (14 + 0.5 / metrics.ALEXNET["fog"]) / 15)
    added = metrics.relative_mce(cells(lambda name: 0.4), 0.4)
    assert added == pytest.approx(0), "what adds nothing to the clean error has no relative error"


def test_robust_accuracy_is_the_plain_mean() -> None:
    assert metrics.robust_accuracy({"fog": {1: 0.5, 2: 0.25}, "snow": {1: 1.0, 2: 0.0}}) == 0.4375


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.mce({"fog": {1: 0.5}}), "0 of 5"),
        (lambda: metrics.mce({**cells(lambda n: 0.5), "fog": {1: 0.5}}), "fog has 1 of 5"),
        (lambda: metrics.mce(cells(lambda n: 50.0)), "not percent"),
        (lambda: metrics.mce(cells(lambda n: 0.5), {"fog": 0.5}), "no reference"),
        (lambda: metrics.mce(cells(lambda n: 0.5), dict.fromkeys(NAMES, 0.0)), "above 0"),
        (lambda: metrics.relative_mce(cells(lambda n: 0.5), 50.0), "fraction"),
        (lambda: metrics.robust_accuracy({}), "every cell"),
        (lambda: metrics.robust_accuracy({"fog": {1: 0.5}, "snow": {1: 0.5, 2: 0.5}}), "every cell"),
        (lambda: metrics.robust_accuracy({"fog": {1: math.nan}}), "outside"),
    ],
)
def test_incomplete_tables_are_refused(call: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        call()


def test_ece_of_the_toys() -> None:
    always_right = rows([0.8] * 20)
    assert metrics.ece(always_right, np.zeros(20, int), kind="probabilities") == pytest.approx(0.2)
    calibrated = rows([0.75] * 20 + [0.5] * 10)
    labels = [0] * 15 + [1] * 5 + [0] * 5 + [2] * 5
    assert metrics.ece(calibrated, labels, kind="probabilities") == pytest.approx(0)
    assert (
        metrics.rms_calibration(calibrated, labels, kind="probabilities", per_bin=10) > 0.1
    )  # cuts inside the 20
    assert metrics.rms_calibration(rows([0.75] * 20), labels[:20], kind="probabilities") == pytest.approx(0)


def test_ece_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (500, 5)), rng.integers(0, 5, 500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    wanted = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.ece(logits, labels) == pytest.approx(wanted)
    assert metrics.ece(torch.tensor(logits), torch.tensor(labels)) == pytest.approx(wanted)
    assert metrics.ece(p, labels, kind="probabilities") == pytest.approx(wanted)
    assert metrics.accuracy(logits, labels) == pytest.approx(right.mean())


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    found = metrics.calibration_error(np.array([0.2, 0.3]), np.array([True, False]), bins=5)
    assert found == pytest.approx((0.8 + 0.3) / 2)


def test_rms_calibration_by_hand_and_with_its_last_bin() -> None:
    p = rows([0.9, 0.6, 0.8, 0.5, 0.7])
    labels = [0, 1, 0, 0, 0]
    # sorted: .5 right, .6 wrong | .7 right, .8 right, .9 right
    wanted = math.sqrt(2 / 5 * (0.5 - 0.55) ** 2 + 3 / 5 * (1 - 0.8) ** 2)
    assert metrics.rms_calibration(p, labels, per_bin=2, kind="probabilities") == pytest.approx(wanted)
    whole = abs(0.8 - 0.7)
    assert metrics.rms_calibration(p, labels, per_bin=100, kind="probabilities") == pytest.approx(whole)


def test_a_class_may_be_ruled_out() -> None:
    found = metrics.probabilities(np.array([[0.0, -math.inf, 0.0]]))
    assert found.tolist() == [[0.5, 0, 0.5]]


def test_equal_scores_tell_nothing_apart() -> None:
    for convention in metrics.CONVENTIONS:
        found = metrics.detection(np.zeros((30, 3)), np.zeros((10, 3)), convention=convention)
        assert found["auroc"] == 0.5 and found["fpr95"] == 1
        assert found["aupr"] == pytest.approx(0.25 if convention == "ood-positive" else 0.75)


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 30))
def test_detection_equals_scikit_learn(seed: int, count: int, values: int) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, count) / 7
    positive = rng.random(count) < 0.4
    positive[:2] = True, False
    assert metrics.auroc(scores, positive) == pytest.approx(sk.roc_auc_score(positive, scores))
    assert metrics.aupr(scores, positive) == pytest.approx(sk.average_precision_score(positive, scores))
    false, true, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
    assert metrics.fpr(scores, positive) == pytest.approx(false[np.argmax(true >= 0.95 - 1e-12)])


def test_the_two_conventions_by_hand() -> None:
    inside = rows([0.99] * 10 + [0.3] * 10)  # half of it unsure
    outside = rows([0.5] * 20)
    ood = metrics.detection(inside, outside, convention="ood-positive", kind="probabilities")
    ind = metrics.detection(inside, outside, convention="in-positive", kind="probabilities")
    assert ood["auroc"] == ind["auroc"] == pytest.approx(0.5)
    assert ood["fpr95"] == pytest.approx(0.5)  # rejecting all at 0.5 rejects the unsure half
    assert ind["fpr95"] == pytest.approx(1.0)  # keeping 95% inside accepts everything


@pytest.mark.parametrize(
    ("outputs", "labels", "settings", "says"),
    [
        (np.zeros((2, 3)), [0, 3], {}, "count classes from 0"),
        (np.zeros((2, 3)), [-1, 0], {}, "for 3 classes"),
        (np.zeros((2, 3)), [0], {}, "one whole number a row"),
        (np.zeros((2, 3)), [0.0, 1.0], {}, "whole number"),
        (np.zeros(3), [0], {}, r"\[N, C\]"),
        (np.zeros((0, 3)), [], {}, "at least one row"),
        (np.array([[math.nan, 1]]), [0], {}, "NaN"),
        (np.array([[math.inf, 1]]), [0], {}, "Inf"),
        (np.array([[-math.inf, -math.inf]]), [0], {}, "Inf"),
        (np.array([[0.5, 0.9]]), [0], {"kind": "probabilities"}, "sum to 1"),
        (np.array([[-0.5, 1.5]]), [0], {"kind": "probabilities"}, "no probabilities"),
        (np.zeros((1, 2)), [0], {"kind": "scores"}, "logits or probabilities"),
        (np.zeros((1, 2)), [0], {"bins": 0}, "use 15"),
    ],
)
def test_bad_outputs_are_refused_in_one_line(outputs: Any, labels: Any, settings: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        metrics.ece(outputs, labels, **settings)
    assert "\n" not in str(error.value)


def test_detection_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(BadInput, match="ood-positive or in-positive"):
        metrics.detection(np.zeros((1, 2)), np.zeros((1, 2)), convention="positive")
    with pytest.raises(BadInput, match="both groups"):
        metrics.auroc([0.1, 0.2], [True, True])
    with pytest.raises(BadInput, match="finite"):
        metrics.auroc([0.1, math.nan], [True, False])
    with pytest.raises(BadInput, match=r"0\.95"):
        metrics.fpr([0.1, 0.2], [True, False], recall=0)
    with pytest.raises(BadInput, match="use 100"):
        metrics.rms_calibration(np.zeros((1, 2)), [0], per_bin=0)
