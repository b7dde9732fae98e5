"""The old compressed-tensors formats: folders written here by hand, from the layout alone, come back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import Damaged, Unsupported
from secateur.io.compressed import (
    BITMASK,
    TWO_FOUR,
    compressed_format,
    decompress,
    decompress_folder,
    plain_folder,
)
from secateur.io.describe import verify
from secateur.io.hub import load_folder
from secateur.io.tensors import TensorFolder
from tests.tinylm import save_tiny

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(INTEGER[tensor.element_size()])


def by_hand(weight: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """compressed, bitmask and row_offsets of a matrix, entry by entry as the layout says it; `kept` is the mask."""
    rows, columns = weight.shape
    values: list[int] = []
    mask = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8)
    offsets = []
    raw = bits(weight)
    for i in range(rows):
        offsets.append(len(values))
        for j in range(columns):
            if kept[i, j]:
                values.append(int(raw[i, j]))
                mask[i, j // 8] += 2 ** (j % 8)
    packed = torch.tensor(values, dtype=INTEGER[weight.element_size()]).view(weight.dtype)
    return {"compressed": packed, "bitmask": mask, "row_offsets": torch.tensor(offsets, dtype=torch.int64)}


def as_bitmask(weight: Tensor) -> dict[str, Tensor]:
    nonzero = weight.to(torch.float32) != 0
    return {**by_hand(weight, nonzero), "shape": torch.tensor(weight.shape)}


def as_two_four(weight: Tensor) -> dict[str, Tensor]:
    groups = weight.to(torch.float32).abs().reshape(-1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    for group, row in zip(groups, kept, strict=True):
        row[sorted(range(4), key=lambda j: -float(group[j]))[:2]] = True
    parts = by_hand(weight, kept.reshape(weight.shape))
    del parts["row_offsets"]
    rows, columns = weight.shape
    parts["compressed"] = parts["compressed"].reshape(rows, columns // 2)
    return {**parts, "shape": torch.tensor([[rows], [columns]])}


def random(rows: int, columns: int, dtype: torch.dtype, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    keep = torch.rand(rows, columns, generator=generator) < density
    return torch.where(keep, weight, 0.0).to(dtype)


@given(
    rows=st.integers(0, 7),
    columns=st.integers(1, 27),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
    offsets=st.booleans(),
)
def test_bitmask_comes_back(
    rows: int, columns: int, dtype: torch.dtype, density: float, seed: int, offsets: bool
) -> None:
    weight = random(rows, columns, dtype, density, seed)
    parts = as_bitmask(weight)
    if not offsets:
        del parts["row_offsets"]
    back = decompress(parts, BITMASK)
    assert back.dtype == dtype and back.shape == weight.shape and torch.equal(bits(back), bits(weight))


@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 7),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
def test_two_four_comes_back(rows: int, groups: int, dtype: torch.dtype, density: float, seed: int) -> None:
    dense = random(rows, 4 * groups, torch.float32, density, seed).to(dtype)
    low = dense.to(torch.float32).abs().reshape(-1, 4).argsort(dim=1, descending=True)[:, 2:]
    weight = bits(dense).reshape(-1, 4).scatter(1, low, 0).reshape(rows, 4 * groups).view(dtype)
    back = decompress(as_two_four(weight), TWO_FOUR)
    assert torch.equal(bits(back), bits(weight))


def test_two_four_groups_may_straddle_rows() -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 3, 0], [0, 4, 5, 0, 6, 0]])
    assert torch.equal(decompress(as_two_four(weight), TWO_FOUR), weight)


def test_vectors_and_stacks_were_compressed_too() -> None:
    vector = {
        "compressed": torch.tensor([5.0, 7.0]),
        "bitmask": torch.tensor([0b10, 0b1], dtype=torch.uint8),
        "shape": torch.tensor([10]),
        "row_offsets": torch.tensor(0),
    }
    assert decompress(vector, BITMASK).tolist() == [0, 5, 0, 0, 0, 0, 0, 0, 7, 0]
    stack = {
        "compressed": torch.tensor([1.0, 2.0, 3.0]),
        "bitmask": torch.tensor([[[1], [2]], [[0], [4]]], dtype=torch.uint8),
        "shape": torch.tensor([2, 2, 3]),
        "row_offsets": torch.tensor([[0, 0], [1, 1]]),  # cumulated over the first dimension
    }
    assert decompress(stack, BITMASK).tolist() == [[[1, 0, 0], [0, 2, 0]], [[0, 0, 0], [0, 0, 3]]]


GOOD = as_bitmask(random(5, 11, torch.float32, 0.4, 3))
FOUR = as_two_four(random(4, 8, torch.float32, 0.4, 3))


def changed(parts: dict[str, Tensor], part: str, value: Any) -> dict[str, Tensor]:
    return {**parts, part: value(parts[part].clone())}


def flip(at: int, bit: int) -> Callable[[Tensor], Tensor]:
    def change(mask: Tensor) -> Tensor:
        mask.view(-1)[at] ^= 1 << bit
        return mask

    return change


@pytest.mark.parametrize(
    "parts,kind,line",
    [
        (changed(GOOD, "bitmask", flip(2, 0)), BITMASK, "row_offsets are not those"),
        (changed(GOOD, "compressed", lambda v: v[:-1]), BITMASK, "keeps"),
        (changed(GOOD, "row_offsets", lambda o: o + 1), BITMASK, "row_offsets are not those"),
        (changed(GOOD, "row_offsets", lambda o: o[:-1]), BITMASK, "row_offsets are not those"),
        (changed(GOOD, "shape", lambda s: s + torch.tensor([1, 0])), BITMASK, r"\[6, 11\] needs a bitmask"),
        (changed(GOOD, "shape", lambda s: s + torch.tensor([0, 9])), BITMASK, r"\[5, 20\] needs a bitmask"),
        (changed(GOOD, "shape", lambda s: -s), BITMASK, r"its shape is \[-5, -11\]"),
        (changed(GOOD, "shape", lambda s: s.float()), BITMASK, "a few whole numbers"),
        (changed(GOOD, "bitmask", lambda m: m.to(torch.int32)), BITMASK, "is torch.int32, not uint8"),
        (changed(GOOD, "bitmask", flip(1, 7)), BITMASK, "after the last column"),
        (changed(GOOD, "compressed", lambda v: v[None]), BITMASK, "not one row"),
        (changed(FOUR, "bitmask", flip(0, 0)), TWO_FOUR, "not 2:4"),
        (changed(FOUR, "compressed", lambda v: v[:, :-1]), TWO_FOUR, "does not go with 2:4"),
        (changed(FOUR, "shape", lambda s: s - torch.tensor([[0], [1]])), TWO_FOUR, "does not go with 2:4"),
        (GOOD, TWO_FOUR, "does not go with 2:4"),
    ],
)
def test_damage_is_refused_by_name(parts: dict[str, Tensor], kind: str, line: str) -> None:
    with pytest.raises(Damaged, match=f"layer.weight: .*{line}") as error:
        decompress(parts, kind, where="layer.weight")
    assert "\n" not in str(error.value)


# --- folders --------------------------------------------------------------------------------------------------------


def compress_folder(
    folder: Path, kind: str, config: dict[str, Any] | None = None, keep: str = "", every: bool = False
) -> dict[str, Tensor]:
    """Rewrite a plain folder as compressed-tensors did; returns its dense tensors, half of them cut to zero.

    Args:
        keep: ".weight" for the names of the first writer.   every: vectors too, as without a list of targets.
    """
    dense, stored = load_file(folder / "model.safetensors"), {}
    for name, tensor in dense.items():
        prefix = name.removesuffix(".weight") + keep
        if tensor.dim() == 2 and "proj" in name:
            flat = tensor.reshape(-1, 4)
            flat.scatter_(1, flat.abs().argsort(dim=1)[:, :2], 0.0)
            parts = (as_bitmask if kind == BITMASK else as_two_four)(tensor)
        elif every and tensor.dim() == 1:
            parts = {k: v[0] for k, v in as_bitmask(tensor[None]).items() if k in ("bitmask", "row_offsets")}
            parts |= {"compressed": tensor[tensor != 0], "shape": torch.tensor(tensor.shape)}
        else:
            stored[name] = tensor
            continue
        stored.update({f"{prefix}.{part}": value for part, value in parts.items()})
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    sparsity = {"format": kind, "targets": ["Linear"], "ignore": ["lm_head"], "global_sparsity": 0.5}
    quantization = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": sparsity}
    (folder / "config.json").write_text(
        json.dumps({**written, **({"quantization_config": quantization} if config is None else config)})
    )
    return dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kind,keep,every", [(BITMASK, "", True), (BITMASK, ".weight", False), (TWO_FOUR, "", False)]
)
def test_a_folder_becomes_plain_and_loads(
    tmp_path: Path, kind: str, keep: str, every: bool, dtype: torch.dtype
) -> None:
    source = save_tiny(tmp_path / "source")
    plain = load_file(source / "model.safetensors")
    save_file({k: v.to(dtype) for k, v in plain.items()}, source / "model.safetensors", {"format": "pt"})
    dense = compress_folder(source, kind, keep=keep, every=every)
    out = decompress_folder(source, tmp_path / "out")
    with TensorFolder(out) as tensors:
        assert set(tensors.names()) == set(dense)
        for name, tensor in dense.items():
            back = tensors.get(name)
            assert back.dtype == dtype and torch.equal(bits(back), bits(tensor)), name
    verify(out)
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config["hidden_size"] == 16
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    weight = load_folder(out).state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert 2 * int(torch.count_nonzero(weight)) == weight.numel()


def test_parts_in_different_shards_are_found(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    dense = compress_folder(source, BITMASK)
    stored = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {}
    for at in range(2):
        file = f"model-0000{at + 1}-of-00002.safetensors"
        held = {name: stored[name] for name in sorted(stored)[at::2]}
        save_file(held, source / file, {"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with TensorFolder(decompress_folder(source, tmp_path / "out")) as tensors:
        assert len(tensors.shards) == 2
        assert all(torch.equal(tensors.get(name), tensor) for name, tensor in dense.items())


@pytest.mark.parametrize(
    "config,kind",
    [
        ({}, ""),
        ({"quantization_config": {"quant_method": "compressed-tensors", "sparsity_config": {}}}, ""),
        ({"quantization_config": {"sparsity_config": {"format": "dense"}}}, ""),
        ({"quantization_config": {"sparsity_config": {"format": TWO_FOUR}}}, TWO_FOUR),
        ({"compression_config": {"sparsity_config": {"format": BITMASK}}}, BITMASK),
        ({"compression_config": {"format": BITMASK}}, BITMASK),
        ({"sparsity_config": {"format": BITMASK}}, BITMASK),
        ({"sparsity_config": "sparse-bitmask", "quantization_config": None}, ""),
    ],
)
def test_the_config_names_the_format(config: dict[str, Any], kind: str) -> None:
    assert compressed_format(config) == kind


def test_a_plain_folder_is_left_alone_and_a_compressed_one_is_kept_in_the_cache(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    assert plain_folder(source, tmp_path / "cache") == source and not (tmp_path / "cache").exists()
    dense = compress_folder(source, TWO_FOUR)
    plain = plain_folder(source, tmp_path / "cache")
    assert plain.parent == tmp_path / "cache" and plain.name.startswith("source-")
    made = (plain / "model.safetensors").stat().st_mtime_ns
    assert torch.equal(load_file(plain / "model.safetensors")["lm_head.weight"], dense["lm_head.weight"])
    assert plain_folder(source, tmp_path / "cache") == plain
    assert (plain / "model.safetensors").stat().st_mtime_ns == made, "made once"
    (source / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert plain_folder(source, tmp_path / "cache") != plain, "another folder has another copy"


def test_what_cannot_be_read_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    with pytest.raises(Unsupported, match="is neither sparse-bitmask nor sparse-24-bitmask"):
        decompress_folder(source, tmp_path / "out")
    compress_folder(source, BITMASK)
    stored = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    cases: list[tuple[dict[str, Tensor], list[str], str]] = [
        ({f"{name}.shape": torch.tensor([1 << 39, 16])}, [], f"{name}.weight: its shape .* needs a bitmask"),
        ({}, [f"{name}.bitmask"], f"{name}.weight: has no bitmask"),
        ({f"{name}.weight": torch.zeros(1)}, [], f"{name}.weight: is stored twice"),
        ({f"{name}.row_offsets": torch.zeros(24, dtype=torch.int64)}, [], f"{name}.weight: its row_offsets"),
    ]
    for more, less, line in cases:
        held = {k: v for k, v in {**stored, **more}.items() if k not in less}
        save_file(held, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(Damaged, match=line):
            decompress_folder(source, tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["config_groups"] = {"group_0": {"weights": {"num_bits": 8}}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="quantised as well"):
        decompress_folder(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
