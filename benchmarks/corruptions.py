"""corruptions: time and pixels of our corruptions against the public package imagecorruptions, on one thread.

    python benchmarks/corruptions.py --peer-python VENV/bin/python [--n 10000] [--images FOLDER] [--severities 3]

Both systems see the same CIFAR-10 images (the PNG sheets of FOLDER, repeated up to n) with the parameters of
ImageNet-C, the only ones the package has. Where both do the same and no chance is in it, pixels are compared; else
the mean and the spread of the change. Rows of our CIFAR-C parameters stand beside them, without a peer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Row, process, read, table, write

IMAGES = HERE.parent.parent / "shared" / "data" / "cifar10_small"
LIMIT = 2.0
KEPT = 500  # images whose pixels are compared
SAME = (
    "contrast",
    "brightness",
    "saturate",
    "jpeg_compression",
    "gaussian_blur",
    "defocus_blur",
    "pixelate",
    "zoom_blur",
)
# Where the package does something else than the published sets, so that figures are expected to differ.
OTHER = {
    "elastic_transform": "the package has no affine part and other fields",
    "frost": "photos against our drawings; the package scales each photo for each image, and not by 0.2",
    "snow": "the package crops the enlarged flakes at their corner",
    "motion_blur": "the package drops taps beyond the border",
    "spatter": "our own edge detector and exact distances",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer-python", help="a Python that imports imagecorruptions 1.1.2 (NumPy below 2)")
    parser.add_argument("--n", type=int, default=10_000, help="how many images")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of CIFAR's PNG sheets")
    parser.add_argument("--severities", type=int, nargs="+", default=[3])
    parser.add_argument("--names", nargs="+", help="only these corruptions")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    args = parser.parse_args(argv)
    if not args.show:
        run(args)
    print(f"\n## corruptions\n\n{tables(read('corruptions'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/corruptions.json."""
    from secateur.robustness.corrupt import EXTRA, NAMES, RENDERING

    names = list(args.names or NAMES + EXTRA)
    peer_python = usable(args.peer_python)
    with tempfile.TemporaryDirectory() as folder:
        images = cifar(args.images, args.n)
        np.save(Path(folder) / "images.npy", images)
        job = {"images": f"{folder}/images.npy", "names": names, "severities": args.severities, "keep": KEPT}
        job |= {"folder": folder, "table": "imagenet-c"}
        ours = cell(sys.executable, {**job, "system": "secateur"})
        theirs = cell(peer_python, {**job, "system": "peer"}) if peer_python else None
        pairs = zip(ours["rows"], theirs["rows"] if theirs else [None] * len(ours["rows"]), strict=True)
        rows = [compared(mine, other, images[:KEPT], Path(folder)) for mine, other in pairs]
        small = cell(sys.executable, {**job, "system": "secateur", "table": "cifar-c"})
    for row, cifar_row in zip(rows, small["rows"], strict=True):
        row["cifar_us"] = cifar_row.get("us")
    versions = {"secateur": ours["versions"], "peer": theirs["versions"] if theirs else None}
    note = "" if peer_python else f"no imagecorruptions: {args.peer_python or 'no --peer-python given'}"
    command = f"python benchmarks/corruptions.py {' '.join(sys.argv[1:])}"
    facts = {"n": len(images), "limit": LIMIT, "label": RENDERING, "versions": versions, "note": note}
    write("corruptions", rows, args, command=command, **facts)


def cell(python: str, job: Row) -> Row:
    return process([python, str(HERE / "corruptions_cell.py"), json.dumps(job)])


def cifar(folder: Path, n: int) -> np.ndarray:
    """uint8 [n, 32, 32, 3]: the sheets of a folder, by name, repeated as often as it takes."""
    from PIL import Image

    sheets = sorted(Path(folder).glob("*.png"))
    if not sheets:
        sys.exit(f"{folder} holds no PNG sheets of CIFAR images")
    images = np.concatenate([np.asarray(Image.open(sheet)).reshape(-1, 32, 32, 3) for sheet in sheets])
    return np.tile(images, (-(-n // len(images)), 1, 1, 1))[:n]


def usable(python: str | None) -> str | None:
    """The peer's Python if it imports imagecorruptions."""
    if not python or not Path(python).is_file():
        return None
    done = subprocess.run([python, "-W", "ignore", "-c", "import imagecorruptions"], capture_output=True)
    return python if done.returncode == 0 else None


def compared(ours: Row, theirs: Row | None, images: np.ndarray, folder: Path) -> Row:
    """One row: times, their quotient, and what the two made of the same images."""
    name, severity = ours["corruption"], ours["severity"]
    row: dict[str, Any] = {"corruption": name, "severity": severity, "ours_us": ours["us"]}
    mine = np.load(folder / f"secateur-{name}-{severity}.npy")
    row |= change("ours", mine, images)
    row["note"] = OTHER.get(name, "")
    if theirs is None:
        return row
    if "failed" in theirs:
        return row | {"note": f"the package fails: {theirs['failed']}"}
    row |= {"peer_us": theirs["us"], "of_peer": ours["us"] / theirs["us"]}
    row["met"] = str(row["of_peer"] < LIMIT)
    other = np.load(folder / f"peer-{name}-{severity}.npy")
    row |= change("peer", other, images)
    if name in SAME:
        apart = np.abs(mine.astype(int) - other)
        row |= {
            "equal": float((apart == 0).mean()),
            "within_1": float((apart <= 1).mean()),
            "most": int(apart.max()),
        }
    return row


def change(whose: str, found: np.ndarray, images: np.ndarray) -> Row:
    """Mean and deviation of the change, in levels of 255."""
    difference = found.astype(float) - images
    return {f"{whose}_mean": float(difference.mean()), f"{whose}_sd": float(difference.std())}


def tables(found: Row) -> str:
    """The table of results/corruptions.json."""
    met = [row for row in found["rows"] if row.get("met")]
    said = f"{sum(row['met'] == 'True' for row in met)} of {len(met)} below {found['limit']:g} times the package's time"
    heads = {
        "corruption": "corruption",
        "severity": "severity",
        "ours, us an image": "ours_us:.0f",
        "peer": "peer_us:.0f",
        "of peer": "of_peer:.2f",
        "CIFAR-C table": "cifar_us:.0f",
        "equal pixels": "equal:.4f",
        "within 1": "within_1:.4f",
        "most apart": "most",
        "mean change": "ours_mean:.2f",
        "peer's": "peer_mean:.2f",
        "deviation": "ours_sd:.2f",
        "peer's deviation": "peer_sd:.2f",
        "note": "note",
    }
    lines = [f"{found['n']:,} images, {found['label']}; {said}.", table(found["rows"], heads), found["note"]]
    return "\n\n".join(line for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
