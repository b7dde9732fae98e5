"""The fine-tuning job: from name and text to a folder whose zeros are those of the source; its command."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import secateur
from secateur.errors import BadInput, NoMatch
from secateur.io.manifest import check_manifest
from secateur.io.store import load
from secateur.methods.weights.wanda import Wanda
from secateur.recovery import finetune_model
from tests.cli.tiny import secateur as command
from tests.cli.tiny import tree
from tests.docs.tiny import tiny_model

TEXT = str(Path(__file__).parents[1] / "LICENSE")
LICENSE = {"steps": 6, "length": 24, "batch": 2}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What peft and transformers warn about is theirs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft|transformers")
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(Path(TEXT).read_text(encoding="utf-8"), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module", params=["0.5", "2:4"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A tiny model cut by Wanda, per row or 2:4."""
    folder = tmp_path_factory.mktemp("half")
    method = Wanda(pattern="2:4") if request.param == "2:4" else Wanda(sparsity=0.5)
    tiny = tiny_model(folder / "tiny")
    secateur.compress(tiny, method, text, samples=4, length=32, out=folder / "half")
    return folder / "half"


def layers(folder: Path) -> dict[str, Tensor]:
    found = load_file(folder / "model.safetensors")
    return {name: w for name, w in found.items() if ".layers." in name and w.ndim == 2}


@pytest.mark.parametrize("words", [(), ("--lora", "--rank", "3")])
def test_the_command_keeps_zeros_plan_and_names(
    half: Path, text: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    said = command(
        "finetune", half, "--out", out, "--text", text, "--lr", "1e-2", *words,
        "--steps", "12", "--length", "24",
    )  # fmt: skip
    assert said.status == 0 and said.err == "", said.err
    assert "12 steps" in said.out and "50.00% of the weights of linear layers are zero" in said.out
    assert ("adapters of rank 3" in said.out) == bool(words)
    before, after = layers(half), layers(out)
    assert before.keys() == after.keys() and len(after) == 14
    for name, weight in after.items():
        assert torch.equal(weight == 0, before[name] == 0), name
        assert not torch.equal(weight, before[name]), f"{name} was not trained"
    assert (out / "plan.json").read_bytes() == (half / "plan.json").read_bytes()
    assert load_file(out / "model.safetensors").keys() == load_file(half / "model.safetensors").keys()
    check_manifest(out)
    figures = json.loads((out / "finetune.json").read_text())
    assert figures["sparsity"] == 0.5 and figures["rank"] == (3 if words else None)
    assert figures["text"].startswith("words.txt, 24 windows of 24 tokens")
    losses = figures["losses"]
    assert len(losses) == 12
    assert words or sum(losses[-3:]) < sum(losses[:3]), "under a random head adapters need longer"
    AutoModelForCausalLM.from_pretrained(out)
    assert command("verify", out).status == 0 and command("show", out).status == 0


def test_the_same_seed_gives_the_same_bytes(half: Path, text: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune_model(str(half), tmp_path / name, text=text, seed=seed, **LICENSE)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_16_bits_are_trained_in_32_and_come_back_as_16(text: str, tmp_path: Path) -> None:
    """Steps of 1e-5 would be lost in bfloat16: the weights move as those of a float32 model do."""
    narrow = load(tiny_model(tmp_path / "tiny"), dtype="bfloat16")
    secateur.compress(narrow.model, Wanda(sparsity=0.5), torch.arange(4, 132).view(4, 32), undo=False)
    wide: Any = load(tmp_path / "tiny", dtype="float32")
    wide.model.load_state_dict(narrow.model.state_dict())
    start = {n: p.detach().clone() for n, p in narrow.model.named_parameters()}
    a = finetune_model(narrow, tmp_path / "out", text=text, **{**LICENSE, "steps": 30}, lr=2e-5)
    b = finetune_model(wide, text=text, **{**LICENSE, "steps": 30}, lr=2e-5)
    assert a.losses == pytest.approx(b.losses, rel=1e-6) and b.folder is None
    moved = 0
    for (name, p), q in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        assert p.dtype == torch.bfloat16 and torch.equal(p, q.bfloat16()), name
        moved += int((p != start[name]).sum())
    assert moved > 1000
    assert {w.dtype for w in layers(tmp_path / "out").values()} == {torch.bfloat16}


def test_what_is_wrong_is_one_line_and_writes_nothing(half: Path, text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, line in (
        (["--lr", "0"], "finetune: lr 0.0, weight_decay 0.0; lr > 0"),
        (["--lr", "1e30"], "step 2 is"),
        (["--length", "1"], "1 is below 2"),
        (["--rank", "0", "--lora"], "0 is below 1"),
        (["--length", "100000"], "too short for one window of 100000"),
        (["--text", "nowhere.txt"], "no such file or folder"),
        (["--step", "3"], "no flag --step; did you mean '--steps'"),
    ):
        said = command(
            "finetune", half, "--out", out, "--text", text, "--steps", "3", "--length", "16", *words
        )
        assert said.status == 2 and line in said.err and said.err.count("\n") == 1, said.err
        assert not out.exists() and not list(tmp_path.iterdir())
    said = command("finetune", half)
    assert said.status == 2 and "finetune: missing --out" in said.err
    with pytest.raises(BadInput, match="steps: 0; give a whole number"):
        finetune_model(half, steps=0)
    with pytest.raises(NoMatch):
        finetune_model(tmp_path / "nothing", text=text)
    out.mkdir()
    (out / "mine.txt").write_text("x")
    said = command("finetune", half, "--out", out, "--text", text, "--overwrite")
    assert said.status == 2 and "did not write this folder" in said.err
