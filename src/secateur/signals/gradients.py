"""What gradients say of weights before training: SNIP, GraSP and SynFlow scores. Higher = keep, for all three.

    snip     |w * dL/dw|                     L summed over the batches
    grasp    w * (H g)                       g = dL/dw with outputs divided by T = 200, H its Hessian
    synflow  |w| * dR/d|w|                   R = sum of the outputs for an input of ones, all parameters made absolute,
                                             in float64; n rounds, density d^(k/n) kept after round k

The network is called with other tensors in the place of its own (`torch.func.functional_call`): its weights, running
statistics, gradients and modes stay as they are, bit for bit, and the weights scored need not be the network's.
Dropout draws from a fixed seed; the global random state is left alone.

Sources: Lee et al. 2019, eq. 6; Wang et al. 2020, eq. 8 (the sheet's sign: theirs removes the highest of -w Hg);
Tanaka et al. 2020, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.apply.training import keep_largest
from secateur.core.scores import finite
from secateur.core.select import check_sparsity
from secateur.errors import BadInput

Batches = Sequence[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]
TEMPERATURE = 200.0
ROUNDS = 100


def snip_scores(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Batches, loss: Loss | None
) -> dict[str, Tensor]:
    """|w * dL/dw|: what the loss would change by, to first order, if the weight were scaled away.

    Args:
        weights: values to score by parameter name; they stand in for the model's own.
        batches: (input, target) pairs; the model is called with the input, `loss` with its output and the target.

    Returns:
        One score a weight, in the shapes of `weights`. A weight that the loss does not reach scores 0.

    Raises:
        BadInput: no batches or no loss, a loss that does not depend on the weights, a score that is NaN or Inf.
    """
    check_batches(batches, loss)
    leaves = _leaves(weights)
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for value in _losses(model, leaves, batches, loss, 1.0):
        for name, gradient in _gradients(value, leaves).items():
            total[name] += gradient
    return _checked({name: (w.detach() * total[name]).abs() for name, w in weights.items()}, "SNIP scores")


def grasp_scores(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Batches,
    loss: Loss | None,
    temperature: float = TEMPERATURE,
) -> dict[str, Tensor]:
    """w * (H g): how much of the gradient flow g^T g the weight carries. Arguments, result and errors as `snip_scores`.

    g and H are those of the weights alone (not of biases and norms) and of the sum over all batches.

    Args:
        temperature: the outputs, logits, are divided by it before the loss.
    """
    check_batches(batches, loss)
    leaves = _leaves(weights)
    flow = {name: torch.zeros_like(w) for name, w in weights.items()}
    for value in _losses(model, leaves, batches, loss, temperature):
        for name, gradient in _gradients(value, leaves).items():
            flow[name] += gradient
    curved = {name: torch.zeros_like(w) for name, w in weights.items()}
    for value in _losses(model, leaves, batches, loss, temperature):
        gradients = _gradients(value, leaves, again=True)
        product = torch.stack([(flow[name] * g).sum() for name, g in gradients.items()]).sum()
        if product.requires_grad:  # a loss that is linear in every weight has no curvature
            for name, part in _gradients(product, leaves).items():
                curved[name] += part
    return _checked({name: w.detach() * curved[name] for name, w in weights.items()}, "GraSP scores")


def synflow_scores(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Batches,
    loss: Loss | None = None,
    *,
    sparsity: float,
    rounds: int = ROUNDS,
) -> dict[str, Tensor]:
    """Synaptic flow after `rounds` - 1 rounds of cutting; one global ranking at `sparsity` makes the last cut.

    Args:
        batches: only the shape of the first input is used. loss: not used.
        sparsity: where the rounds lead to: (1 - sparsity)^(k / rounds) of all weights are kept after round k.

    Returns:
        float64, the largest 1; a weight cut in an earlier round has -1, so that a global ranking cuts it again.

    Raises:
        BadInput: no input, or one that is no tensor of floats; no round; a flow that is 0, NaN or Inf everywhere.
    """
    check_sparsity(sparsity)
    if type(rounds) is not int or rounds < 1:
        raise BadInput(f"{rounds!r} rounds", where="rounds", fix="give at least 1")
    ones = _ones(batches)
    stored = model.state_dict().keys()  # what is not stored (an image's mean) is a constant of the network
    state = {
        name: (t.detach().double().abs() if name in stored else t.detach().double())
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if t.is_floating_point()
    }
    sizes = {name: w.detach().double().abs() for name, w in weights.items()}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    scores: dict[str, Tensor] = {}
    with _eval_mode(model):
        for done in range(rounds):
            if done:
                masks = keep_largest(scores, 1 - (1 - sparsity) ** (done / rounds))
            leaves = _leaves({name: size * masks[name] for name, size in sizes.items()})
            with torch.enable_grad(), _fixed_random():
                output = functional_call(model, {**state, **leaves}, (ones.to(_device(weights)),))
                flow = _gradients(_tensor(output, model).sum(), leaves)
            scores = {name: flow[name] * leaves[name].detach() for name in leaves}
            largest = max(float(score.max()) for score in scores.values())
            if not 0 < largest < float("inf"):
                raise BadInput(f"the flow is {largest:g} in round {done + 1}", where=type(model).__name__)
            scores = {n: (s / largest).masked_fill(~masks[n], -1) for n, s in scores.items()}
    return _checked(scores, "synaptic flow")


def check_batches(batches: Batches, loss: Loss | None, where: str = "data") -> None:
    """Refuse what gradients cannot be taken from: no batches, or no loss."""
    if not len(batches) or loss is None:
        missing = (
            "no loss" if len(batches) else "no batches" if loss is not None else "no batches and no loss"
        )
        fix = "attach(..., data=[(input, target), ...], loss=loss)"
        raise BadInput(f"{missing} to take gradients from before training", where=where, fix=fix)


def _losses(
    model: nn.Module, leaves: dict[str, Tensor], batches: Batches, loss: Loss | None, temperature: float
) -> Iterator[Tensor]:
    """The loss of each batch as a function of `leaves`, all from the same buffers and the same random numbers."""
    assert loss is not None
    device = _device(leaves)
    for source, target in batches:
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        with torch.enable_grad(), _fixed_random():
            output = functional_call(model, {**buffers, **leaves}, (_to(source, device),))
            if temperature != 1:
                output = _tensor(output, model) / temperature
            value = loss(output, _to(target, device))
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise BadInput("is no number that depends on the weights", where="loss", fix="return one tensor")
        yield value.reshape(())


def _gradients(value: Tensor, leaves: dict[str, Tensor], again: bool = False) -> dict[str, Tensor]:
    with torch.enable_grad():
        found = torch.autograd.grad(value, list(leaves.values()), create_graph=again, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in pairs}


def _leaves(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.detach().clone().requires_grad_() for name, w in weights.items()}


def _checked(scores: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    for name, score in scores.items():
        finite(score, name, what)
    return scores


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    return next(iter(tensors.values())).device


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _tensor(output: Any, model: nn.Module) -> Tensor:
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise BadInput(f"gives {type(output).__name__}, not a tensor", where=type(model).__name__)
    return output


def _ones(batches: Batches) -> Tensor:
    source = batches[0][0] if len(batches) else None
    if not isinstance(source, Tensor) or not source.is_floating_point():
        fix = "attach(..., data=[(input, target)]): the input's shape is used, not its values"
        raise BadInput("no input of floats to take the shape from", where="data", fix=fix)
    return torch.ones(1, *source.shape[1:], dtype=torch.float64)


@contextmanager
def _fixed_random() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """As `evaluate.perplexity.evaluating`, which signals may not import."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
