"""Results as files: strict JSON and CSV out, checked results in.

`load_results` and `check_results` refuse with one line what the page could not show truthfully. Figures that are not
finite are written as the strings "inf", "-inf" and "nan" (JSON has no others) and read back as numbers.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from pathlib import Path
from typing import Any

from secateur.errors import BadInput, Damaged, Unsupported, nearest
from secateur.report.words import clean

FORMAT = "secateur.results"
VERSION = 1

_WORDS = ("title", "command", "created", "model", "calibration", "evaluation", "prompt")
_TOP = ("format", "version", *_WORDS, "versions", "machine", "rows", "knee", "notes")
_FRACTIONS = ("sparsity", "density", "model_density")
_FIGURES = ("bytes", "flops", "seconds", "peak_mb", "tokens_per_second")
_ROW = (
    "name", "method", "config", "seed", *_FRACTIONS, *_FIGURES, "metrics", "folder", "sample", "layers", "notes",
    "packed",
)  # fmt: skip
_LAYER = ("name", "shape", "sparsity", "error")
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _typo(found: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse an unknown field that is one slip from a known one that is absent; keep other additions."""
    for name in found:
        if name not in known:
            absent = [other for other in known if other not in found]
            if difflib.get_close_matches(name, absent, n=1, cutoff=0.75):
                raise BadInput(f"unknown field {name!r}", where=where, fix=nearest(name, absent, n=1))


def _need(found: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(found.get(name), kind):
        what = f"{name!r} is {_kind(found[name])}" if name in found else f"{name!r} is missing"
        wanted = _kind(kind())
        raise BadInput(what, where=where, fix=f"it must be {wanted}")
    return found[name]


def _optional(found: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if found.get(name) is None:
        return None
    return _need(found, name, kind, where)


def _figure(
    found: dict[str, Any], name: str, where: str, low: float, high: float = math.inf
) -> float | int | None:
    """The number of a field (None when null), `low <= number <= high` unless it is nan."""
    value = found.get(name)
    if isinstance(value, str):
        value = _NOT_FINITE.get(value, value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = f"{_kind(value)} {str(value)[:40]!r}" if isinstance(value, str | bool) else _kind(value)
        raise BadInput(f"{name!r} is not a number: {shown}", where=where, fix="give a number or null")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise BadInput(f"{name!r} is beyond 2**63", where=where, fix="give a number or null")
    if value < low or value > high:
        raise BadInput(f"{name!r} is {value}", where=where, fix=f"it must lie in [{low:g}, {high:g}]")
    return value


def _check_layer(layer: Any, where: str) -> dict[str, Any]:
    if not isinstance(layer, dict):
        raise BadInput(f"a layer is {_kind(layer)}", where=where, fix="it must be an object")
    _typo(layer, _LAYER, where)
    name = _need(layer, "name", str, where)
    shape = _optional(layer, "shape", list, where)
    if shape and not all(isinstance(side, int) and 0 <= side < 2**53 for side in shape):
        raise BadInput(
            "'shape' holds more than whole numbers", where=f"{where}, {name}", fix="as in [576, 576]"
        )
    where = f"{where}, {name}"
    return {
        **dict.fromkeys(_LAYER),
        **layer,
        "sparsity": _figure(layer, "sparsity", where, 0, 1),
        "error": _figure(layer, "error", where, 0),
    }


def _check_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"is {_kind(row)}", where=where, fix="it must be an object")
    _typo(row, _ROW, where)
    _need(row, "name", str, where)
    _need(row, "method", str, where)
    for name, kind in (("config", dict), ("folder", str), ("sample", str), ("notes", list), ("seed", int)):
        _optional(row, name, kind, where)
    metrics = _optional(row, "metrics", dict, where) or {}
    layers = _optional(row, "layers", list, where) or []
    packed = _optional(row, "packed", dict, where)
    return {
        **dict.fromkeys(_ROW),
        **row,
        **{name: _figure(row, name, where, 0, 1) for name in _FRACTIONS},
        **{name: _figure(row, name, where, 0) for name in _FIGURES},
        "metrics": {name: _figure(metrics, name, f"{where}, metrics", -math.inf) for name in metrics},
        "layers": [_check_layer(layer, where) for layer in layers],
        "packed": _check_packed(packed, f"{where}, packed") if packed else None,
    }


def _check_packed(packed: dict[str, Any], where: str) -> dict[str, Any]:
    """What runtime/beside.py measured of a packed cut; every figure must be there to be set beside the other."""
    _need(packed, "way", str, where)
    for part in ("forecast", "measured"):
        found = _need(packed, part, dict, where)
        for name in ("tokens_per_second", "prompt_seconds"):
            if _figure(found, name, f"{where}, {part}", 0) is None:
                raise BadInput(f"{name!r} is missing", where=f"{where}, {part}", fix="it must be a number")
    for name, low in (("bytes", 0.0), ("off", -1.0)):
        if _figure(packed, name, where, low) is None:
            raise BadInput(f"{name!r} is missing", where=where, fix="it must be a number")
    return packed


def check_results(results: Any, where: str = "results") -> dict[str, Any]:
    """A checked copy: format and version known, every field of its kind, texts free of control characters.

    Raises:
        BadInput: a field is missing, misspelt, of another kind or out of range; the row and field are named.
        Unsupported: a newer version than this one reads.
    """
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        found = results.get("format") if isinstance(results, dict) else _kind(results)
        raise BadInput(
            f"format is {found!r}", where=where, fix=f"give a file of format {FORMAT!r}, version {VERSION}"
        )
    if not isinstance(results.get("version"), int) or results["version"] < 1:
        raise BadInput(f"version is {results.get('version')!r}", where=where, fix=f"it must be {VERSION}")
    if results["version"] > VERSION:
        raise Unsupported(
            f"version {results['version']} is newer than {VERSION}", where=where, fix="update secateur"
        )
    results = clean(results)
    _typo(results, _TOP, where)
    for name in _WORDS:
        _optional(results, name, str, where)
    for name, kind in (("versions", dict), ("machine", dict), ("knee", dict), ("notes", list)):
        _optional(results, name, kind, where)
    rows = _need(results, "rows", list, where)
    if not rows:
        raise BadInput("there are no rows", where=where, fix="measure at least one model")
    knee = results.get("knee") or {}
    for method in knee:
        rules = _need(knee, method, dict, f"{where}, knee")
        knee[method] = {rule: _figure(rules, rule, f"{where}, knee of {method}", -math.inf) for rule in rules}
    checked = [_check_row(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]
    return {**dict.fromkeys(_TOP), **results, "knee": knee, "rows": checked}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def load_results(path: Path) -> dict[str, Any]:
    """Read and check a results.json.

    Raises:
        Damaged: the file is not JSON in UTF-8 (a bare NaN included).
        BadInput, Unsupported: see `check_results`.
    """
    try:
        found = json.loads(Path(path).read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON ({error})"
        raise Damaged(what, where=str(path), fix="write it again with the command that made it") from error
    return check_results(found, str(path))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(results: dict[str, Any]) -> str:
    """Strict JSON that any parser reads and `load_results` reads back; ends with a newline."""
    return json.dumps(_strict(check_results(results)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _cell(value: Any) -> Any:
    """A CSV cell: empty for not measured; text that a spreadsheet would run as a formula gets a quote before it."""
    if isinstance(value, float):
        return _strict(value)
    if isinstance(value, dict):
        return json.dumps(_strict(value), sort_keys=True, ensure_ascii=False)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return "" if value is None else value


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return out.getvalue()


def to_csv(results: dict[str, Any]) -> str:
    """One line a row of the results, metrics as columns of their own; empty where nothing was measured."""
    rows = check_results(results)["rows"]
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    first, last = ["name", "method", "seed", *_FRACTIONS], [*_FIGURES, "folder", "config"]
    lines = [
        [row.get(n) for n in first] + [row["metrics"].get(m) for m in metrics] + [row.get(n) for n in last]
        for row in rows
    ]
    return _csv([*first, *metrics, *last], lines)


def layers_to_csv(results: dict[str, Any]) -> str:
    """One line a site of every row: sparsity, and output error where the method reports it."""
    lines = []
    for row in check_results(results)["rows"]:
        for layer in row["layers"]:
            shape = "x".join(str(side) for side in layer.get("shape") or [])
            lines.append(
                [row["name"], row.get("seed"), layer["name"], shape, layer["sparsity"], layer["error"]]
            )
    return _csv(["row", "seed", "layer", "shape", "sparsity", "error"], lines)


def write_tables(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write results.json, results.csv and, where layers are reported, layers.csv into `folder`; their paths."""
    from secateur.io.files import write_atomic

    texts = {"results.json": to_json(results), "results.csv": to_csv(results)}
    if any(row["layers"] for row in check_results(results)["rows"]):
        texts["layers.csv"] = layers_to_csv(results)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]
