"""The state of a training on disk: equal when it comes back, whole or absent, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.errors import BadInput, Damaged, NoMatch
from secateur.io.state import read_state, write_state

STATE = {
    "step": 7,
    "history": [{"loss": 0.25, "name": None}, {"flag": True}],
    "optimizer": {
        "state": {0: {"exp_avg": torch.randn(3, 2), "step": torch.tensor(4.0)}, 1: {}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
    },
    "masks": {"a/b.weight": torch.arange(5, dtype=torch.uint8)},
    "$odd": "text",
}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path / "s", {"old": 1})
    write_state(tmp_path / "s", STATE)
    assert same(STATE, read_state(tmp_path / "s"))
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["s"]


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "manifest.json"])
def test_damage_is_seen(tmp_path: Path, file: str) -> None:
    write_state(tmp_path / "s", STATE)
    path = tmp_path / "s" / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Damaged):
        read_state(tmp_path / "s")
    path.unlink()
    with pytest.raises((Damaged, NoMatch)):
        read_state(tmp_path / "s")


def test_what_cannot_be_saved_is_named_and_the_old_state_stays(tmp_path: Path) -> None:
    write_state(tmp_path / "s", {"old": 1})
    with pytest.raises(BadInput, match="a/0: a set cannot be saved"):
        write_state(tmp_path / "s", {"a": [{1, 2}]})
    assert read_state(tmp_path / "s") == {"old": 1}
