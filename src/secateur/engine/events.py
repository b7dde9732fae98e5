"""What a long job tells whoever watches: plain values, so that the core never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One step of a stage is done: `done` of `total`, and what it was."""

    stage: str
    done: int
    total: int
    detail: str = ""


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default listener."""
