"""The page's table of what was forecast for each packed cut and what was then measured, with one sentence about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.report import words

HEAD = ("Model", "Packed as", "In memory", "Tokens/s", "Forecast", "Off", "Prompt, ms", "Forecast, ms")
CLOSE = 0.15  # a forecast further off than this is pointed at


@dataclass(frozen=True)
class Packed:
    """Lines of `HEAD`, and what to say below them ("" where all forecasts were close)."""

    lines: list[list[str]]
    note: str


def packed(results: dict[str, Any]) -> Packed:
    """One line for each row that was packed and measured; means over seeds are not taken."""
    rows = [row for row in results["rows"] if row.get("packed")]
    far = [row["name"] for row in rows if abs(row["packed"]["off"]) > CLOSE]
    note = ""
    if far:
        note = (
            f"More than {CLOSE:.0%} off: {', '.join(dict.fromkeys(far))}. Something else ran on the machine, or its "
            "memory is shared with somebody: measure again."
        )
    return Packed([_line(row["name"], row["packed"]) for row in rows], note)


def _line(name: str, found: dict[str, Any]) -> list[str]:
    measured, forecast = found["measured"], found["forecast"]
    return [
        name,
        found["way"],
        words.size(found["bytes"]),
        f"{measured['tokens_per_second']:.1f}",
        f"{forecast['tokens_per_second']:.1f}",
        f"{found['off']:+.0%}",
        f"{1e3 * measured['prompt_seconds']:.0f}",
        f"{1e3 * forecast['prompt_seconds']:.0f}",
    ]
