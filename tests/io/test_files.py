"""Atomic files and folders, the lock, strays, and names that stay inside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur.errors import BadInput, Damaged, Locked
from secateur.io import files
from secateur.io.files import (
    inside,
    lock,
    new_file,
    new_folder,
    open_regular,
    read_small,
    sweep,
    write_all,
    write_atomic,
)
from secateur.io.manifest import write_manifest

DEAD = 1 << 22  # above the largest pid Linux gives


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def checkpoint(folder: Path, text: str) -> None:
    with new_folder(folder) as temp:
        (temp / "config.json").write_text(text)
        write_manifest(temp)


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomic(path, b"one")
    write_atomic(path, "zwei ✓")
    assert path.read_text(encoding="utf-8") == "zwei ✓"
    assert names(tmp_path) == ["latest"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        write_atomic(tmp_path / "file", b"x")
        with new_folder(tmp_path / "folder") as temp:
            private = os.open(
                temp / "private", os.O_CREAT | os.O_WRONLY, 0o600
            )  # as safetensors creates its files
            os.close(private)
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "folder" / "private").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest"
    write_atomic(path, b"good")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"bad")
    assert path.read_bytes() == b"good" and names(tmp_path) == ["latest"]


def test_write_all_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    fd = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    write_all(fd, b"0123456789", 2)
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\x000123456789"


def test_new_folder_appears_whole_and_replaces_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as temp:
        (temp / "config.json").write_text("{}")
        write_manifest(temp)
        assert not out.exists() and temp.parent == tmp_path
    checkpoint(out, '{"a": 1}')
    assert (out / "config.json").read_text() == '{"a": 1}'
    assert names(tmp_path) == ["out"]


def test_an_exception_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint(out, "old")
    with pytest.raises(ZeroDivisionError), new_folder(out) as temp:
        (temp / "config.json").write_text("new")
        raise ZeroDivisionError
    assert (out / "config.json").read_text() == "old" and names(tmp_path) == ["out"]


def test_without_an_exchange_the_folder_is_replaced_by_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    out = tmp_path / "out"
    checkpoint(out, "old")
    checkpoint(out, "new")
    assert (out / "config.json").read_text() == "new" and names(tmp_path) == ["out"]


def test_an_old_folder_put_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint(out, "old")
    out.rename(tmp_path / f".out.old-{DEAD}-00000000")
    (tmp_path / f".out.tmp-{DEAD}-00000000").mkdir()
    sweep(tmp_path)
    assert (out / "config.json").read_text() == "old" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("make", ["file", "other files", "stray beside a manifest", "git", "current"])
def test_what_is_no_checkpoint_is_never_replaced(
    tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if make == "file":
        out.write_text("mine")
    elif make == "stray beside a manifest":
        checkpoint(out, "{}")
        (out / "notes.txt").write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    if make == "git":
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_text("x")
        (out / ".git").mkdir()
    if make == "current":
        monkeypatch.chdir(out)
    before = [path.name for path in out.rglob("*")] if out.is_dir() else out.read_text()
    with pytest.raises(BadInput, match="out"), new_folder(out):
        pytest.fail("the block must not start")
    assert before == ([path.name for path in out.rglob("*")] if out.is_dir() else out.read_text())


def test_an_empty_folder_and_a_foreign_checkpoint_are_replaced(tmp_path: Path) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    (foreign / "model.safetensors").write_text("old")
    for out in (empty, foreign):
        checkpoint(out, "new")
        assert names(out) == ["config.json", "manifest.json"]


def test_resume_gives_back_what_a_killed_run_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), new_folder(out, resume="k1") as temp:
        (temp / "block0").write_text("done")
        (temp / f".block1.tmp-{DEAD}-00000000").write_text("torn")
        raise ZeroDivisionError
    sweep(tmp_path)
    with new_folder(out, resume="k1") as temp:
        assert names(temp) == ["block0"]
        (temp / "config.json").write_text("{}")
        write_manifest(temp)
    assert names(out) == ["block0", "config.json", "manifest.json"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("options", [{"resume": "k2"}, {"resume": "k1", "fresh": True}, {}])
def test_another_job_forgets_what_was_left(tmp_path: Path, options: dict) -> None:
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), new_folder(out, resume="k1") as temp:
        (temp / "block0").write_text("done")
        raise ZeroDivisionError
    with new_folder(out, **options) as temp:
        assert names(temp) == []
    assert names(tmp_path) == ["out"]


def test_a_resume_key_cannot_lead_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="resume key"), new_folder(tmp_path / "out", resume="../x"):
        pytest.fail("the block must not start")


def test_the_lock_names_the_other_process_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from secateur.io.files import lock\n"
        f"with lock(Path({str(tmp_path / 'out')!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    start = time.perf_counter()
    with pytest.raises(Locked, match=f"locked by pid {holder.pid}"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not start")
    assert time.perf_counter() - start < 1
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with lock(tmp_path / "out"):  # the lock died with its process
        pass
    assert names(tmp_path) == []


def test_the_lock_holds_against_the_same_process_too(tmp_path: Path) -> None:
    with (
        lock(tmp_path / "a"),
        lock(tmp_path / "b"),
        pytest.raises(Locked, match=str(os.getpid())),
        lock(tmp_path / "a"),
    ):
        pytest.fail("the block must not start")


def test_sweep_takes_strays_of_the_dead_only(tmp_path: Path) -> None:
    for name in (f".out.tmp-{DEAD}-00000000", ".other.resume-k1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    (tmp_path / f".latest.tmp-{DEAD}-00000000").write_text("x")
    (tmp_path / f".alive.tmp-{os.getpid()}-00000000").write_text("x")
    (tmp_path / ".gone.lock").write_text(str(DEAD))
    (tmp_path / ".profile").write_text("mine")
    with lock(tmp_path / "busy"):
        (tmp_path / f".busy.tmp-{DEAD}-00000000").mkdir()  # its number is dead, its lock is held: it is alive
        removed = {path.name for path in sweep(tmp_path)}
        assert removed == {f".out.tmp-{DEAD}-00000000", f".latest.tmp-{DEAD}-00000000", ".gone.lock"}
        assert f".busy.tmp-{DEAD}-00000000" in names(tmp_path)
    kept = [
        f".alive.tmp-{os.getpid()}-00000000",
        f".busy.tmp-{DEAD}-00000000",
        ".other.resume-k1",
        ".profile",
    ]
    assert names(tmp_path) == kept


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b", "link", "x" * 300, "loop", 3]
)
def test_inside_refuses_what_leads_out(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(Damaged):
        inside(root, name)


def test_inside_allows_links_of_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "ff").write_text("x")
    (snapshot / "config.json").symlink_to("../../blobs/ff")
    (snapshot / "bad").symlink_to(tmp_path)
    assert inside(snapshot, "config.json") == blobs / "ff"
    assert inside(snapshot, "new.json") == snapshot / "new.json"
    with pytest.raises(Damaged, match="leads outside"):
        inside(snapshot, "bad")


def test_only_regular_and_small_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Damaged, match="not a regular file"):
        open_regular(tmp_path / "pipe")  # would block for ever
    (tmp_path / "big").write_bytes(bytes(11))
    with pytest.raises(Damaged, match="11 bytes"):
        read_small(tmp_path / "big", limit=10)
    assert read_small(tmp_path / "big", limit=11) == bytes(11)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "out", "{}")

    def broken(path: object) -> object:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_manifest(tmp_path / "out")


def test_a_new_file_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.bin"
    with pytest.raises(ZeroDivisionError), new_file(out, False) as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert list(out.parent.iterdir()) == []
    stray = out.parent / f".a.bin.tmp-1-{'0' * 8}"
    stray.write_text("left by a kill")
    with new_file(out, False) as path:
        path.write_text("whole")
        assert not out.exists() and not stray.exists()
    assert [p.name for p in out.parent.iterdir()] == ["a.bin"] and out.read_text() == "whole"
    with pytest.raises(BadInput, match="exists already"), new_file(out, False):
        pass
    with pytest.raises(BadInput, match="is a folder"), new_file(out.parent, True):
        pass
    with lock(out), pytest.raises(Locked), new_file(out, True):
        pass
    with new_file(out, True) as path:
        path.write_text("new")
    assert out.read_text() == "new"
