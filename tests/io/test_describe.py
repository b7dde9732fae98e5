"""verify and describe: what a folder holds is measured from its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from secateur.errors import Damaged
from secateur.io.convert import to_sparse
from secateur.io.describe import describe, verify, zero_pattern
from secateur.io.manifest import write_manifest


def n_of_m(n: int, m: int, rows: int = 12, groups: int = 6) -> torch.Tensor:
    scores = torch.rand(rows, groups, m, generator=torch.Generator().manual_seed(n))
    kept = scores.argsort(-1).argsort(-1) < n
    return (kept * (scores + 0.1)).reshape(rows, groups * m)


def per_row(rows: int, columns: int, n: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).argsort(-1) < n).float()


@given(m=st.sampled_from([2, 4, 8, 16]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_n_of_m_is_seen_along_rows_and_columns(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    weight = n_of_m(n, m, groups=20)
    found = zero_pattern(weight)
    assert found == zero_pattern(weight.T) == f"{n}:{m}"


def test_other_patterns() -> None:
    assert zero_pattern(torch.ones(4, 8)) == "dense"
    assert zero_pattern(per_row(64, 100, 50)) == "row"
    assert zero_pattern(per_row(64, 100, 50).T) == "column"
    assert (
        zero_pattern((torch.rand(64, 100, generator=torch.Generator().manual_seed(1)) < 0.5).float())
        == "none"
    )
    assert zero_pattern(torch.zeros(8, 8)) == "none" and zero_pattern(torch.tensor([0.0, 1.0])) == "none"
    assert (
        zero_pattern(per_row(64, 36, 18).reshape(64, 4, 3, 3)) == "row"
    )  # a convolution: rows of in * h * w
    assert zero_pattern(n_of_m(2, 4, rows=24).reshape(4, 6, 24)) == "2:4"  # stacked experts
    damaged = n_of_m(2, 4, rows=50, groups=10)
    damaged[0, :4] = 0  # weights that were zero before the cut
    assert zero_pattern(damaged) == "2:4"
    damaged[1, :4] = 1  # one group with too many: it would not run as 2:4
    assert zero_pattern(damaged) != "2:4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    half = per_row(64, 100, 50)
    half[0, half[0].argmax()] = float("nan")
    tensors = {
        "q.weight": half,
        "k.weight": n_of_m(2, 4),
        "v.weight": torch.ones(4, 4),
        "norm": -torch.zeros(7),
    }
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text('{"model_type": "llama", "architectures": ["X"], "sparsity": 0.99}')
    write_manifest(out)
    return out


def test_everything_is_measured(folder: Path) -> None:
    found = describe(folder)
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["q.weight"] == {
        "name": "q.weight", "shape": [64, 100], "dtype": "float32", "density": 0.5, "zeros": 3200, "negative_zeros": 0,
        "nonfinite": 1, "pattern": "row", "bytes": 25600, "stored": "dense", "file": "model.safetensors",
    }  # fmt: skip
    assert (
        rows["norm"]["density"] == 0
        and rows["norm"]["negative_zeros"] == 7
        and rows["v.weight"]["density"] == 1
    )
    assert found["parameters"] == 6400 + 288 + 16 + 7 and found["nonzero"] == 3200 + 144 + 16
    assert found["density"] == found["nonzero"] / found["parameters"]
    cut = {
        "tensors": 2,
        "parameters": 6688,
        "nonzero": 3344,
        "density": 0.5,
        "patterns": {"2:4": 1, "row": 1},
    }
    assert found["cut"] == cut
    assert found["bytes"] == sum(p.stat().st_size for p in folder.iterdir()) and found["manifest"]
    assert found["model"] == {"type": "llama", "architectures": ["X"]} and found["layout"] == "dense"
    assert [w.split()[0] for w in found["warnings"]] == ["q.weight", "7"]


def test_a_sparse_folder_is_described_as_its_dense_one_with_its_own_bytes(
    folder: Path, tmp_path: Path
) -> None:
    dense, sparse = describe(folder), describe(to_sparse(folder, tmp_path / "s"))
    assert (
        sparse["layout"] == "sparse"
        and sparse["density"] == dense["density"]
        and sparse["cut"] == dense["cut"]
    )
    assert sparse["weight_bytes"] < dense["weight_bytes"]
    assert {r["name"]: r["stored"] for r in sparse["tensors"]}["q.weight"] == "sparse"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool, torch.float64, torch.uint16])
def test_every_dtype_can_be_described(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a.weight": torch.tensor([[1, 0], [0, 1]]).to(dtype)}, tmp_path / "model.safetensors")
    assert describe(tmp_path)["tensors"][0]["zeros"] == 2


def test_without_a_manifest_there_is_a_warning(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert describe(folder)["warnings"][0].startswith("no manifest.json") and not describe(folder)["manifest"]
    found = verify(folder)
    assert found["warnings"] and not found["manifest"] and found["tensors"] == 4
    one = verify(folder / "model.safetensors")
    assert one["tensors"] == 4


def test_verify_reads_every_byte(folder: Path) -> None:
    found = verify(folder)
    sizes = [p.stat().st_size for p in folder.iterdir() if p.name != "manifest.json"]
    assert (
        found["manifest"] and found["bytes"] == sum(sizes) and found["files"] == 2 and found["warnings"] == []
    )
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 4
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(Damaged, match=r"model\.safetensors: tensor 'v\.weight'|tensor"):
        verify(folder)
