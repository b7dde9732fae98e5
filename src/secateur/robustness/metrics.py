"""How well a classifier holds on shifted data, how honest its confidence is, and how well it tells strange images.

Outputs are [N, C], logits (the default) or, with kind="probabilities", rows that sum to 1; labels are int [N]. All sums
are in float64. Errors of a set are {corruption: {severity: error}}, as fractions.
Papers: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (2019); Deep Anomaly Detection
with Outlier Exposure (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from secateur.errors import BadInput
from secateur.robustness.severities import NAMES, SEVERITIES

Array = np.ndarray
Cells = Mapping[str, Mapping[Any, float]]

# Mean over the five severities of AlexNet's top-1 error on ImageNet-C, in the order of NAMES, and its clean error
# (whose last digit is unsure).
ALEXNET: dict[str, float] = dict(
    zip(
        NAMES,
        (
            0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816,
            0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500,
        ),
        strict=True,
    )
)  # fmt: skip
ALEXNET_CLEAN = 0.435

CONVENTIONS = ("ood-positive", "in-positive")


# -- shifted data ---------------------------------------------------------------------------------------------------


def robust_accuracy(accuracy: Cells) -> float:
    """Plain mean over every corruption and severity of {corruption: {severity: accuracy}}: CIFAR-C's figure.

    Raises:
        BadInput: empty, corruptions with different severities, or a figure outside [0, 1].
    """
    rows = [_row(accuracy, name) for name in accuracy]
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        raise BadInput(
            "not the same number of severities for each", where="robust accuracy", fix="measure every cell"
        )
    return float(np.mean(rows))


def mce(errors: Cells, reference: Mapping[str, float] = ALEXNET) -> float:
    """Mean corruption error in percent: mean over the 15 of (error of the model) / (error of the reference).

    Args:
        errors: of all 15 corruptions at all 5 severities. reference: mean error over the severities (AlexNet's: 100).

    Raises:
        BadInput: a cell is missing or outside [0, 1], or a reference error is not above 0.
    """
    return _mce(errors, 0.0, reference, 0.0)


def relative_mce(
    errors: Cells,
    clean: float,
    reference: Mapping[str, float] = ALEXNET,
    reference_clean: float = ALEXNET_CLEAN,
) -> float:
    """As `mce`, of what each corruption adds to the clean error. Raises BadInput as `mce` does."""
    if not 0 <= clean <= 1:
        raise BadInput(f"clean error {clean!r:.40}", where="relative mCE", fix="give a fraction")
    return _mce(errors, clean, reference, reference_clean)


def _mce(errors: Cells, clean: float, reference: Mapping[str, float], reference_clean: float) -> float:
    shares = []
    for name in NAMES:
        row = _row(errors, name) if name in errors else []
        if len(row) != len(SEVERITIES):
            raise BadInput(
                f"{name} has {len(row)} of 5 severities",
                where="mCE",
                fix="measure all 15 corruptions at all 5",
            )
        if name not in reference or not reference[name] - reference_clean > 0:
            raise BadInput(
                f"no reference error above 0 for {name}", where="mCE", fix="give one for each of the 15"
            )
        shares.append((float(np.mean(row)) - clean) / (reference[name] - reference_clean))
    return 100 * float(np.mean(shares))


def _row(cells: Cells, name: str) -> list[float]:
    row = [float(value) for value in cells[name].values()]
    if not all(0 <= value <= 1 for value in row):
        raise BadInput(
            f"{name} has a figure outside [0, 1]", where="accuracy", fix="give fractions, not percent"
        )
    return row


# -- confidence -----------------------------------------------------------------------------------------------------


def accuracy(outputs: Any, labels: Any, *, kind: str = "logits") -> float:
    """Share of rows whose largest output is the label's; of equal outputs the lowest class counts."""
    return float(confidences(outputs, labels, kind=kind)[1].mean())


def ece(outputs: Any, labels: Any, *, bins: int = 15, kind: str = "logits") -> float:
    """Expected calibration error: see `calibration_error`."""
    return calibration_error(*confidences(outputs, labels, kind=kind), bins=bins)


def rms_calibration(outputs: Any, labels: Any, *, per_bin: int = 100, kind: str = "logits") -> float:
    """Root mean square calibration error over bins of `per_bin` samples of neighbouring confidence.

    What is left over joins the last bin; every bin counts (the public code drops the last).
    """
    if type(per_bin) is not int or per_bin < 1:
        raise BadInput(f"{per_bin!r:.40} samples a bin", where="per_bin", fix="use 100")
    confidence, right = confidences(outputs, labels, kind=kind)
    order = np.argsort(confidence, kind="stable")
    count = len(order)
    starts = list(range(0, count, per_bin))[: max(count // per_bin, 1)]
    total = 0.0
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        part = order[start:stop]
        total += len(part) / count * (right[part].mean() - confidence[part].mean()) ** 2
    return float(np.sqrt(total))


def calibration_error(confidence: Array, right: Array, *, bins: int = 15) -> float:
    """sum_b (n_b / N) |accuracy_b - confidence_b| over equal bins of confidence, (lower, upper]: 0 is best.

    Args:
        confidence: float [N] in [0, 1].   right: bool [N].
    """
    if type(bins) is not int or bins < 1:
        raise BadInput(f"{bins!r:.40} bins", where="bins", fix="use 15")
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def confidences(outputs: Any, labels: Any, *, kind: str = "logits") -> tuple[Array, Array]:
    """(largest probability, whether its class is the label): float64 [N], bool [N].

    Raises:
        BadInput: not finite, of another shape, labels outside the classes, no rows, or no probabilities where said so.
    """
    p = probabilities(outputs, kind=kind)
    wanted = torch.as_tensor(labels).detach().cpu().numpy()
    if wanted.shape != p.shape[:1] or not np.issubdtype(wanted.dtype, np.integer):
        raise BadInput(
            f"labels {wanted.dtype} {list(wanted.shape)} for outputs {list(p.shape)}",
            where="labels",
            fix="give one whole number a row",
        )
    if wanted.min() < 0 or wanted.max() >= p.shape[1]:
        raise BadInput(
            f"{wanted.min()} to {wanted.max()} for {p.shape[1]} classes",
            where="labels",
            fix="count classes from 0",
        )
    found = p.argmax(1)
    return p[np.arange(len(p)), found], found == wanted


def probabilities(outputs: Any, *, kind: str = "logits") -> Array:
    """float64 [N, C] whose rows sum to 1, of logits or of probabilities. Raises BadInput as `confidences` does."""
    if kind not in ("logits", "probabilities"):
        raise BadInput(f"{kind!r:.40}", where="kind", fix="say logits or probabilities")
    x = torch.as_tensor(outputs).detach().cpu().double().numpy()
    if x.ndim != 2 or 0 in x.shape:
        raise BadInput(f"shape {list(x.shape)}", where="outputs", fix="give [N, C] with at least one row")
    # A logit of -Inf is a class ruled out; one class at least must be left.
    if np.isnan(x).any() or not np.isfinite(x.max(1)).all():
        raise BadInput(
            "hold NaN or Inf", where="outputs", fix="check the model's weights, or run it in float32"
        )
    if kind == "logits":
        x = np.exp(x - x.max(1, keepdims=True))
        return x / x.sum(1, keepdims=True)
    if x.min() < 0 or np.abs(x.sum(1) - 1).max() > 1e-3:
        raise BadInput(
            "are no probabilities: a row does not sum to 1", where="outputs", fix='say kind="logits"'
        )
    return x


# -- strange images: scores of two groups ---------------------------------------------------------------------------


def detection(inside: Any, outside: Any, *, convention: str, kind: str = "logits") -> dict[str, float]:
    """How well the largest softmax probability tells images like the training data from others.

    Args:
        inside, outside: outputs [N, C] and [M, C] of the two groups.
        convention: which group counts as positive. "ood-positive": FPR95 is the share of inside images that are
        rejected
            where 95% of the outside ones are. "in-positive": the share of outside images that are accepted where 95% of
            the inside ones are. AUROC agrees, AUPR and FPR95 do not, so there is no default.

    Returns:
        auroc, aupr, fpr95, as fractions.
    """
    if convention not in CONVENTIONS:
        raise BadInput(f"{convention!r:.40}", where="convention", fix=f"say {' or '.join(CONVENTIONS)}")
    sure = [probabilities(outputs, kind=kind).max(1) for outputs in (inside, outside)]
    scores = np.concatenate(sure)
    positive = np.repeat([True, False], [len(part) for part in sure])
    if convention == "ood-positive":
        scores, positive = -scores, ~positive
    return {"auroc": auroc(scores, positive), "aupr": aupr(scores, positive), "fpr95": fpr(scores, positive)}


def auroc(scores: Any, positive: Any) -> float:
    """Chance that a positive scores above a negative, a tie counting half. scores float [N], positive bool [N]."""
    true, false = _curve(scores, positive)
    return float(np.trapezoid(true / true[-1], false / false[-1]))


def aupr(scores: Any, positive: Any) -> float:
    """Area under the precision-recall steps (average precision); equal scores are one step."""
    true, false = _curve(scores, positive)
    precision = true[1:] / (true[1:] + false[1:])
    return float(np.sum(np.diff(true) / true[-1] * precision))


def fpr(scores: Any, positive: Any, *, recall: float = 0.95) -> float:
    """Share of negatives at or above the highest threshold that reaches `recall`; equal scores pass together."""
    if not 0 < recall <= 1:
        raise BadInput(f"{recall!r:.40}", where="recall", fix="give a fraction above 0, as in 0.95")
    true, false = _curve(scores, positive)
    at = int(np.argmax(true >= recall * true[-1] - 1e-9))
    return float(false[at] / false[-1])


def _curve(scores: Any, positive: Any) -> tuple[Array, Array]:
    """Positives and negatives at or above each distinct score, from the highest down, beginning with none."""
    scores = np.asarray(torch.as_tensor(scores).detach().cpu().double())
    positive = np.asarray(torch.as_tensor(positive).detach().cpu()).astype(bool)
    if scores.ndim != 1 or scores.shape != positive.shape or not np.isfinite(scores).all():
        raise BadInput(
            f"scores {list(scores.shape)}, marks {list(positive.shape)}",
            where="detection",
            fix="give a finite score and a mark for each sample",
        )
    if positive.all() or not positive.any():
        raise BadInput("only one group", where="detection", fix="give samples of both groups")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    true, false = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.concatenate([[0], true]), np.concatenate([[0], false])
