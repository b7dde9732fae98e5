"""What a packed file's head may say: every part that does not fit is one line, for dense readers and the runtime's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import Damaged, SecateurError, Unsupported
from secateur.io.convert import to_sparse
from secateur.io.packed_folder import read_packed
from secateur.io.packing import Packing
from tests.io.test_packed_folder import dense, read_dense, weights


def changed(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Path:
    """The folder's file written again after a change of its tensors and its text."""
    path = folder / "sparse.safetensors"
    with safe_open(path, "pt") as file:
        tensors, text = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, text)
    save_file(tensors, path, text)
    return folder


def table(**values: Any) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    """A change of what the head says of a.weight."""

    def change(tensors: dict[str, Tensor], text: dict[str, str]) -> None:
        rows = json.loads(text["secateur.packed"])
        rows["a"] = {**rows["a"], **values}
        text["secateur.packed"] = json.dumps(rows)

    return change


def put(
    name: str, function: Callable[[Tensor], Tensor]
) -> Callable[[dict[str, Tensor], dict[str, str]], object]:
    return lambda tensors, text: tensors.update({name: function(tensors[name]).contiguous()})


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (
            lambda tensors, text: text.update({"secateur.version": "2"}),
            Unsupported,
            "is written as 'packed 2'; install",
        ),
        (
            lambda tensors, text: text.update({"secateur.packed": "[]"}),
            Damaged,
            "secateur.packed in the header is not a table",
        ),
        (lambda tensors, text: text.pop("secateur.packed"), Damaged, "not valid JSON"),
        (lambda tensors, text: tensors.pop("a.mask"), Damaged, r"'a' lacks \['mask'\]"),
        (lambda tensors, text: tensors.pop("a.scales"), Damaged, "a.weight: scales go with int8"),
        (lambda tensors, text: tensors.pop("a.values"), Damaged, "'a' has no values"),
        (lambda tensors, text: tensors.update({"a.weight": torch.ones(1)}), Damaged, "stored twice"),
        (table(kind="2x4"), Damaged, "'a' is '2x4' of shape"),
        (table(kind=["nm"]), Damaged, r"'a' is \['nm'\]"),
        (table(shape=[48, 68]), Damaged, "do not divide 68 columns"),
        (table(shape=[49, 64]), Damaged, "has values of I8"),
        (table(shape=[-48, 64]), Damaged, "of shape"),
        (table(shape=[48, 1 << 50]), Damaged, "of shape"),
        (table(shape=48), Damaged, "of shape 48"),
        (table(n=1), Damaged, "has values of I8"),
        (table(n=5), Damaged, "n 5: not in fours"),
        (table(group=48), Damaged, "groups of 48"),
        (table(group="32"), Damaged, "group '32'"),
        (table(dtype="F33"), Damaged, "stands for 'F33'"),
        (table(dtype="I8"), Damaged, "stands for 'I8'"),
        (table(more=1), Damaged, "not described by exactly"),
        (put("a.scales", lambda t: t * float("nan")), Damaged, "a.weight: NaN or Inf in scales"),
        (put("a.scales", lambda t: t[:-1]), Damaged, "has scales of BF16"),
        (put("a.scales", lambda t: t.half()), Damaged, "scales are torch.float16"),
        (put("a.values", lambda t: t.half()), Damaged, "packed values of torch.float16"),
        (put("a.mask", lambda t: t ^ 1), Damaged, "a.weight: the mask is not 2:4"),
        (put("a.mask", lambda t: t.to(torch.int32)), Damaged, "has mask of I32"),
    ],
)
def test_damage_is_one_line(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor], dict[str, str]], object],
    error: type[SecateurError],
    line: str,
) -> None:
    packing = Packing("2:4", "int8", 32)
    folder = changed(to_sparse(dense(tmp_path / "d", weights()), tmp_path / "p", packing), change)
    for read in (read_packed, read_dense):
        with pytest.raises(error, match=line) as caught:
            read(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_offsets_that_lie_are_found(tmp_path: Path) -> None:
    folder = to_sparse(dense(tmp_path / "d", weights("16x1")), tmp_path / "p", Packing("16x1"))
    changed(folder, put("a.offsets", lambda t: t + 1))
    with pytest.raises(Damaged, match=r"a\.weight: the mask keeps \d+, values and offsets say otherwise"):
        read_packed(folder)
