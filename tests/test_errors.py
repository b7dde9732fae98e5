"""The one line that names what was meant."""

from __future__ import annotations

import pytest

from secateur.errors import BadInput, one_of


def test_a_word_that_is_none_of_the_known_ones() -> None:
    one_of("layer", ("layer", "global"), "scope")
    with pytest.raises(BadInput, match=r"scope: 'laier' is no scope.*layer"):
        one_of("laier", ("layer", "global"), "scope")
    with pytest.raises(BadInput, match=r"3 is no scope"):
        one_of(3, iter(["layer"]), "scope")
