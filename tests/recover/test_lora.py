"""LoRA under a mask: what trains is what is merged, zeros hold, and the network comes back as it was loaded."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.recover.finetune import finetune, keep_zeros
from secateur.recover.lora import lora
from tests.recover.cut import batches, cut_model, expect_pattern, zeros


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What peft and transformers warn about is theirs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft|transformers")
        yield


def oracle(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + scaling B A where W is not zero, entry by entry."""
    out = weight.clone()
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if float(weight[i, j]) != 0:
                out[i, j] += scaling * sum(float(b[i, r]) * float(a[r, j]) for r in range(a.shape[0]))
    return out


def types(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_train_merge_save_load(pattern: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = cut_model(pattern)
    before, names, modules, ids = (
        zeros(model),
        list(model.state_dict()),
        types(model),
        batches()[0]["input_ids"],
    )
    dense = model(ids).logits
    adapted = lora(model, rank=4, alpha=8.0)
    assert len(adapted.masks) == 14 and torch.equal(adapted.model(ids).logits, dense), "B begins at 0"
    found = finetune(adapted, batches(), steps=60, lr=3e-2)
    assert found[-1] < 0.95 * found[0]  # embeddings and head are random, and frozen
    trained = adapted.model.eval()(ids).logits.detach()
    assert not torch.allclose(trained, dense, atol=0.1)
    merged: Any = adapted.merge()
    assert merged is model and list(merged.state_dict()) == names and types(merged) == modules
    assert torch.equal(merged(ids).logits, trained), "train = merge, to the bit"
    expect_pattern(merged, before, pattern)
    assert all(p.requires_grad for p in merged.parameters()) and not hasattr(merged, "peft_config")
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expect_pattern(loaded, before, pattern)
    assert torch.equal(loaded(ids).logits, trained)
    with pytest.raises(BadInput, match="is merged already"):
        adapted.merge()
    finetune(merged, batches(), steps=1, lr=1e-2)
    expect_pattern(merged, before, pattern)


def test_the_merged_weight_is_the_formula() -> None:
    model = cut_model()
    weight = model.model.layers[1].mlp.up_proj.weight
    adapted = lora(model, rank=3, alpha=6.0, targets=["up_proj"], seed=4)
    (name,) = [n for n in adapted.masks if "layers.1" in n]
    layer = adapted.model.get_submodule(f"base_model.model.{name}")
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
    a, b = (m["default"].weight.detach() for m in (layer.lora_A, layer.lora_B))
    wanted = oracle(weight.detach(), a, b, 2.0)
    merged: Any = adapted.merge()
    assert merged.model.layers[1].mlp.up_proj.weight is weight
    assert torch.allclose(weight, wanted, atol=1e-5)
    assert not torch.allclose(weight, weight * 0 + 2.0 * b @ a), "the product alone would fill the zeros"


def test_the_seed_is_the_adapters_own() -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, again, other = (
        [p.detach().clone() for p in lora(cut, seed=seed).parameters()]
        for cut, seed in ((_quiet(state), 0), (_quiet(state), 0), (_quiet(state), 1))
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(first) == 28 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def _quiet(state: Tensor) -> Any:
    model = cut_model()
    torch.random.set_rng_state(state)
    return model


def test_in_bfloat16_train_is_merge_too() -> None:
    model = cut_model().bfloat16()
    before, ids = zeros(model), batches()[0]["input_ids"]
    adapted = lora(model)
    assert {p.dtype for p in adapted.parameters()} == {torch.float32}
    finetune(adapted, batches(), steps=10, lr=3e-2)
    trained = adapted.model.eval()(ids).logits
    merged: Any = adapted.merge()
    assert torch.equal(merged(ids).logits, trained)
    for name, cut in zeros(merged).items():  # so coarse a weight may also land on 0 by itself
        assert bool(cut[before[name]].all()) and float(cut.float().mean()) < 0.55, name


def test_what_is_refused_leaves_the_network_as_it_was() -> None:
    model = cut_model()
    model.model.norm.weight.requires_grad_(False)
    state, modules = copy.deepcopy(model.state_dict()), types(model)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"rank": 0}, BadInput, "lora: rank 0; use 1 or more"),
        ({"alpha": 0.0}, BadInput, r"lora: alpha 0\.0; use a number above 0"),
        ({"targets": ["wq"]}, BadInput, "lora targets: .*wq.* not found"),
        ({"targets": ["q_proj", "embed_tokens"]}, Unsupported, "embed_tokens: is a Embedding, no Linear"),
        (
            {"targets": ["q_proj", "norm"]},
            Unsupported,
            "lora targets: Target module .*RMSNorm.* is not supported",
        ),
    ]
    for settings, kind, said in cases:
        with pytest.raises(kind, match=said) as caught:
            lora(model, **settings)
        assert "\n" not in str(caught.value)
        assert types(model) == modules and not hasattr(model, "peft_config"), settings
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert frozen == ["model.norm.weight"], settings
    with pytest.raises(Unsupported, match="lm_head: shares its weight with another module"):
        lora(cut_model(tie_word_embeddings=True), targets=["lm_head"])


def test_adapters_of_others_are_refused_by_name() -> None:
    adapted = lora(cut_model())
    with pytest.raises(BadInput, match="has adapters already"):
        lora(adapted.model)
    optimizer = torch.optim.SGD(adapted.model.parameters(), 0.1)
    with pytest.raises(Unsupported, match=r"lora_A\.default\.weight: is an adapter; .*recover\.lora"):
        keep_zeros(adapted.model, optimizer)
