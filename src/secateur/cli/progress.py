"""Progress on stderr: bars with the remaining time on a terminal, a plain line now and then elsewhere, or nothing.

Works from the engine's events alone. Only worker 0 speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from secateur.engine.events import Event, Listener, silent

EVERY = 10.0  # seconds between two plain lines


@contextmanager
def progress(quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows events while the block runs."""
    if quiet or os.environ.get("RANK", "0") != "0":
        yield silent
    elif sys.stderr.isatty() and _has_rich():
        with _bars() as listener:
            yield listener
    else:
        yield Lines()


class Lines:
    """At most one line every ten seconds, so that a log stays readable and a short job says nothing."""

    def __init__(self) -> None:
        self._printed = self._heard = self._began = time.monotonic()
        self._stage = ""

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.stage != self._stage:  # it began when the stage before it had its last event
            self._stage, self._began = event.stage, self._heard
        self._heard = now
        if now - self._printed < EVERY:
            return
        self._printed = now
        left = ""
        if 0 < event.done < event.total:
            left = f", about {(now - self._began) / event.done * (event.total - event.done):.0f} s left"
        print(f"{event.stage}: {event.done} of {event.total}{left}", file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as shown:
        tasks: dict[str, int] = {}

        def listen(event: Event) -> None:
            if event.stage not in tasks:
                tasks[event.stage] = int(shown.add_task(event.stage, total=event.total))
            shown.update(tasks[event.stage], completed=event.done, total=event.total)  # type: ignore[arg-type]

        yield listen


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True
