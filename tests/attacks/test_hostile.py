"""Every hostile folder is refused, in both settings; no code runs, nothing outside is reached."""

from __future__ import annotations

from attacks import hostile
from attacks.hostile_heads import HOSTILE


def test_hostile_folders_are_refused() -> None:
    figures = hostile.run()
    assert figures["failures"] == []
    assert len(HOSTILE) >= 60 and figures["folders"] == 2 * len(HOSTILE)
    assert figures["refused"] >= figures["folders"] - 4
