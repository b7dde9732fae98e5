"""Models in and out by name: what the commands and the public functions load and save with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.plan import Plan
from secateur.errors import BadInput, nearest
from secateur.io import hub
from secateur.io.checkpoint import FORMATS, save_checkpoint
from secateur.io.files import check_replaceable
from secateur.io.hub import Loaded
from secateur.io.manifest import check_manifest, read_manifest
from secateur.io.plans import plan_json

Model = str | Path | Loaded | nn.Module


def load(
    name: str | Path, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> Loaded:
    """A model and its tokenizer by name; a folder with a manifest is checked byte for byte first.

    Args:
        name: embedded (smollm2-135m), a folder, a .gguf file or a hub name.
        dtype: "auto" (as stored; GGUF: float32), float32, bfloat16, float16 or float64.

    Raises:
        NoMatch, Damaged, Unsupported, BadInput: see secateur.io.hub.load.
    """
    folder = hub.resolve_folder(str(name))
    if trust_remote_code and read_manifest(folder) is not None:
        check_manifest(folder)  # else the reader does; the folder's own code would not
    loaded = hub.load(str(folder), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    return replace(loaded, name=str(name))


def as_loaded(
    model: Model, tokenizer: Any = None, dtype: str = "auto", tell: Callable[[int], None] = lambda done: None
) -> Loaded:
    """A model however it was given; `tell(0)` and `tell(1)` stand around loading by name."""
    if isinstance(model, nn.Module):
        return Loaded(model, tokenizer, type(model).__name__, None)
    if isinstance(model, Loaded):
        return model
    tell(0)
    loaded = load(model, dtype=dtype)
    tell(1)
    return loaded


def save(
    model: nn.Module,
    out: str | Path,
    *,
    tokenizer: Any = None,
    plan: Plan | None = None,
    source: Path | None = None,
    format: str = "dense",
    max_shard: int | None = None,
    overwrite: bool = False,
    extra: dict[str, str] | None = None,
) -> Path:
    """Write a checkpoint folder that is whole or absent, and that transformers loads (`format="dense"`).

    Args:
        plan: kept beside the weights as plan.json, without its bits, which are the zeros.
        source: the folder the model came from, whose shard size and side files are kept.
        overwrite: replace `out` if it is a checkpoint that secateur wrote.
        extra: further small files, name -> text.
    """
    check_out(out, overwrite, format)
    files: dict[str, bytes | str] = {**(extra or {})}
    if plan is not None:
        files["plan.json"] = plan_json(plan)
    return save_checkpoint(
        out,
        model=model,
        tokenizer=tokenizer,
        source=source,
        extra=files,
        format=format,
        max_shard=max_shard,
    )


def check_out(out: str | Path, overwrite: bool = False, format: str = "dense") -> None:
    """Refuse, before any work, a folder that may not be written, or a format that is none."""
    if format not in FORMATS:
        raise BadInput(f"{format!r} is no format", where="format", fix=nearest(format, FORMATS))
    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise BadInput("exists already", where=str(out), fix="choose another --out, or pass --overwrite")
        if read_manifest(out) is None:
            raise BadInput("secateur did not write this folder", where=str(out), fix="choose another --out")
    check_replaceable(out)
