"""A short form of attacks/serve.py: floods, slow and vanishing clients, broken bodies, noise."""

from __future__ import annotations

import pytest

from attacks import serve


@pytest.mark.slow
def test_no_client_keeps_more_than_its_share() -> None:
    figures = serve.run(rounds=2, clients=60, seed=1)
    assert figures["failures"] == []
    assert figures["answered"] >= 2 * serve.QUEUE and figures["told_to_wait"] > 0
    assert figures["cut_off"] == 2 * 30 and figures["vanished"] == 2 * 60 and figures["refused"] > 20
    assert figures["slowest_beside_loris_s"] < 30
