"""`secateur evaluate --harness`: a task file of one's own, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.cli.main import main
from tests.tinylm import save_tiny

TASK = """
task: secateur_command
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.mark.slow
def test_a_task_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"context": f"w{i}", "options": [f"w{i + 3}", f"w{i + 5}"], "answer": i % 2} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    model = save_tiny(tmp_path / "model")
    words = ["--no-text", "--harness", "secateur_command", "--include", str(tmp_path), "--quiet", "--json"]
    assert main(["evaluate", str(model), *words, "--limit", "4"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert set(metrics) == {"secateur_command acc", "secateur_command acc_stderr"}
    assert metrics["secateur_command acc"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert main(["evaluate", str(model), *words[:2], "secateur_comand", *words[3:]]) == 2
    assert "did you mean 'secateur_command'" in capsys.readouterr().err
