"""Real architectures, tiny and with random weights, unpatched: every feed, against hooks on the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from secateur.engine.run import FEEDS
from secateur.errors import Unsupported
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.methods.weights.wanda import Wanda
from secateur.sites.find import find_blocks
from tests.engine.models import (
    BERT,
    DENSE,
    LLM,
    MODELS,
    agreement,
    as_seen,
    build,
    data,
    expect_cut,
    forward,
    run,
    wanda_mask,
)
from tests.engine.toy import hooked


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_both_methods_cut_every_site_and_the_model_still_computes(name: str, feed: str) -> None:
    for method in (Wanda(), SparseGPT(pattern="2:4")):
        model = build(name).train()
        per_block = [len(block.sites) for block in find_blocks(model)]
        assert per_block == [MODELS[name][3]] * 2
        use_cache = getattr(model.config, "use_cache", None)
        result = run(name, model, method, feed)
        expect_cut(result)
        assert (
            all(module.training for module in model.modules())
            and getattr(model.config, "use_cache", None) == use_cache
        )
        assert not [note for note in result.plan.notes if "token" in note or "raised" in note]
        assert bool(torch.isfinite(forward(model, name)).all())


@pytest.mark.parametrize("name", DENSE)
def test_masks_are_those_of_hooks_on_the_dense_model(name: str) -> None:
    """Feed none: inputs recorded by hooks on each Linear in one forward of the untouched model."""
    model, dense = build(name), build(name)
    result = run(name, model, Wanda(), "none")
    inputs = hooked(dense, list(result.plan.sites), data(name))
    masks = {n: wanda_mask(as_seen(dense.get_submodule(n)), x, 5) for n, x in inputs.items()}
    assert masks.keys() == result.plan.sites.keys() and agreement(result, masks) == 1.0


@pytest.mark.parametrize("name", DENSE)
def test_block_after_block_equals_running_the_whole_model_again(name: str) -> None:
    """Feed block: before each block the real model, cut so far, is run again under hooks."""
    model, slow = build(name), build(name)
    blocks = [[site.name for site in block.sites] for block in find_blocks(slow)]
    result, masks = run(name, model, Wanda(), "block"), {}
    for names in blocks:
        for n, x in hooked(slow, names, data(name)).items():
            weight = as_seen(slow.get_submodule(n))
            masks[n] = wanda_mask(weight, x, 5)
            weight.mul_(masks[n])
    assert agreement(result, masks) == 1.0
    assert torch.allclose(forward(model, name), forward(slow, name), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "phi", "bert", "convnext"])
def test_layer_after_layer_equals_running_the_whole_model_again(name: str) -> None:
    """Feed layer: each site is measured by a forward in which all earlier ones are already cut, in order of use."""
    model, slow = build(name), build(name)
    used: list[str] = []
    sites = [site.name for block in find_blocks(slow) for site in block.sites]
    handles = [
        slow.get_submodule(n).register_forward_pre_hook(lambda m, a, n=n: used.append(n)) for n in sites
    ]
    forward(slow, name)
    for handle in handles:
        handle.remove()
    result, masks = run(name, model, Wanda(), "layer"), {}
    for n in used:
        weight = as_seen(slow.get_submodule(n))
        masks[n] = wanda_mask(weight, hooked(slow, [n], data(name))[n], 5)
        weight.mul_(masks[n])
    assert sorted(used) == sorted(sites) and agreement(result, masks) == 1.0


# -- particular ones ---------------------------------------------------------------------------------------------


def test_tied_head_and_embedding_stay_as_they_are() -> None:
    model = build("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    held = model.lm_head.weight.clone()
    run("llama", model, Wanda(), "layer")
    assert torch.equal(model.lm_head.weight, held) and model.lm_head.weight is model.model.embed_tokens.weight


def test_n_m_on_transposed_weights_runs_along_the_inputs() -> None:
    model = build("gpt2")
    run("gpt2", model, Wanda(pattern="2:4"), "layer")
    weight = model.transformer.h[0].mlp.c_fc.weight  # [in 32, out 128]
    assert ((weight.t().reshape(128, 8, 4) != 0).sum(-1) == 2).all()


def build_albert() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AlbertConfig(**{**BERT, "embedding_size": 16, "num_hidden_layers": 3})
    return transformers.AlbertModel(config)


def test_layers_used_again_and_again_count_every_use() -> None:
    """ALBERT: one layer, three passes."""
    model, dense = build_albert(), build_albert()
    with pytest.raises(Unsupported, match="more than once"):
        run("bert", model, Wanda(), "layer")
    result = run("bert", model, Wanda(), "none")
    inputs = hooked(dense, list(result.plan.sites), data("bert"))
    ffn = next(n for n in inputs if n.endswith(".ffn"))
    assert len(inputs[ffn]) == 3 * 5 * 11
    masks = {n: wanda_mask(as_seen(dense.get_submodule(n)), x, 5) for n, x in inputs.items()}
    assert agreement(result, masks) == 1.0


def hybrid(model: str, config: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return make


@pytest.mark.parametrize(
    ("make", "pixels", "blocks"),
    [
        (
            hybrid(
                "T5EncoderModel",
                "T5Config",
                vocab_size=64,
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
            ),
            False,
            2,
        ),
        (hybrid("RobertaForMaskedLM", "RobertaConfig", **BERT), False, 2),
        (
            hybrid(
                "SwinForImageClassification",
                "SwinConfig",
                image_size=16,
                patch_size=2,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
            ),
            True,
            2,
        ),
        (
            hybrid(
                "DeepseekV3ForCausalLM",
                "DeepseekV3Config",
                **{
                    **LLM,
                    "num_key_value_heads": 4,
                    "moe_intermediate_size": 16,
                    "num_hidden_layers": 3,
                    "n_routed_experts": 4,
                    "num_experts_per_tok": 2,
                    "n_group": 2,
                    "topk_group": 1,
                    "first_k_dense_replace": 1,
                    "kv_lora_rank": 16,
                    "q_lora_rank": 16,
                    "qk_rope_head_dim": 8,
                    "v_head_dim": 8,
                    "qk_nope_head_dim": 8,
                },
            ),
            False,
            3,
        ),
        (
            hybrid(
                "JambaForCausalLM",
                "JambaConfig",
                **{
                    **LLM,
                    "attn_layer_period": 2,
                    "attn_layer_offset": 1,
                    "expert_layer_period": 2,
                    "expert_layer_offset": 1,
                    "num_experts": 4,
                    "num_experts_per_tok": 2,
                    "mamba_d_state": 4,
                    "mamba_dt_rank": 4,
                },
            ),
            False,
            2,
        ),
    ],
    ids=["t5", "roberta", "swin", "deepseek_v3", "jamba"],
)
def test_more_architectures(make: Callable[[], Any], pixels: bool, blocks: int) -> None:
    name = "vit" if pixels else "llama"
    for feed in FEEDS:
        model = make()
        assert len(find_blocks(model)) == blocks
        expect_cut(run(name, model, Wanda(), feed))
        assert bool(torch.isfinite(forward(model, name)).all())
