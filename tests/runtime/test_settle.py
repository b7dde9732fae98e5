"""settle: the same tensors with the same values elsewhere; sharing and answers stay; files are let go."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.io.packed import Packed, rows_of
from secateur.runtime import library, pages
from secateur.runtime.embedding import PackedEmbedding
from secateur.runtime.linear import PackedLinear, TwoWays
from secateur.runtime.settle import settle

pytestmark = [
    pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler"),
    pytest.mark.skipif(not pages.there_are(), reason="this system gives out no huge pages"),
]


def packed(kind: str = "bitmask", values: str | None = None, out: int = 24) -> PackedLinear:
    return PackedLinear.from_linear(nn.Linear(64, out), torch.rand(out, 64) > 0.5, kind=kind, values=values)


@pytest.mark.parametrize("made_in_inference", [False, True])
def test_tensors_are_the_same_objects_elsewhere_and_answers_stay(made_in_inference: bool) -> None:
    with torch.inference_mode(made_in_inference):
        model: Any = nn.Sequential(packed(out=64), nn.LayerNorm(64), packed(values="int8", out=64), packed())
        x = torch.randn(3, 64)
    with torch.inference_mode():
        wanted = model(x)
    layers = [layer for layer in model if isinstance(layer, PackedLinear)]
    held = {id(t): (t.data_ptr(), t.clone()) for layer in layers for t in layer.buffers()}
    norm = model[1].weight.data_ptr()
    storages = {
        s.data_ptr(): s.nbytes() for layer in layers for s in map(Tensor.untyped_storage, layer.buffers())
    }
    assert settle(model) == sum(storages.values())
    for layer in layers:
        for tensor in layer.buffers():
            before, values = held[id(tensor)]
            assert tensor.data_ptr() != before and pages.holds(tensor) and torch.equal(tensor, values)
    assert model[1].weight.data_ptr() == norm, "what is not packed stays"
    with torch.inference_mode():
        assert torch.equal(model(x), wanted)
    assert settle(model) == 0, "it has settled"


def test_what_shares_memory_goes_on_sharing_it() -> None:
    dense = nn.Linear(64, 32)
    few = PackedLinear.from_linear(dense, kind="dense")
    assert few.values.data_ptr() == dense.weight.data_ptr()
    both = TwoWays(few, dense, 8)
    x, weight = torch.randn(20, 64), dense.weight.detach().clone()
    with torch.no_grad():
        wanted = both(x[:2]), both(x)
        settle(both)
        assert few.values.data_ptr() == dense.weight.data_ptr() and pages.holds(few.values)
        assert torch.equal(dense.weight, weight)
        torch.testing.assert_close((both(x[:2]), both(x)), wanted)


def test_a_head_on_its_embedding_and_a_layer_on_some_of_its_rows() -> None:
    head = packed(out=48)
    table, part = PackedEmbedding(head.packed), PackedLinear(rows_of(head.packed, 16, 40))
    ids, x = torch.tensor([3, 47]), torch.randn(2, 64)
    apart = part.values.data_ptr() - head.values.data_ptr()
    assert apart > 0
    with torch.no_grad():
        wanted = table(ids), part(x)
        settle(nn.ModuleList([head, table, part]))
        torch.testing.assert_close((table(ids), part(x)), wanted, rtol=0, atol=0)
    assert head.values.data_ptr() == table.values.data_ptr() == part.values.data_ptr() - apart
    assert pages.holds(part.values) and pages.holds(part.mask)  # type: ignore[arg-type]


def test_mapped_weights_come_off_their_file(tmp_path: Path) -> None:
    layer = packed(kind="dense", values="int8")
    file = tmp_path / "weights"
    file.write_bytes(layer.values.numpy().tobytes())
    with file.open("rb") as opened:
        held = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)  # as io/tensors.py maps a folder
    mapped = torch.frombuffer(held, dtype=torch.int8).view(24, 64)
    model = PackedLinear(Packed("dense", (24, 64), mapped, scales=layer.scales))
    assert model.values.data_ptr() == mapped.data_ptr()
    settle(model)
    assert pages.holds(model.values) and torch.equal(model.values, layer.values)
    gone = weakref.ref(held)
    del mapped, held
    gc.collect()
    assert gone() is None, "nothing holds the map"


def test_nothing_moves_without_packed_layers_or_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(nn.Linear(64, 64)) == 0
    layer = packed()
    at = layer.values.data_ptr()
    monkeypatch.setattr(pages, "there_are", lambda: False)
    assert settle(layer) == 0 and layer.values.data_ptr() == at
