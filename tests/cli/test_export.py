"""`secateur export`: three formats, what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.packed_folder import read_packed
from tests.cli.tiny import secateur, tree
from tests.io.test_compressed import BITMASK, compress_folder
from tests.tinylm import save_tiny


def test_a_sparse_folder_becomes_the_dense_one(tiny: Path, here: Path) -> None:
    for words in (["dense"], ["sparse", "--format", "sparse"]):
        said = secateur("compress", tiny, "magnitude", "--sparsity", "0.5", "--out", *words)
        assert said.status == 0, said.err
    said = secateur("export", "sparse", "--to", "safetensors", "--out", "plain")
    assert said.status == 0 and said.out.startswith("plain: ") and "20 tensors, stored dense" in said.out
    assert tree(here / "plain") == tree(here / "dense")
    again = secateur("export", "sparse", "--to", "safetensors", "--out", "plain")
    assert again.status == 2 and "exists already" in again.err
    said = secateur("export", "sparse", "--to", "safetensors", "--out", "plain", "--overwrite", "--json")
    assert json.loads(said.out)["file"] == "plain" and secateur("verify", "plain").status == 0


def test_a_cut_model_is_packed_and_loads(tiny: Path, here: Path) -> None:
    said = secateur("compress", tiny, "magnitude", "--sparsity", "0.5", "--pattern", "2:4", "--out", "cut")
    assert said.status == 0, said.err
    said = secateur("export", "cut", "--to", "sparse", "--kind", "auto", "--out", "same")
    assert said.status == 0, said.err
    assert said.out.startswith("same: ") and said.out.endswith("tensors 14 2:4 float32, 6 plain\n")
    secateur("export", "same", "--to", "safetensors", "--out", "back")
    assert tree(here / "back") == tree(here / "cut")
    words = ["--kind", "2:4", "--values", "int8", "--json"]
    said = secateur("export", "cut", "--to", "sparse", *words, "--out", "whole")
    found = json.loads(said.out)
    assert found["stored"] == {"2:4 int8": 14, "dense int8": 1, "plain": 5}
    assert found["bytes"] == sum(matrix.bytes for matrix in read_packed("whole").values()) + 5 * 32 * 4
    assert secateur("verify", "whole").status == 0 and secateur("show", "whole").status == 0
    assert secateur("generate", "whole", "The", "--tokens", "2").status == 0
    said = secateur("export", "whole", "--to", "sparse", "--out", "bits")
    assert said.status == 0 and "14 bitmask float32, 6 plain" in said.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--to", "onnx", "--kind", "auto"], "--kind: onnx is not packed; use --to sparse"),
        (["--to", "sparse", "--kind", "2;4"], "'2;4' is no kind; did you mean '2:4'"),
        (["--to", "sparse", "--group", "64"], "only int8 has scales"),
        (["--to", "sparse", "--values", "int8", "--group", "64"], "groups of 64 do not divide 32 columns"),
    ],
)
def test_what_cannot_be_packed_is_one_line(tiny: Path, here: Path, words: list[str], line: str) -> None:
    said = secateur("export", tiny, *words, "--out", "out")
    assert said.status == 2 and line in said.err and said.err.count("\n") == 1
    assert not list(here.iterdir())


def test_a_plain_module_becomes_dense_too(here: Path) -> None:
    save_classifier(load_classifier("mlp-16", channels=1, size=8, classes=10), here / "m")
    said = secateur("export", "m", "--to", "safetensors", "--out", "plain")
    assert said.status == 0 and tree(here / "plain") == tree(here / "m")


def test_gguf_says_what_it_wrote(tiny: Path, here: Path) -> None:
    gguf = pytest.importorskip("gguf")
    said = secateur("export", tiny, "--to", "gguf", "--out", "a.gguf")
    assert said.status == 0, said.err
    assert said.out.startswith("a.gguf: ") and said.out.endswith(
        "llama, tensors 15 f16, 5 f32, tokenizer gpt2\n"
    )
    fields = gguf.GGUFReader(here / "a.gguf").fields
    assert fields["general.name"].contents() == "tiny"
    said = secateur("export", tiny, "--to", "gguf", "--out", "a.gguf", "--type", "q8_0")
    assert said.status == 2 and "exists already" in said.err and "--overwrite" in said.err
    before = (here / "a.gguf").stat().st_size
    said = secateur(
        "export", tiny, "--to", "gguf", "--out", "a.gguf", "--type", "q8_0", "--overwrite", "--json"
    )
    found = json.loads(said.out)
    assert found["tensors"] == {"q8_0": 15, "f32": 5} and found["type"] == "q8_0"
    assert found["bytes"] == (here / "a.gguf").stat().st_size < before
    assert sorted(path.name for path in here.iterdir()) == ["a.gguf"]
    assert secateur("export", tiny, "--to", "gguf", "--out", "b.gguf", "--quiet").out == ""
    # and it can be read by its name as any other model
    assert secateur("generate", "a.gguf", "The", "--tokens", "2").status == 0


def test_onnx_of_a_classifier(here: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    save_classifier(load_classifier("mlp-16", channels=1, size=8, classes=10), here / "m")
    said = secateur("export", "m", "--to", "onnx", "--out", "graph")
    assert said.status == 0, said.err
    assert "1,210 parameters in float32; onnxruntime's logits differ by " in said.out
    assert {path.name for path in (here / "graph").iterdir()} == {
        "config.json",
        "manifest.json",
        "model.onnx",
    }
    said = secateur("export", "m", "--to", "onnx", "--out", "graph", "--overwrite", "--json")
    assert json.loads(said.out)["difference"] < 1e-5


def test_old_compressed_folders_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(here / "cache"))
    dense = compress_folder(save_tiny(here / "old"), BITMASK)
    said = secateur("export", "old", "--to", "safetensors", "--out", "plain")
    assert said.status == 0, said.err
    back = load_file(here / "plain" / "model.safetensors")
    assert set(back) == set(dense) and all(torch.equal(back[name], dense[name]) for name in dense)
    for path in (here / "old").glob("tokenizer*"):
        path.unlink()
    said = secateur("export", "old", "--to", "gguf", "--type", "f32", "--out", "a.gguf")
    assert said.status == 0 and "no tokenizer\nnote: the folder has no tokenizer" in said.out, said.err
    (kept,) = (here / "cache" / "compressed").iterdir()
    assert kept.name.startswith("old-")


@pytest.mark.parametrize(
    "words,line",
    [
        (["m"], "export: missing --to, --out"),
        (["m", "--to", "gguf"], "export: missing --out"),
        (["m", "--to", "ggml", "--out", "x"], "'ggml' is no --to; did you mean 'gguf'?"),
        (["m", "--to", "onnx", "--out", "x", "--type", "f16"], "onnx is written in float32"),
        (["m", "--to", "safetensors", "--out", "x", "--type", "f16"], "keeps the types that are stored"),
        (["./nowhere", "--to", "gguf", "--out", "x"], "no such file or folder"),
        (["TINY", "--to", "gguf", "--out", "x", "--type", "q4_k"], "'q4_k' is no type; did you mean"),
        (["TINY", "--to", "gguf", "--out", "."], "is a folder"),
        (["TINY", "--to", "onnx", "--out", "."], "is the current folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny: Path, here: Path, words: list[str], line: str) -> None:
    said = secateur("export", *(tiny if word == "TINY" else word for word in words))
    assert said.status == 2 and line in said.err and said.err.count("\n") == 1, said.err
    assert list(here.iterdir()) == []
