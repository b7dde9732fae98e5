"""Tiny real architectures with random weights, built from their configuration classes: nothing is downloaded.

Imports of transformers stay inside functions: they take seconds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.engine.calibrate import Calibration
from secateur.engine.run import Options, Result, compress
from secateur.sites.find import find_blocks

WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLM = {
    **WIDE,
    "vocab_size": 64,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {**WIDE, "vocab_size": 64, "max_position_embeddings": 64}
LOCAL = {"head_dim": 8, "sliding_window": 4}
TYPES = {"layer_types": ["sliding_attention", "full_attention"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
NAMES = {"bos_token_id": 1, "eos_token_id": 2}

# name -> (model class, configuration class, settings, sites a block)
MODELS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLM, 7),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**LLM, "sliding_window": 4}, 7),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLM, 7),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**LLM, "head_dim": 8}, 7),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**LLM, "head_dim": 8}, 7),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**LLM, **LOCAL}, 7),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**LLM, **LOCAL, **TYPES}, 7),
    "phi": ("PhiForCausalLM", "PhiConfig", LLM, 6),
    "opt": ("OPTForCausalLM", "OPTConfig", {**BERT, **NAMES, "ffn_dim": 48, "word_embed_proj_dim": 32}, 6),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**NAMES, "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
        4,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**BERT, **NAMES}, 4),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {**NAMES, "vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        4,
    ),
    "bert": ("BertModel", "BertConfig", BERT, 6),
    "vit": ("ViTForImageClassification", "ViTConfig", {**WIDE, "image_size": 16, "patch_size": 4}, 6),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2], "image_size": 16, "patch_size": 4},
        4,
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**LLM, "num_local_experts": 4, "num_experts_per_tok": 2},
        12,
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**LLM, **MOE, "head_dim": 8}, 12),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**LLM, **MOE, "shared_expert_intermediate_size": 24},
        15,
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **LLM,
            **LOCAL,
            **TYPES,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default"},
        },
        12,
    ),
}
EXPERTS = ("mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss")
DENSE = [name for name in MODELS if name not in EXPERTS]


def build(name: str, **more: Any) -> Any:
    import transformers

    model, config, settings, _ = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**{**settings, **more}))


def data(name: str, samples: int = 5) -> Calibration:
    stream = torch.Generator().manual_seed(3)
    if name in ("vit", "convnext"):
        return Calibration(
            tuple({"pixel_values": torch.randn(3, 16, 16, generator=stream)} for _ in range(samples)), "noise"
        )
    return Calibration(
        tuple({"input_ids": torch.randint(3, 64, (11,), generator=stream)} for _ in range(samples)), "noise"
    )


def run(name: str, model: Any, method: Any, feed: str, calibration: Calibration | None = None) -> Result:
    return compress(model, method, calibration or data(name), Options(feed=feed, batch=2, products="float32"))  # type: ignore[arg-type]


def forward(model: Any, name: str) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(**{key: value[None] for key, value in data(name).samples[0].items()})[0]


def wanda_mask(weight: Tensor, x: Tensor, samples: int) -> Tensor:
    """Half of every row, by a stable sort of its own."""
    score = weight.double().abs() * x.double().square().sum(0).div(samples).sqrt()
    keep = torch.ones_like(score, dtype=torch.bool)
    return keep.scatter_(1, torch.sort(score, dim=1, stable=True).indices[:, : score.shape[1] // 2], False)


def as_seen(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight.t() if type(module).__name__ == "Conv1D" else weight


def expect_cut(result: Result, sparsity: float = 0.5) -> None:
    """The sparsity is measured in the weights, not taken from the plan."""
    sites = {site.name: site for block in find_blocks(result.model) for site in block.sites}
    assert list(result.plan.sites) == list(sites)
    zeros = sum(int((site.view() == 0).sum()) for site in sites.values())
    units = sum(site.site.size for site in sites.values())
    assert zeros / units == pytest.approx(sparsity, abs=1e-3) and result.plan.sparsity == pytest.approx(
        sparsity, abs=1e-3
    )
    for name, kept in result.plan.sites.items():
        assert torch.equal(sites[name].view() != 0, kept.mask()), name


def agreement(result: Result, masks: dict[str, Tensor]) -> float:
    same = sum(int((result.plan.sites[name].mask() == mask).sum()) for name, mask in masks.items())
    return same / sum(mask.numel() for mask in masks.values())
