"""Saved heads come back bit for bit, and nothing comes back that was damaged or forged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError, Unsupported
from secateur.io.heads import SavedHead, load_head, save_head
from secateur.io.manifest import write_manifest


def make(classes: int = 3, words: int = 5, used: int = 4, width: int = 6, seed: int = 0) -> SavedHead:
    """A head that is a sparse combination of `used` of its texts."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(words, width, generator=g), dim=1)
    prompts = torch.nn.functional.normalize(torch.randn(classes, width, generator=g), dim=1)
    coefficients = torch.randn(classes, used, generator=g) * (torch.rand(classes, used, generator=g) > 0.5)
    features = torch.randperm(words + classes, generator=g)[:used]
    owner = tuple(sorted(i % classes for i in range(words)))
    return SavedHead(
        classes=tuple(f"class {i}" for i in range(classes)),
        words=tuple(f"word {i}" for i in range(words)),
        owner=owner,
        sources=("by hand",) * words,
        weight=coefficients @ torch.cat([rows, prompts])[features],
        scale=57.3,
        prompts=prompts,
        rows=rows,
        text_scale=100.0,
        method="slr_avd",
        settings={"lam": 0.1, "seed": 0, "templates": ("a", "b"), "C": None},
        figures={"features": used, "accuracy": {"test": {"0.5": 0.1 + 0.2}}},
        model=("clip", "0f" * 32),
        bias=torch.randn(classes, generator=g),
        coefficients=coefficients,
        features=features,
    )


def assert_same(a: SavedHead, b: SavedHead) -> None:
    for field in fields(SavedHead):
        one, two = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, Tensor):
            assert one.dtype == two.dtype and one.shape == two.shape, field.name
            assert one.numpy().tobytes() == two.numpy().tobytes(), field.name
        else:
            assert one == two and type(one) is type(two), field.name


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(0, 7), st.integers(0, 6), st.integers(1, 5), st.integers(0, 99))
def test_what_was_saved_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, classes: int, words: int, used: int, width: int, seed: int
):
    saved = make(classes, words, min(used, words + classes), width, seed)
    folder = save_head(tmp_path_factory.mktemp("h") / "head", saved)
    assert_same(saved, load_head(folder))


def test_a_linear_probe_has_no_coefficients(tmp_path: Path):
    saved = replace(
        make(words=0, used=2), bias=None, coefficients=None, features=None, weight=torch.randn(3, 6)
    )
    again = load_head(save_head(tmp_path / "probe", saved))
    assert again.coefficients is None and again.features is None and again.bias is None
    assert_same(saved, again)


def test_settings_are_plain_values_and_tuples_become_lists(tmp_path: Path):
    saved = make()
    assert saved.settings == {"lam": 0.1, "seed": 0, "templates": ["a", "b"], "C": None}
    assert load_head(save_head(tmp_path / "h", saved)).settings == saved.settings
    assert replace(saved, figures={"x": np.float64(0.1)}).figures["x"] == 0.1


def test_zeros_are_not_stored_and_minus_zero_is(tmp_path: Path):
    saved = make(used=4)
    coefficients = torch.tensor([[0.0, -0.0, 0.0, 2.0], [0.0] * 4, [1e-45, 0.0, 0.0, 0.0]])
    assert saved.features is not None
    weight = coefficients @ torch.cat([saved.rows, saved.prompts])[saved.features]
    saved = replace(saved, coefficients=coefficients, weight=weight)
    folder = save_head(tmp_path / "h", saved)
    stored = load_file(folder / "head.safetensors")
    assert stored["coefficients.starts"].tolist() == [0, 2, 2, 3]
    assert stored["coefficients.columns"].tolist() == [1, 3, 0]
    assert stored["coefficients.columns"].dtype == torch.int32 and len(stored["coefficients.values"]) == 3
    assert_same(saved, load_head(folder))


def test_equal_heads_are_equal_files(tmp_path: Path):
    one, two = save_head(tmp_path / "a", make()), save_head(tmp_path / "b", make())
    assert sorted(os.listdir(one)) == ["head.json", "head.safetensors", "manifest.json"]
    for name in os.listdir(one):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_only_a_head_is_overwritten_and_only_when_asked(tmp_path: Path):
    folder = save_head(tmp_path / "h", make(seed=1))
    with pytest.raises(BadInput, match="exists already"):
        save_head(folder, make(seed=2))
    assert_same(load_head(folder), make(seed=1))
    save_head(folder, make(seed=2), overwrite=True)
    assert_same(load_head(folder), make(seed=2))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt"):
        save_head(folder, make(), overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds files and is no head"):
        save_head(tmp_path / "other", make(), overwrite=True)
    with pytest.raises(NoMatch, match="holds no head"):
        load_head(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failed_save_leaves_the_old_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = save_head(tmp_path / "h", make(seed=1))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secateur.io.heads.write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        save_head(folder, make(seed=2), overwrite=True)
    assert_same(load_head(folder), make(seed=1))
    assert os.listdir(tmp_path) == ["h"]


@pytest.mark.parametrize("name", ["head.json", "head.safetensors", "manifest.json"])
def test_flipped_cut_and_missing_files_are_refused(tmp_path: Path, name: str):
    folder = save_head(tmp_path / "h", make())
    whole = (folder / name).read_bytes()
    for at in range(0, len(whole), 11):
        raw = bytearray(whole)
        raw[at] ^= 1 << (at % 8)
        (folder / name).write_bytes(raw)
        with pytest.raises(SecateurError) as caught:
            load_head(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    for cut in range(0, len(whole), 97):
        (folder / name).write_bytes(whole[:cut])
        with pytest.raises(Damaged):
            load_head(folder)
    (folder / name).unlink()
    with pytest.raises((Damaged, NoMatch), match=str(folder)):
        load_head(folder)


def _forge_json(**changes: Any) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        table = json.loads((folder / "head.json").read_text())
        table |= changes
        table = {name: value for name, value in table.items() if value != "REMOVED"}
        (folder / "head.json").write_text(json.dumps(table))

    return forge


def _forge_tensors(**changes: Tensor | None) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        tensors: dict[str, Any] = load_file(folder / "head.safetensors")
        tensors |= {name.replace("_", "."): tensor for name, tensor in changes.items()}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / "head.safetensors")

    return forge


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    return value


FORGED: list[tuple[Callable[[Path], None], type[SecateurError], str]] = [
    (_forge_json(format=2), Unsupported, "format 2; install a newer"),
    (_forge_json(format=0), Damaged, "no number of a format"),
    (_forge_json(format=True), Damaged, "no number of a format"),
    (_forge_json(format="REMOVED"), Damaged, "no number of a format"),
    (_forge_json(extra=1), Damaged, "'extra', or should not"),
    (_forge_json(method="REMOVED"), Damaged, "lacks 'method'"),
    (_forge_json(method=3), Damaged, "'method' is no text"),
    (_forge_json(method=""), Damaged, "method: is empty"),
    (_forge_json(classes=["a", "b"]), Damaged, "starts do not fit"),
    (_forge_json(classes=["a", "b", "c", "d"]), Damaged, "starts do not fit"),
    (_forge_json(classes=["a", "b", "a"]), Damaged, "'a' is there twice"),
    (_forge_json(classes="abc"), Damaged, "'classes' is no list"),
    (_forge_json(words=["a"]), Damaged, "1 words, 5 owners"),
    (_forge_json(owner=[0, 0, 0, 0, 9]), Damaged, "no place in the classes"),
    (_forge_json(owner=[0, 0, 0, 0, -1]), Damaged, "no place in the classes"),
    (_forge_json(owner=[0, 0, 0, 0, 1.0]), Damaged, "no place in the classes"),
    (_forge_json(scale=0), Damaged, "no logit scale"),
    (_forge_json(scale="1"), Damaged, "no logit scale"),
    (_forge_json(text_scale=float("nan")), Damaged, "NaN"),
    (_forge_json(settings=[1]), Damaged, "settings: is no table"),
    (_forge_json(figures={"x": _deep()}), Damaged, "nested more than 20 deep"),
    (_forge_json(figures={"x": 1 << 70}), Damaged, "no plain value"),
    (_forge_json(model=1), Damaged, "'model' is no text"),
    (_forge_json(model="a\nb"), Damaged, "model: 'a\\nb' holds"),
    (lambda f: (f / "head.json").write_text("[]") and None, Damaged, "is not a table"),
    (lambda f: (f / "head.json").write_text('{"format": 1, "format": 1}') and None, Damaged, "twice"),
    (_forge_tensors(weight=torch.zeros(3, 5)), Damaged, "prompts: torch.float32 [3, 6], not float32 [3, 5]"),
    (_forge_tensors(weight=torch.zeros(2, 6)), Damaged, "weight: torch.float32 [2, 6], not"),
    (_forge_tensors(weight=torch.tensor(1.0)), Damaged, "weight: torch.float32 []"),
    (_forge_tensors(weight=torch.zeros(3, 6)), Damaged, "weight: is not coefficients @ texts"),
    (_forge_tensors(weight=torch.full((3, 6), float("nan"))), Damaged, "18 NaN and 0 Inf"),
    (_forge_tensors(weight=torch.zeros(3, 6, dtype=torch.float64)), Damaged, "torch.float64"),
    (_forge_tensors(rows=torch.zeros(4, 6)), Damaged, "rows: torch.float32 [4, 6]"),
    (_forge_tensors(bias=torch.zeros(4)), Damaged, "bias: torch.float32 [4]"),
    (_forge_tensors(prompts=None), Damaged, "'prompts'"),
    (_forge_tensors(strange=torch.zeros(1)), Damaged, "'strange'"),
    (_forge_tensors(features=None), Damaged, "'features'"),
    (_forge_tensors(features=torch.tensor([0, 1, 2, 8])), Damaged, "features: holds places outside 0..7"),
    (_forge_tensors(features=torch.tensor([0, 1, 2, -1])), Damaged, "features: holds places outside"),
    (_forge_tensors(features=torch.tensor([0, 1, 2, 2])), Damaged, "features: holds a place twice"),
    (_forge_tensors(features=torch.tensor([0, 1, 2, 3], dtype=torch.int32)), Damaged, "not torch.int64"),
    (_forge_tensors(features=torch.zeros(2, 2, dtype=torch.int64)), Damaged, "'features' is torch.int64 [2"),
    (_forge_tensors(coefficients_columns=torch.full((3,), 4).int()), Damaged, "a coefficient lies outside"),
    (_forge_tensors(coefficients_columns=torch.full((3,), -1).int()), Damaged, "a coefficient lies outside"),
    (_forge_tensors(coefficients_columns=torch.tensor([2, 2, 0]).int()), Damaged, "not in order"),
    (_forge_tensors(coefficients_columns=torch.zeros(4).int()), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_columns=torch.zeros(3, dtype=torch.int64)), Damaged, "not torch.int32"),
    (_forge_tensors(coefficients_values=torch.zeros(2)), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_starts=torch.tensor([0, 9, 2, 3])), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_starts=torch.tensor([1, 2, 2, 3])), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_starts=torch.tensor([0, 3, 2, 3])), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_starts=torch.tensor([], dtype=torch.int64)), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_starts=torch.tensor([0, -(1 << 62), 2, 3])), Damaged, "starts do not fit"),
    (_forge_tensors(coefficients_values=torch.full((3,), float("inf"))), Damaged, "3 Inf"),
]  # fmt: skip


@pytest.mark.parametrize(("forge", "error", "says"), FORGED)
def test_a_forged_head_with_a_right_manifest_is_refused(
    tmp_path: Path, forge: Callable[[Path], None], error: type[SecateurError], says: str
):
    saved = make()
    coefficients = torch.tensor([[0.0, 0.5, 0.0, 2.0], [0.0] * 4, [1.0, 0.0, 0.0, 0.0]])
    assert saved.features is not None
    weight = coefficients @ torch.cat([saved.rows, saved.prompts])[saved.features]
    folder = save_head(tmp_path / "h", replace(saved, coefficients=coefficients, weight=weight))
    (folder / "manifest.json").unlink()
    forge(folder)
    write_manifest(folder)
    with pytest.raises(error) as caught:
        load_head(folder)
    assert type(caught.value) is error and says in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_file_of_some_bytes_cannot_ask_for_any_memory(tmp_path: Path):
    wide = 200_000
    folder = save_head(tmp_path / "h", make())
    (folder / "manifest.json").unlink()
    _forge_json(classes=[f"c{i}" for i in range(wide)], words=[f"w{i}" for i in range(5)])(folder)
    _forge_tensors(
        weight=torch.zeros(wide, 0), prompts=torch.zeros(wide, 0), rows=torch.zeros(5, 0), bias=None,
        features=torch.arange(wide), coefficients_starts=torch.zeros(wide + 1, dtype=torch.int64),
        coefficients_columns=torch.zeros(0).int(), coefficients_values=torch.zeros(0),
    )(folder)  # fmt: skip
    write_manifest(folder)
    with pytest.raises(Damaged, match="200000 x 200000 entries, more than"):
        load_head(folder)


def test_a_manifest_must_list_the_head(tmp_path: Path):
    folder = save_head(tmp_path / "h", make())
    raw = (folder / "head.json").read_bytes()
    (folder / "manifest.json").unlink()
    with pytest.raises(Damaged, match="has lost its manifest"):
        load_head(folder)
    (folder / "head.json").unlink()
    write_manifest(folder)
    (folder / "head.json").write_bytes(raw)
    with pytest.raises(Damaged, match=r"head\.json: is not in the manifest"):
        load_head(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.zeros(3, 6)}, "weight: is not coefficients @ texts; leave the coefficients out"),
        ({"weight": torch.zeros(3, 6, dtype=torch.float16)}, "weight: torch.float16"),
        ({"weight": np.zeros((3, 6))}, "weight: ndarray, not float32 [3, "),
        ({"features": None}, "coefficients and features go together"),
        ({"coefficients": torch.zeros(3, 3)}, "coefficients: torch.float32 [3, 3], not float32 [3, 4]"),
        ({"settings": {"a": {1, 2}}}, "settings.a: {1, 2} is no plain value"),
        ({"settings": {"a": [0, {"b": float("nan")}]}}, "settings.a[1].b: nan is no plain value"),
        ({"settings": {1: 2}}, "settings: 1 is no name"),
        ({"settings": {"a": "\ud800"}}, "settings.a: '\\ud800' is no plain value"),
        ({"figures": None}, "figures: is no table"),
        ({"model": ("clip",)}, "model: is no name and digest"),
        ({"scale": float("inf")}, "scale: inf is no logit scale"),
        ({"text_scale": True}, "text_scale: True is no logit scale"),
    ],
)
def test_a_head_whose_parts_do_not_fit_is_not_made(change: dict[str, Any], says: str):
    with pytest.raises(BadInput) as caught:
        replace(make(), **change)
    assert says in str(caught.value)
