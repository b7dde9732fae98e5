"""Forecast beside measurement: the case is what the weights are, the difference is what the figures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.core.select import NM, Blocks, keep_top
from secateur.errors import BadInput
from secateur.io.convert import to_sparse
from secateur.io.packing import Packing
from secateur.runtime import beside as module
from secateur.runtime import library
from secateur.runtime.beside import Beside, beside, case_of, cuts_of, packed_layer
from secateur.runtime.forecast import Case, Row
from secateur.runtime.linear import PackedLinear
from secateur.runtime.loading import load_packed
from secateur.runtime.pace import Pace
from secateur.runtime.ways import targets
from tests.runtime.test_accelerate import cut
from tests.runtime.test_forecast import SIZES, timed
from tests.tinylm import tiny_llama

__all__ = ["timed"]  # a fixture
pytestmark = [
    pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler"),
    pytest.mark.filterwarnings("ignore:.*no manifest"),
]
KEEP = {
    "bitmask": lambda score: keep_top(score, score.shape[1] * 3 // 4),
    "2:4": lambda score: NM(2, 4).select(score),
    "16x1": lambda score: Blocks(16, 1).select(score, 0.75),
}


def found(token: float, prompt: float) -> Beside:
    case, row = Case("50% bitmask int8", "bitmask", "int8", 0.5), Row("a", False, 10, 0.02, 0.3, 0.0)
    return Beside(case, row, (Pace(prompt, token, 64, 0.0, "lean"), Pace(prompt, token, 64, 0.0, "lean")), 9)


def test_the_difference_is_of_tokens_a_second() -> None:
    one = found(0.025, 0.2)
    assert one.off == pytest.approx(0.25) and found(0.016, 0.2).off == pytest.approx(-0.2)
    assert one.line == (
        "50% bitmask int8: forecast 50.0 tokens/s, measured 40.0, off by +25%; "
        "prompt of 64: forecast 300 ms, measured 200"
    )
    assert one.as_dict()["measured"] == {"tokens_per_second": pytest.approx(40), "prompt_seconds": 0.2}


@pytest.mark.parametrize("kind", KEEP)
@pytest.mark.parametrize("packed", [None, Packing("auto", "int8")])
def test_the_case_is_what_the_weights_are(tmp_path: Path, kind: str, packed: Packing | None) -> None:
    model: Any = cut(tiny_llama(tie_word_embeddings=False, **SIZES), KEEP[kind])
    values = "float32"
    if packed is not None:
        model.save_pretrained(tmp_path / "dense")
        model, values = load_packed(to_sparse(tmp_path / "dense", tmp_path / "parts", packed)), "int8"
    case = case_of(cuts_of(model))
    sparsity = 0.5 if kind == "2:4" else 0.75
    assert (case.kind, case.values) == (kind, values) and case.sparsity == pytest.approx(sparsity)
    assert case.name == f"{sparsity:.0%} {kind} {values}"
    assert len([one for one in cuts_of(model) if one.kinds]) == 14, "the head is not cut"


def test_mixed_patterns_have_the_layout_that_holds_them_all() -> None:
    model: Any = cut(tiny_llama(**SIZES), KEEP["2:4"])
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight.copy_(torch.randn(weight.shape) * keep_top(torch.rand(weight.shape), 16))
    assert case_of(cuts_of(model)).kind == "bitmask"
    assert case_of(cuts_of(tiny_llama(**SIZES))) == Case("dense float32", "dense", "float32")
    with pytest.raises(BadInput, match="holds no linear layers"):
        case_of([])


def test_a_layer_that_is_not_cut_is_dense() -> None:
    model = cut(tiny_llama(**SIZES), KEEP["2:4"])
    case = Case("c", "2:4", "int8", 0.5)
    made: Any = {target.name: packed_layer(target, case) for target in targets(model)[0]}
    assert made["lm_head"].kind == "dense" and made["model.layers.0.mlp.up_proj"].kind == "nm"
    assert {part.values.dtype for part in made.values()} == {torch.int8}


def test_a_cut_model_is_packed_for_the_measurement_only(timed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def paced(model: nn.Module, prompt: int) -> Pace:
        layers = [part for part in model.modules() if isinstance(part, (nn.Linear, PackedLinear))]
        seen.append({part.kind if isinstance(part, PackedLinear) else "torch" for part in layers})
        return Pace(0.5, 0.002, prompt, 0.0, "lean")

    monkeypatch.setattr(module, "pace", paced)
    model = cut(tiny_llama(tie_word_embeddings=False, **SIZES), KEEP["2:4"])
    parts = list(model.modules())
    one = beside(model, prompt=8)
    assert seen == [{"nm", "dense"}] * 2, "before and after the forecast"
    assert all(part is other for part, other in zip(model.modules(), parts, strict=True))
    assert one.token == 0.002 and one.prompt == 0.5 and one.case.name == "50% 2:4 float32"
    # a nanosecond a byte and ten a layer, a millisecond that is not weights: the layers' bytes of the packed model
    rest = 4 * (128 * 64 + 5 * 64) + 2 * 4 * 16
    layouts = 40 * 15
    assert one.row.token == pytest.approx(1e-3 + 1e-9 * (one.bytes - rest - layouts) + 15e-8, rel=1e-3)


def test_a_folder_beside_the_model_it_was_made_of(timed: None, tmp_path: Path) -> None:
    model: Any = cut(tiny_llama(tie_word_embeddings=False, **SIZES), KEEP["bitmask"])
    for parameter in model.parameters():
        parameter.data += 0.0  # a file of --format sparse holds a -0.0 as any other bits
    model.save_pretrained(tmp_path / "dense")
    rows = []
    for packing in (None, Packing("bitmask", "float32")):
        folder = to_sparse(tmp_path / "dense", tmp_path / f"parts-{packing is None}", packing)
        one = beside(model, load_packed(folder), prompt=8)
        assert one.case.uncut == "torch" and one.case.kind == "bitmask", "the head was not packed"
        rows.append(one.row.token)
    assert rows[0] == pytest.approx(rows[1])
    whole = beside(
        model,
        load_packed(to_sparse(tmp_path / "dense", tmp_path / "int8", Packing("auto", "int8"))),
        prompt=8,
    )
    assert whole.case.uncut == "dense" and whole.row.token < rows[0]
    with pytest.raises(BadInput, match="holds nothing packed; write it with"):
        beside(model, tiny_llama(**SIZES))
