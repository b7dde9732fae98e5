"""The choices of `accelerate` as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.runtime.accelerate import Acceleration, Group
    from secateur.runtime.choice import Choice, Raced

HEAD = ("layers", "shape", "zeros", "a token", "ms", "x dense", "a prompt", "ms", "x dense", "bytes", "error")
FULL = ("layers", "shape", "way", "a token, ms", "x dense", "a prompt, ms", "x dense", "bytes", "error", "")


def explained(done: Acceleration, full: bool) -> str:
    """The table; below it bytes, times of all products, and notes."""
    lines = [aligned(HEAD, [_line(group) for group in done.groups], left=(0, 1, 2, 3, 6))]
    if full:
        rows = [row for group in done.groups for row in _ways(group)]
        lines += ["", aligned(FULL, rows, left=(0, 1, 2, 9))]
    token, prompt = done.share
    sizes = done.groups[0].choice.sizes if done.groups else (1, 128)
    lines += [
        "",
        f"all tensors: {mega(done.before)} before, {mega(done.after)} after ({done.after / max(done.before, 1):.2f})",
        f"products of a token ({sizes[0]} rows): {token:.2f} of dense's time; of a prompt ({sizes[1]} rows): "
        f"{prompt:.2f}; {done.threads} threads",
    ]
    if done.difference is not None:
        lines.append(f"the model's output on the example: {done.difference:.1e} off")
    return "\n".join(lines + [f"note: {note}" for note in done.notes])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Columns under a ruled head; those in `left` are texts, the others figures."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def mega(count: float) -> str:
    """Bytes in decimal megabytes."""
    return f"{count / 1e6:,.1f} MB"


def pattern_name(names: Sequence[str]) -> str:
    """`model.layers.*.mlp.up_proj x30` for names that differ in numbers; of several kinds, the first and how many."""
    kinds = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    first, *more = kinds
    shown = first + "".join(f", {kind.rpartition('.')[2]}" for kind in more)
    shown = shown if len(shown) <= 48 else f"{first} and {len(more)} kinds more"
    return shown if len(names) == 1 else f"{shown} x{len(names)}"


def _line(group: Group) -> list[str]:
    choice = group.choice
    few, many = choice.of(choice.few), choice.of(choice.many)
    other = "the same" if choice.many == choice.few else f"{choice.many} from {choice.rows} rows"
    return [
        pattern_name(group.names),
        f"{group.shape[0]}x{group.shape[1]}",
        group.pattern.words,
        choice.few + (" (known)" if choice.cached else ""),
        *_times(few, 0),
        other,
        *_times(many, -1),
        f"{mega(group.before)} -> {mega(group.after)}",
        f"{group.error:.0e}",
    ]


def _ways(group: Group) -> list[list[str]]:
    choice: Choice = group.choice
    return [
        [
            pattern_name(group.names) if not at else "",
            f"{group.shape[0]}x{group.shape[1]}" if not at else "",
            one.way,
            *_times(one, 0),
            *_times(one, -1),
            mega(one.bytes),
            f"{one.error:.0e}",
            one.out or _taken(one.way, choice),
        ]
        for at, one in enumerate(choice.raced)
    ]


def _taken(way: str, choice: Any) -> str:
    if way == choice.few:
        return "taken" if way == choice.many else "taken for a token"
    return "taken for a prompt" if way == choice.many else ""


def _times(one: Raced, at: int) -> tuple[str, str]:
    if not one.seconds:
        return ("", "") if not one.shares else ("", "1.00")
    return f"{1e3 * one.seconds[at]:.3g}", f"{1 / one.shares[at]:.2f}"
