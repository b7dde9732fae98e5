"""What a cut leaves, measured from the weights and the folder: density, bytes, FLOPs per token, and peak memory.

    density        kept / all units that may be cut (entries of the sites of sites/find.py)
    model_density  1 - (units cut) / (all parameters of the model, shared ones once)
    flops          2 x (non-zero entries of every site, once for each place it is used, + all entries of the other
                   Linear and convolution weights, the head included), for one token. Embedding look-ups, norms and
                   the attention products (which depend on the length) are left out; of fused experts only the share
                   a token is routed to counts; a convolution counts once for each of its output positions.
Four separate figures: none is derived from another, and none is a speed (see speed.py).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from secateur.errors import NoMatch
from secateur.sites.find import WeightSite, find_blocks


@dataclass(frozen=True)
class Size:
    """See the top of this file; `layers`: one {"name", "shape", "sparsity"} a site."""

    density: float
    model_density: float
    parameters: int
    flops: int
    layers: tuple[dict[str, Any], ...]

    @property
    def sparsity(self) -> float:
        return 1.0 - self.density


def measure_size(model: nn.Module, sites: Sequence[WeightSite] | None = None) -> Size:
    """Measure a model; `sites` are the weights that may be cut (default: all that sites/find.py finds).

    Raises:
        Unsupported: the model holds no weight matrix that can be cut.
    """
    sites = (
        list(sites) if sites is not None else [site for block in find_blocks(model) for site in block.sites]
    )
    active = _active_experts(model)
    layers, kept, total, flops = [], 0, 0, 0.0
    for site in sites:
        weight = site.view()
        left = int(torch.count_nonzero(weight))
        kept, total = kept + left, total + weight.numel()
        flops += 2 * left * site.uses * (1.0 if site.index is None else active)
        layers.append({"name": site.name, "shape": list(weight.shape), "sparsity": 1 - left / weight.numel()})
    if total == 0:
        raise NoMatch("no site to measure", where="size", fix="leave sites out to measure all")
    covered = {id(getattr(site.owner, site.parameter)) for site in sites}
    for module in filter(_multiplies, model.modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and id(weight) not in covered:
            flops += 2 * weight.numel()
    parameters = sum(p.numel() for p in model.parameters())
    return Size(kept / total, 1 - (total - kept) / parameters, parameters, round(flops), tuple(layers))


def folder_bytes(folder: str | Path) -> int:
    """Bytes of all files of a folder (links followed, as the hub's cache uses them)."""
    root = Path(folder)
    if not root.is_dir():
        raise NoMatch("no such folder", where=str(folder), fix="give a checkpoint folder")
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


class PeakMemory:
    """`with PeakMemory() as peak: ...` then `peak.mb`: the most memory this process held inside (RSS, 10^6 bytes).

    Exact when the block set a new record for the process (the kernel's own mark), else sampled every 5 ms. Blocks can
    be nested.
    """

    def __init__(self, every: float = 0.005) -> None:
        self._every = every
        self._peak = 0
        self._stop = threading.Event()

    @property
    def mb(self) -> float:
        return self._peak / 1e6

    def __enter__(self) -> Self:
        self._peak, self._record = _resident(), _record()
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        record = _record()
        self._peak = max(self._peak, _resident(), record if record > self._record else 0)

    def _sample(self) -> None:
        while not self._stop.wait(self._every):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    """Bytes of RSS now; the lifetime record where the system tells no more and psutil is missing."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource

        return int(statm.read_text().split()[1]) * resource.getpagesize()
    try:
        import psutil
    except ImportError:
        return _record()
    return psutil.Process().memory_info().rss


def _record() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _multiplies(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, kinds) or type(module).__name__ == "Conv1D"


def _active_experts(model: nn.Module) -> float:
    """Share of the experts one token is routed to, by the config; 1 where it does not say."""
    config = getattr(model, "config", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if chosen and getattr(config, name, None):
            return chosen / getattr(config, name)
    return 1.0
