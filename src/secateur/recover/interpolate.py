"""Between two networks of one shape: the line that joins their weights, what a layer is, and a layer cut on the way.

    theta(a) = (1 - a) theta_0 + a theta_1                                          every entry of the state dict
    theta(a) = ((1 - a) F_0 theta_0 + a F_1 theta_1) / ((1 - a) F_0 + a F_1)        Fisher-weighted, F at least 1e-8

At 0 and 1 it is the one and the other end bit for bit. In between, whole numbers (batch norm's count of batches) are
the tuned end's, and values that are equal at both ends stay as they are. Half precision is summed in float32.

    theta_1' = theta_0 + cut(theta_1 - theta_0)       or  cut(theta_1)              in some layers, by a weight method

Departs: what is cut, and how far, the straggler paper's abstract leaves open; both kinds are offered.
Papers:  Robust fine-tuning of zero-shot models (2021), section 3; Merging Models with Fisher-Weighted Averaging (2021),
         eq. 4; In Search of the Successful Interpolation (2024), abstract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.allocate import global_ranking
from secateur.core.method import OneShot, site_sparsity
from secateur.core.scores import finite
from secateur.core.units import Site
from secateur.errors import BadInput, Unsupported, one_of
from secateur.registry import one_shot
from secateur.sites.trainable import trainable_weights

State = Mapping[str, Tensor]
FLOOR = 1e-8  # of a Fisher value (sheet clip-straggler, step 3)
MEASURES = ("matrix", "block")
CUTS = ("difference", "tuned")


def interpolate(
    zero: State, tuned: State, alpha: float, *, fishers: tuple[State, State] | None = None
) -> dict[str, Tensor]:
    """theta(alpha), in new tensors.

    Args:
        zero, tuned: states of equal names, shapes and dtypes.
        alpha: in [0, 1]; 0 is zero, 1 is tuned.
        fishers: F_0 and F_1 as `fisher` gives them; entries they do not hold (buffers) lie on the plain line.

    Raises:
        BadInput: alpha out of range, or states of two different networks (the first difference is named).
    """
    check_pair(zero, tuned)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise BadInput(f"{alpha!r} is not in [0, 1]", where="alpha", fix="0 is zero-shot, 1 is fine-tuned")
    if alpha in (0, 1):
        return {name: value.detach().clone() for name, value in (tuned if alpha else zero).items()}
    weights: dict[str, Tensor | float] = dict.fromkeys(zero, float(alpha))
    if fishers is not None:
        if fishers[0].keys() != fishers[1].keys() or not set(fishers[0]) <= set(zero):
            raise BadInput("are not of these networks", where="fishers", fix="take each end's by fisher()")
        weights |= {name: _share(fishers[0][name], fishers[1][name], alpha) for name in fishers[0]}
    return {
        name: _between(value.detach(), tuned[name].detach(), weights[name]) for name, value in zero.items()
    }


def check_pair(zero: State, tuned: State) -> None:
    """Refuse two states between which there is no line."""
    fix = "the two ends must be one architecture"
    for name in [*zero, *tuned]:
        if name not in tuned or name not in zero:
            where = "fine-tuned" if name not in tuned else "zero-shot"
            raise BadInput(f"the {where} end has no entry of this name", where=name, fix=fix)
        a, b = zero[name], tuned[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (a, b)]
            raise BadInput(f"zero-shot it is {kinds[0]}, fine-tuned {kinds[1]}", where=name, fix=fix)


def fisher(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher: mean over the images of (d log p(label) / d theta)^2, one image at a time.

    Args:
        images: float [N, C, H, W], or whatever the model takes.   labels: int64 [N].

    Returns:
        float32, one entry a parameter, in its shape; tied parameters under each of their names. The model keeps its
        weights, gradients and mode.
    """
    if not len(images) or len(images) != len(labels):
        raise BadInput(f"{len(images)} images and {len(labels)} labels", where="fisher", fix="give one each")
    named = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
    parameters = list({id(p): p for p in named.values() if p.requires_grad}.values())
    if not parameters:
        raise BadInput("no parameter takes gradients", where="fisher", fix="call model.requires_grad_()")
    sums = {id(p): torch.zeros_like(p, dtype=torch.float32) for p in named.values()}
    with _mode(model), torch.enable_grad():
        for i in range(len(images)):
            out = model(images[i : i + 1].to(parameters[0].device))
            out = getattr(out, "logits", out).float()
            loss = F.cross_entropy(out, labels[i : i + 1].to(out.device))
            for p, g in zip(
                parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
            ):
                if g is not None:
                    sums[id(p)] += g.float().square()
    return {name: finite(sums[id(p)] / len(images), name, "Fisher values") for name, p in named.items()}


@torch.no_grad()
def restate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the running statistics of batch norms anew, as the plain mean over the batches; returns how many norms.

    What two networks' statistics average to is not what the averaged network produces. Only batch norms are in training
    mode meanwhile, so dropout stays off.

    Raises:
        BadInput: no batch, or one too small for a variance; the statistics are as before.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    before = [(b, b.clone()) for norm in norms for b in norm.buffers(False)]
    momenta = [norm.momentum for norm in norms]
    try:
        with _mode(model, norms):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for the plain mean
            for batch in batches:
                model(batch)
        if not all(int(norm.num_batches_tracked or 0) for norm in norms):
            raise BadInput("no batch reached it", where="batch norm", fix="give at least one batch of images")
    except BaseException as error:
        for buffer, value in before:
            buffer.copy_(value)
        if isinstance(error, ValueError) and "more than 1 value" in str(error):
            raise BadInput("a batch has one value a channel", "batch norm", "use larger batches") from error
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)


def layer_groups(model: nn.Module, by: str = "matrix") -> dict[str, tuple[str, ...]]:
    """Every entry of the state dict, by the layer it belongs to, in the model's order.

    matrix: a parameter of two or more dimensions with all that follows it up to the next one: its bias and the norms
    behind it. block: a member of a list or Sequential of equal modules that hold two matrices or more each, of nested
    lists the innermost; the rest by matrix. Tied parameters go with the first of their names.
    """
    one_of(by, MEASURES, "measure")
    firsts, blocks = _first_names(model), _blocks(model) if by == "block" else []
    state = model.state_dict(keep_vars=True)
    matrices = [n for n, t in state.items() if isinstance(t, nn.Parameter) and t.ndim > 1 and firsts[n] == n]
    owners = [name.rpartition(".")[0] for name in matrices]
    groups: dict[str, list[str]] = {}
    of: dict[str, str] = {}
    last = ""
    for name in state:
        owner = name.rpartition(".")[0]
        if firsts[name] != name:
            at = of[firsts[name]]
        elif block := next((b for b in blocks if name.startswith(b + ".")), ""):
            at = last = block
        else:
            if name in matrices or not groups:
                alone = owners.count(owner) == (name in matrices)  # its module has no other matrix
                last = owner if alone and owner else name
            at = last
        of[name] = at
        groups.setdefault(at, []).append(name)
    return {name: tuple(entries) for name, entries in groups.items()}


@torch.no_grad()
def cut_layers(
    model: nn.Module,
    zero: State,
    layers: Mapping[str, Sequence[str]],
    method: OneShot | str = "magnitude",
    sparsity: float = 0.5,
    *,
    of: str = "difference",
    batches: Sequence[Tensor] = (),
) -> tuple[dict[str, Tensor], list[str]]:
    """The fine-tuned state with some of its layers cut, and the names of the weights that were.

    Args:
        model: holds the fine-tuned weights, and keeps them.   zero: the zero-shot state.
        layers: entries by layer, as `layer_groups` gives them; their linear and convolution weights are cut, [out, the
            rest flattened], their vectors stay. Convolutions of groups need a method that measures nothing.
        method: any that cuts a trained network once; its own sparsity is replaced.
        sparsity: 0 changes nothing. 1 (of a difference only) makes the layers those of `zero`, vectors and all.
        of: what is cut: the difference from `zero`, or the tuned weights.
        batches: images for methods that look at the inputs of a layer (those of the fine-tuned model).

    Raises:
        BadInput, Unsupported: a sparsity or allocation out of range, inputs that are missing or cannot be seen.
    """
    one_of(of, CUTS, "cut")
    out = {name: value.detach().clone() for name, value in model.state_dict().items()}
    check_pair(zero, out)
    entries = [name for names in layers.values() for name in names]
    weights = {n: w.detach() for n, w in trainable_weights(model).items() if n in entries}
    if sparsity == 1 and of == "difference":
        return out | {name: zero[name].detach().clone() for name in entries}, list(weights)
    chosen = replace(one_shot(method), sparsity=float(sparsity))
    if sparsity == 0 or not weights:
        return out, []
    base = {n: zero[n].to(w) if of == "difference" else torch.zeros_like(w) for n, w in weights.items()}
    matrices = {n: finite(_matrix(model, n, w - base[n]), n).contiguous() for n, w in weights.items()}
    signals = _measure(model, list(weights), chosen.needs, batches) if chosen.needs is not None else {}
    sites = {n: Site(n, (m.shape[0], m.shape[1])) for n, m in matrices.items()}
    shares = _shares(chosen, list(sites.values()), matrices, signals)
    for name in (n for n in weights if shares[n] > 0):
        bias = name.removesuffix("weight") + "bias"
        b = out[bias] - (zero[bias] if of == "difference" else 0) if bias in entries else None
        cut = chosen.cut(matrices[name], signals.get(name), sites[name], shares[name], b)
        values = _back(weights[name], cut.weight) + base[name] if cut.weight is not None else weights[name]
        out[name] = torch.where(_back(weights[name], cut.keep), values, base[name])
        if cut.bias is not None and b is not None:
            out[bias] += cut.bias.to(b) - b
    firsts = _first_names(model)
    return {name: out[firsts[name]].clone() for name in out}, list(weights)


# -- parts ------------------------------------------------------------------------------------------------------------


def _share(f0: Tensor, f1: Tensor, alpha: float) -> Tensor:
    a, b = (1 - alpha) * f0.clamp_min(FLOOR), alpha * f1.clamp_min(FLOOR)
    return b / (a + b)


def _between(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    if not (a.is_floating_point() or a.is_complex()):
        return b.to(a.device, copy=True)
    b = b.to(a.device)
    wide = torch.promote_types(a.dtype, torch.float32)
    weight = weight.to(a.device, wide) if isinstance(weight, Tensor) else weight
    return torch.where(a == b, a, torch.lerp(a.to(wide), b.to(wide), weight).to(a.dtype))


@contextmanager
def _mode(model: nn.Module, norms: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Evaluation mode, but training mode for `norms`; every module's own mode after."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for norm in norms:
            norm.training = True
        yield
    finally:
        for module, training in before:
            module.training = training


def _first_names(model: nn.Module) -> dict[str, str]:
    """For each entry of the state dict the first one that shares its memory: itself, but for tied parameters."""
    seen: dict[Any, str] = {}
    firsts = {}
    for name, value in model.state_dict(keep_vars=True).items():
        apart = value.device.type == "meta" or not value.numel()
        key = id(value) if apart else (value.data_ptr(), tuple(value.shape), value.stride())
        firsts[name] = seen.setdefault(key, name)
    return firsts


def _blocks(model: nn.Module) -> list[str]:
    found: list[str] = []
    for name, module in model.named_modules():
        children = list(module.named_children())
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1
        if not listed or len({type(child) for _, child in children}) > 1:
            continue
        if all(sum(p.ndim > 1 for p in child.parameters()) > 1 for _, child in children):
            found += [f"{name}.{child}" if name else child for child, _ in children]
    return [name for name in found if not any(other.startswith(name + ".") for other in found)]


def _matrix(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """[out, in]; transformers' Conv1D stores its weight the other way round."""
    if type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D":
        what = "a transposed Conv1D is not known here"
        raise Unsupported(what, where=name, fix="choose layers that are linear or convolutions")
    return weight.flatten(1)


def _back(weight: Tensor, matrix: Tensor) -> Tensor:
    return (matrix if matrix.dtype == torch.bool else matrix.to(weight.dtype)).reshape(weight.shape)


def _shares(
    method: OneShot, sites: list[Site], matrices: Mapping[str, Tensor], signals: Mapping[str, Any]
) -> dict[str, float]:
    """The sparsity of each weight, by the method's own allocation over the weights that are cut."""
    assert isinstance(method.sparsity, float) and not isinstance(method.pattern, str)
    for site in sites:
        method.pattern.fits((site.shape[0], site.shape[1]), site.name)
    if method.allocate == "owl":
        raise BadInput("owl weighs whole blocks", where="allocate", fix="use uniform, erk or global")
    if method.allocate != "global":
        return site_sparsity(method, sites, method.sparsity)
    scores = [(site.name, method.score(matrices[site.name], signals.get(site.name), site)) for site in sites]
    return global_ranking(sites, lambda: scores, method.sparsity)


def _measure(
    model: nn.Module, names: Sequence[str], kind: Callable[[int], Any], batches: Sequence[Tensor]
) -> dict[str, Any]:
    """What a method measures of the inputs of each weight, in one pass over the batches."""
    if not batches:
        raise BadInput("the method looks at the inputs of layers", "batches", "give images, or use magnitude")
    signals: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(_mode(model))
        for name in names:
            module = model.get_submodule(name.rpartition(".")[0])
            signals[name] = kind(module.get_parameter("weight").flatten(1).shape[1])

            def see(module: nn.Module, args: tuple[Tensor, ...], signal: Any = signals[name]) -> None:
                x = tokens(module, args[0])
                signal.take(x)

            stack.callback(module.register_forward_pre_hook(see).remove)
        for batch in batches:
            model(batch)
    for name, signal in signals.items():
        if signal.empty:
            fix = "use a method that needs no inputs, such as magnitude"
            raise Unsupported("no input was seen there, or only zeros", where=name, fix=fix)
        signal.samples = sum(map(len, batches))
        signal.check(name)
    return signals


def tokens(module: nn.Module, x: Tensor) -> Tensor:
    """The rows [tokens, in] that `module`'s weight [out, in], flattened, is multiplied with; of a convolution: patches.

    Raises:
        Unsupported: a convolution of groups, of three dimensions, or padded with other than a number of zeros.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    plain = isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1
    if not plain or isinstance(module.padding, str) or module.padding_mode != "zeros":
        what = f"the inputs of this {type(module).__name__} are not seen by data-driven methods"
        raise Unsupported(what, where="layers", fix="use a method that needs no inputs, such as magnitude")
    sizes: list[Any] = [module.kernel_size, module.dilation, module.padding, module.stride]
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(2)
        sizes = [(one, size[0]) for one, size in zip((1, 1, 0, 1), sizes, strict=True)]
    return F.unfold(x, *sizes).transpose(1, 2).flatten(0, 1)
