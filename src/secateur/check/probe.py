"""What the checks work on: a tiny model and data in plain torch, and the small questions they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.method import Cut, OneShot
from secateur.core.scores import digest
from secateur.core.select import NM, Blocks, PerColumn, PerRow, cut_count
from secateur.core.units import Site
from secateur.engine.calibrate import Calibration
from secateur.engine.run import Options, Result, compress
from secateur.errors import BadInput
from secateur.registry import find, names

# (method, weight [out, in], x [tokens, in], samples, bias, sparsity) -> keep [out, in], or (keep, new weight)
Oracle = Callable[..., "Tensor | tuple[Tensor, Tensor]"]
PATTERNS = ("row", "column", "layer", "2:4", "1:4", "3:8", "4x4")


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(16, 24), nn.Linear(24, 16, bias=False), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.relu(self.up(x))))


class Toy(nn.Module):
    """Two residual blocks of two Linears and a head: `forward(x)` with x [samples, tokens, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([_Layer(), _Layer()]), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Skip(Exception):
    """Raised by a check that does not apply to a method; the message is the reason."""


class Probe:
    """One method under test, and everything small that the checks need."""

    def __init__(
        self,
        method: str | type[OneShot],
        settings: dict[str, Any] | None = None,
        oracle: Oracle | None = None,
    ) -> None:
        self.cls = find(method) if isinstance(method, str) else method
        if not (isinstance(self.cls, type) and issubclass(self.cls, OneShot)):
            raise BadInput(
                f"{method!r} is no method", where="check_method", fix="give a name or a subclass of OneShot"
            )
        self.settings, self.oracle = dict(settings or {}), oracle
        self.name = next((n for n in names("once") if find(n) is self.cls), None)

    def method(self, **changes: Any) -> OneShot:
        return self.cls(**{**self.settings, **changes})

    def model(self, dtype: torch.dtype = torch.float32) -> Toy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return Toy().to(dtype)

    def data(self, samples: int = 6, tokens: int = 8, dtype: torch.dtype = torch.float32) -> Calibration:
        stream = torch.Generator().manual_seed(11)
        mix = torch.randn(16, 16, generator=stream) + 2 * torch.eye(16)
        rows = torch.randn(samples, tokens, 16, generator=stream) @ mix * torch.logspace(-1, 1, 16)
        return Calibration(tuple({"x": row.to(dtype)} for row in rows), "probe")

    def run(
        self, model: nn.Module, method: OneShot | None = None, data: Calibration | None = None, **options: Any
    ) -> Result:
        settings = Options(**{"feed": "none", "products": "float32", **options})
        return compress(model, method or self.method(), data or self.data(), settings)

    def site(
        self, shape: tuple[int, int] = (24, 16), tokens: int = 64
    ) -> tuple[Tensor, Tensor, Tensor, Site]:
        """A weight [out, in], inputs x [tokens, in] for it, a bias [out], and the site."""
        stream = torch.Generator().manual_seed(5)
        x = torch.randn(tokens, shape[1], generator=stream) @ torch.randn(
            shape[1], shape[1], generator=stream
        )
        weight = torch.randn(shape, generator=stream)
        return weight, x, torch.randn(shape[0], generator=stream), Site("layers.0.up", shape)

    def cut(
        self,
        weight: Tensor,
        x: Tensor,
        bias: Tensor | None,
        site: Site,
        **changes: Any,
    ) -> Cut:
        """What the method, with `changes` to its settings, decides for one site, measured on x."""
        signal = None
        if self.cls.needs is not None:
            signal = self.cls.needs(x.shape[1])
            signal.add(self.cls.needs.measure(x), len(x))  # type: ignore[attr-defined]
        method = self.method(**changes)
        assert isinstance(method.sparsity, float)
        return method.cut(weight, signal, site, method.sparsity, bias)

    def claims(self, what: str) -> None:
        if what not in self.cls.claims:
            raise Skip(f"its class does not claim {what!r}")

    def free(self) -> None:
        """For checks that set the sparsity: skip where N:M, in the settings, fixes it."""
        if isinstance(self.method().pattern, NM):
            raise Skip("its pattern fixes the sparsity")

    def patterns(self) -> Iterator[OneShot]:
        """The method with every pattern it accepts."""
        for pattern in PATTERNS:
            try:
                yield self.method(pattern=pattern, allocate="uniform")
            except BadInput:
                continue


def expect(ok: bool | Tensor, what: str) -> None:
    if not bool(ok):
        raise AssertionError(what)


def refuses(kind: type[Exception], action: Callable[[], Any], *words: str, what: str = "it") -> None:
    """Expect one of the six errors, in one line of at most 200 characters that holds `words`."""
    try:
        action()
    except kind as error:
        line = str(error)
        expect("\n" not in line and len(line) <= 200, f"not one short line: {line!r}")
        expect(all(word in line for word in words), f"the line does not name {words}: {line!r}")
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__} ({error})") from error
    else:
        raise AssertionError(f"{what} was accepted")


def state(model: nn.Module) -> tuple[Any, ...]:
    """Every bit, mode, hook and flag of a model, and the thread's gradient mode: equal before and after = untouched."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return (
        digest(*model.state_dict().values()),
        list(model.state_dict()),
        torch.is_grad_enabled(),
        [
            (m.training, "forward" in m.__dict__, *(len(getattr(m, h)) for h in hooks))
            for m in model.modules()
        ],
        [(id(p), p.requires_grad, p.grad is None, p.dtype, p.device) for p in model.parameters()],
    )


def groups(keep: Tensor, pattern: Any) -> Tensor:
    """keep [out, in] as [groups, units]: what the pattern lets compete."""
    out, width = keep.shape
    if isinstance(pattern, NM):
        return keep.reshape(-1, pattern.m)
    if isinstance(pattern, Blocks):
        tiles = keep.reshape(out // pattern.rows, pattern.rows, width // pattern.columns, pattern.columns)
        expect((tiles == tiles[:, :1, :, :1]).all(), "a tile is cut in part")
        return tiles[:, 0, :, 0].reshape(1, -1)
    return (
        keep
        if isinstance(pattern, PerRow)
        else keep.t()
        if isinstance(pattern, PerColumn)
        else keep.reshape(1, -1)
    )


def expect_counts(keep: Tensor, pattern: Any, sparsity: Any, where: str) -> None:
    found = (~groups(keep, pattern)).sum(1)
    wanted = cut_count(groups(keep, pattern).shape[1], sparsity)
    expect(
        (found == wanted).all(), f"{where}, {pattern}: cut {found.unique().tolist()} a group, not {wanted}"
    )


def expect_measured(result: Result) -> None:
    """The weights show exactly the plan: zero where cut, and finite."""
    for name, kept in result.plan.sites.items():
        weight = result.model.get_submodule(name).weight.detach()  # type: ignore[union-attr]
        expect(torch.isfinite(weight).all(), f"{name} is not finite")
        expect((weight[~kept.mask()] == 0).all(), f"{name}: a cut weight is not zero")
        expect(int(kept.mask().sum()) == kept.count, f"{name}: the count is not that of the mask")
