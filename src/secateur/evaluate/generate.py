"""A prompt continued by a model, and a question put to an instruct model through its chat template.

The runtime's own loop (runtime/decode.py) writes, which gives transformers' greedy tokens in a fraction of the time
beside the weights; transformers' generate() where a model, its settings or the length ask for what the loop has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from secateur.errors import BadInput, Unsupported, require
from secateur.evaluate.perplexity import evaluating
from secateur.runtime.decode import Decoder, pieces
from secateur.runtime.sample import GREEDY, Sampling
from secateur.runtime.text import Text

# What generation_config.json may say without another token being written: given here, or of beams and sampling only.
_OURS = {
    *("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "length_penalty"),
    *("early_stopping", "use_cache", "cache_implementation", "output_attentions", "output_hidden_states"),
    *("output_logits", "output_scores", "return_dict_in_generate", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "decoder_start_token_id", "_from_model_config", "transformers_version"),
}
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
}


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    tokens: int = 40,
    seed: int = 0,
    greedy: bool = True,
    chat: bool = False,
) -> str:
    """The model's continuation of `prompt`, without the prompt: at most `tokens` new tokens, special ones left out.

    Args:
        greedy: take the likeliest token; else sample, seeded (the random state outside is left as it was).
        chat: put the prompt as a user's message through the tokenizer's chat template.

    Raises:
        BadInput: an empty prompt, tokens < 1, NaN logits.
        Unsupported: the model does not generate, or has no chat template.
    """
    return "".join(continuation(model, tokenizer, prompt, tokens, seed, greedy, chat))


def continuation(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    tokens: int = 40,
    seed: int = 0,
    greedy: bool = True,
    chat: bool = False,
) -> Iterator[str]:
    """What `generate` gives, in pieces while it is written (some may be ""); `prompt` and they join to one text."""
    if not prompt.strip() or tokens < 1:
        raise BadInput(
            f"{tokens} tokens after prompt {prompt[:20]!r}",
            where="generate",
            fix="give a prompt and 1 or more",
        )
    if not hasattr(model, "generate") or tokenizer is None:
        raise Unsupported("this model does not generate text", where=type(model).__name__)
    ids = _encode(tokenizer, prompt, chat)
    context = [] if chat else ids  # an answer stands for itself
    with evaluating(model):
        decoder = _loop(model, len(ids) + tokens)
        if decoder is None:
            text = Text(tokenizer, context)
            for token in _by_transformers(model, tokenizer, ids, tokens, seed, greedy):
                yield text.push(token)
            yield text.flush()
            return
        how = GREEDY if greedy else Sampling(1.0, seed=seed)
        for piece in pieces(decoder, tokenizer, ids, max_tokens=tokens, sampling=how, context=context):
            yield piece.text


def _encode(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    if not chat:
        return tokenizer(prompt)["input_ids"]
    if not getattr(tokenizer, "chat_template", None):
        raise Unsupported(
            "the tokenizer has no chat template", where="chat", fix="leave chat off for a base model"
        )
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written the special ones


def _loop(model: Any, positions: int) -> Decoder | None:
    """Our own loop for so many positions, where it writes what transformers' generate() would."""
    mixin = require("transformers", "hf").GenerationMixin
    if type(model).generate is not mixin.generate or not _plain(getattr(model, "generation_config", None)):
        return None
    try:
        decoder = Decoder(model)
    except Unsupported:
        return None
    return decoder if decoder.positions is None or positions <= decoder.positions else None


def _plain(config: Any) -> bool:
    """Whether these settings of generate() ask for nothing but the likeliest token, or a draw, each time."""
    given = {} if config is None else config.to_diff_dict()
    return all(name in _OURS or value == _NEUTRAL.get(name) for name, value in given.items())


def _by_transformers(
    model: Any, tokenizer: Any, ids: list[int], tokens: int, seed: int, greedy: bool
) -> list[int]:
    device = next(model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # top_k 0 and the neutral values below: sample from the model's own distribution, whatever its folder suggests
    how: dict[str, Any] = (
        {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    )
    how |= {"attention_mask": torch.ones_like(inputs), "max_new_tokens": tokens, "pad_token_id": pad}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = model.generate(input_ids=inputs, **how)
    alone = getattr(
        model.config, "is_encoder_decoder", False
    )  # these give back their answer without the prompt
    return out[0, 0 if alone else len(ids) :].tolist()
