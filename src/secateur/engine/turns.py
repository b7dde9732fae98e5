"""Feed `layer` in batches: every batch waits at a site until all have come, the site is cut once, and all go on.

A model's forward cannot be stopped half-way, so each batch runs in a thread of its own; only one thread runs at any
moment, in a fixed order, so nothing is concurrent and the same seed gives the same bytes. Between two sites only what
a batch's own forward holds (its residual, the next input) stays in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from secateur.engine import workers
from secateur.engine.blocks import RELEASE, identity
from secateur.engine.memory import leave_thread, release
from secateur.errors import Unsupported
from secateur.sites.find import WeightSite

See = Callable[[WeightSite, Tensor], None]


class _Abandoned(BaseException):
    """Ends a thread whose job has failed elsewhere; nobody but `_Turn` sees it."""


class _Turn:
    """One task, run up to its next wait: `resume` returns what it waits for, or None when it has ended."""

    def __init__(self, run: Callable[[See], None]) -> None:
        self.site: WeightSite | None = None
        self.x: Tensor | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, args=(run,), daemon=True)

    def _main(self, run: Callable[[See], None]) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                run(self._wait)
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        self.site = self.x = None
        self._back.release()

    def _wait(self, site: WeightSite, x: Tensor) -> None:
        self.site, self.x = site, x
        leave_thread()
        self._back.release()
        self._go.acquire()
        self.x = None
        if self._abandoned:
            raise _Abandoned

    def resume(self) -> WeightSite | None:
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        return self.site

    def abandon(self) -> None:
        self._abandoned = True
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()


def in_turns(
    tasks: Sequence[Callable[[See], None]],
    sites: Sequence[WeightSite],
    arrive: Callable[[int, WeightSite, Tensor], None],
    decide: Callable[[WeightSite], None],
) -> set[str]:
    """Run the tasks from site to site; returns the names of the sites that were decided.

    Args:
        tasks: each calls the `see(site, x)` it is given at every site it comes to, and is held there.
        sites: in the order in which they are decided when tasks wait at different ones (experts, for instance).
        arrive: called with (task, site, x) when a task comes to a site.
        decide: called once a site, when no task is still on its way to it; the tasks that waited there then go on.
    """
    place = {site.name: i for i, site in enumerate(sites)}
    with _turns(tasks) as turns:
        waiting: dict[int, WeightSite] = {}
        done: set[str] = set()
        ready = list(range(len(turns)))
        while ready or waiting:
            for count, i in enumerate(ready, 1):
                site = turns[i].resume()
                if count % RELEASE == 0:
                    release()
                if site is not None:
                    if site.name in done:
                        raise Unsupported(
                            "used more than once in one pass", where=site.name, fix="use --feed none"
                        )
                    x = turns[i].x
                    assert x is not None
                    arrive(i, site, x)
                    waiting[i] = site
            if not waiting:
                break
            next_site = min(waiting.values(), key=lambda site: place[site.name])
            decide(next_site)
            done.add(next_site.name)
            ready = [i for i, site in waiting.items() if site.name == next_site.name]
            for i in ready:
                del waiting[i]
        return done


@contextmanager
def _turns(tasks: Sequence[Callable[[See], None]]) -> Iterator[list[_Turn]]:
    turns = [_Turn(task) for task in tasks]
    try:
        yield turns
    finally:
        for turn in turns:
            turn.abandon()


class Arrivals:
    """The signal of each site of one block, from inputs that arrive batch by batch.

    A batch that brings the same tensor to a second site (k and v after q; up after gate) is not measured again: where
    every batch does so, the two sites share one signal.
    """

    def __init__(self, kind: type, samples: int) -> None:
        self.kind, self.samples = kind, max(1, samples)
        self._last: dict[
            int, tuple[tuple[Any, ...], Tensor, str]
        ] = {}  # batch -> its last input, and where measured
        self._fresh: dict[str, Any] = {}
        self._again: dict[str, dict[int, tuple[str, Tensor]]] = {}
        self._came: dict[str, int] = {}
        self._merged: set[str] = set()

    def arrive(self, batch: int, site: WeightSite, x: Tensor) -> None:
        """Take in x [tokens, in] of one batch; it must stay as it is until `signal` has been asked for."""
        key, last = identity(x), self._last.get(batch)
        self._came[site.name] = self._came.get(site.name, 0) + 1
        if last is not None and last[0] == key:
            self._again.setdefault(site.name, {})[batch] = (last[2], x)
        else:
            self._last[batch] = (key, x, site.name)
            self._add(site.name, x)

    def signal(self, site: WeightSite) -> Any:
        """What all the batches that came to this site brought, summed over the workers and checked."""
        again = self._again.pop(site.name, {})
        first = {where for where, _ in again.values()}
        if len(first) == 1 and len(again) == self._came[site.name]:
            (where,) = first
            if self._came[where] == len(again):
                self._fresh[site.name] = self._fresh[where]
                return self._fresh[where]
        for _, x in again.values():
            self._add(site.name, x)
        signal = self._fresh[site.name]
        if site.name not in self._merged:
            signal.samples = self.samples
            workers.merge([signal])
            signal.check(site.name)
            self._merged.add(site.name)
        return signal

    def _add(self, name: str, x: Tensor) -> None:
        if name not in self._fresh:
            self._fresh[name] = self.kind(x.shape[1])
        self._fresh[name].take(x)
