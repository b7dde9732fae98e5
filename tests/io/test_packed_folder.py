"""Packed folders: what is read back is what was stored, dense and for the runtime; and every damage is one line."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.io.convert import to_dense, to_sparse
from secateur.io.describe import describe, verify
from secateur.io.packed import Packed, unpack
from secateur.io.packed_folder import read_packed
from secateur.io.packing import Packing
from secateur.io.tensors import TensorFolder
from tests.runtime.matrices import mask_of


def read_rest(folder: Path) -> dict[str, Tensor]:
    """What is not packed."""
    with TensorFolder(folder) as found:
        return {name: found.view(name) for name in found.names() if found.packed(name) is None}


def weights(pattern: str = "2:4", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(48, 64, generator=generator)
    named = {
        "a.weight": whole * mask_of(pattern, 48, 64, 0.4, generator),
        "b.weight": -whole * mask_of(pattern, 48, 64, 0.2, generator),
        "embed.weight": whole,
        "norm.weight": whole[0],
        "a.bias": whole[:, 0],
    }
    return {name: (tensor + 0.0).to(dtype) for name, tensor in named.items()}  # + 0.0: no -0.0


def dense(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


@pytest.mark.parametrize("pattern", ["bitmask", "2:4", "1x4", "16x1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_float_comes_back_dense_and_packed(tmp_path: Path, pattern: str, dtype: torch.dtype) -> None:
    tensors = weights(pattern, dtype)
    folder = to_sparse(dense(tmp_path / "dense", tensors), tmp_path / "packed", Packing())
    to_dense(folder, tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        tmp_path / "dense/model.safetensors"
    ).read_bytes()
    packed, rest = read_packed(folder), read_rest(folder)
    kind = "nm" if pattern == "2:4" else pattern
    assert {name: matrix.kind for name, matrix in packed.items()} == {"a.weight": kind, "b.weight": kind}
    assert all(torch.equal(unpack(matrix), tensors[name]) for name, matrix in packed.items())
    assert set(rest) == {"embed.weight", "norm.weight", "a.bias"}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in rest.items())
    with TensorFolder(folder) as found:
        assert found.dtype("a.weight") == dtype and found.shape("a.weight") == (48, 64)
        assert found.is_sparse("a.weight") and not found.is_sparse("embed.weight")
        assert found.stored_bytes("a.weight") == packed["a.weight"].bytes < tensors["a.weight"].nbytes
        assert found.packed("embed.weight") is None
    assert verify(folder)["manifest"] and describe(folder)["layout"] == "sparse"


@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_comes_back_as_its_whole_numbers_times_scales(
    tmp_path: Path, group: int, dtype: torch.dtype
) -> None:
    tensors = weights(dtype=dtype)
    folder = to_sparse(dense(tmp_path / "d", tensors), tmp_path / "p", Packing("2:4", "int8", group))
    packed, rest = read_packed(folder), read_rest(folder)
    kinds = {"a.weight": "nm", "b.weight": "nm", "embed.weight": "dense"}
    assert {name: matrix.kind for name, matrix in packed.items()} == kinds and set(rest) == {
        "norm.weight",
        "a.bias",
    }
    with TensorFolder(folder) as found:
        for name, matrix in packed.items():
            assert matrix.scales is not None and matrix.values.dtype == torch.int8
            assert torch.equal(found.get(name), unpack(matrix).to(dtype)) and found.dtype(name) == dtype
            near = tensors[name].float().view(48, -1, group or 64)
            step = near.abs().amax(2, keepdim=True) / 127
            assert bool(((unpack(matrix).view(near.shape) - near).abs() <= step).all())


def test_nothing_is_copied_and_what_is_written_stays_out_of_the_file(tmp_path: Path) -> None:
    folder = to_sparse(dense(tmp_path / "d", weights()), tmp_path / "p", Packing())
    first, second = read_packed(folder)["a.weight"], read_packed(folder)["a.weight"]
    before = (folder / "sparse.safetensors").read_bytes()
    first.values.zero_()
    assert bool(second.values.any()) and (folder / "sparse.safetensors").read_bytes() == before
    spaces = {tensor.untyped_storage().nbytes() for tensor in second.tensors.values()}
    assert all(size <= len(before) for size in spaces)
    (folder / "sparse.safetensors").unlink()
    assert torch.equal(unpack(second), weights()["a.weight"])


def test_a_sparse_folder_runs_as_it_lies(tmp_path: Path) -> None:
    tensors = {
        **weights("bitmask", torch.bfloat16),
        "half.weight": weights("bitmask", torch.float16)["a.weight"],
    }
    folder = to_sparse(dense(tmp_path / "d", tensors), tmp_path / "s")
    packed, rest = read_packed(folder), read_rest(folder)
    assert set(packed) == {"a.weight", "b.weight"} and torch.equal(
        rest["half.weight"], tensors["half.weight"]
    )
    assert all(torch.equal(unpack(matrix), tensors[name]) for name, matrix in packed.items())


def test_a_matrix_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    source = dense(tmp_path / "d", weights("bitmask"))
    for packing, line in (
        (Packing("2:4"), "a.weight: not 2:4: row"),
        (Packing("auto", "int8", 128), "weight: groups of 128 do not divide 64 columns"),
    ):
        with pytest.raises(BadInput, match=line):
            to_sparse(source, tmp_path / "p", packing)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def read_dense(folder: Path) -> dict[str, Tensor]:
    with TensorFolder(folder) as tensors:
        return {name: tensors.get(name) for name in tensors.names()}


def test_a_file_cut_short_is_one_line(tmp_path: Path) -> None:
    folder = to_sparse(dense(tmp_path / "d", weights()), tmp_path / "p", Packing())
    path = folder / "sparse.safetensors"
    raw = path.read_bytes()
    for length in (4, 200, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(Damaged, match="is cut short"):
            read_packed(folder)
    path.unlink()
    with pytest.raises(NoMatch, match="holds no safetensors weights"):
        read_packed(folder)


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.integers(0, 3))
@settings(max_examples=150)
def test_any_flipped_bit_is_an_answer_or_one_line(at: int, bit: int, cut: int) -> None:
    """In the head as in the data: never another exception, and never an entry that is not in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sparse.safetensors"
        raw = bytearray(whole())
        raw[at % len(raw)] ^= 1 << bit
        path.write_bytes(raw[: len(raw) - cut])
        for read in (read_packed, read_dense):
            try:
                found = read(Path(folder))
            except SecateurError as error:
                assert "\n" not in str(error)
                continue
            assert cut == 0
            for matrix in found.values():
                assert (unpack(matrix) if isinstance(matrix, Packed) else matrix).shape is not None


@functools.cache
def whole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = to_sparse(
            dense(Path(folder) / "d", weights("16x1")), Path(folder) / "p", Packing("16x1", "int8")
        )
        return (made / "sparse.safetensors").read_bytes()
