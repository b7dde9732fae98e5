"""Arrays from disk: each kind gives the numbers that were written, and what cannot be used is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.io.array_files import read_array, read_labels, write_array

ROWS = np.random.RandomState(0).randn(7, 5)


@pytest.mark.parametrize("kind", ["f2", "<f4", ">f4", "f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, kind: str, order: Any) -> None:
    stored = np.array(ROWS.astype(kind), order=order)
    np.save(tmp_path / "a.npy", stored)
    got = read_array(tmp_path / "a.npy")
    assert got.dtype == torch.float32 and got.is_contiguous()
    assert np.array_equal(got.numpy(), stored.astype(np.float32))


def test_a_float32_npy_is_mapped_and_its_file_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    array = np.lib.format.open_memmap(
        path, "w+", np.float32, (1 << 19, 512)
    )  # 1 GiB of nothing: a sparse file
    array[-1] = 1
    del array
    before = Path("/proc/self/statm").read_text().split()[1]
    got = read_array(path)
    assert float(got[-1].sum()) == 512
    after = Path("/proc/self/statm").read_text().split()[1]
    assert (int(after) - int(before)) * os.sysconf("SC_PAGE_SIZE") < 64 << 20
    got[0] = 5
    assert float(np.load(path, mmap_mode="r")[0].sum()) == 0


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    half, labels = torch.from_numpy(ROWS).to(torch.bfloat16), torch.arange(7)
    save_file({"rows": half, "labels": labels}, tmp_path / "a.safetensors")
    assert torch.equal(read_array(tmp_path / "a.safetensors"), half.float())
    save_file({"rows": half, "other": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(BadInput, match="2 floating tensors of two axes"):
        read_array(tmp_path / "b.safetensors")
    assert torch.equal(read_array(tmp_path / "b.safetensors", "other"), torch.ones(2, 2))
    with pytest.raises(NoMatch, match="rows"):
        read_array(tmp_path / "b.safetensors", "row")


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: parquet cannot be read")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("fixed", [False, True])
def test_parquet_of_lists(tmp_path: Path, kind: str, fixed: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: parquet cannot be read")
    inner = getattr(pyarrow, kind)()
    stored = ROWS.astype(kind)
    column = pyarrow.array(list(stored), pyarrow.list_(inner, 5) if fixed else pyarrow.list_(inner))
    path = parquet(tmp_path / "a.parquet", id=list("abcdefg"), emb=column, label=list(range(7)))
    for name in (None, "emb"):
        got = read_array(path, name)
        assert got.dtype == torch.float32 and np.array_equal(got.numpy(), stored.astype(np.float32))
    assert read_labels(path).tolist() == list(range(7))


def test_parquet_of_a_column_a_coordinate(tmp_path: Path) -> None:
    columns = {f"x{i}": ROWS[:, i] for i in (3, 0, 4)}
    path = parquet(tmp_path / "a.parquet", label=np.arange(7), **columns)
    assert np.array_equal(read_array(path).numpy(), ROWS[:, [3, 0, 4]].astype(np.float32))


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    lists = [[1.0, 2.0], [3.0, 4.0], [5.0]]
    path = tmp_path / "a.parquet"
    with pytest.raises(BadInput, match="row 2 of 'emb' has 1 values, row 0 has 2"):
        read_array(parquet(path, emb=lists))
    with pytest.raises(BadInput, match="row 1 of 'emb' is missing"):
        read_array(parquet(path, emb=[[1.0], None, [2.0]]))
    with pytest.raises(BadInput, match="missing values"):
        read_array(parquet(path, emb=[[1.0], [None], [2.0]]))
    with pytest.raises(BadInput, match="int64"):
        read_array(parquet(path, emb=[[1], [2]]))
    with pytest.raises(BadInput, match="2 columns of lists"):
        read_array(parquet(path, a=[[1.0]], b=[[1.0]]))
    assert read_array(path, "b").tolist() == [[1.0]]
    with pytest.raises(NoMatch, match="no column 'c'"):
        read_array(path, "c")
    with pytest.raises(BadInput, match="no floating column"):
        read_array(parquet(path, name=["a"]))
    with pytest.raises(BadInput, match="'label' holds no lists"):
        read_array(parquet(path, label=[1], emb=[[1.0]]), "label")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Damaged, match="parquet"):
        read_array(path)


def test_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([3, 1, 2], dtype=np.uint8))
    assert read_labels(tmp_path / "a.npy").tolist() == [3, 1, 2]
    (tmp_path / "a.txt").write_text("3\n 1 \n2\n")
    got = read_labels(tmp_path / "a.txt")
    assert got.dtype == torch.int64 and got.tolist() == [3, 1, 2]
    (tmp_path / "b.txt").write_text("dog\ncat\ndog\n")
    assert read_labels(tmp_path / "b.txt", classes=("cat", "dog")).tolist() == [1, 0, 1]
    path = parquet(tmp_path / "a.parquet", kind=["dog", "cat"])
    assert read_labels(path, "kind", ("cat", "dog")).tolist() == [1, 0]


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def saved(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "make, error, line",
    [
        (lambda p: read_array(saved(p / "a.npy", np.ones(3))), BadInput, r"float64 \[3\]"),
        (lambda p: read_array(saved(p / "a.npy", np.ones((2, 2), int))), BadInput, "int64"),
        (lambda p: read_array(saved(p / "a.npy", np.array([{}], object))), Damaged, "no whole .npy"),
        (lambda p: read_array(text(p / "a.npy", "hello")), Damaged, "no whole .npy"),
        (lambda p: read_array(p / "none.npy"), NoMatch, "no such file"),
        (lambda p: read_array(text(p / "a.csv", "1,2")), BadInput, "no kind known here"),
        (lambda p: read_labels(saved(p / "a.npy", np.ones(3))), BadInput, "float64"),
        (lambda p: read_labels(text(p / "a.txt", "1\n\n2")), BadInput, "label 1 is ''"),
        (lambda p: read_labels(text(p / "a.txt", "1\n2.5")), BadInput, "label 1 is '2.5'"),
        (
            lambda p: read_labels(text(p / "a.txt", "dgo"), classes=("cat", "dog")),
            NoMatch,
            "did you mean 'dog'",
        ),
        (lambda p: write_array(p / "a.bin", torch.ones(1)), BadInput, "does not end in .npy"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, make: Any, error: type[SecateurError], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cut_npy_and_a_pipe_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", ROWS)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Damaged, match="no whole"):
        read_array(path)
    os.mkfifo(tmp_path / "b.npy")
    with pytest.raises(Damaged, match="not a regular file"):
        read_array(tmp_path / "b.npy")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_written_arrays_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(ROWS).to(dtype)
    path = write_array(tmp_path / "a.npy", rows.t())
    assert torch.equal(read_array(path), rows.t().float()) and [p.name for p in tmp_path.iterdir()] == [
        "a.npy"
    ]
    write_array(path, torch.tensor([4, 2]))
    assert read_labels(path).tolist() == [4, 2]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_array(tmp_path / "a.npy", torch.ones(2, 2))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_array(path, torch.zeros(2, 2))
    assert read_array(path).tolist() == [[1, 1], [1, 1]] and len(list(tmp_path.iterdir())) == 1
