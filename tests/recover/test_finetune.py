"""Fine-tuning keeps the zeros, lowers the loss, and refuses what it cannot keep."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.recover.finetune import finetune, keep_zeros
from tests.recover.cut import batches, cut_model, expect_pattern, zeros


def oracle(model: nn.Module, data: list[Any], steps: int, lr: float) -> list[float]:
    """The same training written out: AdamW, lr to 0 in equal parts, zeros put back after every step."""
    cut = {n: p.detach() == 0 for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        ids = data[step % len(data)]["input_ids"]
        optimizer.param_groups[0]["lr"] = lr * (steps - step) / steps
        logits = model(ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            if name in cut:
                assert parameter.grad is not None
                parameter.grad[cut[name]] = 0
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in cut:
                    parameter[cut[name]] = 0
        losses.append(float(loss.detach()))
    return losses


def test_equals_a_loop_written_out() -> None:
    model = cut_model()
    slow = copy.deepcopy(model)
    told: list[tuple[int, float]] = []
    found = finetune(model, batches(), steps=5, lr=1e-2, tell=lambda step, loss: told.append((step, loss)))
    wanted = oracle(slow, batches(), 5, 1e-2)
    assert found == pytest.approx(wanted, rel=1e-5) and told == list(enumerate(found, 1))
    for (name, a), b in zip(model.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_zeros_hold_and_the_loss_falls(pattern: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = cut_model(pattern)
    before, names, dense = zeros(model), list(model.state_dict()), copy.deepcopy(model.state_dict())
    found = finetune(model, batches(), steps=30, lr=1e-2, weight_decay=0.1)
    assert len(found) == 30 and found[-1] < 0.7 * found[0]
    expect_pattern(model, before, pattern)
    assert list(model.state_dict()) == names and not model.training
    for name, value in model.state_dict().items():
        assert not torch.equal(value, dense[name]), f"{name} was not trained"
    assert all(p.grad is None for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expect_pattern(loaded, before, pattern)
    ids = batches()[0]["input_ids"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_in_a_loop_of_ones_own_with_any_optimiser() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for p in (model[0].weight, model[2].weight):
            p[torch.rand_like(p) < 0.5] = 0
    before = {n: p == 0 for n, p in model.named_parameters() if p.ndim == 2}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    pruner = keep_zeros(model, optimizer)
    for step in range(6):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    for name, cut in before.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight == 0, cut), name
        assert not bool(optimizer.state[weight]["momentum_buffer"][cut].any())
    skipping = torch.optim.SGD(model[2].parameters(), 0.1)
    with pytest.raises(BadInput, match=r"0\.weight: is not among the optimiser's parameters"):
        keep_zeros(model, skipping)
    assert list(keep_zeros(model, skipping, skip=["0"]).net.masks) == ["2.weight"]


def test_a_loss_of_ones_own_and_labels_of_the_batch() -> None:
    model = nn.Linear(3, 1)
    data = [(torch.ones(2, 3), torch.zeros(2, 1))]
    found = finetune(model, data, steps=20, lr=0.1, loss=lambda m, b: F.mse_loss(m(b[0]), b[1]))
    assert found[-1] < found[0]
    llm, (batch, _) = cut_model(), batches()
    masked = torch.full_like(batch["input_ids"], -100)
    masked[:, -1] = batch["input_ids"][:, -1]
    with torch.no_grad():
        logits = llm(batch["input_ids"]).logits
    last = F.cross_entropy(logits[:, -2], batch["input_ids"][:, -1])
    assert finetune(llm, [{**batch, "labels": masked}], steps=1)[0] == pytest.approx(float(last), rel=1e-5)


def test_what_is_refused_changes_nothing() -> None:
    model = cut_model()
    state = copy.deepcopy(model.state_dict())

    def failing(value: float) -> Any:
        def loss(m: nn.Module, batch: Any) -> Tensor:
            return m(**batch).logits.sum() * value

        return loss

    for settings, said in (
        ({"batches": []}, "finetune: no batch to train on; give at least one"),
        ({"steps": 0}, "finetune: 0 steps; give a whole number, 1 or more"),
        ({"lr": -1.0}, r"finetune: lr -1\.0, weight_decay 0\.0; lr > 0, weight_decay >= 0"),
        ({"batches": [torch.ones(2, 2)]}, "a batch is a Tensor; give dicts with input_ids"),
        ({"loss": failing(math.nan)}, "the loss of step 1 is nan; lower lr"),
    ):
        given: dict[str, Any] = {"batches": batches(), "steps": 2, **settings}
        with pytest.raises(BadInput, match=said) as caught:
            finetune(model, given.pop("batches"), **given)
        assert "\n" not in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not model.training


def test_a_gradient_that_is_not_finite_names_its_step() -> None:
    model = nn.Linear(2, 1)
    steps = iter((1.0, 0.0))

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        return (m(batch).square().sum() * next(steps)).sqrt()  # the root's slope at 0 is infinite

    with pytest.raises(BadInput, match="the largest gradient of step 2 is nan"):
        finetune(model, [torch.ones(1, 2)], steps=3, lr=0.1, loss=loss)
    assert all(bool(p.isfinite().all()) and p.grad is None for p in model.parameters())


def test_zeros_that_no_mask_would_hold_are_refused() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    keep_zeros(model, optimizer).detach()
    fused = next(p for n, p in model.named_parameters() if n.endswith("experts.down_proj"))
    with torch.no_grad():
        fused[0, 0, 0] = 0
    with pytest.raises(Unsupported, match=r"experts\.down_proj: holds zeros, and no mask holds fused"):
        keep_zeros(model, optimizer)
    only = torch.optim.SGD(model.model.layers[0].self_attn.parameters(), 0.1)
    assert len(keep_zeros(model, only, only=["*.self_attn.*"]).net.masks) == 4
