"""Calibration samples: from whatever the user has to a fixed, checked, reproducible tuple of tensors.

Windows are drawn as in the Wanda paper's code: seeded `random.Random`; draw a document, tokenise it, skip it if
it is not longer than `length`, take one random window of exactly `length` tokens.
Departs: when the documents longer than `length` cannot fill the windows without overlap (or there is none),
documents are joined by blank lines first and windows drawn from that stream; `source` says so. Token files are
used exactly as given.
Padding never reaches the model (attention_mask zeros are trimmed) and a run of BOS at a start counts once.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BadInput
from secateur.io.documents import Documents, read_documents, read_token_file

_FIX_SAMPLES = "give text, token ids [samples, length], or a list of samples"


@dataclass(frozen=True)
class Calibration:
    """Samples for calibration, each without a batch dimension.

    samples: {"input_ids": int64 [L]} or {"pixel_values": float [C, H, W]}; source: words for the report.
    """

    samples: tuple[dict[str, Tensor], ...]
    source: str
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.samples:
            raise BadInput("0 samples", where="calibration", fix=_FIX_SAMPLES)

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Consecutive samples of equal shapes stacked, at most `size` at a time, in order."""
        if size < 1:
            raise BadInput(f"batches of {size}", where="calibration", fix="give a batch size of at least 1")
        held: list[dict[str, Tensor]] = []
        for sample in self.samples:
            if held and (len(held) == size or _shapes(sample) != _shapes(held[0])):
                yield _stack(held)
                held = []
            held.append(sample)
        yield _stack(held)

    def digest(self) -> str:
        """sha256 (hex) over the names, dtypes, shapes and bytes of all samples, in order."""
        total = hashlib.sha256()
        for sample in self.samples:
            for name in sorted(sample):
                value = sample[name].detach().cpu().contiguous()
                total.update(f"{name}|{value.dtype}|{list(value.shape)}|".encode())
                total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def shard(self, rank: int, world: int) -> Calibration:
        """The contiguous part of worker `rank` of `world`; parts cover all and differ by at most one sample."""
        if not 0 <= rank < world:
            raise BadInput(f"worker {rank} of {world}", where="calibration")
        if len(self) < world:
            raise BadInput(
                f"{len(self)} samples for {world} workers", where="calibration", fix="give more samples"
            )
        low, high = (len(self) * r // world for r in (rank, rank + 1))
        return replace(
            self, samples=self.samples[low:high], source=f"{self.source}, part {rank + 1} of {world}"
        )


def calibration(
    source: Any,
    tokenizer: Any = None,
    *,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    field: str = "text",
    vocab_size: int | None = None,
) -> Calibration:
    """Make a Calibration.

    Args:
        source: a path, "embedded" or "hub:NAME" (see io/documents.py); ids [N, L] or images [N, C, H, W] as a
            tensor; a list of samples (dicts of tensors, `attention_mask` trimmed); a list of documents; or a
            Calibration.
        samples, length, seed: how many windows of how many tokens to draw from text; ids and samples are used
            as given.
        vocab_size: the model's number of token ids, to refuse ids outside it (default: the tokenizer's).

    Raises:
        BadInput: nothing in it, too little text, only padding, ids outside the vocabulary, NaN, a wrong dtype or
            shape.
        NoMatch, Damaged, Unsupported: see io/documents.py.
    """
    if isinstance(source, Calibration):
        return source
    limit = vocab_size if vocab_size is not None else _vocabulary(tokenizer)
    if isinstance(source, (str, Path)) and not str(source).endswith(".npy"):
        documents = read_documents(source, field=field)
        return _windows(documents, tokenizer, samples, length, seed, limit, join=str(source) == "embedded")
    if isinstance(source, (str, Path)):
        array = torch.from_numpy(read_token_file(source))
        made, words = _rows(array, tokenizer, limit), Path(source).name
    elif isinstance(source, Tensor):
        made, words = _rows(source, tokenizer, limit), "a tensor"
    elif isinstance(source, Sequence) and source and isinstance(source[0], str):
        return _windows(Documents(source, "a list of texts"), tokenizer, samples, length, seed, limit)
    elif isinstance(source, Sequence) and all(isinstance(sample, Mapping) for sample in source):
        made = tuple(_clean(sample, i, tokenizer, limit) for i, sample in enumerate(source))
        words = "a list of samples"
    else:
        raise BadInput(
            f"cannot calibrate from {type(source).__name__}", where="calibration", fix=_FIX_SAMPLES
        )
    return Calibration(made, f"{words}, {_size_words(made)}")


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """Ids (int64 [tokens]) of a text of any length; a run of BOS at the start counts once."""
    if not text.strip():
        raise BadInput("the text is empty", where="tokens", fix="give some text")
    ids = tokenizer(text, verbose=False, return_attention_mask=False)["input_ids"]
    return _one_bos(torch.tensor(ids, dtype=torch.int64), tokenizer)


def check_ids(ids: Tensor, vocab_size: int | None, *, where: str) -> None:
    """Raise BadInput if an id is negative or not below vocab_size (None: only negatives are refused)."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        raise BadInput(
            f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}",
            where=where,
            fix="tokenise with this model's tokenizer",
        )


def _windows(
    documents: Documents,
    tokenizer: Any,
    samples: int,
    length: int,
    seed: int,
    limit: int | None,
    *,
    join: bool = False,
) -> Calibration:
    if samples < 1 or length < 1:
        raise BadInput(
            f"{samples} samples of {length} tokens", where="calibration", fix="give at least 1 of each"
        )
    if tokenizer is None:
        raise BadInput(
            "text without a tokenizer",
            where=documents.words,
            fix="pass the model's tokenizer, or a .npy of ids",
        )
    drawn = None if join else _draw(documents.texts, tokenizer, samples, length, seed)
    words = documents.words
    if drawn is None:
        drawn, joined = _draw_joined(documents, tokenizer, samples, length, seed), len(documents.texts) > 1
        words += ", documents joined by blank lines" if joined else ""
    made = tuple(_clean({"input_ids": ids}, i, tokenizer, limit) for i, ids in enumerate(drawn))
    return Calibration(made, f"{words}, {samples} windows of {length} tokens, seed {seed}", seed)


def _draw(texts: Sequence[str], tokenizer: Any, samples: int, length: int, seed: int) -> list[Tensor] | None:
    """Windows drawn document by document, or None when the long documents cannot fill them without overlap."""
    rng = random.Random(seed)
    long: dict[int, Tensor] = {}
    short: set[int] = set()
    patience = max(1_000, 20 * samples)  # documents tokenised before giving up on a source of short ones
    windows: list[Tensor] = []
    while len(windows) < samples:
        index = rng.randint(0, len(texts) - 1)
        if index not in long and index not in short:
            ids = token_ids(tokenizer, texts[index]) if texts[index].strip() else torch.empty(0)
            if len(ids) > length:
                long[index] = ids
            else:
                short.add(index)
        if len(short) == len(texts) or len(short) > patience:
            return None
        if index in long:
            start = rng.randint(0, len(long[index]) - length - 1)
            windows.append(long[index][start : start + length].clone())
    if len(texts) > 1 and sum(map(len, long.values())) < samples * length:
        return None
    return windows


def _draw_joined(documents: Documents, tokenizer: Any, samples: int, length: int, seed: int) -> list[Tensor]:
    rng = random.Random(seed)
    texts = documents.texts
    order = rng.sample(range(len(texts)), len(texts))
    chosen: list[int] = []
    characters = 0
    for index in (
        order
    ):  # a huge source: only as much as the windows need, some 4 tokens for each, 5 characters a token
        chosen.append(index)
        characters += len(texts[index])
        if characters > 20 * samples * length:
            break
    text = "\n\n".join(t for t in (texts[i] for i in sorted(chosen)) if t.strip())
    if not text:
        raise BadInput("no text at all", where=documents.words, fix="give text")
    ids = token_ids(tokenizer, text)
    if len(ids) <= length:
        raise BadInput(
            f"{len(ids)} tokens in all, too short for one window of {length}",
            where=documents.words,
            fix=f"give more text or --length below {len(ids)}",
        )
    starts = [rng.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return [ids[s : s + length].clone() for s in starts]


def _rows(array: Tensor, tokenizer: Any, limit: int | None) -> tuple[dict[str, Tensor], ...]:
    """Ids [N, L] or images [N, C, H, W], each row one sample, used exactly as given."""
    images = array.is_floating_point() and array.ndim == 4
    if not images and (
        array.is_floating_point() or array.is_complex() or array.dtype == torch.bool or array.ndim != 2
    ):
        raise BadInput(
            f"{array.dtype} of shape {list(array.shape)}",
            where="calibration",
            fix="give integer ids [samples, length] or float images [samples, channels, height, width]",
        )
    if array.numel() == 0:
        raise BadInput(f"empty: shape {list(array.shape)}", where="calibration", fix=_FIX_SAMPLES)
    if images:
        return tuple(_clean({"pixel_values": row}, i, None, None) for i, row in enumerate(array))
    ids = array.long()
    for i, row in enumerate(ids):
        _check_text(row, i, tokenizer, limit)
    return tuple({"input_ids": row.clone()} for row in ids)


def _clean(sample: Mapping[str, Any], index: int, tokenizer: Any, limit: int | None) -> dict[str, Tensor]:
    """One sample without padding, batch dimension, repeated BOS or mask; checked."""
    where = f"calibration sample {index}"
    made = {name: torch.as_tensor(value) for name, value in sample.items() if value is not None}
    if "input_ids" not in made and "pixel_values" not in made:
        raise BadInput(
            f"has neither input_ids nor pixel_values but {sorted(made)}", where=where, fix=_FIX_SAMPLES
        )
    rank = 1 if "input_ids" in made else 3
    if made["input_ids" if rank == 1 else "pixel_values"].ndim == rank + 1:
        if any(value.shape[:1] != (1,) for value in made.values()):
            raise BadInput("is a batch of several", where=where, fix="give samples one by one")
        made = {name: value[0] for name, value in made.items()}
    if rank == 1:
        return _clean_text(made, index, tokenizer, limit)
    pixels = made["pixel_values"]
    if not pixels.is_floating_point() or pixels.ndim != 3 or pixels.numel() == 0:
        raise BadInput(
            f"pixel_values are {pixels.dtype} {list(pixels.shape)}", where=where, fix="give floats [C, H, W]"
        )
    bad = int((~torch.isfinite(pixels)).sum())
    if bad:
        raise BadInput(f"pixel_values hold {bad} NaN or Inf", where=where, fix="clean the images")
    return {name: value.detach().clone() for name, value in made.items()}


def _clean_text(made: dict[str, Tensor], index: int, tokenizer: Any, limit: int | None) -> dict[str, Tensor]:
    where = f"calibration sample {index}"
    ids = made["input_ids"]
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise BadInput(
            f"input_ids are {ids.dtype} {list(ids.shape)}", where=where, fix="give integers [length]"
        )
    keep = torch.ones(len(ids), dtype=torch.bool)
    mask = made.pop("attention_mask", None)
    if mask is not None:
        if mask.shape != ids.shape:
            raise BadInput(f"attention_mask {list(mask.shape)}, input_ids {list(ids.shape)}", where=where)
        keep = mask.bool()
        if len(ids) and not keep.any():
            raise BadInput("is all padding", where=where, fix="drop empty texts before calibration")
    bos = getattr(tokenizer, "bos_token_id", None)
    kept = ids[keep]
    run = _bos_run(kept, bos)
    if run > 1:
        keep[keep.nonzero()[: run - 1, 0]] = False
    along = {name: value.shape[:1] == ids.shape for name, value in made.items()}
    trimmed = {name: value[keep].clone() if along[name] else value.clone() for name, value in made.items()}
    trimmed["input_ids"] = trimmed["input_ids"].long()
    _check_text(trimmed["input_ids"], index, tokenizer, limit)
    return trimmed


def _check_text(ids: Tensor, index: int, tokenizer: Any, limit: int | None) -> None:
    where = f"calibration sample {index}"
    if len(ids) == 0:
        raise BadInput("holds no token", where=where, fix="drop empty texts before calibration")
    check_ids(ids, limit, where=where)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None and bool((ids == pad).all()):
        raise BadInput(
            f"is all padding (token {pad})", where=where, fix="drop empty texts before calibration"
        )


def _bos_run(ids: Tensor, bos: int | None) -> int:
    if bos is None:
        return 0
    other = (ids != bos).nonzero()
    return int(other[0]) if len(other) else len(ids)


def _one_bos(ids: Tensor, tokenizer: Any) -> Tensor:
    return ids[max(0, _bos_run(ids, getattr(tokenizer, "bos_token_id", None)) - 1) :]


def _vocabulary(tokenizer: Any) -> int | None:
    return len(tokenizer) if tokenizer is not None and hasattr(tokenizer, "__len__") else None


def _shapes(sample: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in sample.items()}


def _stack(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _size_words(samples: tuple[dict[str, Tensor], ...]) -> str:
    if not samples:
        return "0 samples"
    if "input_ids" in samples[0]:
        lengths = sorted({len(sample["input_ids"]) for sample in samples})
        span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        return f"{len(samples)} windows of {span} tokens"
    return f"{len(samples)} images of {' x '.join(map(str, samples[0]['pixel_values'].shape))}"
