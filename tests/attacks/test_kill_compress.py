"""A short form of attacks/kill_compress.py: kill -9 while a checkpoint is cut, then resume."""

from __future__ import annotations

from attacks import kill_compress


def test_a_killed_job_resumes_to_the_same_bytes() -> None:
    figures = kill_compress.run(8, seed=1)
    assert figures["failures"] == []
    assert (figures["kills"], figures["half_folders"]) == (8, 0)
    assert figures["resumed"] >= 3
