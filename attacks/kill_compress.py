"""kill -9 while a checkpoint is cut from folder to folder: `resume` ends with the bytes of an uninterrupted run.

    python attacks/kill_compress.py --n 60

Every kill must leave either no folder or the whole one; after each series of kills the job is resumed and compared.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from attacks.common import forked, kill_after, llama_model, report, rng
from secateur.engine.calibrate import Calibration
from secateur.engine.run import Options
from secateur.engine.stream import stream
from secateur.io.manifest import check_manifest
from secateur.registry import make

JOBS = (("wanda", "layer"), ("sparsegpt", "block"), ("wanda", "none"), ("magnitude", "none"))


def run(n: int, seed: int = 0, kills_a_job: int = 3) -> dict[str, Any]:
    """`n` kills over the jobs in turn. Returns figures and a list of failures, which must be empty."""
    random, figures = rng(seed), {"kills": 0, "resumed": 0, "half_folders": 0, "failures": []}
    generator = torch.Generator().manual_seed(seed)
    tokens = tuple({"input_ids": torch.randint(0, 128, (12,), generator=generator)} for _ in range(4))
    calibration = Calibration(tokens, "random tokens")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        llama_model().save_pretrained(root / "source", max_shard_size="60KB")
        for method, feed in cycle(JOBS):
            if figures["kills"] >= n:
                return figures
            whole, killed = root / f"{method}-{feed}-whole", root / f"{method}-{feed}-{figures['kills']}"

            def cut(out: Path, resume: bool, method: str = method, feed: Any = feed) -> None:
                options = Options(feed=feed, batch=2)
                stream(root / "source", out, make(method), calibration, options, resume=resume)

            start = time.perf_counter()
            cut(whole, False)
            usual = time.perf_counter() - start
            for _ in range(min(kills_a_job, n - figures["kills"])):
                kill_after(
                    *forked(lambda say, cut=cut, killed=killed: cut(killed, True)), random.uniform(0, usual)
                )
                figures["kills"] += 1
                if killed.exists():
                    try:
                        check_manifest(killed)
                    except Exception as error:
                        figures["half_folders"] += 1
                        figures["failures"].append(f"{killed.name}: {error}")
            cut(killed, True)
            figures["resumed"] += 1
            figures["failures"] += [f"{killed.name}: {name} differs" for name in differing(whole, killed)]


def differing(a: Path, b: Path) -> list[str]:
    """Names of files that are not the same, byte for byte, in both folders."""
    names = {p.name for p in a.iterdir()} | {p.name for p in b.iterdir()}
    return [
        name
        for name in sorted(names)
        if not (
            (a / name).exists() and (b / name).exists() and filecmp.cmp(a / name, b / name, shallow=False)
        )
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=60, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return report("kill_compress", run(options.n, options.seed))


if __name__ == "__main__":
    sys.exit(main())
