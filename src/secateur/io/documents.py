"""Texts and token ids from where a user keeps them.

file.txt      one document
file.raw      one document: WikiText's raw form, its data set's rows joined by blank lines as the papers do
folder        one document a file
file.jsonl    one document a line, under `field`; lines are read when drawn, not all at once
hub:NAME or hub:NAME:CONFIG   a data set on the hub, streamed: the train split if there is one, 2,000 documents
embedded      the text inside pip packages, see io/embedded.py
file.npy      token ids [samples, length], used exactly as given
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported, nearest, require
from secateur.io.embedded import embedded_text

_TEXT_SUFFIXES = (".txt", ".text", ".md", ".raw")
_HUB_DOCUMENTS = 2_000


@dataclass(frozen=True)
class Documents:
    """Texts in a fixed order, and the words that name them in a report."""

    texts: Sequence[str]
    words: str


def read_documents(source: str | Path, *, field: str = "text", part: str = "calibration") -> Documents:
    """Open a source of texts (see the top of this file); `part` picks the half of the embedded text.

    Raises:
        NoMatch: no such path, no text file in the folder, no such field.
        BadInput: the source holds no text.
        Damaged: not UTF-8, or a line that is not JSON.
        Unsupported: a package is missing or the hub cannot be reached.
    """
    name = str(source)
    if name == "embedded":
        calibration, evaluation, words = embedded_text()
        return Documents(calibration if part == "calibration" else evaluation, f"{words}, {part} part")
    if name.startswith("hub:"):
        return Documents(_hub_documents(name[4:], field), name)
    path = Path(name).expanduser()
    if path.is_dir():
        return Documents(_folder(path), f"{path.name}/")
    if not path.is_file():
        known = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise NoMatch("no such file or folder", where=name, fix=nearest(path.name, [*known, "embedded"]))
    if path.suffix in (".jsonl", ".ndjson"):
        return Documents(JsonLines(path, field), path.name)
    text = _read(path)
    if not text.strip():
        raise BadInput(
            "the file holds no text", where=name, fix="give a file with at least one window of text"
        )
    return Documents([text], path.name)


def read_token_file(path: str | Path) -> np.ndarray:
    """A .npy of integers [samples, length] as int64, values untouched; or of float images [samples, C, H, W].

    Raises:
        BadInput: another dtype or rank, or nothing in it.   Damaged: not a readable .npy (pickles are refused).
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Damaged(
            f"cannot be read as .npy ({error})", where=str(path), fix="save plain arrays with np.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise BadInput("holds several arrays", where=str(path), fix="save one array with np.save")
    shape = list(array.shape)
    images = array.dtype.kind == "f" and array.ndim == 4
    if not images and (array.dtype.kind not in "iu" or array.ndim != 2):
        raise BadInput(
            f"{array.dtype} of shape {shape}, expected integer token ids [samples, length]",
            where=str(path),
            fix="save ids with np.save as int32 or int64",
        )
    if array.size == 0:
        raise BadInput(f"is empty: shape {shape}", where=str(path), fix="give at least one sample")
    return array.astype(np.float32 if images else np.int64)


class JsonLines(Sequence[str]):
    """The texts of a JSONL file. Opening finds where each line starts; a text is read when it is asked for."""

    def __init__(self, path: Path, field: str) -> None:
        self._path, self._field = path, field
        self._spans: list[tuple[int, int]] = []
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._spans.append((offset, len(line)))
                offset += len(line)
        if not self._spans:
            raise BadInput("the file holds no line", where=str(path), fix='write one {"text": "..."} a line')
        self[0]  # a wrong field is an error at once, not at the first draw

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, size = self._spans[index]
        with self._path.open("rb") as file:
            file.seek(start)
            line = file.read(size)
        where = f"{self._path}, document {index % len(self) + 1}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"not JSON ({error})", where=where, fix="write one JSON object a line") from error
        return _field(row, self._field, where)


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise BadInput(
            f"a {type(row).__name__}, expected an object", where=where, fix='write {"text": "..."}'
        )
    if field not in row:
        raise NoMatch(f"no field {field!r}", where=where, fix=nearest(field, [str(k) for k in row]))
    if not isinstance(row[field], str):
        raise BadInput(f"field {field!r} is not text", where=where, fix="name a field that holds strings")
    return row[field]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Damaged(f"not UTF-8 at byte {error.start}", where=str(path), fix="save it as UTF-8") from error
    return "\n\n".join(_wikitext_rows(text)) if path.suffix == ".raw" else text


def _wikitext_rows(text: str) -> list[str]:
    # the hub's wikitext rows: a blank line is "", any other keeps its end of line
    return [line + "\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n")]


def _folder(path: Path) -> list[str]:
    files = sorted(p for p in path.rglob("*") if p.suffix in _TEXT_SUFFIXES and p.is_file())
    texts = [text for text in map(_read, files) if text.strip()]
    if not texts:
        raise NoMatch("no text in this folder", where=str(path), fix=f"looked for {' '.join(_TEXT_SUFFIXES)}")
    return texts


def _hub_documents(name: str, field: str) -> list[str]:
    from secateur.io.hub import check_hub_reachable

    datasets = require("datasets", "data")
    repo, _, config = name.partition(":")
    if not Path(repo).exists():
        check_hub_reachable(f"hub:{name}")
    try:
        splits = datasets.load_dataset(repo, config or None, streaming=True)
        rows: Iterator[Any] = iter(splits["train"] if "train" in splits else next(iter(splits.values())))
        found = [_field(row, field, f"hub:{name}") for row in islice(rows, _HUB_DOCUMENTS)]
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise Unsupported(
            f"the data set cannot be opened ({str(error)[:120]})", where=f"hub:{name}"
        ) from error
    if not any(text.strip() for text in found):
        raise BadInput(f"field {field!r} holds no text", where=f"hub:{name}", fix="name another field")
    return found
