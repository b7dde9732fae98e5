"""Progress speaks on stderr, seldom, and not at all when told so."""

from __future__ import annotations

import pytest

from secateur.cli import progress as module
from secateur.cli.progress import Lines, progress
from secateur.engine.events import Event, silent


def test_lines_are_seldom_and_tell_what_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    listen = Lines()
    for stage in ("cut", "measure"):
        for done in range(1, 9):
            now[0] += 2.0
            listen(Event(stage, done, 8))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "cut: 5 of 8, about 6 s left",
        "measure: 2 of 8, about 12 s left",
        "measure: 7 of 8, about 2 s left",
    ]


def test_quiet_and_other_workers_are_silent(monkeypatch):
    with progress(quiet=True) as listen:
        assert listen is silent
    monkeypatch.setenv("RANK", "1")
    with progress() as listen:
        assert listen is silent


def test_plain_lines_where_there_is_no_terminal():
    with progress() as listen:
        assert isinstance(listen, Lines)


def test_bars_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    with progress() as listen:
        for done in range(4):
            listen(Event("wanda 50%: cut [bold]", done, 3))
    assert "wanda 50%: cut [bold]" in capsys.readouterr().err
