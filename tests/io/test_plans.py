"""Plan files come back as they went, and nothing else comes back."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.core.plan import Kept, Plan
from secateur.errors import BadInput, Damaged, SecateurError
from secateur.io.plans import load_plan, save_plan


@pytest.fixture
def plan() -> Plan:
    torch.manual_seed(0)
    sites = {f"model.layers.{i}.q": Kept.of(torch.rand(5, 7) > 0.5) for i in range(3)}
    return Plan(
        "wanda",
        {"sparsity": 0.5, "pattern": "row", "allocate": "uniform"},
        sites,
        score_digest="ab",
        notes=["an expert saw no token"],
        errors={"model.layers.0.q": 0.125},
        made={"feed": "layer", "calibration": None},
    )


def test_a_plan_comes_back_whole_and_in_order(plan, tmp_path):
    again = load_plan(save_plan(plan, tmp_path / "deep" / "p.safetensors"))
    assert list(again.sites) == list(plan.sites)
    assert again.digest() == plan.digest()
    assert all(torch.equal(again.sites[n].mask(), k.mask()) for n, k in plan.sites.items())
    for name in ("method", "config", "score_digest", "updates", "notes", "errors", "made"):
        assert getattr(again, name) == getattr(plan, name)


def test_the_same_plan_gives_the_same_bytes_and_no_other_file(plan, tmp_path):
    first, second = save_plan(plan, tmp_path / "a"), save_plan(plan, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert set(load_file(first)) == set(plan.sites), "an ordinary safetensors file"


def test_every_flipped_bit_is_refused(plan, tmp_path):
    raw = save_plan(plan, tmp_path / "p").read_bytes()
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << (at % 8)
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(SecateurError):
            load_plan(tmp_path / "bad")


def test_every_cut_is_refused(plan, tmp_path):
    raw = save_plan(plan, tmp_path / "p").read_bytes()
    for length in range(0, len(raw), 7):
        (tmp_path / "bad").write_bytes(raw[:length])
        with pytest.raises(Damaged):
            load_plan(tmp_path / "bad")


def _forge(path, tensors, change):
    """A file whose digest is right and whose content lies."""
    import hashlib

    body = {
        "method": "wanda", "config": {}, "sites": {"q": {"shape": [2, 4], "kept": 4}}, "digest": "", "score_digest": "",
        "updates": False, "notes": [], "errors": {}, "made": {},
    }  # fmt: skip
    text = json.dumps({**body, **change})
    head = {
        "secateur.format": "plan", "secateur.version": "1", "secateur.plan": text,
        "secateur.sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
    save_file(tensors, path, head)


@pytest.mark.parametrize(
    "change",
    [
        {"sites": {"q": {"shape": [2, 400], "kept": 4}}},
        {"sites": {"q": {"shape": [-2, -4], "kept": 4}}},
        {"sites": {"q": {"shape": [], "kept": 0}}},
        {"sites": {"q": {"shape": [2, 4], "kept": 5}}},
        {"sites": {"q": {"shape": [2, 4], "kept": True}}},
        {"sites": {"q": [2, 4]}},
        {"sites": {"other": {"shape": [2, 4], "kept": 4}}},
        {"notes": [1]},
        {"errors": {"q": "much"}},
        {"updates": 1},
        {"extra": 1},
        {},
    ],
)
def test_a_forged_head_is_refused(change, tmp_path):
    _forge(tmp_path / "p", {"q": torch.tensor([0b00110011], dtype=torch.uint8)}, change)
    with pytest.raises(Damaged):
        load_plan(tmp_path / "p")


def test_another_kind_of_file_is_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(Damaged, match="not a plan"):
        load_plan(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        load_plan(tmp_path / "nothing")


def test_a_plan_without_sites_or_with_nan_is_not_written(plan, tmp_path):
    with pytest.raises(BadInput, match="no site"):
        save_plan(Plan("wanda", {}), tmp_path / "p")
    plan.errors["model.layers.0.q"] = float("nan")
    with pytest.raises(BadInput, match="JSON"):
        save_plan(plan, tmp_path / "p")
    assert os.listdir(tmp_path) == []
