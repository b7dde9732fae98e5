"""Calibration: the Wanda draw, exactness of token files, trimming, and one line for each bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.engine.calibrate import Calibration, calibration, check_ids, token_ids
from secateur.errors import BadInput, Damaged, NoMatch, SecateurError


class Letters:
    """One id a character (code point), BOS 1 in front, pad 0: enough of a tokenizer, with no import of transformers."""

    bos_token_id, pad_token_id = 1, 0

    def __init__(self) -> None:
        self.calls = 0

    def __len__(self) -> int:
        return 128

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.calls += 1
        return {"input_ids": [1, *map(ord, text)]}


LONG = ["abcdefghij" * 10, "short", "klmnopqrst" * 12]


def test_windows_are_the_wanda_draw() -> None:
    texts = [*LONG, "uvwxyz0123" * 30]
    made = calibration(texts, Letters(), samples=6, length=20, seed=3)
    rng, expected = random.Random(3), []
    while len(expected) < 6:  # the sheet, word by word
        ids = [1, *map(ord, texts[rng.randint(0, 3)])]
        if len(ids) <= 20:
            continue
        start = rng.randint(0, len(ids) - 20 - 1)
        expected.append(ids[start : start + 20])
    assert [s["input_ids"].tolist() for s in made.samples] == expected
    assert made.source == "a list of texts, 6 windows of 20 tokens, seed 3"
    assert made.seed == 3


def test_a_document_is_tokenised_once() -> None:
    tokenizer = Letters()
    calibration([*LONG, "x" * 2_000], tokenizer, samples=50, length=20)
    assert tokenizer.calls <= 4


def test_short_documents_are_joined_by_blank_lines_and_said_so() -> None:
    made = calibration(["abc", "defg", "hij"] * 5, Letters(), samples=2, length=12)
    text = "\n\n".join(["abc", "defg", "hij"] * 5)
    assert "joined by blank lines" in made.source
    for sample in made.samples:
        assert "".join(map(chr, sample["input_ids"].tolist())).lstrip("\x01") in text
        assert len(sample["input_ids"]) == 12


def test_one_long_document_among_short_ones_is_not_the_whole_calibration() -> None:
    made = calibration(["ab" * 11, *["cdefghij"] * 40], Letters(), samples=8, length=20)
    assert "joined by blank lines" in made.source
    assert len({tuple(s["input_ids"].tolist()) for s in made.samples}) > 4


def test_seeds_repeat_and_differ(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog " * 50)
    one, same, other = (calibration(file, Letters(), samples=4, length=30, seed=s) for s in (0, 0, 1))
    assert one.digest() == same.digest() != other.digest()
    assert one.source == "text.txt, 4 windows of 30 tokens, seed 0"


def test_folder_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 99)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("b" * 99)
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    made = calibration(tmp_path, Letters(), samples=8, length=10)
    assert {chr(int(s["input_ids"][-1])) for s in made.samples} == {"a", "b"}
    lines = tmp_path / "c.jsonl"
    lines.write_text("\n".join(json.dumps({"body": c * 99, "id": 1}) for c in "xyz") + "\n\n")
    made = calibration(lines, Letters(), samples=9, length=10, field="body")
    assert {chr(int(s["input_ids"][-1])) for s in made.samples} <= set("xyz")
    with pytest.raises(NoMatch, match=r"no field 'bodi'; did you mean 'body'"):
        calibration(lines, Letters(), field="bodi")


def test_npy_is_used_exactly_as_given(tmp_path: Path) -> None:
    ids = np.array([[1, 1, 5, 6], [7, 0, 0, 8]], dtype=np.uint16)  # repeated BOS and a pad inside stay
    np.save(tmp_path / "ids.npy", ids)
    made = calibration(tmp_path / "ids.npy", Letters(), samples=99, length=2)
    assert torch.stack([s["input_ids"] for s in made.samples]).tolist() == ids.tolist()
    assert made.samples[0]["input_ids"].dtype == torch.int64
    assert made.source == "ids.npy, 2 windows of 4 tokens"


def test_padding_is_trimmed_and_repeated_bos_collapses() -> None:
    sample = {"input_ids": [0, 0, 1, 1, 1, 9, 8, 0], "attention_mask": [0, 0, 1, 1, 1, 1, 1, 0]}
    made = calibration([sample, {"input_ids": torch.tensor([[1, 1, 4]])}], Letters())
    assert [s["input_ids"].tolist() for s in made.samples] == [[1, 9, 8], [1, 4]]
    assert set(made.samples[0]) == {"input_ids"}
    assert token_ids(Letters(), "\x01\x01ab").tolist() == [1, 97, 98]


def test_extra_tensors_are_trimmed_with_the_ids() -> None:
    sample = {"input_ids": [7, 8, 0], "attention_mask": [1, 1, 0], "token_type_ids": [0, 1, 1]}
    assert calibration([sample]).samples[0]["token_type_ids"].tolist() == [0, 1]


def test_images() -> None:
    made = calibration(torch.rand(3, 3, 4, 4))
    assert len(made) == 3 and made.samples[0]["pixel_values"].shape == (3, 4, 4)
    assert made.source == "a tensor, 3 images of 3 x 4 x 4"
    bad = torch.rand(2, 3, 4, 4)
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="calibration sample 1: pixel_values hold 1 NaN or Inf"):
        calibration(bad)


def _npy(array: Any) -> Any:
    return lambda folder: np.save(folder / "x.npy", array) or folder / "x.npy"


def _text(content: bytes, name: str = "x.txt") -> Any:
    return lambda folder: ((folder / name).write_bytes(content) and folder / name) or folder / name


BAD: dict[str, tuple[Any, type[SecateurError], str]] = {
    "no samples": ([], BadInput, "0 samples"),
    "no rows": (torch.empty(0, 4, dtype=torch.int64), BadInput, "empty"),
    "empty file": (_text(b""), BadInput, "no text"),
    "blank file": (_text(b" \n\n "), BadInput, "no text"),
    "not UTF-8": (_text(b"abc\xff\xfe"), Damaged, "not UTF-8 at byte 3"),
    "too short": (_text(b"only a few"), BadInput, "11 tokens in all, too short for one window of 512"),
    "blank documents": (["", "  "], BadInput, "no text at all"),
    "all padding": ([{"input_ids": [5, 5], "attention_mask": [0, 0]}], BadInput, "all padding"),
    "all pad ids": (torch.zeros(2, 4, dtype=torch.int64), BadInput, "sample 0: is all padding"),
    "no token": ([{"input_ids": torch.empty(0, dtype=torch.int64)}], BadInput, "no token"),
    "wrong vocabulary": (torch.tensor([[3, 128]]), BadInput, "token id 128 is outside the vocabulary of 128"),
    "negative id": (torch.tensor([[3, -1]]), BadInput, "token id -1"),
    "float ids": (torch.rand(2, 4), BadInput, r"torch.float32 of shape \[2, 4\]"),
    "batch of several": ([{"input_ids": torch.ones(2, 3, dtype=torch.int64)}], BadInput, "batch of several"),
    "no ids": ([{"labels": torch.ones(3)}], BadInput, "neither input_ids nor pixel_values"),
    "mask of another length": ([{"input_ids": [1, 2], "attention_mask": [1]}], BadInput, "attention_mask"),
    "another type": (3.5, BadInput, "cannot calibrate from float"),
    "npy of floats": (_npy(np.ones((2, 3))), BadInput, "float64"),
    "npy of rank 1": (_npy(np.ones(3, dtype=np.int32)), BadInput, r"shape \[3\]"),
    "npy of nothing": (_npy(np.ones((0, 3), dtype=np.int32)), BadInput, "empty"),
    "npy of objects": (_npy(np.array([[{}]], dtype=object)), Damaged, r"\.npy"),
    "npy cut short": (_text(b"\x93NUMPY\x01\x00", "x.npy"), Damaged, r"\.npy"),
    "no such file": (lambda folder: folder / "nope.txt", NoMatch, "no such file"),
    "folder without text": (lambda folder: folder, NoMatch, "no text in this folder"),
    "jsonl of lists": (_text(b"[1]\n", "x.jsonl"), BadInput, "expected an object"),
    "jsonl that is none": (_text(b"{'a': 1}\n", "x.jsonl"), Damaged, "document 1: not JSON"),
    "jsonl of numbers": (_text(b'{"text": 1}\n', "x.jsonl"), BadInput, "not text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_of_the_right_type(case: str, tmp_path: Path) -> None:
    source, kind, words = BAD[case]
    source = source(tmp_path) if callable(source) else source
    with pytest.raises(kind, match=words) as caught:
        calibration(source, Letters())
    assert "\n" not in str(caught.value)


def test_settings_are_checked() -> None:
    for kwargs in ({"samples": 0}, {"length": 0}, {"samples": -1}):
        with pytest.raises(BadInput, match="at least 1"):
            calibration(LONG, Letters(), **kwargs)
    with pytest.raises(BadInput, match="without a tokenizer"):
        calibration(LONG)
    with pytest.raises(BadInput, match="vocabulary of 100"):
        check_ids(torch.tensor([100]), 100, where="x")
    with pytest.raises(BadInput, match="vocabulary of 50"):
        calibration(LONG, Letters(), samples=1, length=10, vocab_size=50)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 5))
def test_batches_keep_order_and_shape(lengths: list[int], size: int) -> None:
    samples = tuple({"input_ids": torch.full((n,), i)} for i, n in enumerate(lengths))
    batches = [b["input_ids"] for b in Calibration(samples, "x").batches(size)]
    assert all(len(b) <= size for b in batches)
    assert [int(row[0]) for b in batches for row in b] == list(range(len(lengths)))
    whole = list(Calibration(samples[:1] * 7, "x").batches(3))
    assert [len(b["input_ids"]) for b in whole] == [3, 3, 1]


def test_shards_cover_everything_once() -> None:
    made = Calibration(tuple({"input_ids": torch.tensor([i])} for i in range(7)), "x", 0)
    parts = [made.shard(rank, 3) for rank in range(3)]
    assert [int(s["input_ids"][0]) for p in parts for s in p.samples] == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) == 1
    assert made.shard(0, 1).digest() == made.digest()
    for rank, world in ((0, 8), (3, 3), (-1, 2)):
        with pytest.raises(BadInput):
            made.shard(rank, world)


def test_digest_sees_names_dtypes_shapes_values_and_order() -> None:
    def digest(*samples: dict[str, Tensor]) -> str:
        return Calibration(samples, "x").digest()

    a, b = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])
    seen = {
        digest({"input_ids": a}), digest({"ids": a}), digest({"input_ids": a.int()}), digest({"input_ids": b}),
        digest({"input_ids": a.view(2, 2)}), digest({"input_ids": a}, {"input_ids": b}),
        digest({"input_ids": b}, {"input_ids": a}),
    }  # fmt: skip
    assert len(seen) == 7
    strided = torch.tensor([[1, 9], [2, 9], [3, 9], [4, 9]])[:, 0]
    assert digest({"input_ids": strided}) == digest({"input_ids": a})


def test_a_calibration_passes_through() -> None:
    made = Calibration(({"input_ids": torch.tensor([1])},), "x")
    assert calibration(made) is made


@pytest.mark.slow
def test_embedded_text_with_the_real_tokenizer() -> None:
    from secateur.io.hub import load_tokenizer, resolve_folder

    tokenizer = load_tokenizer(resolve_folder("smollm2-135m"))
    made = calibration("embedded", tokenizer, samples=32, length=512, vocab_size=49152)
    assert len(made) == 32 and "240" not in made.source and "joined by blank lines" in made.source
    assert len({tuple(s["input_ids"].tolist()) for s in made.samples}) == 32
