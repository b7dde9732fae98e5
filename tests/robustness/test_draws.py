from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput
from secateur.robustness.draws import Draws

KINDS = {
    "normal": lambda d: d.normal(3, 2),
    "uniform": lambda d: d.uniform(4),
    "integers": lambda d: d.integers(-2, 5, 6),
    "between": lambda d: np.array(d.between(-45, 45)),
}


@pytest.mark.parametrize("kind", KINDS)
@given(cut=st.integers(0, 7), first=st.integers(0, 10**6))
def test_an_image_has_its_numbers_whatever_the_batch(kind: str, cut: int, first: int) -> None:
    whole = KINDS[kind](Draws(3, "fog/1", first, 7))
    parts = [KINDS[kind](Draws(3, "fog/1", start, n)) for start, n in ((first, cut), (first + cut, 7 - cut))]
    assert np.array_equal(np.concatenate(parts), whole)


def test_seed_purpose_and_image_each_change_the_numbers() -> None:
    first = Draws(0, "fog/1", 0, 1).normal(8)
    others = [Draws(1, "fog/1", 0, 1), Draws(0, "fog/2", 0, 1), Draws(0, "fog/1", 1, 1)]
    assert all(not np.array_equal(first, other.normal(8)) for other in others)


def test_moments_and_ranges() -> None:
    draws = Draws(0, "moments", 0, 50)
    normal, uniform, whole = draws.normal(2000), draws.uniform(2000), draws.integers(-1, 2, 2000)
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert sorted(np.unique(whole)) == [-1, 0, 1] and abs(whole.mean()) < 0.02
    assert all(-45 <= angle < 45 for angle in draws.between(-45, 45))


@pytest.mark.parametrize(("seed", "first"), [(-1, 0), (0, -1), (1.5, 0), (True, 0), ("0", 0)])
def test_what_is_no_seed_is_refused(seed: int, first: int) -> None:
    with pytest.raises(BadInput, match="whole number"):
        Draws(seed, "fog/1", first, 1)
