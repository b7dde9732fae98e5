"""The lean step's parts against transformers' modules, and which models are left to transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.runtime.lean import Lean, angles, fits, norm_of
from tests.tinylm import tiny_llama


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
def test_norms_round_where_the_module_rounds(dtype: torch.dtype, fused: bool) -> None:
    module: Any = tiny_llama(rms_norm_eps=0.1).model.norm.to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-2, 2, 16))
        for scale in (1e-3, 1.0, 30.0):
            x = scale * torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
            found = norm_of(module, dtype, fused)(x)
            assert found.dtype == dtype
            torch.testing.assert_close(
                found, module(x), rtol=torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6, atol=0
            )


def test_a_roll_and_signed_sines_turn_as_transformers_does() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = tiny_llama()
    like = model.model.embed_tokens.weight
    cos, sin = angles(model.model.rotary_emb, like, 40)
    x = torch.randn(1, 3, 1, 8)
    theirs = model.model.rotary_emb(like, torch.tensor([[17]]))
    wanted, _ = apply_rotary_pos_emb(x, x, *theirs)
    torch.testing.assert_close(x * cos[17] + torch.roll(x, 4, -1) * sin[17], wanted, rtol=0, atol=0)


def test_one_step_is_the_models_own() -> None:
    model = tiny_llama(num_attention_heads=4, initializer_range=0.3).double()
    keys, values = ([torch.zeros(1, 1, 5, 4).double() for _ in range(2)] for _ in range(2))
    step = Lean(model, keys, values)
    line = torch.arange(5)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([[5, 9, 9]])).logits[0]
        for at, token in enumerate((5, 9, 9)):
            found = step(torch.tensor([[token]]), line[at : at + 1], line[: at + 1])
            torch.testing.assert_close(found, wanted[at], rtol=0, atol=1e-5)
    assert bool((keys[1][:, :, :3] != 0).all()) and not bool(keys[1][:, :, 3:].any())


def test_what_is_not_built_like_llama_is_left_alone() -> None:
    assert fits(tiny_llama())
    assert not fits(nn.Linear(2, 2)) and not fits(tiny_llama(num_hidden_layers=0))
    assert not fits(tiny_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    hooked = tiny_llama()
    hooked.model.layers[1].mlp.register_forward_hook(lambda *a: None)
    assert not fits(hooked)
    for place in ("", "model", "model.layers.0", "model.layers.1.self_attn", "model.layers.0.mlp"):
        grown = tiny_llama()
        grown.get_submodule(place).add_module("more", nn.Identity())
        assert not fits(grown), place

    class Mine(type(tiny_llama())):
        pass

    assert not fits(Mine(tiny_llama().config)), "a class of its own may do anything"
