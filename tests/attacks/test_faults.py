"""A short form of attacks/faults.py: each of the first calls of a save fails, then the system's own limits."""

from __future__ import annotations

from attacks import faults


def test_a_failing_call_leaves_the_last_good_folder() -> None:
    figures = faults.run(12)
    assert figures["failures"] == []
    assert figures["faults"] == 2 * 12 * 4 and figures["raised"] > 48 and figures["limits"] == 14
