"""Sites are plain values."""

from __future__ import annotations

import dataclasses

import pytest

from secateur.core.units import Site, Unit


def test_site_counts_its_units() -> None:
    assert Site("q", (3, 4)).size == 12 and Site("q", (2, 3, 4)).size == 24 and Site("q", ()).size == 1
    assert Site("q", (3, 4)) == Site("q", (3, 4), Unit.WEIGHT, 1.0)


def test_sites_cannot_be_altered() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Site("q", (3, 4)).name = "k"  # type: ignore[misc]


def test_units_read_as_their_words() -> None:
    assert str(Unit.WEIGHT) == "weight" and Unit("expert") is Unit.EXPERT and len(Unit) == 12
