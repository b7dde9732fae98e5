"""Tables in the terminal: aligned text, figures to the right, nothing that a pipe or a log would spoil."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """Aligned columns under a ruled head; columns in `left` are texts, the others figures."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]

    def line(row: Sequence[str]) -> str:
        parts = [
            c.ljust(w) if at in left else c.rjust(w)
            for at, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    rule = "-" * min(sum(widths) + 2 * (len(widths) - 1), shutil.get_terminal_size((160, 24)).columns)
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def as_json(value: Any) -> str:
    """Strict JSON: what is not finite becomes the word for it."""

    def strict(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return str(item)
        if isinstance(item, dict):
            return {str(key): strict(inner) for key, inner in item.items()}
        return [strict(inner) for inner in item] if isinstance(item, list | tuple) else item

    return json.dumps(strict(value), indent=1, ensure_ascii=False, default=str)


def say(text: str, quiet: bool = False) -> None:
    """Print to stdout, which is for results only."""
    if not quiet:
        print(text, flush=True)
        sys.stdout.flush()
