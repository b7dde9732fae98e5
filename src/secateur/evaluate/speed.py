"""Measured speed of a language model: tokens a second read (prefill) and written (decode), median over repeats.

Token ids are random, since dense and sparse matrix products take the same time on any values; one untimed warm-up run
comes first. Compare two models only within one process on an idle machine: `spread` says how quiet it was.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import nn

from secateur.errors import BadInput, Unsupported
from secateur.evaluate.perplexity import evaluating, vocabulary_size


@torch.no_grad()
def measure_speed(
    model: nn.Module, *, prompt: int = 128, tokens: int = 32, repeats: int = 5, batch: int = 1, seed: int = 0
) -> dict[str, float]:
    """Read `prompt` tokens, then write `tokens` one by one with the cache, `repeats` times.

    Returns:
        prefill, decode: tokens a second (all sequences of the batch together), medians;
        prefill_spread, decode_spread: (slowest - fastest) / median of the times.

    Raises:
        BadInput: a count below 1.   Unsupported: the model keeps no cache to decode with.
    """
    if min(prompt, tokens, repeats, batch) < 1:
        raise BadInput("prompt, tokens, repeats and batch are 1 or more", where="speed")
    vocabulary = vocabulary_size(model)
    if vocabulary is None:
        raise Unsupported("not a language model", where=type(model).__name__)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = torch.randint(0, vocabulary, (batch, prompt), generator=generator).to(device)
    reads: list[float] = []
    writes: list[float] = []
    with evaluating(model):
        for i in range(repeats + 1):
            read, write = _once(model, ids, tokens)
            if i:  # the first run warms caches and allocators
                reads.append(read)
                writes.append(write)
    return {
        "prefill": batch * prompt / median(reads),
        "decode": batch * tokens / median(writes),
        "prefill_spread": (max(reads) - min(reads)) / median(reads),
        "decode_spread": (max(writes) - min(writes)) / median(writes),
    }


def _once(model: nn.Module, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    start = _now(ids)
    out: Any = model(input_ids=ids, use_cache=True)
    read = _now(ids)
    if getattr(out, "past_key_values", None) is None:
        raise Unsupported(
            "the model returns no cache, so that writing cannot be timed", where=type(model).__name__
        )
    for _ in range(tokens):
        chosen = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=chosen, past_key_values=out.past_key_values, use_cache=True)
    return read - start, _now(ids) - read


def _now(ids: torch.Tensor) -> float:
    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)
    return time.perf_counter()
