"""Speed: what is timed, and what is refused. (How fast is for benchmarks.)"""

from __future__ import annotations

import pytest
import torch

from secateur.errors import BadInput, Unsupported
from secateur.evaluate import speed
from secateur.evaluate.speed import measure_speed
from tests.tinylm import tiny_llama


def test_every_repeat_reads_once_and_writes_token_by_token_with_the_cache() -> None:
    model = tiny_llama().train()
    widths: list[int] = []
    model.register_forward_pre_hook(lambda m, a, k: widths.append(k["input_ids"].shape[1]), with_kwargs=True)
    got = measure_speed(model, prompt=10, tokens=3, repeats=2)
    assert widths == [10, 1, 1, 1] * 3  # a warm-up and two
    assert got["prefill"] > 0 and got["decode"] > 0 and got["decode_spread"] >= 0
    assert model.training


def test_figures_are_tokens_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(9.0, 9.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0)])  # the first is the warm-up
    monkeypatch.setattr(speed, "_once", lambda *_: next(times))
    got = measure_speed(tiny_llama(), prompt=10, tokens=8, repeats=3, batch=2)
    assert got == {"prefill": 10.0, "decode": 4.0, "prefill_spread": 1.5, "decode_spread": 1.5}


def test_refusals() -> None:
    with pytest.raises(BadInput, match="1 or more"):
        measure_speed(tiny_llama(), repeats=0)
    with pytest.raises(Unsupported, match="not a language model"):
        measure_speed(torch.nn.Linear(2, 2))
    from transformers import BertConfig, BertForMaskedLM

    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    with pytest.raises(Unsupported, match="cache"):
        measure_speed(bert, prompt=4, tokens=2, repeats=1)
