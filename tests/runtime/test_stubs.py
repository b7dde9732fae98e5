"""What stands in for a model's weights: matrices that keep little, and the rows that layers multiply."""

from __future__ import annotations

import pytest
import torch

from secateur.io.packed import check, unpack
from secateur.runtime.forecast import layers_of
from secateur.runtime.sliver import sliver
from secateur.runtime.stubs import inputs
from secateur.runtime.ways import targets
from tests.runtime.test_forecast import SIZES
from tests.tinylm import tiny_llama


@pytest.mark.parametrize("kept", [0, 1, 8])
@pytest.mark.parametrize("shape", [(48, 64), (5, 23), (16, 7)])
def test_slivers_are_matrices_like_others(kept: int, shape: tuple[int, int]) -> None:
    made = sliver(*shape, kept)
    check(made.packed, "sliver")
    kept_columns = torch.arange(shape[1]) % 8 < kept
    wanted = 1e-3 * kept_columns.float().expand(shape)
    torch.testing.assert_close(unpack(made.packed).float(), wanted, rtol=1e-2, atol=0)
    x = torch.randn(1, 1, shape[1])
    torch.testing.assert_close(made(x), x @ wanted.t(), rtol=1e-2, atol=1e-4)


def test_what_layers_multiply_is_taken_from_the_model() -> None:
    model = tiny_llama(**SIZES)
    found, _ = targets(model)
    rows_of_x = inputs(model, found, length=4)
    assert sorted(rows_of_x) == sorted(target.name for target in found)
    with torch.no_grad():
        ids = torch.tensor([[(37 * at + 11) % 128 for at in range(4)]])
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    torch.testing.assert_close(rows_of_x["model.layers.0.self_attn.q_proj"], hidden[:, -1:])
    layers = {x.rows: x for x in layers_of(model, found, None, rows_of_x) if x.columns == 64}
    assert len(layers[32].rows_of_x) == 4 and layers[32].rows_of_x[0].shape == (1, 1, 64)
    assert not any(part._forward_pre_hooks for part in model.modules())
