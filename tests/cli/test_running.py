"""What `generate` and `serve` do to a model before they run it: threads, packed weights and when they are taken."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from secateur.cli import running as module
from secateur.cli.parser import Parser
from secateur.cli.running import is_sparse, running, running_flags
from secateur.engine.events import silent
from secateur.errors import Unsupported
from secateur.runtime import library
from secateur.runtime.linear import PackedLinear
from tests.cli.tiny import secateur


def parsed(*words: str | Path) -> argparse.Namespace:
    parser = Parser(prog="secateur try")
    parser.add_argument("model")
    running_flags(parser)
    return parser.parse([str(word) for word in words])


@pytest.fixture(scope="module")
def compact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the tiny model in the sparse format."""
    out = tmp_path_factory.mktemp("compact") / "half"
    words = ("magnitude", "--sparsity", "0.5", "--format", "sparse", "--out", out)
    assert secateur("compress", tiny, *words).status == 0
    return out


def test_sparse_folders_are_known_by_their_weights(tiny: Path, compact: Path) -> None:
    assert is_sparse(compact) and not is_sparse(tiny) and not is_sparse(None)


@pytest.mark.parametrize(
    "sparse,words,wanted",
    [
        (True, (), False),
        (True, ("--accelerate",), True),
        (True, ("--no-accelerate",), False),
        (False, (), False),
        (False, ("--accelerate",), True),
        (False, ("--values", "int8"), True),
        (True, ("--values", "int8"), True),
        (True, ("--values", "int8", "--no-accelerate"), False),
    ],
)
def test_when_layers_are_raced(
    sparse: bool,
    words: tuple[str, ...],
    wanted: bool,
    tiny: Path,
    compact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models: list[Any] = []

    def accelerated(args: argparse.Namespace, model: Any, listen: Any) -> Any:
        models.append(model)
        return SimpleNamespace(notes=["a note of it"])

    monkeypatch.setattr(module, "accelerated", accelerated)
    loaded = running(parsed(compact if sparse else tiny, *words), silent)
    assert models == ([loaded.model] if wanted else [])
    if library.load() is None:  # which is said in a note
        return
    assert capsys.readouterr().err == ("note: a note of it\n" if wanted else "")
    held = any(isinstance(part, PackedLinear) for part in loaded.model.modules())
    assert held == (sparse and not words), "only a sparse folder, and only where nothing was asked for"


def test_a_sparse_folder_runs_as_it_lies(compact: Path) -> None:
    loaded, plain = running(parsed(compact), silent), running(parsed(compact, "--no-accelerate"), silent)
    assert loaded.folder == compact and loaded.name == str(compact) and loaded.tokenizer is not None
    ids = torch.arange(12)[None]
    torch.testing.assert_close(loaded.model(ids).logits, plain.model(ids).logits, rtol=1e-4, atol=1e-4)
    half = running(parsed(compact, "--dtype", "bfloat16"), silent)
    assert half.model(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("why", ["no compiled kernels", "Conv1D multiplies"])
def test_what_cannot_run_as_it_lies_is_expanded_and_said(
    why: str, compact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folder: Path, dtype: Any) -> Any:
        raise Unsupported("a Conv1D multiplies its other side", where=str(folder))

    monkeypatch.setattr(library, "load", lambda: None if "kernels" in why else object())
    monkeypatch.setattr("secateur.runtime.loading.load_packed", refuse)
    loaded = running(parsed(compact), silent)
    assert not any(isinstance(part, PackedLinear) for part in loaded.model.modules())
    said = capsys.readouterr().err
    assert said.startswith(f"note: {compact} is expanded: ") and why in said and said.count("\n") == 1


def test_a_damaged_sparse_folder_is_one_line(compact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compact, tmp_path / "damaged")
    raw = bytearray((folder / "sparse.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "sparse.safetensors").write_bytes(raw)
    said = secateur("generate", folder, "one", "--tokens", "2", "--quiet")
    assert said.status == 2 and "restore the file" in said.err and said.err.count("\n") == 1


def test_threads_are_set_before_anything_is_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    running(parsed(tiny, "--threads", "3"), silent)
    assert seen == [3]
    running(parsed(tiny), silent)
    assert seen == [3]
