from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur.engine.events import Event
from secateur.errors import BadInput, Damaged, Locked, SecateurError
from secateur.io.files import lock
from secateur.robustness import sets
from secateur.robustness.corrupt import corrupt
from secateur.robustness.sets import make_set, open_set
from tests.robustness.images import blobs, needs_pillow

IMAGES, LABELS = blobs(6, 8, 10), np.array([3, 1, 4, 1, 5, 9])
NAMES = ("fog", "contrast")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_set(IMAGES, LABELS, tmp_path / "set", names=NAMES, seed=7)
    return tmp_path / "set"


def test_the_layout_is_that_of_the_published_files(folder: Path) -> None:
    stacked = np.load(folder / "fog.npy", allow_pickle=False)
    assert stacked.shape == (30, 8, 10, 3) and stacked.dtype == np.uint8
    for severity in range(1, 6):
        block = stacked[6 * (severity - 1) : 6 * severity]
        assert np.array_equal(block, corrupt(IMAGES, "fog", severity, seed=7))
    assert np.load(folder / "labels.npy", allow_pickle=False).tolist() == LABELS.tolist() * 5
    assert sorted(os.listdir(folder)) == ["contrast.npy", "fog.npy", "labels.npy", "manifest.json"]


def test_the_manifest_says_what_it_is(folder: Path) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    assert body["label"] == "secateur rendering" and body["table"] == "cifar-c" and body["seed"] == 7
    assert body["source"] == hashlib.sha256(IMAGES.tobytes()).hexdigest() and body["count"] == 6
    for name, entry in body["files"].items():
        raw = (folder / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(raw).hexdigest() and entry["bytes"] == len(raw)
    assert body["files"]["fog.npy"]["versions"]["numpy"] == np.__version__


def test_opened_it_is_mapped_and_read_only(folder: Path) -> None:
    held = open_set(folder)
    assert held.names == ("fog", "contrast") and held.count == 6 and held.shape == (8, 10, 3)
    assert held.labels.tolist() == LABELS.tolist() and held.label == "secateur rendering"
    part = held.images("contrast", 4)
    assert isinstance(part, np.memmap) and not part.flags.writeable
    assert np.array_equal(part, corrupt(IMAGES, "contrast", 4))
    with pytest.raises(BadInput, match="does not hold snow"):
        held.images("snow", 1)
    with pytest.raises(BadInput, match="severity"):
        held.images("fog", 6)


def test_what_fits_is_reused_and_what_is_missing_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (folder / name).stat().st_mtime_ns for name in ("fog.npy", "labels.npy", "contrast.npy")}
    made, told = [], []

    def counted(images: Any, name: str, severity: int, **settings: Any) -> Any:
        made.append((name, severity))
        return corrupt(images, name, severity, **settings)

    monkeypatch.setattr(sets, "corrupt", counted)
    monkeypatch.setattr(sets, "_AT_ONCE", 1000)  # four images at a time
    held = make_set(IMAGES, LABELS, folder, names=("fog", "snow"), seed=7, listen=told.append)
    assert made == [("snow", s) for s in range(1, 6) for _ in range(2)]
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert held.names == ("snow", "fog", "contrast")
    assert np.array_equal(held.images("snow", 2), corrupt(IMAGES, "snow", 2, seed=7))
    assert told == [Event("corrupted set", 1, 2, "fog"), Event("corrupted set", 2, 2, "snow")]


def test_the_same_set_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    tensor = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
    make_set(tensor, torch.from_numpy(LABELS), tmp_path / "again", names=NAMES, seed=7)
    for name in os.listdir(folder):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 8}, "seed of the set there is 7, not 8"),
        ({"table": "imagenet-c"}, "table of the set"),
        ({"images": blobs(6, 8, 10, seed=1)}, "images of the set there differ"),
        ({"labels": LABELS[::-1].copy()}, "labels of the set there differ"),
        ({"images": IMAGES[:5], "labels": LABELS[:5]}, "count of the set"),
    ],
)
def test_another_set_is_not_mixed_in(folder: Path, change: dict[str, Any], says: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = {"images": IMAGES, "labels": LABELS, "names": NAMES, "seed": 7, **change}
    with pytest.raises(BadInput, match=says) as error:
        make_set(settings.pop("images"), settings.pop("labels"), folder, **settings)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_frost_photos_are_another_set(tmp_path: Path) -> None:
    needs_pillow()
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.fromarray(blobs(1, 40, 40)[0]).save(tmp_path / "photos" / "a.png")
    make_set(IMAGES, LABELS, tmp_path / "set", names=("frost",), frost_images=tmp_path / "photos")
    with pytest.raises(BadInput, match="frost photos"):
        make_set(IMAGES, LABELS, tmp_path / "set", names=("frost",))


@pytest.mark.parametrize("name", ["fog.npy", "labels.npy", "manifest.json"])
def test_a_flipped_bit_is_refused(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    for place in (len(raw) // 2, len(raw) - 2):
        flipped = raw.copy()
        flipped[place] ^= 1
        (folder / name).write_bytes(bytes(flipped))
        with pytest.raises(Damaged, match=name) as error:
            make_set(IMAGES, LABELS, folder, names=NAMES, seed=7).images("fog", 1)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["fog.npy", "labels.npy"])
def test_a_file_cut_short_or_gone_is_refused(folder: Path, name: str) -> None:
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(Damaged, match=f"{name}: is damaged"):
        open_set(folder).images("fog", 1)
    (folder / name).unlink()
    with pytest.raises(Damaged, match=f"{name}: is missing"):
        open_set(folder).images("fog", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": {"../x.npy": {"bytes": 1, "sha256": ""}}},
        {"shape": "abc"},
        {"label": 1},
        {"version": 9},
    ],
)
def test_a_manifest_made_to_mislead_is_refused(folder: Path, change: dict[str, Any]) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    del body["sha256"]
    (folder / "manifest.json").write_text(sets.render({**body, **change}))
    with pytest.raises(SecateurError, match=r"manifest\.json: (is malformed|has version)"):
        open_set(folder)


def test_a_kill_leaves_whole_files_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(images: Any, name: str, severity: int, **settings: Any) -> Any:
        if name == "contrast" and severity == 3:
            raise KeyboardInterrupt
        return corrupt(images, name, severity, **settings)

    monkeypatch.setattr(sets, "corrupt", dies)
    with pytest.raises(KeyboardInterrupt):
        make_set(IMAGES, LABELS, tmp_path / "set", names=NAMES)
    assert sorted(os.listdir(tmp_path / "set")) == ["fog.npy", "labels.npy", "manifest.json"]
    dead = tmp_path / "set" / ".contrast.npy.tmp-999999999-00000000"  # what a real kill leaves
    dead.write_bytes(b"half")
    monkeypatch.undo()
    held = make_set(IMAGES, LABELS, tmp_path / "set", names=NAMES)
    assert held.names == ("fog", "contrast") and not dead.exists()
    assert np.array_equal(held.images("contrast", 3), corrupt(IMAGES, "contrast", 3))


def test_one_writer_at_a_time(folder: Path) -> None:
    with lock(folder), pytest.raises(Locked):
        make_set(IMAGES, LABELS, folder, names=NAMES, seed=7)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt"):
        make_set(IMAGES, LABELS, tmp_path)
    (tmp_path / "notes.txt").rename(tmp_path / "manifest.json")
    with pytest.raises(SecateurError, match="manifest"):
        make_set(IMAGES, LABELS, tmp_path)
    assert os.listdir(tmp_path) == ["manifest.json"]
    with pytest.raises(BadInput, match="not a folder"):
        make_set(IMAGES, LABELS, tmp_path / "manifest.json")


# -- the published files ------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for name in ("fog", "spatter"):
        stacked = np.concatenate([corrupt(IMAGES, name, s) for s in range(1, 6)])
        np.save(tmp_path / f"{name}.npy", stacked, allow_pickle=False)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5).astype(np.uint8), allow_pickle=False)
    return tmp_path


def test_the_published_layout_is_read_as_it_is(published: Path) -> None:
    held = open_set(published)
    assert held.label == "published set" and held.names == ("fog", "spatter")
    assert held.labels.tolist() == LABELS.tolist() and held.shape == (8, 10, 3)
    assert np.array_equal(held.images("spatter", 5), corrupt(IMAGES, "spatter", 5))
    with pytest.raises(BadInput, match="without our manifest"):
        make_set(IMAGES, LABELS, published)


def test_what_is_wrong_with_published_files_is_named(published: Path) -> None:
    def refused(says: str) -> None:
        with pytest.raises(SecateurError, match=says):
            open_set(published).images("fog", 1)

    raw = (published / "fog.npy").read_bytes()
    (published / "fog.npy").write_bytes(raw[:-1])
    refused("fog.npy: is no whole .npy")
    np.save(published / "fog.npy", np.array([{}]), allow_pickle=True)
    refused("fog.npy: is no whole .npy")
    np.save(published / "fog.npy", np.zeros((29, 8, 10, 3), np.uint8))
    refused("fog.npy: is uint8")
    np.save(published / "fog.npy", np.zeros((30, 8, 10, 3), np.float32))
    refused("fog.npy: is float32")
    np.save(published / "labels.npy", np.arange(30))
    refused("labels.npy: are not the same")
    np.save(published / "labels.npy", np.arange(29))
    refused("labels.npy: are not the same")
    (published / "labels.npy").unlink()
    refused("holds no corrupted set")


@pytest.mark.parametrize("labels", [[0, 1], [0.5] * 6, [-1] * 6, [[0] * 6]])
def test_labels_are_one_class_an_image(labels: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="labels"):
        make_set(IMAGES, labels, tmp_path / "set")
    assert not (tmp_path / "set").exists()
