"""l_obs: the original layer-wise optimal brain surgeon, with its error bound reported.

    H = (1/n) sum_k y_k y_k^T + damping * I,  G = H^-1        y: the input, with a 1 appended where there is a bias
    score[i, j] = W[i, j]^2 / (2 G[j, j])                     ranked over the whole layer, once
    for each cut (i, j), lowest first:  W[i, :] -= W[i, j] / G[j, j] * G[j, :]

Shapes:  W [out, in]; y [in (+1)]; G [in (+1), in (+1)].    Unit: weight.   Needs: input Hessian. Updates weights.
Departs: rows are independent given G, and with G frozen the cuts of a row are a triangular system, so no cut is made on
         its own; the order inside a row is the paper's.
         The bias takes part in the compensation and is never cut. `exact` (ours) replaces the frozen-G sequence, which
         drifts when much is cut, by the least-squares optimum with the chosen weights forced to zero. Damping is
         raised tenfold, up to 1, where H is not positive definite. Double precision throughout.
         The frozen sequence is the paper's, and on correlated inputs it is worse than plain masking from about 30%
         on (cut weights drift off zero and are re-masked): the paper retrains after it. Use `exact` without retraining.
Oracle:  one cut raises the squared error by exactly W^2 / G_jj, and leaves the constrained least-squares optimum.
Paper:   Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon (2017), eq. 5 and theorem 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.method import Card, Cut, OneShot
from secateur.core.select import Pattern, PerLayer
from secateur.core.units import Site, Unit
from secateur.errors import BadInput
from secateur.signals.hessian import InputHessian


@dataclass(frozen=True, kw_only=True)
class LOBS(OneShot):
    """Layer-wise optimal brain surgeon.

    Args:
        damping: added to H's diagonal (the reference's G_0 = 1e6 I is a damping of 1e-6).
        exact: solve for the kept weights of each row exactly; costs in^3 a row, for small layers.
    """

    pattern: str | Pattern = PerLayer()
    damping: float = 1e-6
    exact: bool = False

    card = Card(
        paper="Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon (2017)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="w^2 / [H^-1]_jj",
    )
    needs = InputHessian
    updates = True
    rounds = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.damping <= 1:
            raise BadInput(f"{self.damping!r} is not in [0, 1]", where="damping", fix="the paper has 1e-6")

    def score(self, weight: Tensor, signal: InputHessian, site: Site) -> Tensor:
        inverse = invert(moments(signal, bias=False), self.damping, site.name)[0]
        return (weight.double().square() / (2 * inverse.diagonal())).float()

    def cut(
        self, weight: Tensor, signal: InputHessian, site: Site, sparsity: float, bias: Tensor | None = None
    ) -> Cut:
        hessian = moments(signal, bias is not None)
        inverse, used = invert(hessian, self.damping, site.name)
        notes = () if used <= self.damping else (f"{site.name}: damping raised to {used:g}",)
        theta = weight.double() if bias is None else torch.cat([weight.double(), bias.double()[:, None]], 1)
        width = weight.shape[1]
        score = theta[:, :width].square() / (2 * inverse.diagonal()[:width])
        keep = self.select(score.float(), sparsity)
        new = least_squares(theta, hessian, keep) if self.exact else surgeon(theta, inverse, keep, score)
        energy = _energy(new - theta, hessian)
        error = math.sqrt(energy / max(_energy(theta, hessian), 1e-300))
        facts = {"error": math.sqrt(energy), "norm": float(new.norm())}
        new_bias = None if bias is None else new[:, width].to(bias.dtype)
        return Cut(keep, new[:, :width].float(), new_bias, score, error, notes, facts)

    def conclude(self, facts: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Theorem 3.2 for the layers as a chain, which a Sequential of Linear and ReLU is, and a transformer is not."""
        limit = bound([fact["error"] for fact in facts.values()], [fact["norm"] for fact in facts.values()])
        return [
            f"error bound (theorem 3.2, a chain of these layers with 1-Lipschitz activations): {limit:.4g}"
        ]


def moments(signal: InputHessian, bias: bool) -> Tensor:
    """(1/n) sum y y^T in float64 over the n tokens, [in, in] or, with the bias row of ones, [in + 1, in + 1]."""
    second = signal.products.double() / max(1, signal.tokens)
    if not bias:
        return second
    first = signal.total.to(second.device) / max(1, signal.tokens)
    width = len(first)
    out = torch.ones(width + 1, width + 1, dtype=torch.float64, device=second.device)
    out[:width, :width], out[:width, width], out[width, :width] = second, first, first
    return out


def invert(hessian: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """(hessian + damping I)^-1 and the damping used: ten times more, up to 1, for as long as Cholesky fails."""
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    while True:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * eye)
        if not int(failed):
            return torch.cholesky_inverse(lower), damping
        if damping >= 1:
            raise BadInput(
                "Hessian cannot be inverted even at damping 1", where=name, fix="use more calibration samples"
            )
        damping = min(1.0, max(damping, 1e-7) * 10)


def surgeon(theta: Tensor, inverse: Tensor, keep: Tensor, score: Tensor) -> Tensor:
    """The paper's sequence of single cuts with G frozen, lowest score first in every row; cut weights end at zero.

    Cut t of a row pulls p_t = (theta_t - sum over u < t of p_u G_ut) / G_tt: a triangular system a row.

    Args:
        theta: [out, in (+1)]; inverse: G; keep, score: [out, in].

    Returns:
        The updated theta.
    """
    queue = torch.where(keep, torch.inf, score)
    order = torch.sort(queue, dim=1, stable=True).indices
    pulls = torch.zeros_like(theta)
    for row, count in enumerate((~keep).sum(1).tolist()):
        if count:
            places = order[row, :count]
            among = inverse[places[:, None], places]  # [t, u]: what cut u does to the weight that cut t takes
            pull = torch.linalg.solve_triangular(among, theta[row, places, None], upper=False)
            pulls[row, places] = pull.squeeze(1)
    theta = theta - pulls @ inverse
    theta[:, : keep.shape[1]].masked_fill_(~keep, 0)
    return theta


def least_squares(theta: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """For each row the minimiser of (theta' - theta) H (theta' - theta)^T with the cut weights at zero."""
    extra = torch.ones(len(keep), theta.shape[1] - keep.shape[1], dtype=torch.bool, device=keep.device)
    free = torch.cat([keep, extra], 1)
    out = torch.zeros_like(theta)
    target = theta @ hessian
    for row, live in enumerate(free):
        index = torch.nonzero(live).squeeze(1)
        if len(index):
            out[row, index] = torch.linalg.lstsq(
                hessian[index][:, index], target[row, index, None], driver="gelsd"
            ).solution[:, 0]
    return out


def bound(errors: Sequence[float], norms: Sequence[float]) -> float:
    """Theorem 3.2: how far the output of a network of Linear layers with 1-Lipschitz activations (ReLU) can move.

    Args:
        errors: e_k of layer k, (1 / sqrt n) ||(W'_k - W_k) Y||_F on the ORIGINAL inputs of the layer.
        norms: Frobenius norms of the cut layers W'_k.

    Returns:
        e_L + sum over k < L of e_k * prod over l > k of norms_l.
    """
    total, product = 0.0, 1.0
    for error, norm in zip(reversed(errors), reversed(norms), strict=True):
        total += error * product
        product *= norm
    return total


def _energy(change: Tensor, hessian: Tensor) -> float:
    return float((change @ hessian).mul_(change).sum().clamp_min(0))
