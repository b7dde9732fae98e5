"""lm-evaluation-harness on a model in memory: any of its tasks, or one from a task file of your own.

Needs the extra `eval`. Task files are YAML that the harness reads; one may name Python functions of its own folder,
which then run: pass an `include_path` only to files you trust. Most built-in tasks fetch their data from the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import BadInput, NoMatch, Unsupported, nearest, require
from secateur.evaluate.perplexity import evaluating


def run_harness(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, dict[str, float]]:
    """{task: {metric: value}}; standard errors come as `metric_stderr`. `limit`: questions of each task.

    Raises:
        Unsupported: lm-eval is not installed, or a task's data cannot be fetched.   NoMatch: no task of that name.
    """
    if not tasks:
        raise BadInput("no task named", where="harness", fix="name at least one, such as hellaswag")
    harness = require("lm_eval", "eval")
    manager = require("lm_eval.tasks", "eval").TaskManager(
        include_path=str(include_path) if include_path else None
    )
    for task in tasks:
        if task not in manager.all_tasks:
            raise NoMatch(f"no task {task!r}", where="harness", fix=nearest(task, manager.all_tasks))
    with evaluating(model):  # the wrapper, too, changes the mode
        wrapped = require("lm_eval.models.huggingface", "eval").HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch,
            device=str(next(model.parameters()).device),
        )
        try:
            found = harness.simple_evaluate(
                model=wrapped, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise Unsupported(
                f"the data of {', '.join(tasks)} cannot be fetched ({str(error).splitlines()[0][:100]})",
                where="harness",
            ) from error
    return {
        task: {
            metric.removesuffix(",none").replace("_stderr,none", "_stderr"): float(value)
            for metric, value in row.items()
            if isinstance(value, int | float) and metric != "sample_len"
        }
        for task, row in found["results"].items()
    }
