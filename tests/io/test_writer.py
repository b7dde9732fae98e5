"""TensorWriter and FolderWriter: any order, the bytes of safetensors, taking up a half-written file."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from secateur.errors import BadInput, Damaged, NoMatch
from secateur.io.tensors import TensorFolder
from secateur.io.writer import FolderWriter, TensorWriter

TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a": torch.tensor(7, dtype=torch.int64),
    "c": torch.zeros(0, 3, dtype=torch.bfloat16),
    "d": torch.tensor([True, False, True]),
    "e": torch.randn(5, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn),
    "f": torch.tensor([1 + 2j, -0.0], dtype=torch.complex64),
}
SPECS = {name: (t.dtype, tuple(t.shape)) for name, t in TENSORS.items()}
LAYOUT = {
    "model-00001-of-00002.safetensors": {name: SPECS[name] for name in "ac"},
    "model-00002-of-00002.safetensors": {name: SPECS[name] for name in ("b.weight", "d", "e", "f")},
}


@pytest.mark.parametrize("seed", range(5))
def test_any_order_gives_the_bytes_of_safetensors(tmp_path: Path, seed: int) -> None:
    order = random.Random(seed).sample(sorted(TENSORS), len(TENSORS))
    with TensorWriter(tmp_path / "f", SPECS, {"format": "pt"}) as writer:
        for name in order:
            writer.put(name, TENSORS[name])
    assert (tmp_path / "f").read_bytes() == save(TENSORS, {"format": "pt"})
    assert torch.equal(load_file(tmp_path / "f")["b.weight"], TENSORS["b.weight"])


def test_strided_and_broadcast_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    one = torch.arange(2.0)[::2]
    views = {
        "one": one,
        "t": torch.arange(12.0).reshape(3, 4).T,
        "x": torch.ones(1).expand(4),
        "s": torch.arange(9)[::2],
    }
    with TensorWriter(tmp_path / "f", {n: (t.dtype, tuple(t.shape)) for n, t in views.items()}) as writer:
        for name, view in views.items():
            writer.put(name, view)
    assert all(torch.equal(load_file(tmp_path / "f")[name], view) for name, view in views.items())


def test_a_missing_tensor_is_refused_at_the_end(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "f", SPECS)
    writer.put("a", TENSORS["a"])
    assert writer.missing() == set(SPECS) - {"a"}
    with pytest.raises(BadInput, match=r"'b\.weight' was never written \(5 missing\)"):
        writer.close()
    with pytest.raises(BadInput, match="closed"):
        writer.put("b.weight", TENSORS["b.weight"])


@pytest.mark.parametrize(
    ("name", "tensor", "error"),
    [
        ("nope", TENSORS["a"], NoMatch),
        ("a", torch.tensor(7.0), BadInput),
        ("a", torch.tensor([7]), BadInput),
        ("b.weight", torch.zeros(3, 4, device="meta"), BadInput),
    ],
)
def test_what_was_not_announced_is_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor, error: type
) -> None:
    with TensorWriter(tmp_path / "f", SPECS) as writer:
        with pytest.raises(error, match=name):
            writer.put(name, tensor)
        for good, value in TENSORS.items():
            writer.put(good, value)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(FileExistsError):
        TensorWriter(tmp_path / "f", SPECS)
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.parametrize("left", ["nothing", "empty", "half head", "whole"])
def test_a_half_written_file_is_taken_up(tmp_path: Path, left: str) -> None:
    path, whole = tmp_path / "f", save(TENSORS)
    done: list[str] = []
    if left == "empty":
        path.touch()
    elif left == "half head":
        path.write_bytes(whole[:40] + bytes(len(whole) - 40))
    elif left == "whole":
        writer = TensorWriter(path, SPECS)
        for name in ("d", "b.weight"):
            writer.put(name, TENSORS[name])
        writer.sync()
        writer.abandon()
        done = ["d", "b.weight"]
    with TensorWriter(path, SPECS, reopen=True, done=done) as writer:
        assert writer.missing() == set(SPECS) - set(done)
        for name in writer.missing():
            writer.put(name, TENSORS[name])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("done", [(), ("a",)])
def test_the_file_of_another_job_is_not_taken_up(tmp_path: Path, done: tuple[str, ...]) -> None:
    (tmp_path / "f").write_bytes(save({"a": torch.zeros(3)}))
    with pytest.raises(Damaged, match="another job"):
        TensorWriter(tmp_path / "f", SPECS, reopen=True, done=done)
    assert (tmp_path / "f").read_bytes() == save({"a": torch.zeros(3)})


def test_done_is_not_believed_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "f", SPECS, reopen=True, done=["a"]) as writer:
        assert "a" in writer.missing()
        for name, value in TENSORS.items():
            writer.put(name, value)


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        with pytest.raises(BadInput), TensorWriter(tmp_path / f"{number}", SPECS):
            pass
        with pytest.raises(ZeroDivisionError), TensorWriter(tmp_path / f"x{number}", SPECS):
            raise ZeroDivisionError
        with pytest.raises(BadInput), FolderWriter(tmp_path, {f"{number}a": SPECS, f"{number}b": {}}):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_shards_and_their_index(tmp_path: Path) -> None:
    with FolderWriter(tmp_path, LAYOUT) as writer:
        for name in reversed(list(TENSORS)):
            writer.put(name, TENSORS[name])
        assert writer.missing() == set()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in TENSORS.values())}
    assert index["weight_map"] == {name: file for file, specs in LAYOUT.items() for name in specs}
    with TensorFolder(tmp_path) as folder:
        assert folder.layout() == {
            file: {n: specs[n] for n in folder.layout()[file]} for file, specs in LAYOUT.items()
        }
        assert torch.equal(folder.get("b.weight"), TENSORS["b.weight"])


def test_one_shard_of_one_has_an_index_too(tmp_path: Path) -> None:
    with FolderWriter(tmp_path, {"model-00001-of-00001.safetensors": {"a": SPECS["a"]}}) as writer:
        writer.put("a", TENSORS["a"])
    with TensorFolder(tmp_path) as folder:
        assert folder.names() == ("a",) and (tmp_path / "model.safetensors.index.json").exists()


def test_a_tensor_belongs_to_one_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two files"):
        FolderWriter(tmp_path, {"x": {"a": SPECS["a"]}, "y": {"a": SPECS["a"]}})
    with FolderWriter(tmp_path, {"x": {"a": SPECS["a"]}}) as writer:
        with pytest.raises(NoMatch, match="no tensor 'b'"):
            writer.put("b", TENSORS["a"])
        writer.put("a", TENSORS["a"])
