"""The lm-evaluation-harness adapter on a local task and a tiny model; lm-eval is an extra."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.evaluate.choice import Question, choice_accuracy
from secateur.evaluate.harness import run_harness
from tests.tinylm import tiny_llama, tiny_tokenizer

TASK = """
task: secateur_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""


def test_no_task_and_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no task named"):
        run_harness(tiny_llama(), tiny_tokenizer(), [])
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(Unsupported, match=r"pip install 'secateur\[eval\]'"):
        run_harness(tiny_llama(), tiny_tokenizer(), ["hellaswag"])


@pytest.mark.slow
def test_a_local_task_agrees_with_our_own_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "context": f"w{i} w{i + 1}",
            "options": [f"w{i + 3}", f"w{i + 5} w{i + 6}", f"w{2 * i + 1}"],
            "answer": i % 3,
        }
        for i in range(25)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    model, tokenizer = tiny_llama().train(), tiny_tokenizer()
    got = run_harness(model, tokenizer, ["secateur_local"], include_path=tmp_path)["secateur_local"]
    questions = [Question(r["context"], tuple(f" {o}" for o in r["options"]), r["answer"]) for r in rows]
    own = choice_accuracy(model, tokenizer, questions)
    assert got["acc"] == pytest.approx(own["accuracy"])
    assert got["acc_norm"] == pytest.approx(own["accuracy_normalised"])
    assert got["acc_stderr"] > 0 and model.training
    with pytest.raises(NoMatch, match="did you mean 'secateur_local'"):
        run_harness(model, tokenizer, ["secateur_locl"], include_path=tmp_path)
