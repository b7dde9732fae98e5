"""How fast a language model writes here: seconds of a prompt and of a token after it, through runtime/decode.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from secateur.runtime.decode import OURS, Decoder
from secateur.runtime.sample import GREEDY, choose


@dataclass(frozen=True)
class Pace:
    """Medians: `prompt` seconds for `length` tokens, `token` seconds for each further one; spread of these over the
    repeats, (slowest - fastest) / median; `way` is the decoder's."""

    prompt: float
    token: float
    length: int
    spread: float
    way: str

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return 1 / self.token


def pace(
    model: nn.Module,
    *,
    prompt: int = 128,
    count: int = 32,
    repeats: int = 3,
    reread: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Write `count` tokens after a prompt of as many as asked, `repeats` times after once to warm up.

    Both are shortened where the model has fewer positions. `clock` gives seconds. Without `reread` the prompt is read
    once, where the decoder can go back to its end, and its time is that of the first reading.

    Raises:
        Unsupported: no causal language model with a cache.   BadInput: one in training mode.
    """
    decoder = Decoder(model)
    if decoder.positions is not None:
        prompt = max(1, min(prompt, decoder.positions - count - 1))
        count = min(count, decoder.positions - prompt - 1)
    ids = [(37 * at + 11) % decoder.vocabulary for at in range(prompt)]
    decoder.check(ids, count + 1)
    random = torch.Generator()
    reads, writes, first = [], [], 0
    for turn in range(repeats + 1):
        if reread or not turn or decoder.way not in OURS:
            start = clock()
            logits = decoder.read(ids, prompt + count + 1)
            assert logits is not None  # nobody cancels it
            first = choose(logits, GREEDY, random)
            reads.append(clock() - start)
        decoder.length = prompt
        token, start = first, clock()
        for _ in range(count):
            token = choose(decoder.step(token), GREEDY, random)
        writes.append((clock() - start) / count)
    writes = writes[1:]
    middle = statistics.median(writes)
    spread = (max(writes) - min(writes)) / middle
    return Pace(statistics.median(reads[1:] or reads), middle, prompt, spread, decoder.way)
