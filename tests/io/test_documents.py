"""Documents: WikiText's rows, lazily read JSONL, hub data sets with the network off, token files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported
from secateur.io import documents
from secateur.io.documents import JsonLines, read_documents, read_token_file


def test_raw_is_the_data_set_s_rows_joined_by_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_text(" \n = Title = \n \n Some text .\n")
    # the hub's rows: "", " = Title = \n", "", " Some text .\n"
    assert read_documents(tmp_path / "x.raw").texts == ["\n\n = Title = \n\n\n\n\n Some text .\n"]


def test_text_file_is_one_document_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo")
    got = read_documents(tmp_path / "x.txt")
    assert got.texts == ["one\n\ntwo"] and got.words == "x.txt"


def test_a_typo_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("x")
    with pytest.raises(NoMatch, match=r"did you mean 'wiki\.txt'"):
        read_documents(tmp_path / "wikki.txt")
    with pytest.raises(NoMatch, match="did you mean 'embedded'"):
        read_documents("embeded")


def test_json_lines_are_read_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b"".join(json.dumps({"text": f"é{i}"}).encode() + b"\r\n" for i in range(5)) + b"\nnot json\n"
    )
    lines = JsonLines(path, "text")
    assert len(lines) == 6 and lines[3] == "é3" and lines[1:3] == ["é1", "é2"]
    with pytest.raises(Damaged, match=r"document 6: not JSON"):
        lines[5]
    with pytest.raises(IndexError):
        lines[6]
    path.write_bytes(b"\n\n")
    with pytest.raises(BadInput, match="no line"):
        JsonLines(path, "text")


def test_deeply_nested_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[" * 200_000)
    with pytest.raises((Damaged, BadInput)) as caught:
        read_documents(tmp_path / "x.jsonl")
    assert "\n" not in str(caught.value)


def test_token_files(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[1, 65_535]], dtype=np.uint16))
    ids = read_token_file(tmp_path / "ids.npy")
    assert ids.dtype == np.int64 and ids.tolist() == [[1, 65_535]]
    np.savez(tmp_path / "two.npz", a=ids, b=ids)
    with pytest.raises(BadInput, match="several arrays"):
        read_token_file(tmp_path / "two.npz")


class FakeDatasets(ModuleType):
    """`load_dataset` of the datasets library, with rows that cannot be counted or indexed: only streamed."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.asked: tuple[Any, ...] = ()

    def load_dataset(self, name: str, config: str | None, *, streaming: bool) -> dict[str, Any]:
        self.asked = (name, config, streaming)
        if "broken" in name:
            raise ValueError("no such data set\nwith details")
        return {"test": iter([{"text": "never"}]), "train": ({"text": f"doc {i}"} for i in range(10**9))}


def test_hub_data_set_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("secateur.io.hub.check_hub_reachable", lambda where: None)
    got = read_documents("hub:owner/texts:en")
    assert fake.asked == ("owner/texts", "en", True)
    assert len(got.texts) == documents._HUB_DOCUMENTS and got.texts[7] == "doc 7"
    with pytest.raises(Unsupported, match="hub:owner/broken"):
        read_documents("hub:owner/broken")
    with pytest.raises(NoMatch, match="did you mean 'text'"):
        read_documents("hub:owner/texts", field="txt")


def test_hub_data_set_without_a_hub_or_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NoMatch, match="hub cannot be reached"):
        read_documents("hub:owner/texts")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unsupported, match=r"pip install 'secateur\[data\]'"):
        read_documents("hub:owner/texts")


@pytest.mark.slow
def test_a_local_data_set_through_the_real_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": f"story {i}"}) for i in range(3)))
    assert read_documents(f"hub:{tmp_path}").texts == ["story 0", "story 1", "story 2"]
