"""A short form of attacks/flip.py: single bits, pages and cuts in plain, sharded and sparse folders."""

from __future__ import annotations

from attacks import flip


def test_damage_is_refused_by_name() -> None:
    figures = flip.run(150, seed=1)
    assert figures["failures"] == []
    assert figures["refused"] == figures["named"] == 150 + 30 + 30
