"""The decode loop: greedy tokens are those of transformers' generate(), on every way and with foreign modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.runtime import decode, library
from secateur.runtime.decode import Decoder, Piece, agree, end_tokens, pieces, rooms, tokens
from secateur.runtime.linear import PackedLinear, is_conv1d
from secateur.runtime.sample import Sampling
from tests.tinylm import tiny_llama, tiny_tokenizer

PACKED = "native" if library.load() is not None else "lean"
PROMPT = [1, 9, 33, 20, 9, 41]
SHAPE = {"vocab_size": 64, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 3}
LOUD = {
    "initializer_range": 0.4
}  # at the usual 0.02 attention is the same everywhere, and a wrong angle shows nothing


def tiny(kind: str, **changes: Any) -> Any:
    """A random model of two layers, seeded."""
    import transformers

    torch.manual_seed(0)
    if kind == "GPT2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=64, **{**SHAPE, **LOUD, **changes}
        )
        return transformers.GPT2LMHeadModel(config).eval()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **LOUD, **sizes, **heads, **changes})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def generated(model: Any, count: int, prompt: list[int] = PROMPT) -> list[int]:
    """What transformers' own loop writes."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=3,
    )
    return out[0, len(prompt) :].tolist()


WAYS = [
    ("Llama", {}, "lean"),
    ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, "lean"),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "lean"),
    ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "model"),
    ("Mistral", {"sliding_window": None}, "lean"),
    ("Mistral", {"sliding_window": 8}, "dynamic"),
    ("Qwen2", {}, "lean"),
    ("Qwen3", {}, "model"),
    ("Gemma3Text", {"sliding_window": 8, "initializer_range": 0.02}, "dynamic"),
    ("GPT2", {}, "model"),
]


@pytest.mark.parametrize("kind,changes,way", WAYS)
def test_greedy_tokens_are_those_of_generate(kind: str, changes: dict[str, Any], way: str) -> None:
    model = tiny(kind, **changes) if kind != "Gemma3Text" else gemma(**changes)
    wanted = generated(model, 40)
    decoder = Decoder(model)
    assert decoder.way == way and decoder.positions == 64
    assert list(tokens(decoder, PROMPT, max_tokens=40)) == wanted
    assert len(set(wanted)) > 3, "a model that repeats itself would show nothing"
    # a shorter answer in the same tensors, and one that needs the whole of them
    assert list(tokens(decoder, PROMPT, max_tokens=5)) == wanted[:5]
    assert list(tokens(decoder, PROMPT, max_tokens=58))[:40] == wanted


def gemma(**changes: Any) -> Any:
    """Gemma 3: sliding layers, norms of its own."""
    import transformers

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    config = transformers.Gemma3TextConfig(**{**SHAPE, **LOUD, **sizes, **heads, **changes})
    return transformers.Gemma3ForCausalLM(config).eval()


def test_every_way_gives_the_logits_of_the_whole_pass() -> None:
    model = tiny("Llama").double()
    text = PROMPT + [5, 6, 60, 7]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([text])).logits[0]
    decoder = Decoder(model)
    for way in ("lean", "model", "dynamic"):
        decoder.way, decoder._cache = way, None
        logits = decoder.read(PROMPT, 32)
        for at, token in enumerate(text[len(PROMPT) :], len(PROMPT)):
            assert logits is not None
            torch.testing.assert_close(logits, wanted[at - 1], atol=1e-5, rtol=0)
            logits = decoder.step(token)
    assert decoder.length == len(text)


def test_a_long_prompt_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama")
    prompt = [(5 * i) % 64 for i in range(40)]
    monkeypatch.setattr(decode, "CHUNK", 16)
    seen: list[int] = []
    model.model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].shape[1]), with_kwargs=True
    )
    decoder = Decoder(model)
    assert decoder.way == "model", "with hooks, the modules are called as they stand"
    wanted = generated(model, 10, prompt)
    seen.clear()
    assert list(tokens(decoder, prompt, max_tokens=10)) == wanted
    assert seen == [16, 16, 8] + [1] * 9


class Foreign(nn.Module):
    """A linear module that keeps its weights in a way of its own, as a packed one does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows = [row.detach().clone() for row in linear.weight]
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.stack([x @ row for row in self.rows], -1)


@pytest.mark.parametrize("kind,way", [("Llama", "lean"), ("Qwen3", "model")])
def test_replaced_linear_modules_are_called(kind: str, way: str) -> None:
    model = tiny(kind)
    wanted = generated(model, 20)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Foreign(module))
    decoder = Decoder(model)
    assert decoder.way == way
    before = model.lm_head.calls
    assert list(tokens(decoder, PROMPT, max_tokens=20)) == wanted
    assert model.lm_head.calls - before == 20 and len(found) == 15


@pytest.mark.parametrize("kind,way", [("Llama", PACKED), ("Qwen3", "model"), ("GPT2", "model")])
def test_packed_models_are_decoded_as_they_stand(kind: str, way: str) -> None:
    model = tiny(kind)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
    with torch.no_grad():
        for _, module in found:
            module.weight[module.weight.abs() < module.weight.abs().median()] = 0
    wanted = generated(model, 20)
    for name, module in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear.from_linear(module))
    decoder = Decoder(model)
    assert decoder.way == way and not any(isinstance(m, nn.Linear) for m in model.modules())
    assert list(tokens(decoder, PROMPT, max_tokens=20)) == wanted


def test_the_probe_refuses_a_step_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tiny("Llama")
    odd.model.layers[1].self_attn.scaling *= 1.5  # the step takes the first layer's
    for model in (odd, tiny("Llama")):
        decoder = Decoder(model)
        assert decoder.way == "model"
        assert list(tokens(decoder, PROMPT, max_tokens=20)) == generated(model, 20)
        monkeypatch.setattr(decode.lean, "angles", lambda *a: (torch.ones(256, 8), torch.zeros(256, 8)))


def test_half_precision_gives_the_logits_of_the_model_to_its_own_rounding() -> None:
    for kind, way in (("Llama", "lean"), ("Qwen3", "model")):
        model = tiny(kind, num_key_value_heads=1).bfloat16()
        decoder = Decoder(model)
        assert decoder.way == way and (decoder._ones is not None) == (way == "model")
        logits = decoder.read(PROMPT, 12)
        for token in (8, 9, 10):
            logits = decoder.step(token)
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([PROMPT + [8, 9, 10]])).logits[0, -1]
        assert logits is not None and logits.dtype == torch.bfloat16
        assert (logits.float() - wanted.float()).abs().max() <= 0.02 * wanted.abs().max()


def test_agreement_is_of_the_size_of_rounding() -> None:
    wanted = torch.tensor([1.0, -10.0, 3.0])
    assert agree(wanted + 0.009, wanted) and not agree(wanted + 0.011, wanted)
    assert agree(wanted.double() + 0.0009, wanted.double())
    assert not agree(wanted.double() + 0.0011, wanted.double())
    assert agree(wanted.bfloat16() + 0.25, wanted.bfloat16())
    assert not agree(torch.full((3,), torch.nan), wanted)


def test_pieces_end_at_an_end_token_a_stop_string_or_the_length() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny("Llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[:4] = 0  # no special tokens, which have no text
        model.lm_head.weight[4:] *= 3
    written = generated(model, 12)
    words = tokenizer.decode(written, skip_special_tokens=True).split()
    assert len(words) == 12
    decoder = Decoder(model)

    def answer(**how: Any) -> list[Piece]:
        return list(pieces(decoder, tokenizer, PROMPT, max_tokens=12, **how))

    whole = answer()
    assert [piece.token for piece in whole] == written
    assert "".join(piece.text for piece in whole).split() == words
    assert [piece.finish for piece in whole] == [None] * 11 + ["length"]

    at = next(i for i in range(2, 12) if written.index(written[i]) == i)
    ended = answer(ends=[written[at]])
    assert [piece.token for piece in ended] == written[: at + 1] and ended[-1].finish == "stop"
    assert "".join(piece.text for piece in ended).split() == words[:at], "an end token has no text"

    stop = f"{words[4]} {words[5]}"
    assert words.index(words[4]) == 4 or stop not in " ".join(words[:5])
    stopped = answer(stop=["never", stop])
    assert len(stopped) == 6 and stopped[-1].finish == "stop"
    assert "".join(piece.text for piece in stopped).split() == words[:4]


def test_a_model_that_fails_with_every_cache_is_refused() -> None:
    model = tiny("Qwen3")
    inner = model.forward

    def uncached(input_ids: Tensor, past_key_values: Any = None, **more: Any) -> Any:
        if past_key_values is not None:
            raise KeyError("no cache here")
        return inner(input_ids=input_ids, **more)

    model.forward = uncached
    with pytest.raises(Unsupported, match="gives other logits with a cache than without"):
        Decoder(model)


def test_an_answer_goes_on_from_the_prompt_or_stands_for_itself() -> None:
    tokenizer, decoder = tiny_tokenizer(), Decoder(tiny("Llama", tie_word_embeddings=False))
    ids = tokenizer("w1 w2")["input_ids"]

    def text(**how: Any) -> str:
        return "".join(piece.text for piece in pieces(decoder, tokenizer, ids, max_tokens=8, **how))

    written = list(tokens(decoder, ids, max_tokens=8))
    assert text(context=()) == tokenizer.decode(written, skip_special_tokens=True)
    whole = tokenizer.decode([*ids, *written], skip_special_tokens=True)
    assert "w1 w2" + text() == whole and text().startswith(" ")


def test_end_tokens_come_from_the_generation_config_first() -> None:
    model = tiny_llama()
    assert end_tokens(model) == [2]
    model.generation_config.eos_token_id = [7, 8]
    assert end_tokens(model) == [7, 8]
    decoder = Decoder(model)
    model.generation_config.eos_token_id = next(tokens(decoder, PROMPT, max_tokens=1))
    (only,) = pieces(decoder, tiny_tokenizer(), PROMPT, max_tokens=9)
    assert only.finish == "stop" and only.text == ""


def test_a_seed_repeats_its_draw_and_leaves_the_random_state() -> None:
    decoder = Decoder(tiny("Llama"))

    def drawn(seed: int | None) -> list[int]:
        return list(tokens(decoder, PROMPT, max_tokens=30, sampling=Sampling(1.0, seed=seed)))

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)
    assert torch.rand(1) == expected


def test_an_answer_can_be_given_up_between_steps() -> None:
    decoder = Decoder(tiny("Llama"))
    given: list[int] = []
    for token in tokens(decoder, PROMPT, max_tokens=30, cancelled=lambda: len(given) == 4):
        given.append(token)
    assert len(given) == 4
    assert list(tokens(decoder, PROMPT, max_tokens=30, cancelled=lambda: True)) == []
    assert list(pieces(decoder, tiny_tokenizer(), PROMPT, max_tokens=9, cancelled=lambda: True)) == []


def test_one_answer_at_a_time() -> None:
    decoder = Decoder(tiny("Llama"))
    first = tokens(decoder, PROMPT, max_tokens=5)
    next(first)
    next(tokens(decoder, PROMPT, max_tokens=5))
    with pytest.raises(BadInput, match="another answer was begun"):
        next(first)


def test_caches_hold_what_an_answer_needs_and_no_more() -> None:
    model = tiny("Llama", max_position_embeddings=4096)
    decoder = Decoder(model)
    decoder.read(PROMPT, 300)
    layer = decoder._cache.layers[0]
    assert layer.keys.shape == (1, 2, 512, 8) and layer.length == len(PROMPT)
    decoder.read(PROMPT, 500)
    assert decoder._cache.layers[0] is layer, "large enough: used again"
    decoder.read(PROMPT, 513)
    assert decoder._cache.layers[0].keys.shape[2] == 768
    assert rooms(model, 10).get_max_length() == 10


@pytest.mark.parametrize(
    "ids,count,line",
    [
        ([], 3, "3 tokens after a prompt of 0"),
        ([1], 0, "0 tokens after a prompt of 1"),
        ([1, 64], 1, "outside 0..63"),
        ([-1], 1, "outside 0..63"),
        ([1] * 60, 5, "60 tokens of prompt and 5 of answer are more than the 64 .* ask for at most 4"),
        ([1] * 70, 1, "ask for at most 0, or shorten"),
    ],
)
def test_prompts_that_cannot_be_answered(ids: list[int], count: int, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        next(tokens(Decoder(tiny("Llama")), ids, max_tokens=count))


def test_models_that_cannot_be_decoded() -> None:
    with pytest.raises(Unsupported, match="not a causal language model"):
        Decoder(nn.Linear(2, 2))
    with pytest.raises(BadInput, match="training mode"):
        Decoder(tiny("Llama").train())
    import transformers

    both = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    with pytest.raises(Unsupported, match="not a causal language model"):
        Decoder(transformers.T5ForConditionalGeneration(both).eval())
    broken = tiny("Llama")
    with torch.no_grad():
        broken.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(BadInput, match="NaN or Inf"):
        Decoder(broken)
    with pytest.raises(BadInput, match="empty string"):
        next(pieces(Decoder(tiny("Llama")), tiny_tokenizer(), PROMPT, max_tokens=1, stop=["a", ""]))


def test_what_is_not_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Decoder(tiny("GPT2"), compile=True)
    assert other.way == "model" and other.notices == [
        "not compiled: only models built like Llama have a step for it"
    ]

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", broken)
    model = tiny("Llama")
    decoder = Decoder(model, compile=True)
    assert decoder.way == "lean" and decoder.notices == ["not compiled: RuntimeError: no compiler here"]
    assert list(tokens(decoder, PROMPT, max_tokens=10)) == generated(model, 10)


@pytest.mark.slow
def test_the_compiled_step_writes_the_same_tokens() -> None:
    model = tiny("Llama")
    decoder = Decoder(model, compile=True)
    assert decoder.way == "lean, compiled", decoder.notices
    wanted = generated(model, 40)
    assert list(tokens(decoder, PROMPT, max_tokens=40)) == wanted
    assert list(tokens(decoder, PROMPT, max_tokens=58))[:40] == wanted


@pytest.mark.slow
def test_the_embedded_model_writes_what_generate_writes() -> None:
    from secateur.io.store import load

    loaded = load("smollm2-135m")
    decoder = Decoder(loaded.model)
    assert decoder.way == "lean" and loaded.tokenizer is not None
    ids = loaded.tokenizer("The capital of France is")["input_ids"]
    wanted = generated(loaded.model, 48, ids)
    assert list(tokens(decoder, ids, max_tokens=len(wanted)))[: len(wanted)] == wanted
    text = "".join(p.text for p in pieces(decoder, loaded.tokenizer, ids, max_tokens=48))
    assert text == loaded.tokenizer.decode(wanted, skip_special_tokens=True) and "Paris" in text
