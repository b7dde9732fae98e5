"""evaluate: one model, measured as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.engine.events import Event, Listener, silent
from secateur.engine.run import Options
from secateur.evaluate.bench import Bench, Row, read_text
from secateur.evaluate.questions import read_questions
from secateur.io.store import Model, as_loaded


def evaluate(
    model: Model,
    text: Any = "embedded",
    *,
    length: int = 512,
    windows: int | None = None,
    field: str = "text",
    choice: Sequence[str | Path] = (),
    limit: int | None = None,
    harness: Sequence[str] = (),
    include: str | Path | None = None,
    speed: bool = False,
    prompt: str = "",
    tokenizer: Any = None,
    listen: Listener = silent,
) -> Row:
    """Measure a model: one row of results.json (density, FLOPs, `metrics`, and what else was asked for).

    Args:
        text: for perplexity and next-token accuracy: a source by name (io/documents.py), a list of documents, ids
            [windows, length], or None to leave them out.
        choice: JSONL files of choice questions (evaluate/questions.py); `limit`: the first so many of each.
        harness: tasks of lm-evaluation-harness; `include`: a folder of task files (`limit` holds for each task too).
        prompt: continued in `sample`.   speed: also tokens written a second.

    Raises:
        BadInput, NoMatch, Damaged, Unsupported: one line each, of the model or of a source.
    """
    questions = dict(read_questions(path, limit) for path in choice)
    loaded = as_loaded(model, tokenizer, tell=lambda done: listen(Event("load", done, 1, str(model))))
    found = None
    if text is not None:
        found = read_text(text, loaded.tokenizer, length=length, windows=windows, field=field)
    bench = Bench(
        loaded.model,
        loaded.tokenizer,
        found,
        questions,
        harness,
        include,
        prompt,
        speed=speed,
        folder=loaded.folder,
        limit=limit,
        options=Options(listen=listen),
    )
    row = bench.measure(Path(loaded.name).name, "measured", folder=loaded.folder)
    return {**row, "notes": [f"perplexity and accuracy on {found.words}"] if found else []}
