"""Embeddings computed once: resumed after a kill with the same bytes, found again by content, refused when damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import BadInput, Damaged, Locked
from secateur.io.embeddings import PROGRESS, ROWS, embed_images, embed_texts, unit_rows
from secateur.io.files import lock
from secateur.io.images import Images


@dataclass
class Fake:
    """Towers of the `Towers` protocol: rows from a seeded matrix; `calls` counts what was really embedded."""

    digest: str = "model one"
    width: int = 6
    name: str = "fake"
    logit_scale: float = 100.0
    stop_after: int = 10**9
    calls: list[int] = field(default_factory=list)

    def embed_images(self, images: Any) -> Tensor:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        flat = torch.from_numpy(np.asarray(images)).flatten(1).double() + 1
        generator = torch.Generator().manual_seed(5)
        matrix = torch.randn(flat.shape[1], self.width, generator=generator, dtype=torch.float64)
        return unit_rows(flat @ matrix)

    def embed_texts(self, words: Sequence[str]) -> Tensor:
        codes = torch.tensor([[*word.encode().ljust(8)[:8]] for word in words], dtype=torch.uint8)
        return self.embed_images(codes.view(-1, 2, 2, 2).numpy())


def images(count: int = 25, seed: int = 0) -> Images:
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 256, (count, 3, 3, 3)).astype(np.uint8)
    return Images(pixels, np.arange(count) % 2, ("cat", "dog"), "set/test")


def files(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def test_rows_are_the_models_and_come_from_disk_the_second_time(tmp_path: Path) -> None:
    towers, told = Fake(), []
    wanted = Fake().embed_images(images().images)
    rows = embed_images(towers, images(), tmp_path / "new" / "cache", 8, lambda *now: told.append(now))
    assert rows.dtype == torch.float32 and torch.allclose(rows, wanted, atol=1e-7)
    assert towers.calls == [8, 8, 8, 1] and told == [(8, 25), (16, 25), (24, 25), (25, 25)]
    again = embed_images(towers, images(), tmp_path / "new" / "cache", batch=5)
    assert len(towers.calls) == 4 and torch.equal(again, rows), "another batch size is the same content"
    kept = embed_images(Fake(), images(), None, 8)
    assert torch.equal(kept, rows), "the cache changes no bit"
    assert sorted(p.name for p in (tmp_path / "new" / "cache").rglob("*") if p.is_file()) == [
        "manifest.json",
        ROWS,
    ]
    (found,) = (tmp_path / "new" / "cache").iterdir()
    array = np.load(found / ROWS)
    assert array.dtype == np.float32 and array.shape == (25, 6) and np.array_equal(array, rows.numpy())


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_stopped_run_goes_on_at_the_last_whole_batch(tmp_path: Path, stop_after: int) -> None:
    embed_images(Fake(), images(), tmp_path / "whole", 8)
    stopped = Fake(stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        embed_images(stopped, images(), tmp_path / "cut", 8)
    second = Fake()
    embed_images(second, images(), tmp_path / "cut", 8)
    assert second.calls == [8, 8, 8, 1][stop_after:]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


KILLED = """
import os, signal, sys
from tests.io.test_embeddings import Fake, images
from secateur.io.embeddings import embed_images
def tell(done, total):
    if done == 16:
        os.kill(os.getpid(), signal.SIGKILL)
embed_images(Fake(), images(), __import__("pathlib").Path(sys.argv[1]), 8, tell)
"""


def test_a_killed_process_loses_at_most_a_batch(tmp_path: Path) -> None:
    embed_images(Fake(), images(), tmp_path / "whole", 8)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "cut")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == -signal.SIGKILL
    second = Fake()
    embed_images(second, images(), tmp_path / "cut", 8)
    assert second.calls == [8, 1]
    kept = {name: data for name, data in files(tmp_path / "cut").items() if not name.startswith(".")}
    assert kept == files(tmp_path / "whole")


def half(cache: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        embed_images(Fake(stop_after=2), images(), cache, 8)
    (folder,) = (p for p in cache.iterdir() if p.is_dir())
    return folder


@pytest.mark.parametrize("what", ["rows", "record", "odd record", "batch", "cut short", "no record"])
def test_a_part_that_its_record_does_not_fit_is_made_again(tmp_path: Path, what: str) -> None:
    embed_images(Fake(), images(), tmp_path / "whole", 8)
    folder = half(tmp_path / "cut")
    record = json.loads((folder / PROGRESS).read_text())
    assert record["done"] == 16
    if what == "rows":
        data = bytearray((folder / ROWS).read_bytes())
        data[-1] ^= 1
        (folder / ROWS).write_bytes(data)
    elif what == "record":
        (folder / PROGRESS).write_text("{")
    elif what == "odd record":
        (folder / PROGRESS).write_text(json.dumps({**record, "done": [16], "count": 25}))
    elif what == "batch":
        (folder / PROGRESS).write_text(json.dumps({**record, "batch": 4}))
    elif what == "cut short":
        (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:-5])
    else:
        (folder / PROGRESS).unlink()
    second = Fake()
    embed_images(second, images(), tmp_path / "cut", 8)
    assert second.calls == [8, 8, 8, 1]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_another_model_or_set_has_another_key(tmp_path: Path) -> None:
    keys = set()
    other = images()
    relabelled = Images(other.images, 1 - other.labels, other.classes, other.name)
    renamed = Images(other.images, other.labels, other.classes, "elsewhere")
    for towers, some in (
        (Fake(), images()),
        (Fake(digest="model two"), images()),
        (Fake(), images(seed=1)),
        (Fake(), images(24)),
        (Fake(), relabelled),
    ):
        embed_images(towers, some, tmp_path, 8)
        keys.add(frozenset(p.name for p in tmp_path.iterdir()))
    embed_images(same := Fake(), renamed, tmp_path, 8)
    assert len(keys) == 5 and len(list(tmp_path.iterdir())) == 5 and same.calls == []


def test_texts_are_kept_by_their_words_and_order(tmp_path: Path) -> None:
    towers = Fake()
    rows = embed_texts(towers, ["long ears", "wings"], tmp_path, 1)
    assert torch.allclose(rows, Fake().embed_texts(["long ears", "wings"]), atol=1e-7)
    assert torch.equal(embed_texts(towers, ("long ears", "wings"), tmp_path), rows) and towers.calls == [1, 1]
    turned = embed_texts(towers, ["wings", "long ears"], tmp_path)
    assert torch.allclose(turned, rows.flip(0), atol=1e-7)
    # words that run into one another are other words
    embed_texts(towers, ["long", "earswings"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert embed_texts(towers, [], tmp_path).shape == (0, 6)


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_byte_of_a_finished_cache_is_found(tmp_path: Path, at: int) -> None:
    embed_images(Fake(), images(), tmp_path, 8)
    (folder,) = tmp_path.iterdir()
    for name in (ROWS, "manifest.json"):
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 2
        (folder / name).write_bytes(data)
        with pytest.raises(Damaged, match=f"remove {folder} and run again"):
            embed_images(towers := Fake(), images(), tmp_path, 8)
        assert towers.calls == []
        data[at] ^= 2
        (folder / name).write_bytes(data)
    embed_images(Fake(), images(), tmp_path, 8)


@pytest.mark.parametrize("name", [ROWS, "manifest.json"])
def test_a_lost_file_of_a_finished_cache_is_found(tmp_path: Path, name: str) -> None:
    embed_images(Fake(), images(), tmp_path, 8)
    (folder,) = tmp_path.iterdir()
    (folder / name).unlink()
    with pytest.raises(Damaged, match="and run again"):
        embed_images(Fake(), images(), tmp_path, 8)


def test_a_finished_cache_of_another_shape_is_refused(tmp_path: Path) -> None:
    """A model that lies about its digest."""
    embed_images(Fake(), images(), tmp_path, 8)
    with pytest.raises(Damaged, match=r"holds float32 \[25, 6\]"):
        embed_images(Fake(width=7), images(), tmp_path, 8)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    embed_images(Fake(), images(), tmp_path, 8)
    (folder,) = tmp_path.iterdir()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with lock(folder), pytest.raises(Locked):
        embed_images(Fake(), images(), tmp_path, 8)


@dataclass
class Spoiled(Fake):
    spoil: Any = None

    def embed_images(self, images: Any) -> Tensor:
        first = sum(self.calls)
        rows = super().embed_images(images)
        return self.spoil(rows.clone(), first)


def set_row(value: float) -> Any:
    def spoil(rows: Tensor, first: int) -> Tensor:
        if first <= 17 < first + len(rows):
            rows[17 - first] = value
        return rows

    return spoil


@pytest.mark.parametrize(
    "spoil, line",
    [
        (set_row(float("nan")), "fake, set/test: row 17 holds NaN or Inf"),
        (set_row(float("inf")), "row 17 holds NaN or Inf"),
        (set_row(0.0), "row 17 is zero"),
        (lambda rows, _: rows * 2, "not of length 1"),
        (lambda rows, _: rows[:, :5], r"shape \(8, 5\) for 8 inputs, and a width of 6"),
        (lambda rows, _: rows[1:], r"shape \(7, 6\) for 8 inputs"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, spoil: Any, line: str) -> None:
    for cache in (None, tmp_path):
        with pytest.raises(BadInput, match=line):
            embed_images(Spoiled(spoil=spoil), images(), cache, 8)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")], "nothing finished was left"


@pytest.mark.parametrize("batch", [0, -1, 2.0, True])
def test_a_batch_is_a_count(batch: Any) -> None:
    with pytest.raises(BadInput, match="batch"):
        embed_images(Fake(), images(), None, batch)


@given(st.integers(1, 40), st.integers(1, 40))
def test_batches_do_not_change_the_rows(count: int, batch: int) -> None:
    rows = embed_images(Fake(), images(count), None, batch)
    assert torch.allclose(rows, Fake().embed_images(images(count).images), atol=1e-6)


@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3), min_size=1, max_size=5))
def test_unit_rows_have_length_1_or_are_refused(values: list[list[float]]) -> None:
    given_ = torch.tensor(values, dtype=torch.float64)
    lengths = given_.norm(dim=1)
    if bool((lengths == 0).any()):
        at = int((lengths == 0).nonzero()[0])
        with pytest.raises(BadInput, match=f"row {at}[ (]"):
            unit_rows(given_)
    else:
        rows = unit_rows(given_)
        assert rows.dtype == torch.float32
        assert torch.allclose(
            rows.double() * lengths[:, None], given_, rtol=1e-6, atol=float(lengths.max()) * 1e-6
        )


def test_unit_rows_name_the_first_of_many_over_pieces() -> None:
    values = torch.ones(20_000, 2)
    values[9_000:9_010] = float("nan")
    with pytest.raises(BadInput, match=r"texts: row 9000 \(and 9 more\) holds NaN"):
        unit_rows(values, "texts")
    assert torch.equal(unit_rows(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))
    for wrong in (torch.ones(3), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(BadInput, match="give floats"):
            unit_rows(wrong)
