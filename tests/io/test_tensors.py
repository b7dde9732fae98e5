"""TensorFolder: lazy and small, one or many files, and no folder that does not add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported
from secateur.io.convert import write_sparse
from secateur.io.files import new_folder
from secateur.io.tensors import TensorFolder

A = {"a.weight": torch.eye(3, 40).bfloat16(), "a.bias": torch.arange(3, dtype=torch.int64)}
B = {"b": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def shards(folder: Path, total: int | None = None, **weight_map: str) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(A, folder / "model-00001-of-00002.safetensors")
    save_file(B, folder / "model-00002-of-00002.safetensors")
    table = {
        **dict.fromkeys(A, "model-00001-of-00002.safetensors"),
        **dict.fromkeys(B, "model-00002-of-00002.safetensors"),
    }
    table = {name: file for name, file in {**table, **weight_map}.items() if file}
    size = sum(t.nbytes for t in (*A.values(), *B.values())) if total is None else total
    index = {"metadata": {"total_size": size}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def same(folder: TensorFolder, tensors: dict[str, torch.Tensor]) -> bool:
    if set(folder.names()) != set(tensors):
        return False
    return all(
        torch.equal(folder.get(n), t) and folder.dtype(n) == t.dtype and folder.shape(n) == tuple(t.shape)
        for n, t in tensors.items()
    )


def test_one_file_a_folder_and_shards_read_alike(tmp_path: Path) -> None:
    save_file({**A, **B}, tmp_path / "model.safetensors", {"format": "pt"})
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path), shards(tmp_path / "s")):
        with TensorFolder(path) as folder:
            assert same(folder, {**A, **B})
            assert folder.stored_bytes("a.weight") == 240 and "b" in folder and "c" not in folder
    with TensorFolder(tmp_path) as folder:
        assert (
            folder.metadata("model.safetensors") == {"format": "pt"}
            and folder.file("b") == "model.safetensors"
        )


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    with TensorFolder(tmp_path) as folder:
        folder.get("a.weight").zero_()
        assert torch.equal(folder.get("a.weight"), A["a.weight"])


def test_a_sparse_folder_reads_as_the_dense_one(tmp_path: Path) -> None:
    with TensorFolder(shards(tmp_path / "dense")) as dense:
        (tmp_path / "sparse").mkdir()
        assert write_sparse(dense, tmp_path / "sparse") == ["a.weight"]
    with TensorFolder(tmp_path / "sparse") as folder:
        assert same(folder, {**A, **B}) and folder.is_sparse("a.weight") and not folder.is_sparse("b")
        assert folder.stored_bytes("a.weight") == 16 + 3 * 2 + 3 * 5 + 3 * 8 < 240


def test_resident_memory_is_what_was_asked_for(tmp_path: Path) -> None:
    big = {f"t{i}": torch.full((8 << 20,), i, dtype=torch.int32) for i in range(4)}  # 32 MB each
    save_file(big, tmp_path / "model.safetensors")
    del big

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    with TensorFolder(tmp_path) as folder:
        folder.get("t0")
        before = resident()
        for name in folder.names():
            assert int(folder.get(name)[-1]) == int(name[1:])
        assert resident() - before < 40_000  # kB: one tensor, not four


def test_a_folder_that_is_replaced_while_it_is_read_stays_one_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for value in (1.0, 2.0):
        with new_folder(out) as temp:
            (temp / "config.json").write_text("{}")
            save_file({"a": torch.full((4,), value)}, temp / "model.safetensors")
        if value == 1.0:
            folder = TensorFolder(out)
    assert folder.get("a").tolist() == [1.0] * 4
    folder.close()
    with TensorFolder(out) as new:
        assert new.get("a").tolist() == [2.0] * 4


def test_names_are_helped(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    with TensorFolder(tmp_path) as folder, pytest.raises(NoMatch, match=r"did you mean 'a\.weight'"):
        folder.get("a.weigth")
    with pytest.raises(NoMatch, match="no such"):
        TensorFolder(tmp_path / "nope")


@pytest.mark.parametrize(
    ("total", "weight_map", "says"),
    [
        (7, {}, "total_size is 7"),
        (None, {"c": "model-00001-of-00002.safetensors"}, "'c' should be in"),
        (None, {"b": "model-00001-of-00002.safetensors"}, "'b' should be in"),
        (None, {"b": ""}, "'b' of model-00002-of-00002.safetensors is not in the index"),
        (None, {"c": "model-00003-of-00003.safetensors"}, "is missing"),
        (None, {"c": "../x.safetensors"}, "outside"),
    ],
)
def test_shards_that_do_not_add_up_are_refused(
    tmp_path: Path, total: int | None, weight_map: dict, says: str
) -> None:
    with pytest.raises(Damaged, match=says):
        TensorFolder(shards(tmp_path / "s", total, **weight_map))


def test_which_file_is_meant_must_be_clear(tmp_path: Path) -> None:
    save_file(A, tmp_path / "x.safetensors")
    with TensorFolder(tmp_path) as folder:
        assert same(folder, A)
    save_file(B, tmp_path / "y.safetensors")
    with pytest.raises(BadInput, match="2 files"):
        TensorFolder(tmp_path)
    save_file(B, tmp_path / "model.safetensors")  # as transformers does: this one first
    with TensorFolder(tmp_path) as folder:
        assert same(folder, B)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(NoMatch, match="no safetensors"):
        TensorFolder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(Unsupported, match="can run code"):
        TensorFolder(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_damaged(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    with TensorFolder(tmp_path) as folder:
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate(200)
        with pytest.raises(Damaged, match="cut short inside tensor 'a'"):
            folder.get("a")
