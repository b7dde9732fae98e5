"""The manifest: whole folders pass, any damage is refused naming file and tensor, and it cannot be altered unseen.

Counts of flips, pages and truncations: attacks/flip.py. Lying manifests: attacks/hostile.py.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attacks.hostile_files import lie
from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.manifest import check_manifest, listed_files, read_manifest, write_manifest

TENSORS = {"model.a": torch.arange(40.0), "model.b": torch.ones(3, 5, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ünï.txt").write_text("x")
    write_manifest(tmp_path)
    return tmp_path


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_it_says_what_is_there(folder: Path) -> None:
    body = check_manifest(folder)
    raw = (folder / "model.safetensors").read_bytes()
    assert body["files"]["model.safetensors"] == {
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    assert set(body["files"]) == {"model.safetensors", "config.json", "sub/ünï.txt"}
    crc = zlib.crc32(TENSORS["model.a"].numpy().tobytes())
    known = body["tensors"]["model.safetensors"]["model.a"]
    assert known == {"crc32": f"{crc:08x}", "dtype": "F32", "shape": [40]}
    assert listed_files(folder) == {*body["files"], "manifest.json"}


def test_the_same_folder_gives_the_same_manifest(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    write_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (-1, r"tensor 'model\.b' is damaged"),
        (-40, r"tensor 'model\.a' is damaged"),
        (20, "header is damaged"),
    ],
)
def test_a_flipped_bit_is_named(folder: Path, at: int, says: str) -> None:
    damage(folder / "model.safetensors", at)
    with pytest.raises(Damaged, match=rf"model\.safetensors: {says}"):
        check_manifest(folder)


def test_a_shallow_check_reads_heads_and_sizes_only(folder: Path) -> None:
    damage(folder / "model.safetensors", -1)
    check_manifest(folder, deep=False)
    with open(folder / "config.json", "a") as file:
        file.write(" ")
    with pytest.raises(Damaged, match=r"config\.json: has 3 bytes, not 2"):
        check_manifest(folder, deep=False)


def test_a_cut_names_the_first_tensor_lost(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for size, says in (
        (len(whole) - 1, "inside tensor 'model.b'"),
        (len(whole) - 60, "inside tensor 'model.a'"),
        (50, "header"),
    ):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(Damaged, match=says):
            check_manifest(folder)


def test_a_lost_file_names_its_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(Damaged, match=r"is missing, and with it 2 tensors such as 'model\.a'"):
        check_manifest(folder)


def test_a_file_that_would_change_what_loads_is_refused_and_a_note_is_not(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    check_manifest(folder)
    for name in (
        "adapter_config.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "modeling_x.py",
    ):
        (folder / name).write_text("{}")
        with pytest.raises(Damaged, match="is not in the manifest"):
            check_manifest(folder)
        (folder / name).unlink()


def test_every_bit_of_the_manifest_counts(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(Damaged):
            read_manifest(folder)
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        with pytest.raises(Damaged):
            read_manifest(folder)


def test_a_newer_manifest_says_so(folder: Path) -> None:
    lie(folder, lambda body: body.update(version=9))
    with pytest.raises(Unsupported, match="version 9"):
        check_manifest(folder)
    assert listed_files(folder) is None


def test_without_a_manifest_there_is_nothing_to_check(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None and listed_files(tmp_path) is None
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        check_manifest(tmp_path)


def test_a_link_is_not_part_of_a_checkpoint(folder: Path) -> None:
    (folder / "link").symlink_to("config.json")
    with pytest.raises(BadInput, match="is a link"):
        write_manifest(folder)
