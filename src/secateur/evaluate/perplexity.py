"""Perplexity and next-token accuracy as the pruning papers take them.

    documents joined by blank lines -> one stream of tokens -> non-overlapping windows of `length` (tail dropped)
    loss = sum over windows and positions 1..length-1 of -log p(token | the window so far), in float64
    perplexity = exp(loss / (windows * (length - 1)))

Departs: nothing. Every window has the same length, so the papers' mean of window means is this mean over tokens.
Memory: the batch is lowered until its float32 logits fit in 256 MB (2 windows of 512 at a vocabulary of 49,152).
Oracle: the tests count by hand; SmolLM2-135M on the shared WikiText-2 tokens gives 32.9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.engine.calibrate import check_ids, token_ids
from secateur.errors import BadInput, Unsupported
from secateur.io.documents import read_documents, read_token_file

Progress = Callable[[int, int], None]
_LOGIT_BYTES = 256 * 2**20
_SLICE = 256  # positions turned into log-probabilities at once


@torch.no_grad()
def perplexity(
    model: nn.Module,
    tokens_or_text: Any,
    tokenizer: Any = None,
    *,
    length: int = 512,
    windows: int | None = None,
    batch: int = 4,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Perplexity of a causal language model, whose modes are left as they were.

    Args:
        tokens_or_text: text, a list of documents, a stream of ids [tokens], or ids [windows, length] used as given.
        windows: only the first so many. progress: called with (windows done, windows in all).

    Returns:
        perplexity, accuracy (of the next token, 0..1), loss (mean nats a token), tokens (predicted ones).

    Raises:
        BadInput: less than one window, ids outside the vocabulary, or a loss that is not finite.
    """
    ids = token_windows(tokens_or_text, tokenizer, length=length, windows=windows)
    vocabulary = vocabulary_size(model)
    check_ids(ids, vocabulary, where="evaluation tokens")
    count, width = ids.shape
    step = max(1, min(batch, _LOGIT_BYTES // (4 * width * (vocabulary or 50_000))))
    device = next(model.parameters()).device
    loss, right = 0.0, 0
    with evaluating(model):
        for start in range(0, count, step):
            part = ids[start : start + step].to(device)
            logits = plain_logits(model, input_ids=part)
            part_loss, part_right = _next_token(logits, part)
            if not math.isfinite(part_loss):
                raise BadInput(
                    f"the loss of window {start} is {part_loss}",
                    where=_not_finite(model),
                    fix="the weights or activations hold NaN or Inf: load the model in float32 and check it",
                )
            loss, right = loss + part_loss, right + part_right
            if progress:
                progress(start + len(part), count)
    tokens = count * (width - 1)
    mean = loss / tokens
    return {"perplexity": _exp(mean), "accuracy": right / tokens, "loss": mean, "tokens": tokens}


def evaluation_source(source: str | Path, *, field: str = "text") -> tuple[Tensor | list[str], str]:
    """What a user named (see io/documents.py) as something `perplexity` takes, and words for the report."""
    if str(source).endswith(".npy"):
        array = read_token_file(source)
        if array.dtype != np.int64:
            raise BadInput(
                "holds images, not token ids", where=str(source), fix="perplexity needs ids [windows, length]"
            )
        return torch.from_numpy(
            array
        ), f"{Path(source).name}, {array.shape[0]} windows of {array.shape[1]} tokens"
    documents = read_documents(source, field=field, part="evaluation")
    return list(documents.texts), documents.words


def token_windows(
    tokens_or_text: Any, tokenizer: Any = None, *, length: int = 512, windows: int | None = None
) -> Tensor:
    """Ids [windows, length] (int64) of a text, a list of documents, a stream of ids or an array of windows."""
    if windows is not None and windows < 1:
        raise BadInput(f"{windows} windows", where="windows", fix="give at least 1")
    if isinstance(tokens_or_text, str) or _is_texts(tokens_or_text):
        if tokenizer is None:
            raise BadInput(
                "text without a tokenizer", where="perplexity", fix="pass the model's tokenizer, or token ids"
            )
        text = tokens_or_text if isinstance(tokens_or_text, str) else "\n\n".join(tokens_or_text)
        ids = token_ids(tokenizer, text)
    else:
        ids = torch.as_tensor(tokens_or_text)
        if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim not in (1, 2):
            raise BadInput(
                f"{ids.dtype} of rank {ids.ndim}", where="evaluation tokens", fix="pass integer ids"
            )
        ids = ids.long()
    if ids.ndim == 1:
        if length < 2:
            raise BadInput(f"windows of {length} tokens", where="length", fix="give at least 2")
        count = len(ids) // length
        if count == 0:
            raise BadInput(
                f"{len(ids)} tokens, less than one window of {length}",
                where="evaluation text",
                fix=f"give more text or a length of at most {len(ids)}",
            )
        ids = ids[: count * length].view(count, length)
    if ids.shape[0] == 0 or ids.shape[1] < 2:
        raise BadInput(
            f"windows of shape {list(ids.shape)}",
            where="evaluation tokens",
            fix="give windows of 2 tokens or more",
        )
    return ids[:windows]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode restored after, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def plain_logits(model: nn.Module, **inputs: Tensor) -> Tensor:
    """Logits [batch, tokens, vocabulary], without filling a cache. Unsupported for a model that has none."""
    no_cache = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    logits = getattr(model(**inputs, **no_cache), "logits", None)
    if logits is None or logits.ndim != 3:
        raise Unsupported(
            "gives no logits over a vocabulary", where=type(model).__name__, fix="use a causal language model"
        )
    return logits


def vocabulary_size(model: nn.Module) -> int | None:
    """Number of token ids the model takes, or None for a model without a token embedding."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, "vocab_size", None)


def _next_token(logits: Tensor, ids: Tensor) -> tuple[float, int]:
    """Summed -log p (float64) and right guesses of ids[:, 1:] given logits[:, :-1], one slice at a time."""
    loss, right = 0.0, 0
    for row, target in zip(logits, ids, strict=True):
        for start in range(0, len(target) - 1, _SLICE):
            end = min(start + _SLICE, len(target) - 1)
            part, wanted = row[start:end].float(), target[start + 1 : end + 1]
            loss += F.cross_entropy(part, wanted, reduction="none").double().sum().item()
            right += int((part.argmax(-1) == wanted).sum())
    return loss, right


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], str)


def _not_finite(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    return "the model"
