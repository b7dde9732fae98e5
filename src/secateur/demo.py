"""secateur demo: a real language model cut in half, with nothing downloaded, and what it cost shown.

The embedded model (SmolLM2-135M-Instruct) as it is, cut to 50% by magnitude (the yardstick) and by Wanda; calibrated
and evaluated on two parts of the embedded text. Run again, it reuses every folder whose bytes are those of its
manifest and whose inputs (model, texts, settings, versions) are today's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from secateur.core.method import OneShot
from secateur.core.plan import Plan
from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput, SecateurError
from secateur.evaluate.bench import Bench, Row, label
from secateur.evaluate.results import check_page, new_results, versions, write_results
from secateur.evaluate.size import folder_bytes
from secateur.evaluate.terms import Terms
from secateur.io import hub
from secateur.io.convert import to_sparse
from secateur.io.embedded import embedded_text
from secateur.io.manifest import check_manifest, read_manifest
from secateur.io.store import check_out, load, save
from secateur.report.table import load_results, to_json

MODEL = "smollm2-135m"
PROMPT = "The capital of France is"
FULL = {"samples": 32, "length": 512, "windows": 24, "new_tokens": 32}
QUICK = {"samples": 8, "length": 256, "windows": 8, "new_tokens": 16}
NOTES = [
    "The weights of this model were rounded to 4 bits once before it was packaged; all three models start from those.",
    "Bytes: of the cut models in secateur's sparse format (--format sparse). The plain folders beside them, which"
    " transformers loads, are as large as the dense model.",
]
_SPARSE = "-sparse"


def demo(
    out: str | Path = "secateur-demo", *, quick: bool = False, listen: Listener = silent, model: str = MODEL
) -> dict[str, Any]:
    """Cut, measure, save and report; the results as a dict (results.json and report.html lie in `out`).

    Args:
        out: the folder for everything; what an earlier run left there is reused where it is whole and up to date.
        quick: fewer and shorter windows.
        model: the model to show; any name `secateur.load` takes.

    Raises:
        Unsupported: a package that the demo needs is missing; the line that installs it is named.
    """
    from secateur.methods.weights.magnitude import Magnitude
    from secateur.methods.weights.wanda import Wanda

    check_page()
    out, how = Path(out), QUICK if quick else FULL
    if out.exists() and not out.is_dir():
        raise BadInput("exists and is not a folder", where=str(out), fix="choose another --out")
    methods: list[OneShot] = [Magnitude(sparsity=0.5), Wanda(sparsity=0.5)]
    source = hub.resolve_folder(model)
    inputs = _inputs(source, how)
    rows: dict[str, Row | None] = {"dense": _dense_of(out, inputs)}
    for method in methods:
        rows[label(method)] = reusable(folder_of(out, method), inputs)
    reused = [name for name, row in rows.items() if row is not None]
    about = _About(inputs, source)
    if len(reused) < len(rows):
        _make(rows, methods, model, out, how, about, listen)
    done = [row for row in rows.values() if row is not None]
    results = new_results(
        done,
        title=f"{Path(model).name}, half of it cut",
        command="secateur demo --quick" if quick else "secateur demo",
        model=Path(model).name,
        calibration=about.calibration or _said(out, "calibration"),
        evaluation=about.evaluation or _said(out, "evaluation"),
        prompt=PROMPT,
        notes=NOTES,
        inputs=inputs,
        reused=reused,
    )
    write_results(results, out)
    return results


class _About:
    """What the run learns on its way: the words of its texts."""

    def __init__(self, inputs: str, source: Path) -> None:
        self.inputs, self.source = inputs, source
        self.calibration = self.evaluation = ""


def _make(
    rows: dict[str, Row | None],
    methods: list[OneShot],
    model: str,
    out: Path,
    how: dict[str, int],
    about: _About,
    listen: Listener,
) -> None:
    """Fill in the rows that are missing; the model is loaded once, and every cut is taken back."""
    for method in methods:
        if rows[label(method)] is None:
            for folder in (folder_of(out, method), folder_of(out, method, _SPARSE)):
                check_out(folder, overwrite=True)
    listen(Event("load the model", 0, 1, model))
    loaded = load(about.source)
    listen(Event("load the model", 1, 1, model))
    terms = Terms(
        samples=how["samples"], length=how["length"], windows=how["windows"], prompt=PROMPT, listen=listen
    )
    bench = terms.bench(loaded)
    bench.new_tokens = how["new_tokens"]
    drawn = terms.calibrate(loaded)(0)
    about.calibration, about.evaluation = drawn.source, bench.text.words if bench.text else ""
    if rows["dense"] is None:
        rows["dense"] = bench.dense()
    for method in methods:
        name = label(method)
        if rows[name] is None:
            row = bench.cut(method, drawn, seed=0, keep=_keeper(bench, loaded, method, out, about, listen))
            rows[name] = _with_sizes(row, folder_of(out, method))


def _keeper(
    bench: Bench, loaded: hub.Loaded, method: OneShot, out: Path, about: _About, listen: Listener
) -> Any:
    """Saves the cut model plain and sparse, its row and the digest of its inputs inside."""

    def keep(plan: Plan, row: Row) -> Path:
        stage = f"{label(method)}: save"
        listen(Event(stage, 0, 2))
        results = new_results(
            [row],
            title=label(method),
            command="secateur demo",
            model=Path(loaded.name).name,
            calibration=about.calibration,
            evaluation=about.evaluation,
            prompt=PROMPT,
            inputs=about.inputs,
        )
        folder = save(
            loaded.model,
            folder_of(out, method),
            tokenizer=loaded.tokenizer,
            plan=plan,
            source=loaded.folder,
            overwrite=True,
            extra={"results.json": to_json(results)},
        )
        listen(Event(stage, 1, 2))
        to_sparse(folder, folder_of(out, method, _SPARSE))
        listen(Event(stage, 2, 2))
        return folder

    return keep


def folder_of(out: Path, method: OneShot, suffix: str = "") -> Path:
    """Where the demo puts the checkpoint of a method."""
    return out / (label(method).replace("%", "").replace(" ", "-") + suffix)


def reusable(folder: Path, inputs: str) -> Row | None:
    """The row of an earlier run whose plain and sparse folders are whole and were made from these inputs; else None."""
    sparse = folder.with_name(folder.name + _SPARSE)
    try:
        for part in (folder, sparse):
            if not part.is_dir() or read_manifest(part) is None:
                return None
            check_manifest(part)
        results = load_results(folder / "results.json")
    except (SecateurError, FileNotFoundError):
        return None  # damaged or half gone: it is made anew
    if results.get("inputs") != inputs:
        return None
    return _with_sizes(results["rows"][0], folder)


def _with_sizes(row: Row, folder: Path) -> Row:
    sparse = folder.with_name(folder.name + _SPARSE)
    return {**row, "folder": str(folder), "bytes": folder_bytes(sparse), "plain_bytes": folder_bytes(folder)}


def _dense_of(out: Path, inputs: str) -> Row | None:
    try:
        results = load_results(out / "results.json")
    except (SecateurError, OSError):
        return None
    found = next((row for row in results["rows"] if row["method"] == "dense"), None)
    return found if results.get("inputs") == inputs else None


def _said(out: Path, field: str) -> str:
    return str(load_results(out / "results.json").get(field) or "")


def _inputs(source: Path, how: dict[str, int]) -> str:
    """sha256 of all that decides the figures: the model's files, both texts, the settings and the versions."""
    calibration, evaluation, _ = embedded_text()
    files = sorted((p.name, p.stat().st_size) for p in source.iterdir() if p.is_file())
    what = [source.name, files, calibration, evaluation, how, PROMPT, versions()]
    return hashlib.sha256(json.dumps(what, ensure_ascii=False).encode()).hexdigest()
