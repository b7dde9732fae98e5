"""Several processes, one calibration set: each measures its share, and the sums are added (torch.distributed).

Started by `torchrun --nproc-per-node=N -m secateur compress ...`; gloo on the CPU, nccl on CUDA. Every worker then cuts
by the same signals, so all hold the same model; worker 0 writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def group(device: str = "cpu") -> Iterator[None]:
    """Join the group torchrun describes in the environment; nothing to do in a plain process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or world() > 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def merge(signals: Iterable[Any]) -> None:
    """Add up every signal over the workers, in place; all workers must pass the same sites in the same order."""
    if world() == 1:
        return
    where = torch.device(
        "cuda" if dist.get_backend() == "nccl" else "cpu"
    )  # nccl sums on its own device only
    for signal in signals:
        for tensor in (*signal.tensors(), tokens := torch.tensor(signal.tokens)):
            summed = tensor.to(where)
            dist.all_reduce(summed)
            tensor.copy_(summed)
        signal.tokens = int(tokens)
