"""One measured job in a process of its own:  python cell.py '{"system": "secateur", ...}' OUT.json

CPU-seconds (time.process_time, all threads of the process, one thread asked for) and peak RSS (getrusage) of loading,
cutting and saving; importing is left out. Perplexity comes after, and is not timed. Runs under the peer's Python too,
so only the branch of a system imports that system.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Job = dict[str, Any]


class Clock:
    """CPU-seconds, wall seconds and the peak RSS of each named stage."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def stage(self, name: str, run: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        out = run()
        self.found[f"{name}_cpu_s"] = round(time.process_time() - cpu, 2)
        self.found[f"{name}_wall_s"] = round(time.perf_counter() - wall, 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
        self.found[f"{name}_peak_mb"] = round(peak)
        return out


def main(text: str, out: str) -> None:
    job: Job = json.loads(text)
    torch.set_num_threads(1)
    clock = Clock()
    model, notes = SYSTEMS[job["system"]](job, clock)
    row = {**clock.found, **notes}
    weights = {n: p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
    row["sparsity"] = sum(int((p == 0).sum()) for p in weights.values()) / sum(
        p.numel() for p in weights.values()
    )
    if job.get("masks"):
        np.savez(job["masks"], **{n: np.packbits((p != 0).detach().numpy()) for n, p in weights.items()})
    if job.get("windows"):
        row["perplexity"] = perplexity(model, job["evaluation"], job["windows"])
    Path(out).write_text(json.dumps(row))


def tokens(path: str) -> torch.Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))


@torch.no_grad()
def perplexity(model: Any, path: str, windows: int) -> float:
    """As the papers take it, by no system's own code: exp of the mean over windows of the mean loss of each."""
    losses = []
    model.eval()
    for row in tokens(path)[:windows]:
        logits = model(row[None], use_cache=False).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, row[1:]).double())
    return float(torch.stack(losses).mean().exp())


def _transformers(job: Job, clock: Clock) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    kind = transformers.AutoModelForCausalLM
    return clock.stage("load", lambda: kind.from_pretrained(job["model"], dtype=torch.float32).eval())


def _save(model: Any, clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clock.stage("save", lambda: model.save_pretrained(folder))


def floor(job: Job, clock: Clock) -> tuple[Any, Job]:
    """What any method must do: read the weights, run the tokens through the blocks once, write the weights."""
    model = _transformers(job, clock)

    def forward() -> None:
        with torch.no_grad():
            for part in tokens(job["calibration"]).split(job.get("batch", 4)):
                model.model(part, use_cache=False)

    clock.stage("cut", forward)
    _save(model, clock)
    return model, {}


def dense(job: Job, clock: Clock) -> tuple[Any, Job]:
    """The model as it is, for its perplexity."""
    return _transformers(job, clock), {}


def plain(job: Job, clock: Clock) -> tuple[Any, Job]:
    """benchmarks/plain.py."""
    from plain import magnitude, two_pass

    model = _transformers(job, clock)
    kept = tuple(map(int, job["pattern"].split(":"))) if ":" in job.get("pattern", "") else None
    if job["method"] == "magnitude":
        clock.stage("cut", lambda: magnitude(model, job["sparsity"]))
    else:
        ids = tokens(job["calibration"])
        clock.stage("cut", lambda: two_pass(model, ids, job["method"], job["sparsity"], kept))
    _save(model, clock)
    return model, {}


def _drawn(job: Job, folder: Path) -> Any:
    from secateur.engine.calibrate import calibration
    from secateur.io import hub

    source, draw = job["calibration"], {"samples": 32, "length": 512, "seed": job.get("seed", 0)}
    # a calibration of token ids needs no tokenizer, and the other systems load none
    tokenizer = hub.load_tokenizer(folder) if source and not source.endswith(".npy") else None
    return calibration(source, tokenizer, **draw) if source else None


def _method(job: Job) -> Any:
    from secateur.registry import make

    settings = {k: job[k] for k in ("sparsity", "pattern", "allocate") if k in job}
    if ":" in settings.get("pattern", ""):
        settings.pop("sparsity", None)
    return make(job["method"], **settings)


def secateur(job: Job, clock: Clock) -> tuple[Any, Job]:
    """What `secateur compress` does: load (bytes checked against the manifest), cut without an undo, save, verify."""
    from secateur.engine.memory import one_heap
    from secateur.engine.run import Options, compress
    from secateur.io import hub, store

    one_heap()
    folder = Path(job["model"])
    model = clock.stage("load", lambda: hub.load_folder(folder))
    drawn, method = _drawn(job, folder), _method(job)
    walk = {k: job[k] for k in ("feed", "products", "batch") if k in job}
    result = clock.stage("cut", lambda: compress(model, method, drawn, Options(undo=False, **walk)))
    with tempfile.TemporaryDirectory() as out:
        clock.stage("save", lambda: store.save(model, Path(out) / "out", plan=result.plan, source=folder))
    return model, {"notes": result.plan.notes[:3], "calibration": drawn.source if drawn else ""}


def streamed(job: Job, clock: Clock) -> tuple[Any, Job]:
    """What `secateur compress --stream` does; it reads and writes as it cuts, so `cut` is all of it."""
    import transformers  # noqa: F401  imports are left out of every figure

    from secateur.engine.memory import one_heap
    from secateur.engine.run import Options
    from secateur.engine.stream import stream
    from secateur.io import hub

    one_heap()
    folder = Path(job["model"])
    drawn, method = _drawn(job, folder), _method(job)
    options = Options(feed=job["feed"], products=job["products"])
    clock.found |= {"load_cpu_s": 0.0, "load_peak_mb": 0, "save_cpu_s": 0.0}
    with tempfile.TemporaryDirectory() as parent:
        out = Path(parent) / "out"
        clock.stage("cut", lambda: stream(folder, out, method, drawn, options))
        return hub.load_folder(out), {}


def peer(job: Job, clock: Clock) -> tuple[Any, Job]:
    """llmcompressor's oneshot with `settings` passed as they are."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers import pruning
    from loguru import logger
    from transformers import AutoTokenizer

    logger.remove()
    logging.disable()
    model = _transformers(job, clock)
    ids = tokens(job["calibration"]).tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    kept = job.get("pattern", "0:0") if ":" in job.get("pattern", "") else "0:0"
    kind = {"wanda": pruning.WandaPruningModifier, "sparsegpt": pruning.SparseGPTModifier}[job["method"]]
    recipe = kind(sparsity=job["sparsity"], mask_structure=kept, targets=["Linear"], ignore=["re:.*lm_head"])
    run = {
        "model": model, "recipe": recipe, "dataset": data, "processor": AutoTokenizer.from_pretrained(job["model"]),
        "max_seq_length": len(ids[0]), "num_calibration_samples": len(ids), **job.get("settings", {}),
    }  # fmt: skip
    clock.stage("cut", lambda: oneshot(**run))
    _save(model, clock)
    return model, {}


SYSTEMS: dict[str, Callable[[Job, Clock], tuple[Any, Job]]] = {
    "dense": dense,
    "floor": floor,
    "plain": plain,
    "secateur": secateur,
    "streamed": streamed,
    "peer": peer,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
