"""Dense to sparse and back: the same bytes, only where it pays, and nothing a plain loader could misread."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import Damaged, Unsupported
from secateur.io.convert import copy_side_files, to_dense, to_sparse
from secateur.io.manifest import check_manifest, write_manifest
from secateur.io.tensors import TensorFolder, sparse_metadata
from secateur.io.writer import FolderWriter

HALF = (torch.arange(64 * 40) % 2 * torch.linspace(-1, 1, 64 * 40)).reshape(64, 40)
TENSORS = {
    "half.weight": HALF,
    "half16.weight": HALF.bfloat16(),
    "full.weight": torch.ones(64, 40),
    "none.weight": torch.zeros(64, 40, dtype=torch.float16),
    "half.bias": torch.zeros(64),
    "stack.weight": torch.zeros(2, 8, 8),
    "embedding": torch.zeros(64, 40),
    "empty.weight": torch.zeros(0, 40),
    "taken.weight": torch.zeros(64, 40),
    "taken.bitmask": torch.zeros(3),
}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    folder.mkdir()
    names = sorted(TENSORS)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    layout = {
        f: {n: (TENSORS[n].dtype, tuple(TENSORS[n].shape)) for n in names[i::2]} for i, f in enumerate(files)
    }
    with FolderWriter(folder, layout) as writer:
        for name in names:
            writer.put(name, TENSORS[name])
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "plan.json").write_text("{}")
    write_manifest(folder)
    return folder


def test_there_and_back_gives_every_file_as_it_was(dense: Path, tmp_path: Path) -> None:
    to_sparse(dense, tmp_path / "sparse")
    to_dense(tmp_path / "sparse", tmp_path / "back")
    names = sorted(p.name for p in dense.iterdir())
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == names
    assert filecmp.cmpfiles(dense, tmp_path / "back", names, shallow=False) == (names, [], [])
    to_sparse(tmp_path / "sparse", tmp_path / "again")
    names = sorted(p.name for p in (tmp_path / "sparse").iterdir())
    assert filecmp.cmpfiles(tmp_path / "sparse", tmp_path / "again", names, shallow=False) == (names, [], [])


def test_only_what_gets_smaller_is_stored_sparse(dense: Path, tmp_path: Path) -> None:
    check_manifest(to_sparse(dense, tmp_path / "sparse"))
    with TensorFolder(tmp_path / "sparse") as folder:
        stored = {name for name in folder.names() if folder.is_sparse(name)}
        assert stored == {"half.weight", "half16.weight", "none.weight"}
        assert set(folder.names()) == set(TENSORS)
        assert all(torch.equal(folder.get(name), tensor) for name, tensor in TENSORS.items())


def test_a_loader_that_does_not_know_the_format_finds_no_weights(dense: Path, tmp_path: Path) -> None:
    to_sparse(dense, tmp_path / "sparse")
    assert (
        not list((tmp_path / "sparse").glob("model*"))
        and (tmp_path / "sparse" / "sparse.safetensors.index.json").exists()
    )


def test_damage_is_found_before_anything_is_written(dense: Path, tmp_path: Path) -> None:
    path = dense / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(Damaged, match="00001"):
        to_sparse(dense, tmp_path / "sparse")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]


def test_the_name_to_go_back_to_may_not_lead_anywhere(tmp_path: Path) -> None:
    for number, name in enumerate(("../x.safetensors", "/x.safetensors", "x.py", ".x.safetensors")):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        save_file({"a": torch.zeros(1)}, folder / "sparse.safetensors", sparse_metadata([], name))
        with pytest.raises(Unsupported, match="was made from"):
            to_dense(folder, tmp_path / "out")


def test_other_file_names_come_back_too(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    save_file({"a.weight": HALF}, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    to_dense(to_sparse(folder, tmp_path / "s"), tmp_path / "d")
    assert torch.equal(load_file(tmp_path / "d" / "diffusion_pytorch_model.safetensors")["a.weight"], HALF)


def test_side_files_are_words_never_weights_or_code(tmp_path: Path) -> None:
    source, out = tmp_path / "src", tmp_path / "out"
    (source / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    wanted = {
        "README.md",
        "LICENSE",
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "spiece.model",
        "vocab.json",
    }
    never = {
        "modeling_x.py",
        "pytorch_model.bin",
        "x.pkl",
        "model.safetensors",
        "x.index.json",
        "m.gguf",
        ".env",
        "a.tar.gz",
    }
    for name in wanted | never | {"config.json", "plan.json"}:
        (source / name).write_text(name)
    (source / "additional_chat_templates" / "tool.jinja").write_text("x")
    (out / "vocab.json").write_text("newer")
    copied = copy_side_files(source, out, set(), skip={"plan.json"})
    assert set(copied) == (wanted - {"vocab.json"}) | {"additional_chat_templates/tool.jinja"}
    assert (out / "vocab.json").read_text() == "newer" and (out / "README.md").read_text() == "README.md"


def test_a_side_file_may_not_be_fetched_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "src" / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(Damaged, match="leads outside"):
        copy_side_files(tmp_path / "src", tmp_path / "out", set())
