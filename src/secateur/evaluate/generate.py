"""A prompt continued by a model, and a question put to an instruct model through its chat template."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.errors import BadInput, Unsupported
from secateur.evaluate.perplexity import evaluating


@torch.no_grad()
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
        BadInput: an empty prompt, tokens < 1.   Unsupported: the model does not generate, or has no chat template.
    """
    if not prompt.strip() or tokens < 1:
        raise BadInput(
            f"{tokens} tokens after prompt {prompt[:20]!r}",
            where="generate",
            fix="give a prompt and 1 or more",
        )
    if not hasattr(model, "generate") or tokenizer is None:
        raise Unsupported("this model does not generate text", where=type(model).__name__)
    if chat and not getattr(tokenizer, "chat_template", None):
        raise Unsupported(
            "the tokenizer has no chat template", where="chat", fix="leave chat off for a base model"
        )
    if chat:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        # the template has written the special tokens itself
        encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    device = next(model.parameters()).device
    inputs = {name: encoded[name].to(device) for name in ("input_ids", "attention_mask") if name in encoded}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # top_k 0 and the neutral values below: sample from the model's own distribution, whatever its folder suggests
    how = (
        {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    )
    devices = [device] if device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        out = model.generate(**inputs, **how, max_new_tokens=tokens, pad_token_id=pad)  # pyright: ignore[reportCallIssue]
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
