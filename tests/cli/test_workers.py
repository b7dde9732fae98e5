"""Two processes under torchrun cut as one does, and only the first speaks and writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.tiny import secateur


@pytest.mark.slow
@pytest.mark.parametrize("feed", ["block", "layer", "none"])
def test_two_workers_cut_as_one(feed: str, tiny: Path, text: Path, here: Path) -> None:
    words = ["compress", str(tiny), "wanda", "--calibration", str(text), "--samples", "8", "--length", "64"]
    words += ["--feed", feed]
    assert secateur(*words, "--out", "one").status == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "secateur"]
    done = subprocess.run([*launch, *words, "--out", "two"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wanda cut 50.00%") == 1
    assert sorted(os.listdir(here)) == ["one", "two"]
    one, two = (load_file(here / name / "model.safetensors") for name in ("one", "two"))
    total = sum(weight.numel() for weight in one.values())
    assert sum(int(((one[n] == 0) != (two[n] == 0)).sum()) for n in one) <= 1e-4 * total
