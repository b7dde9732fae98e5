"""Each command does its work on a tiny model, and says what it did."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.tiny import secateur, tree


@pytest.fixture
def draw(text: Path) -> list[str]:
    return ["--calibration", str(text), "--samples", "4", "--length", "32"]


def zeros(folder: Path) -> dict[str, float]:
    """Fraction of zeros in each weight of the blocks."""
    state = load_file(folder / "model.safetensors")
    return {n: float((w == 0).float().mean()) for n, w in state.items() if ".layers." in n and w.dim() == 2}


def test_compress_writes_a_folder_that_transformers_loads(tiny, here, draw):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = secateur("compress", tiny, "wanda", *draw)
    assert said.status == 0 and said.err == "", said.err
    assert "wanda cut 50.00% of 18,432 weights at 14 sites" in said.out and "tiny-wanda-50" in said.out
    assert set(zeros(here / "tiny-wanda-50").values()) == {0.5}
    model = AutoModelForCausalLM.from_pretrained(here / "tiny-wanda-50")
    assert float((model.model.layers[1].mlp.up_proj.weight == 0).float().mean()) == 0.5
    assert AutoTokenizer.from_pretrained(here / "tiny-wanda-50")("licence").input_ids
    plan = json.loads((here / "tiny-wanda-50" / "plan.json").read_text())
    assert plan["method"] == "wanda" and len(plan["sites"]) == 14


def test_the_same_words_give_the_same_bytes(tiny, here, draw):
    for name in ("a", "b"):
        assert secateur("compress", tiny, "sparsegpt", *draw, "--out", name).status == 0
    assert tree(here / "a") == tree(here / "b")
    assert secateur("compress", tiny, "sparsegpt", *draw, "--seed", "1", "--out", "c").status == 0
    assert tree(here / "a") != tree(here / "c")


def test_flags_reach_the_method_and_the_walk(tiny, here, draw):
    words = ["--pattern", "2:4", "--only", "*.mlp.*", "--skip", "*.down_proj", "--feed", "block", "--json"]
    said = secateur("compress", tiny, "sparsegpt", *draw, *words, "--blocksize", "16", "--out", "x")
    found = json.loads(said.out)
    assert found["config"]["pattern"] == "2:4" and found["config"]["blocksize"] == 16
    assert found["made"]["feed"] == "block" and found["sites"] == 4
    cut = zeros(here / "x")
    assert {name.split(".")[4] for name, share in cut.items() if share == 0.5} == {"gate_proj", "up_proj"}
    assert sum(cut.values()) == 2.0


def test_budgets(tiny, here):
    said = secateur("compress", tiny, "magnitude", "--params", "26000", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["folder"] == "tiny-magnitude-params-26000"
    kept = sum(
        int((w != 0).sum())
        for w in load_file(here / "tiny-magnitude-params-26000/model.safetensors").values()
    )
    assert abs(kept - 26000) < 50


def test_sparse_format_comes_back_bit_for_bit(tiny, here):
    from secateur.io.store import load

    for form in ("dense", "sparse"):
        assert secateur("compress", tiny, "magnitude", "--format", form, "--out", form).status == 0
    assert (here / "sparse").stat() and not (here / "sparse" / "model.safetensors").exists()
    dense, sparse = (load(here / form).model.state_dict() for form in ("dense", "sparse"))
    assert all(torch.equal(value, sparse[name]) for name, value in dense.items())


def test_streaming_gives_the_same_weights(tiny, here, draw):
    assert secateur("compress", tiny, "wanda", *draw, "--out", "a").status == 0
    assert secateur("compress", tiny, "wanda", *draw, "--out", "b", "--stream").status == 0
    assert secateur("compress", tiny, "wanda", *draw, "--out", "c", "--resume").status == 0
    weights = {name: (here / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] == weights["c"]


def test_overwrite_replaces_only_a_checkpoint_of_ours(tiny, here):
    words = ["compress", tiny, "magnitude", "--out", "x"]
    assert secateur(*words).status == 0
    assert secateur(*words).status == 2
    assert secateur(*words, "--sparsity", "0.25", "--overwrite").status == 0
    assert set(zeros(here / "x").values()) == {0.25}


def test_a_plan_replayed_is_the_cut(tiny, here, draw):
    said = secateur("plan", tiny, "wanda", *draw)
    assert said.status == 0 and "wanda would cut 50.00% of 18,432 weights at 14 sites\n" in said.out
    assert os.listdir(here) == ["tiny-wanda-50.plan"]
    said = secateur("apply", "tiny-wanda-50.plan", tiny, "--json")
    assert said.status == 0 and json.loads(said.out)["sparsity"] == 0.5
    assert secateur("compress", tiny, "wanda", *draw).status == 0
    folders = [here / name / "model.safetensors" for name in ("tiny-wanda-50", "tiny-tiny-wanda-50-applied")]
    assert folders[0].read_bytes() == folders[1].read_bytes()
    said = secateur("plan", tiny, "wanda", *draw)
    assert said.status == 2 and "exists already" in said.err
    assert (
        json.loads(secateur("plan", tiny, "wanda", *draw, "--overwrite", "--json").out)["file"]
        == "tiny-wanda-50.plan"
    )


def test_a_plan_of_an_updating_method_gives_its_mask_only_when_asked(tiny, here, draw):
    assert secateur("plan", tiny, "sparsegpt", *draw, "--out", "p").status == 0
    said = secateur("apply", "p", tiny, "--out", "x")
    assert said.status == 2 and "--masks-only" in said.err and not Path("x").exists()
    assert secateur("apply", "p", tiny, "--out", "x", "--masks-only").status == 0
    assert abs(sum(zeros(here / "x").values()) / 14 - 0.5) < 1e-6


def test_evaluate_gives_every_figure(tiny, here, text):
    np.save("ids.npy", np.arange(96).reshape(3, 32) % 512)
    row = {"context": "License", "options": [" terms", " xyz"], "answer": 0}
    Path("q.jsonl").write_text(json.dumps(row) + "\n")
    said = secateur(
        "evaluate", tiny, "--tokens", "ids.npy", "--choice", "q.jsonl", "--out", "r.json", "--json"
    )
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert set(found["metrics"]) == {"perplexity", "accuracy", "q accuracy", "q accuracy_normalised"}
    assert 300 < found["metrics"]["perplexity"] < 800, "random weights know nothing of 512 words"
    assert found["sparsity"] == 0 and found["bytes"] > 100_000
    assert secateur("report", "r.json").status == 0 and Path("report.html").is_file()
    said = secateur("evaluate", tiny, "--text", text, "--length", "64", "--windows", "2")
    assert "words.txt, 2 windows of 64 tokens" in said.out and "perplexity" in said.out


def test_sweep_and_compare_write_their_pages(tiny, here, text, draw):
    words = [*draw, "--text", str(text), "--windows", "2"]
    said = secateur("sweep", tiny, "magnitude", "--grid", "0.2:0.8:0.3", *words)
    assert said.status == 0, said.err
    assert "magnitude 20%" in said.out and "knee of magnitude" in said.out
    assert "report.html" in os.listdir("tiny-magnitude-sweep")
    results = json.loads(Path("tiny-magnitude-sweep/results.json").read_text())
    assert results["command"].startswith("secateur sweep ") and "--grid 0.2:0.8:0.3" in results["command"]
    said = secateur("sweep", tiny, "wanda", "--patterns", "1:4,2:4", *words, "--json", "--out", "p")
    assert [row["name"] for row in json.loads(said.out)["rows"]] == ["dense", "wanda 2:4", "wanda 1:4"]
    again = secateur("sweep", tiny, "wanda", "--patterns", "1:4,2:4", *words, "--out", "p")
    assert again.status == 2 and "exists already" in again.err
    said = secateur(
        "compare",
        tiny,
        "wanda",
        "sparsegpt:damping=0.1",
        "--sparsity",
        "60%",
        "--seeds",
        "0,1",
        *words,
        "--out",
        "c",
    )
    assert said.status == 0, said.err
    rows = json.loads(Path("c/results.json").read_text())["rows"]
    assert [(row["name"], row["seed"]) for row in rows[1:]] == [
        ("wanda 60%", 0), ("wanda 60%", 1), ("sparsegpt 60% damping=0.1", 0), ("sparsegpt 60% damping=0.1", 1),
    ]  # fmt: skip


def test_list_filters(here):
    assert "sparsegpt" in secateur("list").out
    rows = json.loads(
        secateur("list", "--needs", "nothing", "--unit", "weight", "--when", "after", "--json").out
    )
    assert {"random", "magnitude"} <= {row["name"] for row in rows} and "wanda" not in {
        row["name"] for row in rows
    }
    assert all(row["paper"] and row["what"] for row in rows)
    assert json.loads(secateur("list", "--for", "inference", "--json").out)


def test_show_and_verify_measure_the_weights(tiny, here):
    assert secateur("compress", tiny, "magnitude", "--pattern", "1:4", "--out", "x").status == 0
    said = secateur("show", "x")
    assert (
        said.status == 0 and "75.00%" in said.out and "1:4 at 14" in said.out and "manifest: yes" in said.out
    )
    assert json.loads(secateur("show", "x", "--json").out)["cut"]["tensors"] >= 14
    assert "every byte" in secateur("verify", "x").out
    said = secateur("verify", tiny)
    assert said.status == 0 and "note:" in said.out


def test_generate_goes_on_from_the_prompt(tiny, here):
    said = secateur("generate", tiny, "the License", "--tokens", "3")
    assert said.status == 0 and said.out.startswith("the License") and len(said.out) > len("the License\n")
    found = json.loads(
        secateur("generate", tiny, "the", "--tokens", "3", "--sample", "--seed", "4", "--json").out
    )
    assert found["prompt"] == "the"


def test_quiet_says_nothing(tiny, here):
    said = secateur("compress", tiny, "magnitude", "--quiet")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert Path("tiny-magnitude-50").is_dir()
