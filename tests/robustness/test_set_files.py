from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import Damaged
from secateur.robustness import set_files


def test_an_array_written_in_parts_is_the_array_numpy_writes(tmp_path: Path) -> None:
    whole = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    entry = set_files.write_array(tmp_path / "a.npy", whole.shape, "|u1", iter([whole[:4], whole[4:]]))
    np.save(tmp_path / "b.npy", whole)
    raw = (tmp_path / "a.npy").read_bytes()
    assert raw == (tmp_path / "b.npy").read_bytes()
    assert entry == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert np.array_equal(set_files.map_array(tmp_path / "a.npy"), whole)


def test_a_failure_leaves_the_old_file_and_no_stray(tmp_path: Path) -> None:
    def fails() -> Iterator[np.ndarray]:
        yield np.zeros(3, np.uint8)
        raise OSError("disk full")

    (tmp_path / "a.npy").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        set_files.write_array(tmp_path / "a.npy", (6,), "|u1", fails())
    assert os.listdir(tmp_path) == ["a.npy"] and (tmp_path / "a.npy").read_bytes() == b"old"


def test_a_pipe_and_a_zip_are_no_arrays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fog.npy")
    with pytest.raises(Damaged, match="not a regular file"):
        set_files.map_array(tmp_path / "fog.npy")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(Damaged, match=r"no .*\.npy"):
        set_files.map_array(tmp_path / "a.npz")


def test_a_manifest_has_one_way_to_be_written(tmp_path: Path) -> None:
    body = {"format": set_files.FORMAT, "version": 1, "label": "x", "files": {"labels.npy": {"bytes": 1, "sha256": ""}},
            **dict.fromkeys(set_files.FACTS, 0), "shape": [1, 2, 3]}  # fmt: skip
    text = set_files.render(body)
    (tmp_path / "manifest.json").write_text(text)
    assert set_files.read_manifest(tmp_path) == body
    (tmp_path / "manifest.json").write_text(json.dumps(json.loads(text)))
    with pytest.raises(Damaged, match="altered"):
        set_files.read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert set_files.read_manifest(tmp_path) is None
