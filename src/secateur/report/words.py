"""Figures and names as words: one place decides how a number reads, and that nothing measured is never a zero.

Every function takes None for "not measured" and float inf or nan for "the measurement was not finite". Names come
from models, prompts and samples, so `clean` takes out what could fool a terminal or a page before they are shown.
"""

from __future__ import annotations

import math
import re
from typing import Any

MISSING = "not measured"
NOT_FINITE = "not finite"

# The last part of a metric's name decides: "perplexity", "wikitext/word_perplexity", "hellaswag/acc_norm".
_LOWER = ("perplexity", "loss", "nll", "cross_entropy", "bits_per_byte", "error", "fid")
_FRACTIONS = ("accuracy", "acc", "acc_norm", "top1", "top5", "exact_match")

# C0 and C1 controls except tab and newline, lone surrogates, noncharacters, and the marks that reorder text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def clean(value: Any) -> Any:
    """`value` with every string in it free of control characters, lone surrogates and direction overrides.

    >>> clean({"name": "a\\x1b[31mb"})
    {'name': 'a\ufffd[31mb'}
    """
    if isinstance(value, str):
        return _UNSAFE.sub("\ufffd", value.replace("\r\n", "\n"))
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one (perplexity and losses)."""
    return metric.rpartition("/")[2].endswith(_LOWER)


def is_fraction(metric: str) -> bool:
    """Whether the metric is a share of answers, read as a percentage and compared in points."""
    return metric.rpartition("/")[2] in _FRACTIONS


def _absent(value: float | None) -> str | None:
    if value is None:
        return MISSING
    return None if math.isfinite(value) else NOT_FINITE


def percent(fraction: float | None, digits: int = 1) -> str:
    """`0.5` -> `50.0%`."""
    return _absent(fraction) or f"{100 * (fraction or 0.0):.{digits}f}%"


def short_percent(fraction: float | None) -> str:
    """`0.5` -> `50%`, `0.375` -> `37.5%`: for labels."""
    return percent(fraction).replace(".0%", "%")


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    """Three significant digits with the unit that keeps the figure below `step`."""
    place = 0
    while place < len(units) - 1 and abs(value) >= step * 0.9995:
        value, place = value / step, place + 1
    digits = 0 if place == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {units[place]}".strip()


def size(count: float | None) -> str:
    """Bytes in decimal units: `538000000` -> `538 MB`."""
    return _absent(count) or _scaled(count or 0.0, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"))


def megabytes(count: float | None) -> str:
    """Memory given in MB: `2300` -> `2.30 GB`."""
    return _absent(count) or _scaled((count or 0.0) * 1e6, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"))


def quantity(count: float | None) -> str:
    """A large count: `2.1e8` -> `210 M`."""
    return _absent(count) or _scaled(count or 0.0, 1000.0, ("", "k", "M", "G", "T", "P"))


def duration(seconds: float | None) -> str:
    """`4.2` -> `4.2 s`, `125` -> `2 min 05 s`, `5400` -> `1 h 30 min`."""
    absent = _absent(seconds)
    if absent or seconds is None:
        return absent or MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def speed(count: float | None) -> str:
    """Tokens a second to three digits: `41.23` -> `41.2`."""
    absent = _absent(count)
    return absent or (f"{count:,.0f}" if count and count >= 100 else f"{count or 0.0:#.3g}".rstrip("."))


def plain(value: float | None) -> str:
    """A figure without a unit, as papers print perplexity: `68.857` -> `68.86`, `506.31` -> `506.3`."""
    absent = _absent(value)
    if absent or value is None:
        return absent or MISSING
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    if abs(value) < 1:
        return f"{value:#.3g}"
    return f"{value:,.{2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0}f}"


def metric(name: str, value: float | None) -> str:
    """A quality figure in the metric's own form: accuracy as a percentage, the rest plain."""
    return percent(value) if is_fraction(name) else plain(value)


def tick(name: str, value: float) -> str:
    """A figure on an axis, as short as it goes: `0.4` -> `40%` for accuracies, `20000` -> `20,000`."""
    if is_fraction(name):
        return f"{100 * value:.4g}%"
    return f"{value:,.10g}" if 1e-3 <= abs(value) < 1e6 or value == 0 else plain(value)


def difference(name: str, value: float | None) -> str:
    """A signed difference to dense, in the metric's own form (percentage points for accuracies)."""
    absent = _absent(value)
    if absent or value is None:
        return absent or MISSING
    sign = "−" if value < 0 else "+" if value > 0 else "±"
    return f"{sign}{100 * abs(value):.1f} pt" if is_fraction(name) else f"{sign}{plain(abs(value))}"


def moment(stamp: str) -> str:
    """`2026-11-20T14:00:00Z` -> `2026-11-20 14:00 UTC`; anything else as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(Z|\+00:00)", stamp)
    return f"{found[1]} {found[2]} UTC" if found else stamp


def times(value: float) -> str:
    """`1.794` -> `1.79 times`; large ones without decimals."""
    return (
        f"{value:,.2f} times"
        if value < 10
        else f"{value:,.1f} times"
        if value < 100
        else f"{value:,.0f} times"
    )


def title_of(field: str) -> str:
    """`top5` -> `Top5`, `bits_per_byte` -> `Bits per byte`."""
    text = field.replace("_", " ").strip()
    return text[:1].upper() + text[1:]
