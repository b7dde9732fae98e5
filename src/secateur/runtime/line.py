"""The line in front of a model: requests wait in it, one thread answers them one after the other.

Everything but `_work` runs in the event loop's thread. A place is taken before a prompt is tokenised and given back
when the worker is done with the request, or when its client has gone: at once while it waits, within a step while it
is answered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from secateur.runtime.chat import Ask
from secateur.runtime.decode import Decoder, Piece, pieces

REMEMBERED = 8  # answers whose time says how long the next may take


class Job:
    """A request in the line. `events` brings its pieces, then an exception or None (the end)."""

    def __init__(self, ask: Ask, ids: Sequence[int], max_tokens: int) -> None:
        self.ask, self.ids, self.max_tokens = ask, ids, max_tokens
        self.events: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.cancelled = False  # set by the event loop, read by the worker between two steps
        self.placed = True

    def call(self, what: Callable[[Any], object], value: Any) -> None:
        """From the worker: have the event loop call `what(value)`."""
        try:
            self.loop.call_soon_threadsafe(what, value)
        except RuntimeError:  # the loop has ended: nobody listens
            self.cancelled = True


class Line:
    """At most `places` requests wait while one is answered.

    Attributes:
        inside: requests that hold a place, the one that is answered among them.   running: whether one is.
    """

    def __init__(self, decoder: Decoder, tokenizer: Any, places: int) -> None:
        self.decoder, self.tokenizer, self.places = decoder, tokenizer, places
        self.inside = 0
        self.running: Job | None = None
        self.closed = False
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._worker = threading.Thread(target=self._work, name="secateur-decode", daemon=True)
        self._worker.start()

    def enter(self) -> int:
        """Take a place: 0; or, when none is free, in how many seconds to come again."""
        if self.inside > self.places:
            known = list(self._seconds)
            return min(max(round(sum(known) / len(known)), 1), 60) if known else 1
        self.inside += 1
        return 0

    def leave(self) -> None:
        """Give back a place that no job holds yet."""
        self.inside -= 1

    def put(self, job: Job) -> None:
        """Queue a job, which takes over the place."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """Nobody waits for this job any more (or it is done): its place is free."""
        job.cancelled = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job is self.running:
                return  # the worker says so within a step
        self.free(job)

    def free(self, job: Job) -> None:
        """Give back the place of a job, once."""
        if job.placed:
            job.placed = False
            self.inside -= 1

    def close(self, why: Exception) -> None:
        """Let nobody wait any longer; what is being answered goes on."""
        with self._changed:
            waiting, self.closed = list(self._waiting), True
            self._waiting.clear()
            self._changed.notify()
        for job in waiting:
            job.events.put_nowait(why)
            self.free(job)

    def cut(self, why: Exception) -> None:
        """End what is being answered at its next step."""
        job = self.running
        if job is not None:
            job.cancelled = True
            job.events.put_nowait(why)

    def join(self, seconds: float) -> bool:
        """Wait for the worker to end, after `close`; whether it did."""
        if self.running is not None:
            self.running.cancelled = True
        self._worker.join(seconds)
        return not self._worker.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self.running = None
                while not self._waiting and not self.closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                job = self.running = self._waiting.popleft()
            self._answer(job)

    def _answer(self, job: Job) -> None:
        began = time.monotonic()
        try:
            for piece in pieces(
                self.decoder,
                self.tokenizer,
                job.ids,
                max_tokens=job.max_tokens,
                sampling=job.ask.sampling,
                stop=job.ask.stop,
                context=() if job.ask.kind == "chat" else None,
                cancelled=lambda: job.cancelled,
            ):
                job.call(job.events.put_nowait, piece)
            end = None
        except Exception as error:  # whatever it is, the next request is answered
            end = error
        if not job.cancelled:
            self._seconds.append(time.monotonic() - began)
        with self._changed:
            self.running = None
        job.call(self.free, job)
        job.call(job.events.put_nowait, end)
