"""Hostile folders: each must be refused with one of our errors, quickly, with no code run and nothing outside reached.

    python attacks/hostile.py            all of hostile_files.py against a Llama folder and a plain one

For every folder: load_checkpoint, verify, describe, to_dense and to_sparse are called. At most 2 s and 200 MB each.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from attacks.common import fill, llama_model, report
from attacks.hostile_files import MAY_LOAD
from attacks.hostile_heads import HOSTILE
from secateur.errors import SecateurError
from secateur.io.checkpoint import describe, load_checkpoint, save_checkpoint, verify
from secateur.io.convert import to_dense, to_sparse

CALLS = ("load", "verify", "describe", "dense", "sparse")
SECONDS, MEGABYTES, SECRET = 2.0, 200, 12345.0


class Plain(torch.nn.Module):
    """Two matrices, to load a folder without config.json into."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Linear(8, 8, bias=False)
        self.v = torch.nn.Linear(8, 8, bias=False)


def run(names: list[str] | None = None, llama: bool = True) -> dict[str, Any]:
    """Every hostile folder (or those named) in both settings. Returns figures and failures."""
    figures: dict[str, Any] = {
        "folders": 0,
        "refused": 0,
        "harmless": 0,
        "slowest_s": 0.0,
        "most_mb": 0.0,
        "failures": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models: dict[str, torch.nn.Module] = {"plain": Plain(), **({"llama": llama_model()} if llama else {})}
        for kind, model in models.items():
            fill(model, 1.0)
            good = save_checkpoint(root / f"good-{kind}", model=model)
            fill(model, SECRET)
            outside = save_checkpoint(root / f"secret-{kind}", model=model)
            shutil.rmtree(root / "case", ignore_errors=True)
            shutil.copytree(good, root / "case")
            for call in CALLS:  # what is slow once (imports) is not the folder's doing
                _call(call, root / "case", kind, root)
            shutil.rmtree(root / "case")
            for name in names or HOSTILE:
                _one(root, good, outside, kind, name, figures)
    return figures


def _load(folder: Path, kind: str) -> torch.nn.Module:
    return load_checkpoint(
        folder, Plain if kind == "plain" and not (folder / "config.json").exists() else None
    )


def _one(root: Path, good: Path, outside: Path, kind: str, name: str, figures: dict[str, Any]) -> None:
    folder, canary = root / "case", root / "canary"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (outside / "config.json").touch()
    HOSTILE[name](folder, canary, outside)
    what, failures = f"{kind} {name}", figures["failures"]
    figures["folders"] += 1
    before, start = _reset_peak_mb(), time.process_time()  # of this process: a busy machine is no failure
    outcomes: dict[str, str] = {}
    for call in CALLS:
        outcomes[call] = _call(call, folder, kind, root)
    seconds, grown = time.process_time() - start, _peak_mb() - before
    figures["slowest_s"] = max(figures["slowest_s"], round(seconds, 3))
    figures["most_mb"] = max(figures["most_mb"], round(grown, 1))
    failures += [f"{what}: {call} {text}" for call, text in outcomes.items() if text.startswith("broke")]
    if outcomes["load"] == "accepted" and name not in MAY_LOAD:
        failures.append(f"{what}: was accepted")
    figures["refused" if outcomes["load"] == "refused" else "harmless"] += 1
    if canary.exists():
        failures.append(f"{what}: RAN CODE")
        canary.rmdir()
    if seconds > SECONDS or grown > MEGABYTES:
        failures.append(f"{what}: took {seconds:.1f} s and {grown:.0f} MB")
    left = [path.name for path in root.iterdir() if path.name.startswith(".")]
    failures += [f"{what}: left {stray}" for stray in left]


def _call(call: str, folder: Path, kind: str, root: Path) -> str:
    """ "refused" by an error of ours in one line, "accepted", or "broke ..." in any other way."""
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if call == "load":
                model = _load(folder, kind)
                if any(bool((p == SECRET).any()) for p in model.parameters()):
                    return "broke: reached the weights outside"
            elif call in ("dense", "sparse"):
                (to_dense if call == "dense" else to_sparse)(folder, out)
            else:
                (verify if call == "verify" else describe)(folder)
    except SecateurError as error:
        return "refused" if "\n" not in str(error) else f"broke: {error!r}"
    except BaseException as error:
        return f"broke: {type(error).__name__}: {error!s:.200}"
    return "accepted"


def _reset_peak_mb() -> float:
    """Forget the highest resident memory so far, where the system can (Linux); returns what is resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    return report("hostile", run(parser.parse_args().names or None))


if __name__ == "__main__":
    sys.exit(main())
