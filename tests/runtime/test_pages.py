"""Rooms in huge pages: apart from each other, whole pages where the system has them, gone with their last tensor."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from secateur.runtime import pages

here = pytest.mark.skipif(not pages.there_are(), reason="this system gives out no huge pages")


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


@here
def test_a_large_tensor_begins_with_a_huge_page() -> None:
    tensor = pages.copied(torch.arange(3 << 20))  # 24 MiB
    assert tensor.data_ptr() % pages.PAGE == 0 and pages.holds(tensor)
    assert torch.equal(tensor, torch.arange(3 << 20))
    if not in_huge_pages(tensor):
        pytest.skip("no memory in one piece is free")


@here
def test_small_rooms_lie_side_by_side_and_go_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, empty in (("held", None), ("at", 0), ("end", 0)):
        monkeypatch.setattr(pages._Block, name, empty)  # another test's tensors may live in the open block
    rooms = [pages.room(nbytes) for nbytes in (100, 1 << 20, 3, 64)]
    for before, after in pairwise(rooms):
        gap = after.data_ptr() - before.data_ptr()
        assert before.nbytes <= gap < before.nbytes + 64 and after.data_ptr() % 64 == 0
    block = pages._Block.held
    assert block is not None and block() is not None
    del rooms, before, after
    gc.collect()
    assert block() is None


def test_threads_get_rooms_of_their_own() -> None:
    def fill(value: int) -> torch.Tensor:
        return pages.room(997 * (value + 1)).fill_(value)

    with ThreadPoolExecutor(8) as pool:
        filled = list(pool.map(fill, range(200)))
    assert all(bool((room == value).all()) for value, room in enumerate(filled))


def test_more_than_a_block_and_nothing() -> None:
    assert pages.room(0).shape == (0,)
    room = pages.room(pages.BLOCK + 1).fill_(7)
    assert room.shape == (pages.BLOCK + 1,) and int(room[-1]) == 7
    turned = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(pages.copied(turned), turned) and pages.copied(turned).is_contiguous()
    assert pages.copied(torch.zeros(0, 4, dtype=torch.bfloat16)).shape == (0, 4)


def test_without_huge_pages_memory_is_torchs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "enabled"
    monkeypatch.setattr(pages, "_SWITCH", switch)
    assert not pages.there_are()
    switch.write_text("always madvise [never]\n")
    assert not pages.there_are()
    assert pages.room(1000).untyped_storage().resizable()
