"""kill -9 while checkpoints are written: 0 that load wrongly, 0 lost last-good ones, strays swept.

    python attacks/kill.py --n 60

Three victims in turn: a plain module, a sharded transformers model, and a resumable job that writes tensor by tensor.
Each save fills every weight with its own number, so that any mix of two saves, and any lost save, shows.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from attacks.common import forked, hear, kill_after, llama_model, plain_model, report, rng, save, value_of
from secateur.io.files import new_folder, sweep, write_atomic
from secateur.io.manifest import write_manifest
from secateur.io.writer import FolderWriter

KINDS = ("plain", "llama", "resume")


def run(n: int, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """`n` kills, shared among `kinds`. Returns figures and a list of failures, which must be empty."""
    figures: dict[str, Any] = {
        "kills": 0,
        "wrong": 0,
        "lost": 0,
        "strays_seen": 0,
        "strays_left": 0,
        "failures": [],
    }
    for number, kind in enumerate(kinds):
        share = n // len(kinds) + (number < n % len(kinds))
        with tempfile.TemporaryDirectory() as folder:
            if kind == "resume":
                _kill_resumable(share, seed, Path(folder), figures)
            else:
                _kill_saves(
                    share, seed, Path(folder), figures, plain_model() if kind == "plain" else llama_model()
                )
    return figures


def _kill_saves(n: int, seed: int, root: Path, figures: dict[str, Any], model: torch.nn.Module) -> None:
    random, out = rng(seed), root / "out"
    start = time.perf_counter()
    save(model, out, 0.0)
    save(model, out, 1.0)
    pause = (time.perf_counter() - start) / 2
    good = 1

    def victim(say: Any) -> None:
        for value in range(good + 1, good + 10_000):
            save(model, out, float(value))
            say(str(value))

    for _ in range(n):
        lines = kill_after(*forked(victim), random.uniform(0, 3 * pause))
        figures["kills"] += 1
        figures["failures"] += [line for line in lines if line.startswith("error")]
        figures["strays_seen"] += len(list(root.iterdir())) - 1
        said = max([good, *(int(line) for line in lines if line.isdigit())])
        try:
            found = value_of(out)
        except Exception as error:
            figures["wrong"] += 1
            figures["failures"].append(f"kill {figures['kills']}: {type(error).__name__}: {error}")
            return
        if found not in (said, said + 1):
            figures["lost"] += 1
            figures["failures"].append(f"kill {figures['kills']}: holds {found}, {said} was saved")
        good = int(found)
    sweep(root)
    figures["strays_left"] += len([path for path in root.iterdir() if path != out])
    if [path for path in root.iterdir() if path != out]:
        figures["failures"].append(f"strays left: {os.listdir(root)}")


def _resumable(out: Path, tensors: int, say: Any) -> None:
    """A job like a streaming cut: one tensor after the other, a progress file after each sync, `--resume` always."""
    specs = {f"t{i}": (torch.float32, (32, 32)) for i in range(tensors)}
    layout = {
        "model-00001-of-00002.safetensors": {k: v for k, v in specs.items() if int(k[1:]) % 2},
        "model-00002-of-00002.safetensors": {k: v for k, v in specs.items() if not int(k[1:]) % 2},
    }
    with new_folder(out, resume="job") as folder:
        progress = folder / "progress"
        done = progress.read_text().split() if progress.exists() else []
        say(f"took up {len(done)}")
        with FolderWriter(folder, layout, reopen=True, done=done) as writer:
            for name in specs:
                if name in done:
                    continue
                writer.put(name, torch.full((32, 32), float(name[1:])))
                writer.sync()
                done.append(name)
                write_atomic(progress, " ".join(done))
        progress.unlink()
        write_manifest(folder)


def _kill_resumable(n: int, seed: int, root: Path, figures: dict[str, Any]) -> None:
    random, tensors = rng(seed), 40
    start = time.perf_counter()
    _resumable(root / "whole", tensors, lambda line: None)
    pause = time.perf_counter() - start
    names = sorted(os.listdir(root / "whole"))
    killed = 0
    while killed < n:
        out = root / f"out{killed}"
        for _ in range(3):
            lines = kill_after(
                *forked(lambda say, out=out: _resumable(out, tensors, say)), random.uniform(0, pause / 2)
            )
            figures["failures"] += [line for line in lines if line.startswith("error")]
            figures["kills"] += 1
            killed += 1
            if killed == n or out.exists():
                break
        if not out.exists():
            pid, read = forked(lambda say, out=out: _resumable(out, tensors, say))
            os.waitpid(pid, 0)
            figures["failures"] += [line for line in hear(read) if line.startswith("error")]
        same, different, missing = filecmp.cmpfiles(root / "whole", out, names, shallow=False)
        if sorted(os.listdir(out)) != names or different or missing or len(same) != len(names):
            figures["wrong"] += 1
            figures["failures"].append(f"resumed folder differs in {different + missing}")
    sweep(root)
    left = [path.name for path in root.iterdir() if path.name.startswith(".")]
    figures["strays_left"] += len(left)
    figures["failures"] += [f"stray left: {name}" for name in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=60, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return report("kill", run(options.n, options.seed))


if __name__ == "__main__":
    sys.exit(main())
