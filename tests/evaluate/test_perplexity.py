"""Perplexity: by hand on a model whose logits are a table, the papers' windows, modes, bad input, and the yardstick."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.evaluate.perplexity import evaluation_source, perplexity, token_windows
from tests.tinylm import tiny_llama, tiny_tokenizer


class Table(nn.Module):
    """Next-token logits that depend on the last token only: row `id` of a table [vocabulary, vocabulary]."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.inner = nn.Dropout(0.5)
        self.config = SimpleNamespace(vocab_size=len(table))
        self.widths: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor) -> Any:
        assert not self.training and not self.inner.training and not torch.is_grad_enabled()
        self.widths.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.table[input_ids])


def test_by_hand() -> None:
    # after 0: p(1) = 3/4; after 1: p(0) = 1/4
    table = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).log()
    got = perplexity(Table(table), torch.tensor([[0, 1, 0, 1]]))
    loss = -(2 * math.log(3 / 4) + math.log(1 / 4)) / 3
    assert got["loss"] == pytest.approx(loss, rel=1e-6)
    assert got["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert got["accuracy"] == pytest.approx(2 / 3) and got["tokens"] == 3


def test_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    model = Table(torch.zeros(50, 50))
    got = perplexity(model, np.arange(600, dtype=np.int32) % 50, length=300)
    assert got["perplexity"] == pytest.approx(50, rel=1e-6) and got["tokens"] == 2 * 299


def test_windows_do_not_overlap_and_the_tail_is_dropped() -> None:
    ids = token_windows(torch.arange(11), length=4)
    assert ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert token_windows(torch.arange(11), length=4, windows=1).tolist() == [[0, 1, 2, 3]]
    given = np.array([[5, 6, 7]], dtype=np.uint8)
    assert token_windows(given, length=2).tolist() == [[5, 6, 7]]


def test_documents_are_joined_by_blank_lines() -> None:
    tokenizer = tiny_tokenizer()
    ids = token_windows(["w0 w1 w2", "w3 w4"], tokenizer, length=6)
    assert ids.tolist() == [tokenizer("w0 w1 w2\n\nw3 w4")["input_ids"]]
    assert ids.tolist() == [[1, 4, 5, 6, 7, 8]]  # one BOS, at the start of the stream


def test_batch_does_not_change_the_figure_and_memory_bounds_it() -> None:
    model, ids = tiny_llama(), torch.randint(0, 64, (5, 20), generator=torch.Generator().manual_seed(0))
    one, four = (perplexity(model, ids, batch=b)["loss"] for b in (1, 4))
    assert one == pytest.approx(four, rel=1e-6)
    wide = Table(torch.zeros(9_000, 9_000))
    perplexity(wide, torch.zeros(3, 4_000, dtype=torch.int64), batch=3)
    assert wide.widths == [(1, 4_000)] * 3  # 2 would need 288 MB of logits


def test_agrees_with_the_model_s_own_loss() -> None:
    model, ids = tiny_llama(), torch.randint(0, 64, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = model(input_ids=ids, labels=ids).loss.item()
    assert perplexity(model, ids)["loss"] == pytest.approx(own, rel=1e-5)


def test_modes_come_back_and_progress_is_told() -> None:
    model, seen = Table(torch.zeros(5, 5)), []
    model.train()
    model.inner.eval()
    perplexity(
        model,
        torch.zeros(3, 4, dtype=torch.int64),
        batch=2,
        progress=lambda done, all_: seen.append((done, all_)),
    )
    assert model.training and not model.inner.training
    assert seen == [(2, 3), (3, 3)]


def test_nan_weights_are_named_and_modes_restored() -> None:
    model = tiny_llama().train()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        BadInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight: the loss of window 0 is nan"
    ):
        perplexity(model, torch.zeros(1, 4, dtype=torch.int64))
    assert model.training


@pytest.mark.parametrize(
    ("tokens", "options", "words"),
    [
        (torch.arange(5), {"length": 8}, "5 tokens, less than one window of 8"),
        (torch.tensor([[1, 99]]), {}, "token id 99 is outside the vocabulary of 64"),
        (torch.rand(2, 3), {}, "pass integer ids"),
        (torch.zeros(1, 1, dtype=torch.int64), {}, "windows of shape"),
        (torch.zeros(0, 8, dtype=torch.int64), {}, "windows of shape"),
        (torch.arange(9), {"length": 1}, "windows of 1 tokens"),
        (torch.arange(9), {"windows": 0}, "0 windows"),
        ("some text", {}, "without a tokenizer"),
    ],
)
def test_bad_input(tokens: Any, options: dict[str, int], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        perplexity(tiny_llama(), tokens, **options)


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(Unsupported, match="causal language model"):
        perplexity(tiny_llama().model, torch.zeros(1, 4, dtype=torch.int64))


def test_sources(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.zeros((2, 3), dtype=np.int32))
    tokens, words = evaluation_source(tmp_path / "e.npy")
    assert isinstance(tokens, Tensor) and tokens.shape == (2, 3) and words == "e.npy, 2 windows of 3 tokens"
    (tmp_path / "t.txt").write_text("w0 w1")
    assert evaluation_source(tmp_path / "t.txt") == (["w0 w1"], "t.txt")
    np.save(tmp_path / "i.npy", np.zeros((1, 3, 2, 2), dtype=np.float32))
    with pytest.raises(BadInput, match="holds images"):
        evaluation_source(tmp_path / "i.npy")


@pytest.mark.slow
def test_the_yardstick_of_the_papers(shared_data: Path) -> None:
    """SmolLM2-135M in float32 on the shared 24 windows, and those windows are the first of wiki.test.raw."""
    from secateur.io.hub import load

    loaded = load("smollm2-135m")
    tokens, _ = evaluation_source(shared_data / "wikitext2" / "evaluation_24x512.npy")
    documents, _ = evaluation_source(shared_data / "wikitext2" / "wiki.test.raw")
    assert torch.equal(token_windows(documents, loaded.tokenizer, windows=24), torch.as_tensor(tokens))
    assert perplexity(loaded.model, tokens)["perplexity"] == pytest.approx(32.9, abs=0.05)
