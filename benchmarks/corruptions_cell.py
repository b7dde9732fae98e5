"""Corrupt images with one system and time it:  python corruptions_cell.py '{"system": "peer", ...}' OUT.json

Runs under the peer's Python too, so only the branch of a system imports that system. CPU-seconds (time.process_time) of
one corruption at one severity over all images; the first call, which fills caches and imports, is not timed.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]
Corrupt = Callable[[np.ndarray, str, int], np.ndarray]


def main(text: str, out: str) -> None:
    job: Job = json.loads(text)
    corrupt, versions = SYSTEMS[job["system"]](job)
    images = np.load(job["images"], allow_pickle=False)
    rows = []
    for name in job["names"]:
        for severity in job["severities"]:
            rows.append(
                {"corruption": name, "severity": severity, **measure(corrupt, images, name, severity, job)}
            )
    Path(out).write_text(json.dumps({"rows": rows, "versions": versions}))


def measure(corrupt: Corrupt, images: np.ndarray, name: str, severity: int, job: Job) -> Job:
    try:
        corrupt(images[:2], name, severity)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    start = time.process_time()
    found = corrupt(images, name, severity)
    seconds = time.process_time() - start
    kept = found[: job["keep"]]
    np.save(Path(job["folder"]) / f"{job['system']}-{name}-{severity}.npy", kept)
    return {"cpu_s": seconds, "us": 1e6 * seconds / len(images)}


def secateur(job: Job) -> tuple[Corrupt, dict[str, str]]:
    import torch

    from secateur.robustness.corrupt import corrupt

    torch.set_num_threads(1)

    def run(images: np.ndarray, name: str, severity: int) -> np.ndarray:
        return corrupt(images, name, severity, table=job["table"])

    return run, versions("secateur", "numpy", "pillow")


def peer(job: Job) -> tuple[Corrupt, dict[str, str]]:
    """imagecorruptions, whose calls of scikit-image's gaussian carry an argument that newer versions renamed."""
    warnings.filterwarnings("ignore")
    import imagecorruptions
    from imagecorruptions import corruptions
    from skimage.filters import gaussian

    def renamed(*args: Any, multichannel: bool = False, **settings: Any) -> Any:
        return gaussian(*args, channel_axis=-1 if multichannel else None, **settings)

    corruptions.gaussian = renamed
    np.random.seed(0)

    def run(images: np.ndarray, name: str, severity: int) -> np.ndarray:
        return np.stack([imagecorruptions.corrupt(image, severity, name) for image in images])

    return run, versions("imagecorruptions", "numpy", "scikit-image", "scipy", "opencv-python", "pillow")


def versions(*names: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


SYSTEMS: dict[str, Callable[[Job], tuple[Corrupt, dict[str, str]]]] = {"secateur": secateur, "peer": peer}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
