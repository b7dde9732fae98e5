"""A recipe: a whole job in a TOML file, read strictly.

    [model]                              [calibration]               [output]
    name = "smollm2-135m"                source = "embedded"         folder = "smollm2-half"
                                         samples = 32                format = "dense"
    [method]                             seed = 0
    name = "wanda"                                                   [evaluate]      # optional: measure dense and cut
    sparsity = 0.5                       [walk]                      windows = 8
    pattern = "2:4"                      feed = "layer"              page = "smollm2-half-report"

An unknown table or key is an error that names the nearest one; so is a value of the wrong kind. Relative paths are
relative to the recipe's folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import BadInput, Damaged, NoMatch, nearest

if TYPE_CHECKING:
    from secateur.core.method import OneShot

_LIMIT = 1 << 20  # bytes; a recipe is a page of text
_TABLES: dict[str, dict[str, Any]] = {
    "model": {"name": "", "dtype": "auto", "device": "cpu", "trust_remote_code": False},
    "calibration": {"source": "embedded", "field": "text", "samples": 128, "length": 512, "seed": 0},
    "walk": {
        "feed": "auto",
        "batch": 1,
        "products": "auto",
        "only": [],
        "skip": [],
        "stream": False,
        "resume": False,
    },
    "output": {"folder": "", "format": "dense", "max_shard": 0, "overwrite": False},
    "evaluate": {"text": "embedded", "length": 512, "windows": 0, "prompt": "", "speed": False, "page": ""},
}
_REQUIRED = {"model": "name", "method": "name", "output": "folder"}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every table with all its keys, paths resolved; `evaluate` is None where it is absent."""

    path: Path
    model: dict[str, Any]
    method: OneShot
    calibration: dict[str, Any]
    walk: dict[str, Any]
    output: dict[str, Any]
    evaluate: dict[str, Any] | None


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe; the method's settings are checked when the method is made, here.

    Raises:
        Damaged: not TOML in UTF-8.   NoMatch: an unknown table, key, method or setting.   BadInput: a wrong value.
    """
    from secateur.registry import make, one_shot

    path = Path(path)
    tables, found = read_tables(path, _TABLES, _REQUIRED, "method")
    method = one_shot(make(**found["method"]))
    base = path.resolve().parent
    tables["model"]["name"] = resolve(base, tables["model"]["name"])
    tables["calibration"]["source"] = resolve(base, tables["calibration"]["source"])
    tables["evaluate"]["text"] = resolve(base, tables["evaluate"]["text"])
    tables["output"]["folder"] = str(base / tables["output"]["folder"])
    if tables["evaluate"]["page"]:
        tables["evaluate"]["page"] = str(base / tables["evaluate"]["page"])
    evaluate = tables.pop("evaluate")
    return Recipe(path, method=method, evaluate=evaluate if "evaluate" in found else None, **tables)


def run_recipe(
    recipe: Recipe, *, overwrite: bool = False, listen: Any = None, command: str = ""
) -> tuple[Any, dict[str, Any] | None]:
    """Do what a recipe says.

    Returns:
        The `Result` of the cut, and results.json as a dict when the recipe evaluates (dense and cut, one row each).

    Raises:
        as `secateur.compress` and `secateur.evaluate`.
    """
    from secateur.api import compress
    from secateur.engine import workers
    from secateur.engine.events import silent
    from secateur.evaluate.results import check_page
    from secateur.io.store import check_out, load

    listen = listen or silent
    output, walk, drawn, model = recipe.output, recipe.walk, recipe.calibration, recipe.model
    replaces = overwrite or output["overwrite"]
    check_out(output["folder"], replaces, output["format"])
    if recipe.evaluate is not None and recipe.evaluate["page"]:
        check_page()
    name = model["name"]
    streaming = walk["stream"] or walk["resume"]
    loaded = name if streaming else load(name, **{k: v for k, v in model.items() if k != "name"})
    rows = []
    if recipe.evaluate is not None and workers.rank() == 0:
        rows.append(_measure("dense", loaded, recipe.evaluate, listen))
    result = compress(
        loaded,
        recipe.method,
        drawn["source"],
        out=output["folder"],
        overwrite=replaces,
        format=output["format"],
        max_shard=output["max_shard"] or None,
        undo=False,
        listen=listen,
        **{key: value for key, value in drawn.items() if key != "source"},
        **walk,
    )
    if recipe.evaluate is None or workers.rank() != 0:
        return result, None
    cut = output["folder"] if result.model is None else loaded
    return result, _proof(recipe, result, rows, _measure("cut", cut, recipe.evaluate, listen), command)


def _measure(name: str, model: Any, how: dict[str, Any], listen: Any) -> dict[str, Any]:
    from secateur.api import evaluate

    row = evaluate(
        model,
        how["text"],
        length=how["length"],
        windows=how["windows"] or None,
        prompt=how["prompt"],
        speed=how["speed"],
        listen=listen,
    )
    return {**row, "name": name, "method": "dense" if name == "dense" else name}


def _proof(
    recipe: Recipe, result: Any, rows: list[dict[str, Any]], cut: dict[str, Any], command: str
) -> dict[str, Any]:
    """The results of a recipe: dense and cut, with the page where one is asked for."""
    from secateur.evaluate.bench import label
    from secateur.evaluate.results import new_results, write_results
    from secateur.evaluate.size import folder_bytes

    plan, how = result.plan, recipe.evaluate or {}
    about = cut["notes"][0] if cut["notes"] else ""
    cut = {
        **cut,
        "name": label(recipe.method),
        "method": plan.method,
        "config": plan.config,
        "seed": recipe.calibration["seed"],
        "seconds": result.seconds,
        "bytes": folder_bytes(result.folder),
        "folder": str(result.folder),
        "notes": list(plan.notes),
        "layers": [
            {
                "name": name,
                "shape": list(kept.shape),
                "sparsity": kept.sparsity,
                "error": plan.errors.get(name),
            }
            for name, kept in plan.sites.items()
        ],
    }
    results = new_results(
        [*({**row, "notes": []} for row in rows), cut],
        title=f"{Path(recipe.model['name']).name}: {label(recipe.method)}",
        command=command or f"secateur run {recipe.path}",
        model=Path(recipe.model["name"]).name,
        calibration=str(plan.made.get("calibration") or ""),
        evaluation=about,
        prompt=how.get("prompt", ""),
    )
    if how.get("page"):
        write_results(results, how["page"])
    return results


def read_tables(
    path: Path, tables: dict[str, dict[str, Any]], required: dict[str, str], free: str
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A TOML file of known tables.

    Args:
        tables: table -> key -> default; a value must be of its default's kind.   required: table -> key it must have.
        free: the one table whose keys are not checked here.

    Returns:
        every table with its defaults filled in, and the file as it stands.
    """
    from secateur.io.files import read_small

    try:
        found = tomllib.loads(read_small(path, _LIMIT).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"is not TOML ({str(error).splitlines()[0][:80]})", where=str(path)) from error
    known = [*tables, free]
    for name, value in found.items():
        if name not in known:
            raise NoMatch(f"no table [{name}]", where=str(path), fix=nearest(name, known))
        if not isinstance(value, dict):
            raise BadInput(
                f"{name} is not a table", where=str(path), fix=f"write [{name}] and its keys below"
            )
    for name, key in {**required, **({free: "name"} if free in found else {})}.items():
        if not isinstance(found.get(name, {}).get(key), str) or not found[name][key]:
            raise BadInput(f"[{name}] has no {key}", where=str(path), fix=f'add {key} = "..."')
    return {name: _table(path, name, tables[name], found.get(name, {})) for name in tables}, found


def _table(path: Path, name: str, known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A table with its defaults; every value of the kind of its default (a whole number may stand for a float)."""
    for key, value in found.items():
        where = f"{path}, [{name}]"
        if key not in known:
            raise NoMatch(f"no key {key!r}", where=where, fix=nearest(key, known))
        if type(value) is int and isinstance(known[key], float):
            value = found[key] = float(value)
        if type(value) is not type(known[key]):
            raise BadInput(f"{key} = {value!r:.40} is not {_kind(known[key])}", where=where)
        if (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and not all(isinstance(v, str) for v in value)
        ):
            raise BadInput(f"{key} = {value!r:.40} is not a list of texts", where=where)
        if type(value) is int and value < (
            0 if key in ("seed", "windows", "max_shard", "size", "limit") else 1
        ):
            raise BadInput(f"{key} = {value} is too small", where=where)
    return {**known, **found}


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return kinds.get(type(value), "a list of texts")


def resolve(base: Path, name: str) -> str:
    """A path beside the recipe if there is one; else the name as it stands (embedded, hub)."""
    beside = base / name
    looks_like_path = name.startswith((".", "/", "~")) or beside.exists()
    return str(beside) if looks_like_path and not name.startswith("~") else name
