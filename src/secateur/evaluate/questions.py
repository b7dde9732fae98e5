"""Choice questions from a JSONL file: one question a line, in either of two shapes.

    {"context": "The sky is", "options": [" blue", " brick"], "answer": 0}
    {"goal": ..., "sol1": ..., "sol2": ..., "label": 0}      PIQA; without `label`, the answers stand one a line in the
                                                            file beside it that ends in `-labels.lst`
PIQA is asked as lm-evaluation-harness asks it: "Question: GOAL\\nAnswer:" and " SOL".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.errors import BadInput, Damaged, NoMatch, nearest
from secateur.evaluate.choice import Question
from secateur.io.header import strict_json

_FIX = 'write {"context": "...", "options": ["...", "..."], "answer": 0}'
_SPLITS = ("valid", "validation", "test", "dev", "train")


def read_questions(path: str | Path, limit: int | None = None) -> tuple[str, list[Question]]:
    """(a name for the set, its questions).

    Raises:
        NoMatch: no such file.   Damaged: a line that is not JSON.   BadInput: a line without a question, or no line.
    """
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise NoMatch("no such file", where=str(path), fix=nearest(path.name, beside))
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise Damaged("is not UTF-8 text", where=str(path)) from error
    labels = _labels(path, len(lines))
    found: list[Question] = []
    for number, line in enumerate(lines[:limit], 1):
        where = f"{path}, line {number}"
        row = strict_json(line.encode(), where)
        if not isinstance(row, dict):
            raise BadInput("is no object", where=where, fix=_FIX)
        found.append(_question(row, labels[number - 1] if labels else None, where))
    if not found:
        raise BadInput("holds no question", where=str(path))
    return (path.parent.name if path.stem in _SPLITS and path.parent.name else path.stem), found


def _question(row: dict[str, Any], label: int | None, where: str) -> Question:
    if "goal" in row:
        context, options = f"Question: {row['goal']}\nAnswer:", [f" {row.get('sol1')}", f" {row.get('sol2')}"]
        answer = row.get("label", label)
        texts = [row["goal"], row.get("sol1"), row.get("sol2")]
    else:
        context, options, answer = row.get("context"), row.get("options"), row.get("answer")
        texts = [context, *(options if isinstance(options, list) else [None])]
    if not all(isinstance(text, str) for text in texts) or type(answer) is not int:
        raise BadInput("lacks context, options or answer", where=where, fix=_FIX)
    return Question(str(context), tuple(options or ()), answer)


def _labels(path: Path, count: int) -> list[int] | None:
    beside = path.parent / f"{path.stem}-labels.lst"
    if not beside.is_file():
        return None
    words = beside.read_text(encoding="utf-8").split()
    if len(words) != count or not all(word.isdecimal() for word in words):
        raise BadInput(f"{len(words)} labels for {count} questions", where=str(beside))
    return [int(word) for word in words]
