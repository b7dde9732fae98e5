"""Bad input through the command line: status 2, one line of at most 160 characters, and nothing written.

The first rows are what llm-compressor 0.14 accepts in silence (anchors.md, finding 4).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.cli.main import fold
from secateur.errors import BadInput
from tests.cli.tiny import secateur, tree

DRAW = ["--samples", "4", "--length", "32", "--calibration", "TEXT"]

CASES: dict[str, tuple[list[str], str]] = {
    "negative sparsity": (["compress", "TINY", "wanda", "--sparsity", "-0.1", *DRAW], "sparsity"),
    "sparsity above 1": (["compress", "TINY", "wanda", "--sparsity", "1.5", *DRAW], "sparsity"),
    "sparsity 1": (["compress", "TINY", "wanda", "--sparsity", "100%", *DRAW], "sparsity"),
    "sparsity nan": (["compress", "TINY", "wanda", "--sparsity", "nan", *DRAW], "sparsity"),
    "sparsity in words": (["compress", "TINY", "wanda", "--sparsity", "half", *DRAW], "50%"),
    "NaN weights": (["compress", "NAN", "magnitude"], "NaN"),
    "NaN weights, measured": (["compress", "NAN", "wanda", *DRAW], "NaN"),
    "NaN activations": (["compress", "NAN-ACTIVATIONS", "wanda", *DRAW], "NaN"),
    "NaN activations, sparsegpt": (["compress", "NAN-ACTIVATIONS", "sparsegpt", *DRAW], "NaN"),
    "nothing matched": (["compress", "TINY", "wanda", "--only", "*.q_prj", *DRAW], "q_proj"),
    "nothing to skip": (["compress", "TINY", "wanda", "--skip", "*.lm_hed", *DRAW], "matches no site"),
    "everything skipped": (["compress", "TINY", "wanda", "--skip", "*", *DRAW], "skipped"),
    "no calibration file": (["compress", "TINY", "wanda", "--calibration", "missing.txt"], "no such file"),
    "no calibration array": (["compress", "TINY", "wanda", "--calibration", "non.npy"], "none.npy"),
    "empty calibration": (["compress", "TINY", "wanda", "--calibration", "empty.txt"], "empty.txt"),
    "short calibration": (["compress", "TINY", "wanda", "--calibration", "short.txt"], "too short"),
    "no samples": (["compress", "TINY", "wanda", "--calibration", "none.npy"], "none.npy"),
    "ids outside": (["compress", "TINY", "wanda", "--calibration", "outside.npy"], "vocabulary"),
    "0 samples": (["compress", "TINY", "wanda", "--samples", "0"], "below 1"),
    "3:5 does not divide": (["compress", "TINY", "wanda", "--pattern", "3:5", *DRAW], "does not divide"),
    "2:4 on 10 columns": (["compress", "TEN", "magnitude", "--pattern", "2:4"], "does not divide 10"),
    "4:2": (["compress", "TINY", "wanda", "--pattern", "4:2", *DRAW], "0 < N <= M"),
    "0:4": (["compress", "TINY", "wanda", "--pattern", "0:4", *DRAW], "0 < N <= M"),
    "no pattern": (["compress", "TINY", "wanda", "--pattern", "rows", *DRAW], "no pattern"),
    "pattern against sparsity": (["compress", "TINY", "wanda", "--pattern", "2:4", "--sparsity", "0.6"], "2:4"),
    "allocation": (["compress", "TINY", "wanda", "--allocate", "globl", *DRAW], "global"),
    "method typo": (["compress", "TINY", "wnada"], "wanda"),
    "flag typo": (["compress", "TINY", "wanda", "--sparsty", "0.5"], "--sparsity"),
    "flag of another method": (["compress", "TINY", "wanda", "--blocksize", "64"], "--blocksize"),
    "flag out of range": (["compress", "TINY", "sparsegpt", "--damping", "2"], "damping"),
    "flag that is no number": (["compress", "TINY", "sparsegpt", "--damping", "much"], "no number"),
    "no value": (["compress", "TINY", "wanda", "--sparsity"], "--sparsity"),
    "no method": (["compress", "TINY"], "METHOD"),
    "one word too many": (["compress", "TINY", "wanda", "magnitude", "more"], "too many"),
    "command typo": (["comprss", "TINY", "wanda"], "compress"),
    "no such command": (["--fast"], "--fast"),
    "no such model": (["compress", "./nothing", "wanda"], "./nothing"),
    "not a model": (["compress", "TEXT", "wanda"], "not a model"),
    "no such device": (["compress", "TINY", "magnitude", "--device", "cuda:99"], "cuda:99"),
    "no such dtype": (["compress", "TINY", "magnitude", "--dtype", "float31"], "float32"),
    "feed": (["compress", "TINY", "wanda", "--feed", "blocks", *DRAW], "'block'"),
    "format": (["compress", "TINY", "magnitude", "--format", "spars"], "sparse"),
    "shard": (["compress", "TINY", "magnitude", "--max-shard", "big"], "5GB"),
    "two amounts": (["compress", "TINY", "magnitude", "--sparsity", "0.5", "--params", "9e3"], "exactly one"),
    "budget too small": (["compress", "TINY", "magnitude", "--params", "10"], "not reached"),
    "budget too large": (["compress", "TINY", "magnitude", "--params", "1e9"], "more than the model has"),
    "out exists": (["compress", "TINY", "magnitude", "--out", "full"], "--overwrite"),
    "out is not ours": (["compress", "TINY", "magnitude", "--out", "full", "--overwrite"], "did not write"),
    "out is a file": (["compress", "TINY", "magnitude", "--out", "short.txt"], "not a folder"),
    "out is the model": (["compress", "TINY", "magnitude", "--out", "TINY", "--overwrite"], "did not write"),
    "stream on a device": (["compress", "TINY", "magnitude", "--stream", "--dtype", "float16"], "streaming"),
    "damaged plan": (["apply", "damaged.plan", "TINY", "--out", "x"], "damaged.plan"),
    "not a plan": (["apply", "TINY/model.safetensors", "TINY", "--out", "x"], "not a plan"),
    "no plan": (["apply", "damged.plan", "TINY", "--out", "x"], "damaged.plan"),
    "damaged model": (["evaluate", "flipped"], "flipped"),
    "evaluate nothing": (["evaluate", "TINY", "--tokens", "words.txt"], ".npy"),
    "evaluate ids outside": (["evaluate", "TINY", "--tokens", "outside.npy"], "vocabulary"),
    "no question": (["evaluate", "TINY", "--no-text", "--choice", "questions.jsonl"], "answer"),
    "grid": (["sweep", "TINY", "magnitude", "--grid", "0:2:0.5"], "fraction"),
    "grid in words": (["sweep", "TINY", "magnitude", "--grid", "some"], "fraction"),
    "grid of one": (["sweep", "TINY", "magnitude", "--grid", "0.5"], "two or more"),
    "grid without step": (["sweep", "TINY", "magnitude", "--grid", "0:0.5:0"], "start:stop:step"),
    "compare settings": (["compare", "TINY", "wanda:sparsty=0.5"], "sparsity"),
    "compare value": (["compare", "TINY", "wanda:share=maybe"], "true or false"),
    "compare twice": (["compare", "TINY", "magnitude", "magnitude"], "twice"),
    "compare seeds": (["compare", "TINY", "wanda", "--seeds", "0,x"], "--seeds"),
    "results": (["report", "short.txt"], "short.txt"),
    "results typo": (["report", "resuts.json"], "no such file"),
    "list": (["list", "--unit", "wieght"], "weight"),
    "show": (["show", "nowhere"], "nowhere"),
    "verify": (["verify", "flipped"], "crc32"),
    "empty prompt": (["generate", "TINY", " "], "prompt"),
    "recipe": (["run", "bad.toml"], "'sparsity'"),
    "recipe that is none": (["run", "short.txt"], "TOML"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the cases name."""
    at = tmp_path_factory.mktemp("errors")
    (at / "empty.txt").write_text(" \n")
    (at / "short.txt").write_text("a few words")
    (at / "words.txt").write_text("some words")
    (at / "questions.jsonl").write_text(json.dumps({"context": "a", "options": [" b", " c"]}) + "\n")
    (at / "bad.toml").write_text(
        '[model]\nname = "m"\n[method]\nname = "wanda"\nsparsty = 0.5\n[output]\nfolder = "x"\n'
    )
    np.save(at / "none.npy", np.zeros((0, 8), dtype=np.int64))
    np.save(at / "outside.npy", np.full((2, 8), 100_000, dtype=np.int64))
    (at / "full").mkdir()
    (at / "full" / "thesis.txt").write_text("years of work")
    for name, tensor in (("nan", "mlp.up_proj.weight"), ("nan-activations", "input_layernorm.weight")):
        shutil.copytree(tiny, at / name)
        state = load_file(at / name / "model.safetensors")
        state[f"model.layers.1.{tensor}"].view(-1)[3] = float("nan")
        save_file(state, at / name / "model.safetensors", {"format": "pt"})
    _ten(at / "ten")
    made = secateur("compress", tiny, "magnitude", "--out", at / "flipped")
    assert made.status == 0, made.err
    made = secateur("plan", tiny, "magnitude", "--out", at / "damaged.plan")
    assert made.status == 0, made.err
    for path, place in ((at / "flipped" / "model.safetensors", -100), (at / "damaged.plan", -5)):
        raw = bytearray(path.read_bytes())
        raw[place] ^= 1
        path.write_bytes(raw)
    return at


def _ten(folder: Path) -> None:
    """A model whose layers read 10 inputs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=10, intermediate_size=12, num_hidden_layers=2, num_attention_heads=1, head_dim=10
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("case", CASES, ids=[name.replace(" ", "-") for name in CASES])
def test_bad_input_is_one_line_and_nothing_is_written(
    case: str, bench: Path, tiny: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = CASES[case]
    places = {"TINY": tiny, "TEXT": text, "NAN": "nan", "NAN-ACTIVATIONS": "nan-activations", "TEN": "ten"}
    words = [str(places.get(word, word.replace("TINY/", f"{tiny}/"))) for word in words]
    monkeypatch.chdir(bench)
    before = tree(bench)
    said = secateur(*words)
    assert said.status == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert len(said.err) <= 161 and said.err.startswith("secateur: "), said.err
    assert expected in said.err, said.err
    assert tree(bench) == before
    assert sorted(p.name for p in bench.iterdir()) == sorted({name.split("/")[0] for name in before})


def test_no_calibration_at_all_is_refused_from_python(tiny: Path) -> None:
    import secateur as library

    model = library.load(tiny).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for calibration in (None, []):
        with pytest.raises(BadInput, match="calibra"):
            library.compress(model, "wanda", calibration)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_long_error_keeps_what_to_do() -> None:
    error = BadInput("w" * 300, where="/a/very/long/path" * 20, fix="do this")
    line = fold(error, 150)
    assert len(line) <= 150 and line.endswith("; do this") and "\n" not in line
    short = BadInput("short", where="here", fix="do this")
    assert fold(short, 150) == "here: short; do this"
    assert len(fold(BadInput("x", where="y", fix="z" * 400), 150)) == 150
