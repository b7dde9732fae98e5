"""Files and folders that are whole or absent: atomic writes, locks, strays of killed runs, names that stay inside.

A folder is filled under a hidden name beside its final one, every file is synced, and one rename (an atomic exchange
where the old folder exists) puts it in place: a kill at any moment leaves the old one or the new one. POSIX only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import BadInput, Damaged, Locked, Unsupported

try:
    import fcntl
except ImportError as error:  # pragma: no cover  (Windows)
    raise Unsupported(
        "saving needs POSIX file locks, which this system lacks", fix="use Linux, macOS or WSL"
    ) from error

MANIFEST = "manifest.json"
_STRAY = re.compile(r"^\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)-[0-9a-f]{8}$")
_RESUME = re.compile(r"^\.(?P<name>.+)\.resume-[0-9A-Za-z_-]{1,64}$")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`: a reader or a crash sees the old file or the new one, never a part.

    The mode follows the umask. Raises OSError as the system gives it; the old file is then still there.
    """
    path = Path(path)
    temp = path.parent / stray_name(path.name, "tmp")
    raw = data.encode() if isinstance(data, str) else data
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temp, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise
    sync_folder(path.parent)


def write_all(fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write every byte of `data` at `offset` (None: at the file's position); one call may write less than asked."""
    view = memoryview(data).cast("B")
    while len(view):
        done = os.write(fd, view[: 1 << 30]) if offset is None else os.pwrite(fd, view[: 1 << 30], offset)
        view = view[done:]
        offset = None if offset is None else offset + done


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file. A pipe or device, which could block for ever, raises Damaged."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Damaged("is not a regular file", where=str(path))
    return fd


def read_small(path: Path, limit: int = 32 << 20) -> bytes:
    """All bytes of a file that may not be larger than `limit` bytes; Damaged when it is."""
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > limit:
            raise Damaged(f"has {size} bytes, more than the {limit} such a file may have", where=str(path))
        return file.read(limit + 1)


def inside(root: Path, name: str) -> Path:
    """The real path of `name` under `root`. A name read from a file may not leave its folder.

    Raises:
        Damaged: `name` is empty, absolute, holds `..` or a backslash, or a symlink leads out of `root`. (Links of the
            Hugging Face cache, `snapshots/REVISION/file -> ../../blobs/DIGEST` of the same model, are allowed.)
    """
    where = str(root)
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise Damaged(f"names a file {name!r:.80}, which is no plain relative name", where=where)
    if len(name) > 4000 or any(len(part.encode(errors="surrogatepass")) > 255 for part in name.split("/")):
        raise Damaged(f"names a file {name!r:.80}, longer than any name", where=where)
    if name.startswith("/") or ".." in name.split("/"):
        raise Damaged(
            f"names a file {name!r:.80} outside its folder", where=where, fix="do not load this folder"
        )
    try:
        base, path = Path(root).resolve(), (Path(root) / name).resolve()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a loop of symlinks, a name too long, a lone surrogate
        raise Damaged(f"names a file {name!r:.80} that cannot be resolved", where=where) from error
    if not any(path.is_relative_to(allowed) for allowed in (base, *_hub_blobs(base))):
        raise Damaged(
            f"the link {name!r:.80} leads outside its folder", where=where, fix="do not load this folder"
        )
    return path


def _hub_blobs(base: Path) -> tuple[Path, ...]:
    for parent in base.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return (parent.parent / "blobs",)
    return ()


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it survive a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the right to write `folder`: a lock file beside it, which the system releases when its process dies.

    Raises:
        Locked: at once, naming the process that holds it (this one, too, when it asks twice).
    """
    folder = Path(folder)
    path = folder.parent / f".{folder.name}.lock"
    fd = _take(path, folder)
    try:
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(fd)


def _take(path: Path, folder: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us removes the file on release: a lock on a removed file protects nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
        except BlockingIOError as error:
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
            os.close(fd)
            raise Locked(
                f"locked by pid {pid or '(starting)'}",
                where=str(folder),
                fix="wait for it, or choose another folder",
            ) from error
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def new_folder(final: Path, resume: str | None = None, fresh: bool = False) -> Iterator[Path]:
    """Fill a temporary folder that becomes `final` when the block ends without an exception.

    Args:
        final: where the folder shall be: new, empty, or a checkpoint, which stays until the new one is whole.
        resume: a short key (letters, digits, `-`, `_`) of the job. The temporary folder then has a stable name, is kept
            after an exception or a kill, and is given back, with what it holds, to the next call with the same key.
        fresh: with `resume`, forget what an earlier run left.

    Raises:
        Locked: another process writes the same folder.   BadInput: `final` is something that may not be replaced.
    """
    final = Path(final).resolve()
    check_replaceable(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    if resume is not None and not _RESUME.match(f".x.resume-{resume}"):
        raise BadInput(f"resume key {resume!r:.80}: use 1 to 64 letters, digits, - or _")
    temp = final.parent / (
        stray_name(final.name, "tmp") if resume is None else f".{final.name}.resume-{resume}"
    )
    with lock(final):
        _tidy(final, keep=None if fresh else temp)
        swapped = False
        try:
            temp.mkdir(exist_ok=resume is not None)
            for stray in (path for path in temp.iterdir() if _STRAY.match(path.name)):
                stray.unlink()  # a write_atomic that a kill cut short; we hold the lock, so nobody is at it
            yield temp
            _settle(temp)
            check_replaceable(final)
            _into_place(temp, final)
            swapped = True
            sync_folder(final.parent)
        finally:
            # After an exchange the temporary name holds the old folder.
            if swapped or resume is None:
                shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def new_file(out: Path, overwrite: bool) -> Iterator[Path]:
    """A path beside `out` for one large file: synced, and given its name when the block ends well.

    Raises: BadInput: a folder, or a file that is there and may not be replaced.   Locked: another process writes it.
    """
    if out.is_dir():
        raise BadInput("is a folder", where=str(out), fix="name a file")
    if out.exists() and not overwrite:
        raise BadInput("exists already", where=str(out), fix="choose another --out, or pass --overwrite")
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(out):
        for stray in out.parent.glob(f".{out.name}.tmp-*"):  # of a dead run: we hold the lock
            stray.unlink()
        path = out.parent / stray_name(out.name, "tmp")
        try:
            yield path
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(path, out)
            sync_folder(out.parent)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


def fail(error: OSError) -> None:
    """For os.walk, which otherwise passes over a folder that cannot be listed as if it were empty."""
    raise error


def _settle(folder: Path) -> None:
    # Some writers (safetensors) leave mode 0600; the folder we made shows what the umask allows.
    allowed = folder.stat().st_mode & 0o666
    for parent, _, names in os.walk(folder, topdown=False, onerror=fail):
        for name in names:
            fd = open_regular(Path(parent, name))
            try:
                os.fchmod(fd, allowed)
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(parent))


def _into_place(temp: Path, final: Path) -> None:
    if not final.exists():
        os.rename(temp, final)
    elif not _exchange(temp, final):
        old = final.parent / stray_name(final.name, "old")
        os.rename(final, old)  # a kill between these two renames is mended by _tidy
        try:
            os.rename(temp, final)
        except BaseException:
            os.rename(old, final)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(-100, os.fsencode(a), -100, os.fsencode(b), _EXCHANGE) == 0:  # -100: AT_FDCWD
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def check_replaceable(final: Path) -> None:
    """BadInput unless `final` does not exist, is an empty folder, or is a checkpoint and nothing but one."""
    final = Path(final)
    fix = "choose another folder"
    if not final.exists() and not final.is_symlink():
        if not final.name:
            raise BadInput("is no folder that can be written", where=str(final), fix=fix)
        return
    if not final.is_dir():
        raise BadInput("exists and is not a folder", where=str(final), fix=fix)
    if Path.cwd().resolve().is_relative_to(final.resolve()):
        raise BadInput("is the current folder or holds it", where=str(final), fix=fix)
    top = os.listdir(final)
    if not top:
        return
    from secateur.io.manifest import listed_files  # manifest.py stands on this file

    listed = listed_files(final)
    if listed is not None:
        held = (p.relative_to(final).as_posix() for p in final.rglob("*") if not p.is_dir() or p.is_symlink())
        strange = sorted(name for name in held if name not in listed and not name.startswith("."))
        if strange:
            raise BadInput(
                f"holds {strange[0]!r}, which no checkpoint wrote", where=str(final), fix=f"move it, or {fix}"
            )
    elif "config.json" not in top or ".git" in top or not any(name.endswith(_WEIGHTS) for name in top):
        raise BadInput(
            "holds files and is not a checkpoint: nothing is overwritten", where=str(final), fix=fix
        )


def sweep(folder: Path) -> list[Path]:
    """Remove from `folder` what killed runs left in it: temporary files and folders of dead processes, stale locks.

    What another process is writing stays, and so do folders kept for `--resume`. Returns what was removed.
    """
    removed: list[Path] = []
    for path in sorted(Path(folder).iterdir()):
        match = _STRAY.match(path.name)
        if match and path.is_dir():
            with suppress(Locked), lock(path.parent / match["name"]):
                removed += _tidy(path.parent / match["name"], keep=None, resumable=True)
        elif match and path.is_file() and not _alive(int(match["pid"])):
            path.unlink(missing_ok=True)
            removed.append(path)
        elif path.name.startswith(".") and path.name.endswith(".lock") and path.is_file():
            with suppress(Locked), lock(path.parent / path.name[1:-5]):
                removed.append(path)
    return removed


def _tidy(final: Path, keep: Path | None, resumable: bool = False) -> list[Path]:
    """Under the lock of `final`, every temporary folder of it belongs to a dead run. An old folder that was put aside
    (where names cannot be exchanged) comes back when the run died before the new one was in place."""
    removed = []
    for path in sorted(final.parent.iterdir()):
        match = _STRAY.match(path.name) or (None if resumable else _RESUME.match(path.name))
        if match is None or match["name"] != final.name or path == keep or not path.is_dir():
            continue
        if match.groupdict().get("kind") == "old" and not final.exists():
            os.rename(path, final)
            continue
        shutil.rmtree(path)
        removed.append(path)
    return removed


def stray_name(name: str, kind: str) -> str:
    """A hidden name beside `name` that `sweep` knows for what this process left, should it be killed."""
    return f".{name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
