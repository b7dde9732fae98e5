"""Size: four figures counted by hand on a small model, and peak memory that sees an allocation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.errors import NoMatch
from secateur.evaluate.size import PeakMemory, folder_bytes, measure_size
from tests.tinylm import save_tiny, tiny_llama

# q 16x16, k and v 8x16, o 16x16, gate and up 24x16, down 16x24, in each of 2 layers
SITES = 2 * (256 + 128 + 128 + 256 + 384 + 384 + 384)
HEAD = 64 * 16


def test_dense() -> None:
    model = tiny_llama(tie_word_embeddings=False)
    size = measure_size(model)
    assert size.density == 1.0 and size.model_density == 1.0 and size.sparsity == 0.0
    assert size.parameters == SITES + 2 * HEAD + 5 * 16  # embedding, head, 5 norms
    assert size.flops == 2 * (SITES + HEAD)  # the look-up of an embedding multiplies nothing
    assert len(size.layers) == 14


def test_a_tied_head_still_multiplies() -> None:
    assert measure_size(tiny_llama(tie_word_embeddings=True)).flops == 2 * (SITES + HEAD)


def test_cut() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:12] = 0  # half of 384
        model.model.embed_tokens.weight[0] = 0  # not a unit: nobody cut it
    size = measure_size(model)
    assert size.density == pytest.approx(1 - 192 / SITES)
    assert size.model_density == pytest.approx(1 - 192 / size.parameters)
    assert size.flops == 2 * (SITES - 192 + HEAD)
    layer = next(row for row in size.layers if row["name"] == "model.layers.0.mlp.up_proj")
    assert layer == {"name": "model.layers.0.mlp.up_proj", "shape": [24, 16], "sparsity": 0.5}


def test_only_the_experts_a_token_reaches_count() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    def flops(chosen: int) -> int:
        config = MixtralConfig(
            vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=chosen,
        )  # fmt: skip
        return measure_size(MixtralForCausalLM(config)).flops

    one_expert = 2 * 2 * (3 * 8 * 16)  # 2 layers, multiply and add, three matrices
    assert flops(2) - flops(1) == one_expert


def test_folder_bytes(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    expected = sum(p.stat().st_size for p in (tmp_path / "model").iterdir())
    assert folder_bytes(tmp_path / "model") == expected > 4 * SITES
    with pytest.raises(NoMatch):
        folder_bytes(tmp_path / "nope")


def test_no_site() -> None:
    with pytest.raises(NoMatch, match="no site"):
        measure_size(tiny_llama(), sites=[])


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory() as outer:
        with PeakMemory() as peak:
            held = np.ones(25_000_000)  # 200 MB
            assert held[-1] == 1
            del held
        with PeakMemory() as after:
            pass
    assert peak.mb > after.mb + 150
    assert outer.mb >= peak.mb - 10  # two samplers, a moment apart
