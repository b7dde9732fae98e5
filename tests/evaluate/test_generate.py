"""Generation: greedy equals argmax and transformers' generate(), seeds repeat and disturb nothing, chat templates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.errors import BadInput, Unsupported
from secateur.evaluate import generate as module
from secateur.evaluate.generate import continuation, generate
from secateur.runtime.decode import Decoder
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
    expected = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert "w1 w2 w3" + generate(model, tokenizer, "w1 w2 w3", tokens=6) == expected


def by_transformers(model: Any, tokenizer: Any, prompt: str, count: int, **how: Any) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    inputs = {name: ids[name] for name in ("input_ids", "attention_mask")}
    out = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=3, **how)
    return tokenizer.decode(out[0], skip_special_tokens=True).removeprefix(prompt)


@pytest.mark.parametrize(
    "settings,own",
    [
        ({}, True),
        ({"temperature": 0.3, "top_k": 7, "do_sample": True, "num_beams": 1, "min_length": 0}, True),
        ({"repetition_penalty": 2.5}, False),
        ({"no_repeat_ngram_size": 1}, False),
        ({"suppress_tokens": [61, 31, 17]}, False),
        ({"num_beams": 3}, False),
    ],
)
def test_a_folders_settings_are_kept(
    settings: dict[str, Any], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_llama(eos_token_id=None, initializer_range=0.4), tiny_tokenizer()
    plain = by_transformers(model, tokenizer, "w1 w2", 12)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    made: list[Decoder] = []
    monkeypatch.setattr(module, "Decoder", lambda model: made.append(Decoder(model)) or made[-1])
    found = generate(model, tokenizer, "w1 w2", tokens=12)
    assert found == by_transformers(model, tokenizer, "w1 w2", 12) and bool(made) == own
    assert (found == plain) == own


def test_past_the_positions_of_a_model_transformers_decides() -> None:
    model = tiny_llama(eos_token_id=None, initializer_range=0.4, max_position_embeddings=8)
    tokenizer = tiny_tokenizer()
    assert generate(model, tokenizer, "w1 w2", tokens=12) == by_transformers(model, tokenizer, "w1 w2", 12)


def test_an_encoder_decoder_answers() -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    config = transformers.T5Config(**sizes, decoder_start_token_id=3, eos_token_id=None, pad_token_id=3)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight[:4] = 0
    assert len(generate(model, tiny_tokenizer(), "w1 w2 w3", tokens=5).split()) == 5


def test_pieces_come_while_it_is_written() -> None:
    model, tokenizer = tiny_llama(eos_token_id=None), tiny_tokenizer()
    coming = continuation(model.train(), tokenizer, "w1 w2", tokens=5)
    first = next(coming)
    assert first.split() and not model.training
    assert first + "".join(coming) == generate(model, tokenizer, "w1 w2", tokens=5) and model.training
    next(given_up := continuation(model, tokenizer, "w1 w2", tokens=5))
    given_up.close()
    assert model.training


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
    assert [[9, 13, 10, 11]] in seen  # w5 w9 w6 w7, and no second BOS


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
