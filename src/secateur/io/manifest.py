"""manifest.json: what every file and tensor of a checkpoint must be, so that any damage is refused by name.

    {"format": "secateur.manifest", "version": 1, "sha256": of all the rest,
     "files":   {name: {"bytes": n, "sha256": hex}},
     "tensors": {file: {name: {"dtype": "BF16", "shape": [..], "crc32": hex}}}}

It is written last. It is canonical (its own bytes can be made in one way only) and carries its own digest: a flipped
bit in it shows too. It guards against damage, not against a person who rewrites folder and manifest together.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.files import MANIFEST, fail, inside, open_regular, read_small, write_atomic
from secateur.io.header import Header, read_header, strict_json

FORMAT, VERSION = "secateur.manifest", 1
_LIMIT = 128 << 20
_CHUNK = 1 << 20
_RESTORE = "restore the file from a copy, or write the checkpoint again"
# A file of these names changes what loads, so one that the manifest does not know is refused.
_LOADS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py", ".gguf")
_LOADS_NAMES = {
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@dataclass(frozen=True)
class FileDigest:
    """What was measured of one file in one reading."""

    size: int
    sha256: str
    tensors: dict[str, dict[str, Any]] | None  # None: not a safetensors file


def write_manifest(folder: Path) -> Path:
    """Measure every file under `folder` and write manifest.json. Call it when all else is written.

    Raises:
        Damaged: a safetensors file in the folder is not valid.   BadInput: a link, or a name that no manifest can hold.
    """
    folder = Path(folder)
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for name in _walk(folder):
        found = _measure(folder / name, str(folder / name))
        files[name] = {"bytes": found.size, "sha256": found.sha256}
        if found.tensors is not None:
            tensors[name] = found.tensors
    body = {"format": FORMAT, "version": VERSION, "files": files, "tensors": tensors}
    write_atomic(folder / MANIFEST, _render(body))
    return folder / MANIFEST


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The checked content of manifest.json, None where there is none.

    Raises:
        Damaged: it was altered or is no manifest.   Unsupported: a newer version of secateur wrote it.
    """
    path = Path(folder) / MANIFEST
    if not path.exists() and not path.is_symlink():
        return None
    where = str(path)
    data = read_small(inside(Path(folder), MANIFEST), _LIMIT)
    body = strict_json(data, where)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise Damaged("is not a secateur manifest", where=where, fix=_RESTORE)
    body.pop("sha256", None)
    if _render(body).encode(errors="replace") != data:
        raise Damaged("was altered: it does not match its own sha256", where=where, fix=_RESTORE)
    # After the digest, whose rule every version keeps: a flipped bit must not pass for a newer version.
    if body.get("version") != VERSION:
        raise Unsupported(
            f"has version {body.get('version')!r:.20}, this secateur reads {VERSION}", where=where
        )
    _check_schema(body, where)
    return body


def check_manifest(folder: Path, deep: bool = True) -> dict[str, Any]:
    """Compare a folder with its manifest: names and sizes, heads, and (deep) every byte. Returns the manifest.

    Raises:
        Damaged: naming the file, and the tensor where the damage lies in one.   BadInput: there is no manifest.
    """
    folder = Path(folder)
    body = read_manifest(folder)
    if body is None:
        raise BadInput("has no manifest.json, so damage cannot be seen", where=str(folder))
    for name in _walk(folder):
        base = name.rsplit("/", 1)[-1]
        if name not in body["files"] and (base in _LOADS_NAMES or base.endswith(_LOADS)):
            raise Damaged(
                "is not in the manifest",
                where=str(folder / name),
                fix="remove it, or write the manifest again",
            )
    for name, known in body["files"].items():
        _check_file(folder, name, known, body["tensors"].get(name), deep)
    return body


def listed_files(folder: Path) -> set[str] | None:
    """Names of the files a folder's manifest speaks of (itself too); None without a readable one."""
    try:
        body = read_manifest(folder)
    except (Damaged, Unsupported):
        return None
    return None if body is None else {*body["files"], MANIFEST}


def _check_file(
    folder: Path, name: str, known: dict[str, Any], tensors: dict[str, Any] | None, deep: bool
) -> None:
    where = str(folder / name)
    path = inside(folder, name)
    if not path.exists():
        lost = f", and with it {len(tensors)} tensors such as {min(tensors)!r:.80}" if tensors else ""
        raise Damaged(f"is missing{lost}", where=where, fix=_RESTORE)
    size = path.stat().st_size
    if size != known["bytes"]:
        hit = _first_cut(path, size) if tensors else ""
        raise Damaged(f"has {size} bytes, not {known['bytes']}{hit}", where=where, fix=_RESTORE)
    if not deep and tensors is None:
        return
    try:
        found = _measure(path, where, deep, expect_tensors=tensors is not None)
    except Damaged as error:
        raise Damaged(f"header is damaged ({error.what})", where=where, fix=_RESTORE) from error
    if tensors is not None:
        _check_tensors(found.tensors or {}, tensors, where, deep)
    if deep and found.sha256 != known["sha256"]:
        part = "header" if tensors is not None else "content"
        raise Damaged(f"{part} is damaged (sha256 differs from the manifest's)", where=where, fix=_RESTORE)


def _check_tensors(found: dict[str, Any], known: dict[str, Any], where: str, deep: bool) -> None:
    keys = ("dtype", "shape", "crc32") if deep else ("dtype", "shape")
    bad = [n for n in known if n not in found or any(found[n][k] != known[n][k] for k in keys)]
    bad += [n for n in found if n not in known]
    if not bad:
        return
    name = bad[0]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    if name in found and name in known and all(found[name][k] == known[name][k] for k in ("dtype", "shape")):
        raise Damaged(
            f"tensor {name!r:.100}{more} is damaged (crc32 differs from the manifest's)",
            where=where,
            fix=_RESTORE,
        )
    raise Damaged(f"tensor {name!r:.100}{more} is not what the manifest lists", where=where, fix=_RESTORE)


def _first_cut(path: Path, size: int) -> str:
    """Which tensor a file that is too short ends in, from what is left of its head; it may be damaged in any way."""
    import struct

    fd = open_regular(path)
    try:
        lead = os.pread(fd, 8, 0)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size
        if length + 8 > size:
            return ", cut short inside the header"
        table = strict_json(os.pread(fd, length, 8), str(path))
        ends = {n: v["data_offsets"][1] + 8 + length for n, v in table.items() if n != "__metadata__"}
        lost = sorted((end, n) for n, end in ends.items() if end > size)
        return f", cut short inside tensor {lost[0][1]!r:.100}" if lost else ", longer than its tensors"
    except (Damaged, AttributeError, KeyError, TypeError, IndexError):
        return ", header damaged"
    finally:
        os.close(fd)


def _measure(path: Path, where: str, deep: bool = True, expect_tensors: bool | None = None) -> FileDigest:
    """Read a file once: its sha256 and, for safetensors, the crc32 of each tensor. Not deep: its head only."""
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        is_tensors = path.name.endswith(".safetensors") if expect_tensors is None else expect_tensors
        header = read_header(fd, where) if is_tensors else Header({}, {}, 0, size)
        tensors: dict[str, Any] = {}
        sha = hashlib.sha256()
        if deep:
            _feed(fd, 0, header.data_start, sha)
            if not is_tensors:
                _feed(fd, 0, size, sha)
        for name, entry in header.entries.items():
            crc = _feed(fd, entry.start, entry.end, sha) if deep else 0
            tensors[name] = {"crc32": f"{crc:08x}", "dtype": entry.code, "shape": list(entry.shape)}
        return FileDigest(size, sha.hexdigest(), tensors if is_tensors else None)
    finally:
        os.close(fd)


def _feed(fd: int, start: int, end: int, sha: Any) -> int:
    crc = 0
    while start < end:
        data = os.pread(fd, min(_CHUNK, end - start), start)
        if not data:
            break  # it shrank while we read: the digests will differ
        sha.update(data)
        crc = zlib.crc32(data, crc)
        start += len(data)
    return crc


def _walk(folder: Path) -> list[str]:
    names = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        for name in (*files, *(f for f in folders if Path(parent, f).is_symlink())):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if relative == MANIFEST:
                continue
            if path.is_symlink():
                raise BadInput(
                    "is a link: a checkpoint holds plain files only",
                    where=str(path),
                    fix="put the file itself there",
                )
            names.append(relative)
    return sorted(names)


def _render(body: dict[str, Any]) -> str:
    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1)

    return dump({**body, "sha256": hashlib.sha256(dump(body).encode()).hexdigest()}) + "\n"


def _check_schema(body: dict[str, Any], where: str) -> None:
    """A manifest with a right digest may still have been made to mislead."""

    def need(right: bool, what: str) -> None:
        if not right:
            raise Damaged(f"{what} of the manifest is malformed", where=where, fix=_RESTORE)

    files, tensors = body.get("files"), body.get("tensors")
    need(isinstance(files, dict) and isinstance(tensors, dict), "the table")
    assert isinstance(files, dict) and isinstance(tensors, dict)
    for name, entry in files.items():
        need(isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}, f"file {name!r:.80}")
        need(type(entry["bytes"]) is int and isinstance(entry["sha256"], str), f"file {name!r:.80}")
    for name, table in tensors.items():
        need(name in files and isinstance(table, dict), f"file {name!r:.80}")
        for tensor, entry in table.items():
            right = isinstance(entry, dict) and set(entry) == {"crc32", "dtype", "shape"}
            need(right and isinstance(entry["shape"], list), f"tensor {tensor!r:.80}")
