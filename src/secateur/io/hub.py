"""A model by name: embedded, a local folder (dense or secateur sparse), a .gguf file, or one on the Hugging Face hub.

A GGUF is read once (transformers dequantises it to float32) and kept as an ordinary folder in the cache
(SECATEUR_CACHE, else XDG_CACHE_HOME/secateur, else ~/.cache/secateur), under the sha256 of its bytes: SmolLM2-135M
takes 10 CPU seconds the first time and 1.6 after (0.6 of them to check every byte). The first time goes to Python
parsing GGUF metadata (3 s), dequantising (3 s) and writing 538 MB; without _read_once it would be 24 s.
Only safetensors are read, never pickles; code that lies beside a model runs only with trust_remote_code=True.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import BadInput, Damaged, Locked, NoMatch, SecateurError, Unsupported, nearest, require
from secateur.io.checkpoint import load_checkpoint, save_checkpoint
from secateur.io.compressed import plain_folder
from secateur.io.describe import NO_MANIFEST
from secateur.io.embedded import EMBEDDED_MODELS, embedded_model_file

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]
_HUB_SECONDS = 5.0
_CONVERT_SECONDS = 900.0
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


@dataclass
class Loaded:
    """A model in evaluation mode, its tokenizer if it has one, the name asked for, and its weights' folder."""

    model: nn.Module
    tokenizer: Any | None
    name: str
    folder: Path | None


def load(name: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> Loaded:
    """Load a model and its tokenizer.

    Args:
        name: see the top of this file.
        dtype: "auto" (as stored; a GGUF as float32), "float32", "bfloat16", "float16" or "float64".

    Raises:
        NoMatch: nothing of that name (the nearest ones are listed), or the hub cannot be reached.
        Damaged: files that are not what they say, or weights missing.   Unsupported: pickles, unknown architectures.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise BadInput(f"unknown dtype {dtype!r}", where="--dtype", fix=nearest(dtype, ["auto", *_DTYPES]))
    folder = resolve_folder(name)
    model = load_folder(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return Loaded(model.to(device_of(device)).eval(), load_tokenizer(folder, trust_remote_code), name, folder)


def resolve_folder(name: str, configs: tuple[str, ...] = ("config.json",)) -> Path:
    """The local folder of a model: itself, a GGUF's converted folder, or a download (no pickles, no code).

    Args:
        configs: a folder with one of these files is a model.
    """
    if name in EMBEDDED_MODELS:
        return _gguf_folder(embedded_model_file(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / config).is_file() for config in configs):
            raise NoMatch(
                "no config.json in this folder", where=name, fix="give a folder made by save_pretrained"
            )
        return plain_folder(path, cache_folder() / "compressed")
    if path.is_file():
        if path.suffix != ".gguf":
            raise Unsupported("not a model", where=name, fix="give a folder, a .gguf file or a hub name")
        return _gguf_folder(path)
    if name.startswith(("/", ".", "~")) or name.endswith((".gguf", "/")) or not _HUB_NAME.fullmatch(name):
        beside = path.parent.iterdir() if path.parent.is_dir() else []
        models = sorted(p.name for p in beside if p.suffix == ".gguf" or (p / "config.json").is_file())
        raise NoMatch(
            "no such file or folder", where=name, fix=nearest(path.name, [*models, *EMBEDDED_MODELS])
        )
    return plain_folder(_download(name, configs), cache_folder() / "compressed")


def load_folder(folder: Path, *, dtype: str = "auto", trust_remote_code: bool = False) -> nn.Module:
    """The model of a local folder, dense or sparse, in evaluation mode; a manifest, where there is one, is checked.

    The class is what config.json names, among those of transformers. With trust_remote_code, and only when the config
    asks for it, transformers loads the folder itself and runs the code in it.
    """
    transformers = require("transformers", "hf")
    wanted = _DTYPES.get(dtype)
    with _one_line(folder), _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
            return transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=trust_remote_code,
                dtype=wanted or "auto",
                use_safetensors=True,
                local_files_only=True,
            ).eval()
        chosen = _model_class(transformers, config)
    with warnings.catch_warnings():
        # Models from elsewhere have no manifest: nothing a user could do about it.
        warnings.filterwarnings("ignore", message=f".*{re.escape(NO_MANIFEST)}")
        return load_checkpoint(folder, chosen, dtype=wanted)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any | None:
    """The tokenizer of a local folder, or None when it holds none (a vision model)."""
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    transformers = require("transformers", "hf")
    with _one_line(folder):
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )


def check_hub_reachable(where: str) -> None:
    """Raise NoMatch within seconds when the hub does not answer."""
    hub = require("huggingface_hub", "hf")
    failure = _within(lambda: hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=_HUB_SECONDS))
    if failure is not None:
        raise NoMatch(
            f"the hub cannot be reached ({_first_line(failure)})", where=where, fix="give a local path"
        )


def cache_folder() -> Path:
    """Where converted models are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SECATEUR_CACHE") or Path(base) / "secateur")


# --- GGUF -----------------------------------------------------------------------------------------------------------


def _gguf_folder(path: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Damaged("does not start as a GGUF file", where=str(path), fix="fetch it again")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    final = cache_folder() / "gguf" / f"{path.stem}-{digest[:16]}"
    deadline = time.monotonic() + _CONVERT_SECONDS
    while not (final / "config.json").is_file():
        try:
            _convert(path, final)
        except Locked:  # another process (a second worker) converts it: wait for its result
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    return final


def _convert(path: Path, out: Path) -> None:
    gguf, transformers = require("gguf", "hf"), require("transformers", "hf")
    where = {"gguf_file": path.name, "local_files_only": True}
    # its own progress bar ignores transformers' switch
    with _one_line(path), _quiet(transformers), _read_once(gguf), redirect_stderr(StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
        model.hf_quantizer = None  # the weights are plain float32 now; with it save_pretrained refuses
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    save_checkpoint(out, model=model, tokenizer=tokenizer)


@contextmanager
def _read_once(gguf: Any) -> Iterator[None]:
    """Inside, a file's metadata is parsed once and a name map built once. transformers asks for the first 3 times and
    for the second once a module: 14 of the 22 seconds of SmolLM2."""
    names = ("GGUFReader", "get_tensor_name_map")
    kept = {name: getattr(gguf, name) for name in names}
    try:
        for name in names:
            setattr(gguf, name, functools.cache(kept[name]))
        yield
    finally:
        for name in names:
            setattr(gguf, name, kept[name])


# --- hub ------------------------------------------------------------------------------------------------------------


def _download(name: str, configs: tuple[str, ...]) -> Path:
    hub = require("huggingface_hub", "hf")
    fetch = functools.partial(hub.snapshot_download, name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"])
    failure = _within(lambda: hub.HfApi().model_info(name, timeout=_HUB_SECONDS))
    if isinstance(failure, hub.errors.GatedRepoError):
        raise Unsupported(
            "this model asks you to accept its terms", where=name, fix=f"see {hub.constants.ENDPOINT}/{name}"
        )
    missing = isinstance(failure, hub.errors.RepositoryNotFoundError | hub.errors.HFValidationError)
    try:
        folder = Path(fetch(local_files_only=failure is not None))
    except (FileNotFoundError, ValueError) as error:
        why = (
            "nor on the hub"
            if missing
            else f"and the hub cannot be reached ({_first_line(failure or error)})"
        )
        raise NoMatch(
            f"not an embedded model, not a local path, {why}", where=name, fix=nearest(name, EMBEDDED_MODELS)
        ) from error
    if not any((folder / config).is_file() for config in configs):
        raise NoMatch("no config.json under this name", where=name, fix="name a model repository")
    return folder


def _within(call: Callable[[], Any]) -> BaseException | None:
    """None if `call` returns in time, else what stopped it. A thread: looking up a host name knows no time-out."""
    result: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            result.append(None)
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(2 * _HUB_SECONDS)
    return result[0] if result else TimeoutError(f"no answer in {2 * _HUB_SECONDS:.0f} s")


# --- transformers ---------------------------------------------------------------------------------------------------


def _model_class(transformers: Any, config: Any) -> Any:
    """The class to load: what the config names, else the first head its type has."""
    for name in config.architectures or []:
        chosen = getattr(transformers, name, None)
        if isinstance(chosen, type) and issubclass(chosen, transformers.PreTrainedModel):
            return chosen
    # encoders have a causal head too, of no use unless they were trained as decoders
    heads = ("CausalLM", "MaskedLM") if getattr(config, "is_decoder", False) else ("MaskedLM", "CausalLM")
    for head in (*heads, "ImageClassification"):
        auto = getattr(transformers, f"AutoModelFor{head}")
        if type(config) in auto._model_mapping:
            return auto
    raise Unsupported(
        f"no known model class for {config.model_type!r} {config.architectures or ''}", where="config.json"
    )


@contextmanager
def _one_line(where: Path) -> Iterator[None]:
    """What transformers and gguf raise about a folder's content, as one line; what the system says passes through."""
    try:
        yield
    except (SecateurError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # transformers also raises OSErrors of its own, without a number
        if "trust_remote_code" in str(error):
            raise Unsupported(
                "this model needs code from its own folder", where=str(where),
                fix="read that code, then pass trust_remote_code=True if you trust it",
            ) from error  # fmt: skip
        raise Unsupported(
            f"transformers cannot load it ({type(error).__name__}: {_first_line(error)})", where=str(where)
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def device_of(device: str) -> torch.device:
    """The device of that name; BadInput where this machine has none."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(
            f"no device {device!r} here", where="--device", fix="use cpu, or cuda if there is one"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]
