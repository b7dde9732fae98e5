"""Multiple choice: the option whose tokens the model finds likeliest after the context.

    score(option) = sum over the option's tokens of log p(token | context, the option so far)

Departs: nothing from lm-evaluation-harness: context and option are tokenised together, the option's tokens are those
after the context's, `accuracy` takes the plain sum, `accuracy_normalised` the sum divided by the option's length in
characters (spaces around it not counted). Oracle: a model whose logits are written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.evaluate.perplexity import evaluating, plain_logits


@dataclass(frozen=True)
class Question:
    """A context, two or more options that could follow it (their leading space included), and which one is right."""

    context: str
    options: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not all(o.strip() for o in self.options) or not self.context.strip():
            raise BadInput(
                "needs a context and two or more options", where="question", fix="fill in what is empty"
            )
        if not 0 <= self.answer < len(self.options):
            raise BadInput(f"answer {self.answer} of {len(self.options)} options", where="question")


@torch.no_grad()
def choice_accuracy(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Fraction of questions whose right option scores highest (the first of equal ones counts).

    Returns:
        accuracy, accuracy_normalised (by characters), questions.
    """
    if not questions:
        raise BadInput("0 questions", where="choice", fix="give at least one")
    rows = [_pair(tokenizer, q.context, option) for q in questions for option in q.options]
    scores: list[float] = []
    with evaluating(model):
        for start in range(0, len(rows), batch):
            scores += _log_likelihoods(model, rows[start : start + batch])
            if progress:
                progress(min(start + batch, len(rows)), len(rows))
    plain = normalised = at = 0
    for question in questions:
        part = scores[at : at + len(question.options)]
        at += len(part)
        by_length = [s / len(o.strip()) for s, o in zip(part, question.options, strict=True)]
        plain += part.index(max(part)) == question.answer
        normalised += by_length.index(max(by_length)) == question.answer
    n = len(questions)
    return {"accuracy": plain / n, "accuracy_normalised": normalised / n, "questions": n}


def _pair(tokenizer: Any, context: str, option: str) -> tuple[list[int], int]:
    """(ids of context and option, where the option's begin)."""
    # A space belongs to the word after it: tokenisers that glue them need it on the option's side.
    kept = context.rstrip()
    option = context[len(kept) :] + option
    both = tokenizer(kept + option, verbose=False)["input_ids"]
    start = len(tokenizer(kept, verbose=False)["input_ids"])
    if not 0 < start < len(both):
        raise BadInput(
            f"option {option[:40]!r} adds no token", where="choice", fix="start the option with a space"
        )
    return list(both), start


def _log_likelihoods(model: nn.Module, rows: list[tuple[list[int], int]]) -> list[float]:
    device = next(model.parameters()).device
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, (row, _) in enumerate(rows):  # padding on the right, where no token of the row can see it
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    logits = plain_logits(model, input_ids=ids.to(device), attention_mask=mask.to(device))
    return [_score(logits[i], ids[i].to(device), start, len(row)) for i, (row, start) in enumerate(rows)]


def _score(logits: Tensor, ids: Tensor, start: int, end: int) -> float:
    log_p = logits[start - 1 : end - 1].float().log_softmax(-1)
    score = log_p.gather(-1, ids[start:end, None]).double().sum()
    if not torch.isfinite(score):
        raise BadInput("a log-likelihood is NaN or Inf", where="choice", fix="check the model's weights")
    return score.item()
