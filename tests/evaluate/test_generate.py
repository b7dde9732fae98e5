"""Generation: greedy equals a loop of argmax, seeds repeat without disturbing the outside, chat templates."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import BadInput, Unsupported
from secateur.evaluate.generate import generate
from tests.tinylm import tiny_llama, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}w5 {{ m['content'] }} w6{% endfor %}{% if add_generation_prompt %} w7{% endif %}"
)


def test_greedy_is_the_likeliest_token_each_time() -> None:
    model, tokenizer = tiny_llama(eos_token_id=None), tiny_tokenizer()
    ids = tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    expected = tokenizer.decode(ids[0, 4:], skip_special_tokens=True)
    assert generate(model, tokenizer, "w1 w2 w3", tokens=6) == expected


def test_sampling_repeats_with_its_seed_and_leaves_the_random_state() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (generate(model, tokenizer, "w1", tokens=20, seed=s, greedy=False) for s in (0, 0, 1))
    assert one == same != other
    assert torch.rand(1) == expected


def test_mode_is_restored() -> None:
    model = tiny_llama().train()
    generate(model, tiny_tokenizer(), "w1", tokens=1)
    assert model.training


def test_chat_puts_the_prompt_through_the_template_once() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    seen: list[list[int]] = []
    model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].tolist()), with_kwargs=True)
    generate(model, tokenizer, "w9", tokens=1, chat=True)
    assert seen[0] == [[9, 13, 10, 11]]  # w5 w9 w6 w7, and no second BOS


def test_bad_requests() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with pytest.raises(Unsupported, match="no chat template"):
        generate(model, tokenizer, "w1", chat=True)
    with pytest.raises(BadInput, match="give a prompt"):
        generate(model, tokenizer, " ")
    with pytest.raises(BadInput, match="0 tokens"):
        generate(model, tokenizer, "w1", tokens=0)
    with pytest.raises(Unsupported, match="does not generate"):
        generate(torch.nn.Linear(2, 2), tokenizer, "w1")


@pytest.mark.slow
def test_the_embedded_model_knows_the_capital_of_france() -> None:
    from secateur.io.hub import load

    loaded = load("smollm2-135m")
    assert "Paris" in generate(loaded.model, loaded.tokenizer, "The capital of France is", tokens=12)
    assert "Paris" in generate(
        loaded.model, loaded.tokenizer, "What is the capital of France?", tokens=12, chat=True
    )
