"""Save a model as a folder that is whole or absent, and load it back only when every byte is what was saved.

What transformers writes is kept as it writes it (names, config, generation config, shards), so that any tool that loads
its folders loads ours; secateur adds manifest.json and small files of its own. A torch.nn.Module of another kind
becomes `model.safetensors` alone. Loading hands transformers checked tensors, never the folder: an index that leads
outside, a pickle, an adapter or a half-replaced shard beside the weights is never opened by it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, SecateurError, Unsupported, require
from secateur.io.convert import copy_side_files, write_sparse
from secateur.io.describe import NO_MANIFEST, describe, verify
from secateur.io.files import MANIFEST, inside, new_folder, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest, write_manifest
from secateur.io.tensors import TensorFolder
from secateur.io.writer import TensorWriter

__all__ = [
    "describe",
    "load_checkpoint",
    "load_state",
    "make_sparse",
    "model_class_of",
    "save_checkpoint",
    "verify",
]

FORMATS = ("dense", "sparse")
TIED = "secateur.tied"  # in the head of a plain module's file: name left out -> name that holds its values
_NEVER = (".py", ".bin", ".pkl", ".pt", ".pth", ".ckpt")
_OWN = {
    "plan.json",
    "results.json",
    "plan.safetensors",
}  # of a source that was cut before: not true of the new one
_CONFIG_LIMIT = 8 << 20
_COUNT = re.compile(r"^(n|num)_.*(layers?|experts?|blocks?)$|(encoder|decoder)_layers$")


def save_checkpoint(
    out: Path | str,
    *,
    model: torch.nn.Module,
    tokenizer: Any = None,
    source: Path | str | None = None,
    extra: Mapping[str, bytes | str] | None = None,
    format: str = "dense",
    max_shard: int | str | None = None,
) -> Path:
    """Write `model` to the folder `out`, which changes in one step or not at all.

    Args:
        model: of transformers (`save_pretrained` is used) or any torch.nn.Module (its state dict, tied tensors once).
        tokenizer: saved beside it when given.
        source: the folder the model came from: its shard size, and its files that are neither weights nor code.
        extra: small files such as {"plan.json": ...}.
        format: "dense", or "sparse": bitmask and kept values where that is smaller (load with `load_checkpoint`).
        max_shard: bytes of one weight file at most, or words such as "5GB"; by default as in `source`.

    Raises:
        BadInput: weights without data (meta), a name that may not be used, an `out` that may not be replaced.
        Locked: another process writes `out`.   OSError: the system failed; the old `out` is still there.
    """
    if format not in FORMATS:
        raise BadInput(f"format {format!r:.40} is not known", fix="use dense or sparse")
    out, extra = Path(out), dict(extra or {})
    for name in extra:
        if (
            not re.fullmatch(r"[\w-][\w.-]*", name)
            or name == MANIFEST
            or name.endswith((*_NEVER, ".index.json"))
        ):
            raise BadInput(f"{name!r:.80} cannot be the name of an extra file", where="extra")
    for name, module in model.named_modules():
        if hasattr(module, "dense") and hasattr(module, "nbytes"):
            raise BadInput("is accelerated", where=name, fix="undo() the acceleration before saving")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise BadInput("has no data (meta device)", where=name, fix="load the weights before saving")
    with new_folder(out) as folder:
        if hasattr(model, "save_pretrained") and hasattr(model, "config"):
            shard = max_shard if max_shard is not None else _shard_size(source)
            _write_transformers(model, folder, shard)
        else:
            _write_module(model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if source is not None and Path(source).is_dir():
            copy_side_files(Path(source), folder, set(), skip={*_OWN, *extra})
        for name, data in extra.items():
            write_atomic(folder / name, data)
        _clean(folder)
        if format == "sparse":
            make_sparse(folder)
        write_manifest(folder)
    return out


def load_checkpoint(
    folder: Path | str, model_class: Any = None, *, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """The model of a checkpoint folder, dense or sparse, in evaluation mode on the CPU.

    Args:
        folder: written by `save_checkpoint`, or any transformers folder with safetensors weights (with a warning, as
            damage cannot be seen without a manifest).
        model_class: a transformers class; by default the one config.json names, else AutoModelForCausalLM. For a
            folder without config.json: anything that returns the module when called without arguments.
        dtype: of the weights; by default as stored.

    Raises:
        Damaged: a byte differs from the manifest, or tensors are missing, of the wrong shape, or unknown to the model.
        Unsupported: the config asks for code from elsewhere, or for something transformers cannot build.
    """
    folder = Path(folder)
    known = read_manifest(folder) is not None
    if known:
        check_manifest(folder)
    else:
        warnings.warn(f"{folder}: {NO_MANIFEST}", stacklevel=2)
    state = load_state(folder)
    if (folder / "config.json").exists():
        return _build_transformers(folder, model_class, state, dtype, strict=known)
    if model_class is None:
        raise BadInput("has no config.json", where=str(folder), fix="pass the model class, or use load_state")
    model = model_class()
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise Damaged(f"does not fit {type(model).__name__} ({error!s:.300})", where=str(folder)) from error
    return model.to(dtype).eval() if dtype is not None else model.eval()


def load_state(folder: Path | str) -> dict[str, Tensor]:
    """Every tensor of a folder by name, decoded, tied names of a plain module restored. No manifest is checked.

    Dense tensors are private maps of their files: memory is taken when they are first read.
    """
    with TensorFolder(folder) as source:
        state = {name: source.view(name) for name in source.names()}
        for shard in source.shards.values():
            tied = strict_json(shard.header.metadata.get(TIED, "{}").encode(), shard.where)
            if not isinstance(tied, dict) or not all(
                isinstance(kept, str) and kept in state for kept in tied.values()
            ):
                raise Damaged("names of tied tensors lead nowhere", where=shard.where)
            state.update({name: state[kept] for name, kept in tied.items()})
    return state


def _write_transformers(model: Any, folder: Path, max_shard: int | str | None) -> None:
    quantised = getattr(model.config, "quantization_config", None)
    method = (
        quantised.get("quant_method")
        if isinstance(quantised, dict)
        else getattr(quantised, "quant_method", "")
    )
    if "gguf" in str(method).lower():
        # The weights were dequantised when they were read; this would make the saved folder claim they are not.
        model.hf_quantizer = None
        del model.config.quantization_config
    if getattr(model, "_hf_peft_config_loaded", False):
        raise Unsupported(
            "the model carries adapters, which would be saved without it", fix="merge them first"
        )
    options = {} if max_shard is None else {"max_shard_size": max_shard}
    with _quiet():
        try:
            model.save_pretrained(folder, **options)
        except (SecateurError, OSError):
            raise
        except Exception as error:
            # safetensors hides the system's error in words; a full disk must stay an OSError.
            code = re.search(r"os error (\d+)", str(error))
            if code:
                raise OSError(int(code[1]), str(error), str(folder)) from error
            raise BadInput(
                f"transformers cannot save it ({error!s:.200})", where=type(model).__name__
            ) from error


def _write_module(model: torch.nn.Module, folder: Path) -> None:
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise BadInput("is not a tensor, so it cannot be stored safely", where=name)
        layout = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        same = first.setdefault((tensor.device, *layout), name) if tensor.numel() else name
        if same == name:
            state[name] = tensor
        else:
            tied[name] = same
    text = {TIED: json.dumps(tied, sort_keys=True)} if tied else {}
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    with TensorWriter(folder / "model.safetensors", specs, {"format": "pt", **text}) as writer:
        for name, tensor in state.items():
            writer.put(name, tensor)


def _shard_size(source: Path | str | None) -> int | None:
    """Bytes of the largest shard of `source`; None where it is one file, so that one file is written."""
    if source is None:
        return None
    try:
        with TensorFolder(source) as tensors:
            sizes = [shard.header.file_size - shard.header.data_start for shard in tensors.shards.values()]
    except SecateurError:  # a GGUF file, pickled weights: no shards to follow
        return None
    return max(sizes) if len(sizes) > 1 else None


def _clean(folder: Path) -> None:
    """No code, no pickles, and no `sparsity_config`, for which current vLLM refuses a model that others load."""
    for path in [p for p in folder.rglob("*") if p.is_file() and p.name.endswith(_NEVER)]:
        path.unlink()
    path = folder / "config.json"
    if not path.exists():
        return
    config = _read_config(folder)
    holders = [config, config.get("quantization_config"), config.get("compression_config")]
    found = [holder for holder in holders if isinstance(holder, dict) and "sparsity_config" in holder]
    for holder in found:
        del holder["sparsity_config"]
    if found:
        write_atomic(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_sparse(folder: Path) -> None:
    """Replace the dense weight files of a folder under construction by sparse ones."""
    with TensorFolder(folder) as tensors:
        write_sparse(tensors, folder)
        for file in tensors.shards:
            (folder / file).unlink()
    for index in folder.glob("model*.index.json"):
        index.unlink()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = strict_json(read_small(inside(folder, "config.json"), _CONFIG_LIMIT), str(path), finite=False)
    if not isinstance(config, dict):
        raise Damaged("is not a table", where=str(path))
    return config


def _refuse_bad_config(value: Any, where: str, tensors: int, key: str = "") -> None:
    """Refuse what would run code or never end: transformers fetches and runs a kernel from the hub when a config names
    one (`attn_implementation: "org/name"`), and builds as many layers as it is told to."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_bad_config(inner, where, tensors, f"{key}.{name}" if "_implementation" in key else name)
    elif isinstance(value, list):
        for inner in value:
            _refuse_bad_config(inner, where, tensors, key)
    elif "_implementation" in key and isinstance(value, str) and ("/" in value or ":" in value):
        raise Unsupported(
            f"{key} {value!r:.80} would fetch code from elsewhere",
            where=where,
            fix="remove it from the config",
        )
    elif isinstance(value, int) and _COUNT.search(key) and value > max(512, tensors):
        raise Damaged(f"{key} is {value}, and the folder holds {tensors} tensors", where=where)


def _build_transformers(
    folder: Path, model_class: Any, state: dict[str, Tensor], dtype: torch.dtype | None, strict: bool
) -> torch.nn.Module:
    transformers = require("transformers", "hf")
    where = str(folder)
    held = sum(tensor.numel() for tensor in state.values())
    config, chosen = model_class_of(folder, len(state), held, model_class)
    with _quiet(), _one_line(where):
        floating = (tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        wanted = dtype or getattr(config, "dtype", None) or next(floating, torch.float32)
        model, info = chosen.from_pretrained(
            None, config=config, state_dict=state, dtype=wanted, output_loading_info=True
        )
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(
                folder, local_files_only=True
            )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(name) for name in info.get(kind) or ())
        # A folder from elsewhere may hold tensors that the class leaves out on purpose.
        if names and (strict or kind != "unexpected_keys"):
            word = kind.split("_")[0]
            raise Damaged(
                f"{len(names)} tensors are {word} for {chosen.__name__}, first {names[0]!r:.100}", where=where
            )
    model.config.name_or_path = where
    return model


def model_class_of(folder: Path, tensors: int, parameters: int, model_class: Any = None) -> tuple[Any, Any]:
    """The transformers config of a folder and the class to build from it.

    The class is built once without weights: an Auto class then tells what it would make, and a config that describes
    another size of model is refused before any memory is taken for it.

    Args:
        tensors, parameters: how many the folder holds.   model_class: as for `load_checkpoint`.

    Raises: as `load_checkpoint` does.
    """
    transformers, where = require("transformers", "hf"), str(folder)
    _refuse_bad_config(_read_config(folder), str(folder / "config.json"), tensors)
    with _quiet(), _one_line(where):
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        if model_class is None:
            named = (getattr(config, "architectures", None) or [""])[0]
            found = getattr(transformers, str(named), None)
            right = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
            model_class = found if right else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            auto = hasattr(model_class, "from_config")
            empty = model_class.from_config(config, trust_remote_code=False) if auto else model_class(config)
    described = sum(parameter.numel() for parameter in empty.parameters())
    packed = getattr(config, "quantization_config", None) is not None  # several entries in one number
    if described > 2 * parameters + 1_000_000 and not packed:
        raise Damaged(
            f"config.json describes {described} parameters, the weights hold {parameters}", where=where
        )
    return config, type(empty)


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Whatever transformers raises over a config it cannot build, said in one line of ours."""
    try:
        yield
    except SecateurError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise Damaged(f"transformers cannot read it ({error!s:.200})", where=where) from error
    except Exception as error:
        text = f"{type(error).__name__}: {error!s:.200}"
        raise Unsupported(f"transformers cannot load it ({text})", where=where) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own bars would run across ours."""
    logging = require("transformers", "hf").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
