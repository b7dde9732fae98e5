"""How fast a language model writes here: seconds of a prompt and of a token after it, through runtime/decode.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.runtime.decode import Decoder, tokens


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
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Write `count` tokens after a prompt of as many as asked, `repeats` times after once to warm up.

    Both are shortened where the model has fewer positions. `clock` gives seconds.

    Raises:
        Unsupported: no causal language model with a cache.   BadInput: one in training mode.
    """
    decoder = Decoder(model)
    if decoder.positions is not None:
        prompt = max(1, min(prompt, decoder.positions - count - 1))
        count = min(count, decoder.positions - prompt - 1)
    ids = [(37 * at + 11) % decoder.vocabulary for at in range(prompt)]
    reads, writes = [], []
    for turn in range(repeats + 1):
        read, write = _once(decoder, ids, count, clock)
        if turn:
            reads.append(read)
            writes.append(write)
    middle = statistics.median(writes)
    return Pace(statistics.median(reads), middle, prompt, (max(writes) - min(writes)) / middle, decoder.way)


def _once(
    decoder: Decoder, ids: Sequence[int], count: int, clock: Callable[[], float]
) -> tuple[float, float]:
    start = clock()
    told = tokens(decoder, ids, max_tokens=count + 1)
    next(told)
    first = clock()
    for _ in told:
        pass
    return first - start, (clock() - first) / count
