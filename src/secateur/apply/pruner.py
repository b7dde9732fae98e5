"""Holds a mask on a network while an optimiser trains it. `method.attach(model, optimizer, steps=...)` makes one.

Masks lie beside the model, by parameter name; the state dict never changes. Before the optimiser's step the gradients
of cut weights are zeroed (a hook on the optimiser); after it `step()` zeroes those weights and their moments, whatever
the optimiser did, and lets the method revise its masks when it is due.

A method that trains scores (`trains = "scores"`) gets the optimiser's parameters exchanged for scores: the network then
holds the effective weights, whose gradient times the frozen weight is the score's (straight-through).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from secateur.apply.training import Loss, Masks, Net, Training
from secateur.core.plan import pack, unpack
from secateur.core.scores import all_finite
from secateur.errors import BadInput, Unsupported, nearest
from secateur.registry import name_of
from secateur.sites.trainable import bare, trainable_weights

# Optimisers whose step of one entry looks at that entry alone.
_ENTRYWISE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


class Pruner:
    """One method on one network and one optimiser.

    Attributes:
        optimizer: what to call `step` on; the user's own unless the method wraps it (AdaSAP).
        net: what the method sees: weights, masks, steps, notes.
        skipped: optimiser steps left out because a gradient was NaN or Inf.
        position: the step of the training's own clock, for a learning-rate schedule; rewinding sets it back.
    """

    def __init__(
        self,
        method: Training,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        data: Iterable[tuple[Any, Any]] = (),
        loss: Loss | None = None,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise BadInput(f"{steps!r} optimiser steps", where="steps", fix="say how many the training has")
        model = bare(model)
        self.method, self.optimizer = method, optimizer
        self._inner: torch.optim.Optimizer = getattr(
            optimizer, "optimizer", optimizer
        )  # inside accelerate's wrapper
        self._weights = trainable_weights(model, method.only, method.skip)
        self._owners = _owners(model, self._weights)
        self._check_optimizer(model)
        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.net = Net(
            model=model,
            weights={name: weight.detach() for name, weight in self._weights.items()},
            state={name: tensor.detach() for name, tensor in live.items()},
            masks={},
            steps=steps,
            seed=method.seed,
            data=tuple(data),
            loss=loss,
        )
        method.prepare(self.net)
        self.skipped = self.position = 0
        self._settled: object = None
        self._due = self._owed = self._bad = self._seen = False
        self._scores: dict[str, nn.Parameter] = {}
        if method.trains == "scores":
            self._exchange(model)
        try:
            self.net.masks = self._checked(method.start(self.net))
        except BaseException:
            self._give_back()
            raise
        self._adopt(self.net.masks)
        self.explored = {name: mask.clone() for name, mask in self.net.masks.items()}
        self.peak_density = self.density
        self.density_steps = dict.fromkeys(self._weights, 0.0)
        self.dense_steps = dict.fromkeys(self._weights, 0.0)
        self._put()
        self._hook = self._inner.register_step_pre_hook(self._before)
        wrap: Callable[[Pruner], torch.optim.Optimizer] | None = getattr(method, "wrap", None)
        if wrap is not None:
            self.optimizer = wrap(self)

    # -- each step -------------------------------------------------------------------------------------------------

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Just before the optimiser's step; where a closure computes the gradients, just after that."""
        self._seen = True
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._look()
            return None

        def watched() -> Any:
            value = closure()
            self._look()
            return value

        return (
            ((args[0], watched, *args[2:]), kwargs)
            if len(args) > 1
            else (args, {**kwargs, "closure": watched})
        )

    def _look(self) -> None:
        """Refuse gradients that are not finite, keep what the method needs, zero those of cut weights."""
        for name, weight in self._weights.items():
            owner, attribute = self._owners[name]
            if getattr(owner, attribute) is not weight:
                raise Unsupported(
                    "is another parameter than when pruning began", where=name, fix="attach again"
                )
        if self._scores:
            self._straight_through()
        parameters = [p for group in self._inner.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        self._bad = not all_finite([g for g in gradients if g is not None])
        if self._bad:
            for p in parameters:
                p.grad = None  # every torch optimiser passes over a parameter without a gradient
            return
        self.net.step += 1
        self._due = self._owed or self.method.due(self.net)
        self.net.step -= 1
        if self._scores:
            return
        if self._due and self.method.rewires:
            self.net.gradients = {
                n: w.grad.detach().clone() for n, w in self._weights.items() if w.grad is not None
            }
        held = [(w.grad, self._keep[n]) for n, w in self._weights.items() if w.grad is not None]
        _multiply([(g, keep if g.dtype == keep.dtype else keep.to(g.dtype)) for g, keep in held])

    @torch.no_grad()
    def step(self) -> None:
        """Call once after every `optimizer.step()`: keeps cut weights and their moments at zero, revises the masks."""
        net = self.net
        net.step += 1
        self.position += 1
        skipped = self._bad or not self._seen  # not seen: a GradScaler left the step out
        if skipped:
            self.skipped += 1
            self._owed = self._owed or self.method.due(net)
        else:
            self._hold()
            if self._due:
                for name, share in self._share.items() if self.method.rewires else ():
                    self.dense_steps[name] += 1 - share
                self._revise()
                self._owed = False
        self._bad = self._seen = self._due = False
        net.gradients = {}
        for name, share in self._share.items():
            self.density_steps[name] += share

    def _revise(self) -> None:
        net = self.net
        net.masks = self._agreed(self._checked(self.method.revise(net)))
        for name, fresh in net.restarted.items():
            if torch.count_nonzero(fresh):
                self._zero(name, fresh)
        net.restarted = {}
        self._adopt(net.masks)
        self._put()
        for name, mask in net.masks.items():
            self.explored[name] |= mask
        self.peak_density = max(self.peak_density, self.density)
        if net.rewound_to is not None:
            self.position, net.rewound_to = net.rewound_to, None
            self._inner.state.clear()

    def _hold(self) -> None:
        """Zero cut weights and everything the optimiser keeps in their shape."""
        if self._scores:
            self._put()
            return
        if self._settled is not None and self._settled is self._inner.state:
            _multiply([(weight.detach(), self._keep[name]) for name, weight in self._weights.items()])
            return
        pairs = []
        for name, weight in self._weights.items():
            pairs += self._masked(weight, self._keep[name])
        _multiply(pairs)
        torch._foreach_add_([v for v, _ in pairs], 0.0)  # pyright: ignore[reportPrivateImportUsage]  # -0.0 to 0.0
        # From here on zero gradients keep zero moments at zero, if the optimiser treats every entry alone.
        if type(self._inner) in _ENTRYWISE and all(w in self._inner.state for w in self._weights.values()):
            self._settled = self._inner.state

    def _zero(self, name: str, where: Tensor) -> None:
        weight = self._weights[name]
        _multiply(self._masked(weight, (~where).to(weight.dtype)))

    def _masked(self, weight: nn.Parameter, keep: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The weight and everything the optimiser keeps in its shape, each beside the mask in its own dtype."""
        own = [weight.detach(), *self._inner.state.get(weight, {}).values()]
        same = [v for v in own if isinstance(v, Tensor) and v.shape == weight.shape]
        return [(v, keep if v.dtype == keep.dtype else keep.to(v.dtype)) for v in same]

    def _put(self) -> None:
        """Write the masks, or the effective weights of a method that trains scores, into the network."""
        with torch.no_grad():
            if not self._scores:
                self._hold()
                return
            for name, weight in self._weights.items():
                weight.detach().copy_(self.method.effective(name, self.net))

    def _adopt(self, masks: Masks) -> None:
        self._cut = {name: ~mask for name, mask in masks.items()}
        self._keep = {name: mask.to(self._weights[name].dtype) for name, mask in masks.items()}
        self._settled = None
        self._share = {name: float(torch.count_nonzero(mask)) / mask.numel() for name, mask in masks.items()}

    def _agreed(self, masks: Masks) -> Masks:
        """The masks of rank 0, where several processes train one model."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return masks
        for mask in masks.values():
            whole = mask.to(torch.uint8)
            dist.broadcast(whole, 0)
            mask.copy_(whole.bool())
        return masks

    def _checked(self, masks: Masks) -> Masks:
        for name in masks:
            if name not in self._weights:
                raise BadInput("no such weight to cut", where=name, fix=nearest(name, self._weights))
        for name, weight in self._weights.items():
            mask = masks.get(name)
            if mask is None or mask.dtype != torch.bool or mask.shape != weight.shape:
                held = "none" if mask is None else f"{mask.dtype} {tuple(mask.shape)}"
                raise BadInput(f"the mask is {held}, the weight {tuple(weight.shape)}", where=name)
        return {name: masks[name].to(weight.device) for name, weight in self._weights.items()}

    # -- scores instead of weights -----------------------------------------------------------------------------------

    def _exchange(self, model: nn.Module) -> None:
        """Freeze the network and give the optimiser a score a weight; `detach` takes it back."""
        net = self.net
        self._before_exchange = (
            [(group, list(group["params"])) for group in self._inner.param_groups],
            {p: p.requires_grad for p in model.parameters()},
        )
        for name, weight in self._weights.items():
            net.memory[f"weight/{name}"] = weight.detach().clone()
            self._scores[name] = nn.Parameter(torch.zeros_like(weight))
            net.memory[f"score/{name}"] = self._scores[name].detach()
        chosen = {weight: self._scores[name] for name, weight in self._weights.items()}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in chosen)
        for group in self._inner.param_groups:
            group["params"] = [chosen[p] for p in group["params"] if p in chosen]

    def _straight_through(self) -> None:
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self._scores[name].grad = weight.grad * self.net.memory[f"weight/{name}"]
                weight.grad = None

    def detach(self) -> None:
        """Let go: no hook stays, cut weights stay zero; a scores method leaves the effective weights in the network."""
        self._hook.remove()
        self._give_back()

    def _give_back(self) -> None:
        """Undo `_exchange`: the optimiser has its parameters, which need gradients as they did."""
        if self._scores:
            groups, needs = self._before_exchange
            for group, parameters in groups:
                group["params"] = parameters
            for parameter, value in needs.items():
                parameter.requires_grad_(value)

    # -- what it holds -----------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Fraction of the layers' weights that are kept now."""
        sizes = {name: weight.numel() for name, weight in self._weights.items()}
        return sum(self._share[name] * size for name, size in sizes.items()) / sum(sizes.values())

    def report(self) -> dict[str, Any]:
        """density, model_density, peak_density, explored_fraction (weights kept at least once), steps, skipped, layers,
        notes: the figures every sparse training is told by (sheet sparseland)."""
        size = sum(mask.numel() for mask in self.explored.values())
        parameters = [p.detach() for p in self.net.model.parameters()]
        return {
            "method": name_of(self.method),
            "density": self.density,
            "model_density": sum(int(p.count_nonzero()) for p in parameters)
            / sum(p.numel() for p in parameters),
            "peak_density": self.peak_density,
            "explored_fraction": sum(int(mask.sum()) for mask in self.explored.values()) / size,
            "steps": self.net.step,
            "skipped": self.skipped,
            "layers": dict(self._share),
            "notes": list(self.net.notes),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs beside the model's and the optimiser's state: tensors and plain values."""
        return {
            "method": name_of(self.method),
            "settings": self.method.settings(),
            "steps": self.net.steps,
            "step": self.net.step,
            "position": self.position,
            "skipped": self.skipped,
            "owed": self._owed,
            "peak_density": self.peak_density,
            "dense_steps": dict(self.dense_steps),
            "density_steps": dict(self.density_steps),
            "notes": list(self.net.notes),
            "shapes": {name: list(mask.shape) for name, mask in self.net.masks.items()},
            "masks": {name: pack(mask) for name, mask in self.net.masks.items()},
            "explored": {name: pack(mask) for name, mask in self.explored.items()},
            "memory": {name: tensor.clone() for name, tensor in self.net.memory.items()},
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse (BadInput) a state of another method, other settings or another network; nothing is changed."""
        mine = self.state_dict()
        for key in ("method", "settings", "steps", "shapes"):
            if state.get(key) != mine[key]:
                what = f"was saved with {key} {state.get(key)!s:.80}, this run has {mine[key]!s:.80}"
                raise BadInput(what, where="resume", fix="resume with the words the run was started with")
        if state["memory"].keys() != mine["memory"].keys():
            raise BadInput("does not hold what this method remembers", where="resume", fix="start again")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Load the model and the optimiser first. Raises as `check_state`."""
        self.check_state(state)
        net = self.net
        shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        net.masks = self._checked({name: unpack(bits, shapes[name]) for name, bits in state["masks"].items()})
        self.explored = self._checked({n: unpack(bits, shapes[n]) for n, bits in state["explored"].items()})
        for name, tensor in state["memory"].items():
            net.memory[name].copy_(tensor)
        net.step, self.position, self.skipped = state["step"], state["position"], state["skipped"]
        self._owed, self.peak_density = state["owed"], state["peak_density"]
        self.dense_steps = dict(state["dense_steps"])
        self.density_steps, net.notes = dict(state["density_steps"]), list(state["notes"])
        self._adopt(net.masks)
        self._put()

    def _check_optimizer(self, model: nn.Module) -> None:
        held = {id(p) for group in self._inner.param_groups for p in group["params"]}
        for name, weight in self._weights.items():
            if id(weight) not in held:
                raise BadInput(
                    "is not among the optimiser's parameters", where=name, fix="skip it, or add it"
                )


def _multiply(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Each tensor times its 0/1 mask of the same dtype, in place: five times as fast as filling by a bool mask."""
    if pairs:
        values, keeps = [value for value, _ in pairs], [keep for _, keep in pairs]
        torch._foreach_mul_(values, keeps)  # pyright: ignore[reportPrivateImportUsage]


def _owners(model: nn.Module, weights: dict[str, nn.Parameter]) -> dict[str, tuple[nn.Module, str]]:
    found = {}
    for name in weights:
        path, _, attribute = name.rpartition(".")
        found[name] = (model.get_submodule(path) if path else model, attribute)
    return found
