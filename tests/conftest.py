"""Fixtures shared by all tests: the real data beside the checkout, one seed, one thread (timings and bytes repeat)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("secateur", deadline=None)  # a busy machine is no failure
settings.load_profile("secateur")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one seed: what it draws does not depend on which tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (WikiText-2, calibration tokens); skips where the checkout has no ../shared beside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: the folder ../shared is not beside this checkout")
    return folder
