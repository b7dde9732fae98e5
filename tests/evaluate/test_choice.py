"""Multiple choice: by hand, padding, the harness's rules, and PIQA on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.errors import BadInput
from secateur.evaluate.choice import Question, choice_accuracy
from tests.evaluate.test_perplexity import Table
from tests.tinylm import tiny_llama, tiny_tokenizer


class Row(Table):
    """Table, with the attention mask that padded rows bring."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        assert attention_mask.shape == input_ids.shape
        return super().forward(input_ids)


def test_by_hand() -> None:
    table = torch.zeros(64, 64)
    table[4, 5] = 2.0  # after w0 comes w1
    table[5, 6] = 2.0  # after w1 comes w2
    questions = [
        Question("w9 w0", (" w7", " w1"), 1),
        Question("w0", (" w1 w2", " w1 w8"), 0),
        Question("w0", (" w1", " w7"), 1),  # the model is wrong here
    ]
    got = choice_accuracy(Row(table), tiny_tokenizer(), questions)
    assert got["accuracy"] == pytest.approx(2 / 3) and got["questions"] == 3


def test_length_normalised_score_differs_from_the_sum() -> None:
    question = Question("w0", (" w1", " w1 w2 w3"), 1)
    got = choice_accuracy(Row(torch.zeros(64, 64)), tiny_tokenizer(), [question])
    assert got["accuracy"] == 0.0  # one token is likelier than three
    assert got["accuracy_normalised"] == 1.0  # by characters: 2 of one token, 8 of three


def test_padding_and_batch_do_not_change_the_answer() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    questions = [
        Question(f"w{i} w{i + 1}", (f" w{i + 2}", f" w{i + 5} w{i + 6} w{i + 7}", f" w{i + 9}"), i % 3)
        for i in range(20)
    ]
    seen: list[tuple[int, int]] = []
    one = choice_accuracy(model, tokenizer, questions, batch=1)
    many = choice_accuracy(model, tokenizer, questions, batch=7, progress=lambda d, n: seen.append((d, n)))
    assert one == many and seen[-1] == (60, 60)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(BadInput, match="0 questions"):
        choice_accuracy(tiny_llama(), tiny_tokenizer(), [])
    with pytest.raises(BadInput, match="answer 2 of 2"):
        Question("c", (" a", " b"), 2)
    with pytest.raises(BadInput, match="two or more options"):
        Question("c", (" a",), 0)
    broken = tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(BadInput, match="NaN"):
        choice_accuracy(broken, tiny_tokenizer(), [Question("w0", (" w1", " w2"), 0)])


@pytest.mark.slow
def test_piqa_on_the_embedded_model(shared_data: Path) -> None:
    from secateur.io.hub import load

    loaded = load("smollm2-135m")
    rows = [
        json.loads(line) for line in (shared_data / "piqa" / "valid.jsonl").read_text().splitlines()[:100]
    ]
    labels = [int(line) for line in (shared_data / "piqa" / "valid-labels.lst").read_text().split()[:100]]
    questions = [
        Question(f"Question: {r['goal']}\nAnswer:", (f" {r['sol1']}", f" {r['sol2']}"), label)
        for r, label in zip(rows, labels, strict=True)
    ]
    got = choice_accuracy(loaded.model, loaded.tokenizer, questions)
    assert 0.58 < got["accuracy"] < 0.80  # chance is 0.5, one standard error 0.05
