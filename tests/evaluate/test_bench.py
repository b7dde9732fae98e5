"""Rows are measured on the cut model, and the dense one is back afterwards."""

from __future__ import annotations

import pytest
import torch

from secateur.core.budget import Budget
from secateur.engine.calibrate import calibration
from secateur.engine.run import Options
from secateur.errors import BadInput
from secateur.evaluate.bench import Bench, Text, label, read_text
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.random import Random
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.methods.weights.wanda import Wanda
from secateur.report.table import check_results
from tests.tinylm import tiny_llama, tiny_tokenizer


@pytest.fixture
def bench() -> Bench:
    torch.manual_seed(1)
    return Bench(tiny_llama(), tiny_tokenizer(), Text(torch.randint(0, 64, (3, 16)), "random ids"))


def test_a_cut_is_measured_and_taken_back(bench):
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    dense = bench.dense()
    row = bench.cut(Magnitude(sparsity=0.5), seed=7)
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    assert (dense["sparsity"], row["sparsity"]) == (0.0, 0.5)
    assert row["metrics"]["perplexity"] != dense["metrics"]["perplexity"]
    assert row["flops"] < dense["flops"] and row["model_density"] < 1
    assert (row["name"], row["method"], row["seed"]) == ("magnitude 50%", "magnitude", 7)
    assert row["config"]["sparsity"] == 0.5 and row["seconds"] > 0 and row["peak_mb"] > 10
    assert len(row["layers"]) == 14 and all(layer["sparsity"] == 0.5 for layer in row["layers"])
    assert dense["layers"] == [] and dense["config"] == {} and dense["seconds"] is None


def test_rows_are_what_results_json_takes(bench):
    rows = [bench.dense(), bench.cut(Random(sparsity=0.25, seed=3), seed=3)]
    checked = check_results({"format": "secateur.results", "version": 1, "rows": rows})
    assert [row["name"] for row in checked["rows"]] == ["dense", "random 25%"]


def test_output_errors_reach_the_layers(bench):
    drawn = calibration(torch.randint(4, 60, (4, 16)), None)
    row = bench.cut(SparseGPT(sparsity=0.5), drawn)
    assert all(0 < layer["error"] < 1 for layer in row["layers"])


def test_what_keep_writes_is_weighed_while_the_model_is_cut(bench, tmp_path):
    seen = {}

    def keep(plan, row):
        weight = bench.model.model.layers[0].mlp.up_proj.weight
        seen.update(zeros=float((weight == 0).float().mean()), plan=plan.sparsity, row=row["name"])
        (tmp_path / "a").write_bytes(b"x" * 123)
        return tmp_path

    row = bench.cut(Magnitude(sparsity=0.5), keep=keep)
    assert seen == {"zeros": 0.5, "plan": 0.5, "row": "magnitude 50%"}
    assert (row["bytes"], row["folder"]) == (123, str(tmp_path))


def test_an_error_while_measuring_takes_the_cut_back(bench):
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}

    def keep(plan, row):
        raise OSError("disk full")

    with pytest.raises(OSError):
        bench.cut(Magnitude(sparsity=0.5), keep=keep)
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())


def test_events_name_the_row_and_the_stage(bench):
    told = []
    bench.options = Options(listen=told.append)
    bench.prompt, bench.new_tokens = "w1 w2", 3
    row = bench.cut(Magnitude(sparsity=0.5))
    assert row["sample"].startswith("w1 w2")
    stages = list(dict.fromkeys(event.stage for event in told))
    assert stages == ["magnitude 50%: cut", "magnitude 50%: perplexity", "magnitude 50%: prompt"]
    assert all(event.done <= event.total for event in told)


def test_speed_is_read_and_written_tokens(bench):
    bench.speed = True
    row = bench.dense()
    assert row["tokens_per_second"] > 0 and row["prefill_per_second"] > 0
    check_results({"format": "secateur.results", "version": 1, "rows": [row]})


def test_text_from_ids_documents_and_files(tmp_path):
    tokenizer = tiny_tokenizer()
    assert (
        read_text(torch.zeros(2, 8, dtype=torch.int64), tokenizer).words
        == "given tokens, 2 windows of 8 tokens"
    )
    assert read_text(["w1 w2 w3", "w4 w5"], tokenizer, length=3).ids.shape == (2, 3)
    (tmp_path / "a.txt").write_text("w1 " * 20)
    found = read_text(tmp_path / "a.txt", tokenizer, length=4, windows=2)
    assert found.ids.shape == (2, 4) and found.words == "a.txt, 2 windows of 4 tokens"
    with pytest.raises(BadInput):
        read_text(tmp_path / "a.txt", tokenizer, length=40)


@pytest.mark.parametrize(
    "method,expected",
    [
        (Wanda(sparsity=0.5), "wanda 50%"),
        (Wanda(sparsity=0.625, share=True), "wanda 62.5% share"),
        (Wanda(pattern="2:4"), "wanda 2:4"),
        (SparseGPT(pattern="4:8", damping=0.1), "sparsegpt 4:8 damping=0.1"),
        (Magnitude(sparsity=0.3, allocate="global"), "magnitude 30% global"),
        (Magnitude(sparsity=0.3, pattern="row"), "magnitude 30% row"),
        (Magnitude(sparsity=Budget(params=8e7)), "magnitude params 8e+07"),
        (Random(sparsity=0.5, seed=4), "random 50%"),
    ],
)
def test_how_a_cut_is_called(method, expected):
    assert label(method) == expected
