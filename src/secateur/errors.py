"""The six ways secateur refuses, each one line: what is wrong, where, and what to do about it.

Every error a user can cause is one of these; the command prints it on one line and leaves with status 2.
An operating-system failure (disk full, permission) stays an `OSError` and leaves with status 74.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class SecateurError(Exception):
    """Base of the six. `what` is wrong, `where` (file, tensor, setting), and `fix`: what the user can do."""

    exit_status = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        line = what if not where else f"{where}: {what}"
        line = line if not fix else f"{line}; {fix}"
        super().__init__(" ".join(line.split()))


class BadInput(SecateurError):
    """A value that cannot be used: out of range, NaN, empty, of the wrong shape or kind."""


class NoMatch(SecateurError):
    """A name that matches nothing: a site, a method, a file, a field."""


class Infeasible(SecateurError):
    """A budget or pattern that cannot be met on this model."""


class Damaged(SecateurError):
    """A file whose bytes are not what its manifest says, or that cannot be parsed."""


class Locked(SecateurError):
    """A folder that another process is writing."""


class Unsupported(SecateurError):
    """A model, format or combination this version cannot handle."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """`did you mean 'wanda'?` for a typo, or the first known names when nothing is near.

    >>> nearest("wnada", ["wanda", "magnitude"])
    "did you mean 'wanda'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(known[:8])
    return f"known: {shown}{', ...' if len(known) > 8 else ''}" if known else "none are known"


def one_of(value: object, known: Iterable[str], where: str) -> None:
    """Refuse a word that is none of the known ones; the line names the nearest."""
    if value not in (words := list(known)):
        raise BadInput(f"{value!r} is no {where}", where=where, fix=nearest(str(value), words))


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say the exact install line.

    Raises:
        Unsupported: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unsupported(
            f"{module} cannot be imported ({error})", fix=f"pip install 'secateur[{extra}]'"
        ) from error
