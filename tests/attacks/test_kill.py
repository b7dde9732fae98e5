"""A short form of attacks/kill.py: kill -9 while a plain module, a sharded model and a resumable job are written."""

from __future__ import annotations

from attacks import kill


def test_a_kill_leaves_the_old_folder_or_the_new_one() -> None:
    figures = kill.run(12, seed=1)
    assert figures["failures"] == []
    assert (figures["kills"], figures["wrong"], figures["lost"], figures["strays_left"]) == (12, 0, 0, 0)
