"""Huge pages: values stay, small tensors and mapped files are left alone."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from secateur.runtime import pages


def in_huge_pages(tensor: torch.Tensor) -> int:
    """KiB of the mapping that holds the tensor's middle which lie in huge pages, as the kernel tells."""
    at, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(side, 16) for side in head.split("-"))
            inside = first <= at < last
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1])
    return 0


def test_a_large_tensor_moves_to_huge_pages_and_keeps_its_values() -> None:
    tensor = torch.arange(4 << 20)
    if not pages.huge(tensor):
        pytest.skip("no huge pages here: not Linux 6.1, switched off, or no memory in one piece")
    assert in_huge_pages(tensor) >= 16 << 10
    assert torch.equal(tensor, torch.arange(4 << 20))
    assert pages.huge(tensor)


def test_what_cannot_move_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pages.huge(torch.ones(1000))
    assert not pages.huge(torch.ones(0))
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (16 << 10))
    mapped = torch.from_file(str(file), size=4 << 20, dtype=torch.uint8)
    assert not pages.huge(mapped)
    assert mapped[:512].tolist() == list(range(256)) * 2
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as held:
        assert not pages.huge(torch.frombuffer(held, dtype=torch.uint8))  # as io/tensors.py maps a folder
    monkeypatch.setattr(pages, "_advise", lambda: None)
    assert not pages.huge(torch.ones(4 << 20))
