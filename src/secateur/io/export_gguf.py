"""A checkpoint folder as one GGUF file, which llama.cpp and what stands on it run.

Tensor by tensor: peak memory is a few of them. Names come from gguf's own table. What llama.cpp computes in another way
is undone on the way in: it rotates neighbouring rows of q and k where Llama rotates halves, and Gemma's norms are
stored with the 1 added. Anything a runtime would compute otherwise (an activation, a window, a rotation it does not
know) is refused, so that a file that was written gives the logits of the folder.

Only types that keep a zero a zero are written: q4_1 and q5_1 would turn a pruned model into a dense one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, Unsupported, one_of, require
from secateur.io.checkpoint import model_class_of
from secateur.io.export_vocabulary import Vocabulary, vocabulary_of
from secateur.io.files import new_file
from secateur.io.hub import load_tokenizer, resolve_folder
from secateur.io.manifest import check_manifest, read_manifest
from secateur.io.tensors import TensorFolder

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}
_BLOCK = 32  # of every quantised type here
_SKIPPED = re.compile(r"rotary_emb\.inv_freq$")  # old Llamas stored what their config says
_HEADS = re.compile(r"\.(q|k)_proj\.(weight|bias)$")
_YARN = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"}


@dataclass(frozen=True)
class Family:
    """How llama.cpp's `arch` differs from the transformers model: see the head of this file."""

    arch: str
    activation: str = "silu"
    interleaved: bool = False
    shifted: bool = False


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", activation="gelu_pytorch_tanh", shifted=True),
}


def export_gguf(
    folder: Path | str,
    out: Path | str,
    type: str = "f16",
    *,
    name: str = "",
    overwrite: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the language model in `folder` (plain or sparse) to the file `out`, whole or not at all.

    Args:
        folder: or a name, as `hub.resolve_folder` takes it.
        type: of the matrices: f32, f16, bf16, q8_0, q5_0 or q4_0. Vectors are f32; rows that are no multiple of 32 stay
            f16 in a quantised file; the output matrix has 8 bits at least, as llama.cpp keeps it.
        name: what the file calls the model; by default as the folder.
        overwrite: replace the file that is there.
        tell: called with (tensors written, tensors in all).

    Returns: {"file", "bytes", "type", "architecture", "parameters", "tensors": {type: count}, "vocabulary", "notes"}.

    Raises:
        Unsupported: an architecture, a setting or a tokenizer that has no GGUF form.   BadInput: a type that is none,
        a value f16 cannot hold, an `out` that may not be written.   NoMatch: no such model.
        Damaged: as `load_checkpoint`.
    """
    one_of(type, TYPES, "type")
    gguf, folder, out = require("gguf", "hf"), resolve_folder(str(folder)), Path(out)
    if read_manifest(folder) is not None:
        check_manifest(folder)
    with TensorFolder(folder) as tensors:
        config, family, order = _checked(folder, tensors)
        notes = _window(config, family)
        names = _names(gguf, config, family, tensors, order)
        made = _vocabulary(folder, config)
        kinds = {new: _kind(gguf, type, new, tensors.shape(old), names) for new, old in names.items()}
        with new_file(out, overwrite) as path, closing(gguf.GGUFWriter(path, family.arch)) as writer:
            writer.add_name(name or folder.resolve().name)
            _describe(gguf, writer, config, family, kinds, TYPES[type])
            _speak(writer, made)
            arrays = (_array(tensors.get(old), old, config, family) for old in names.values())
            extra = _frequencies(config)
            shapes = {new: tensors.shape(old) for new, old in names.items()}
            _fill(gguf, writer, names, shapes, kinds, arrays, extra, tell)
        size = sum(int(np.prod(tensors.shape(old))) for old in names.values())
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "type": type,
        "architecture": family.arch,
        "parameters": size,
        "tensors": dict(Counter(kind.name.lower() for kind in kinds.values())),
        "vocabulary": made.model if made is not None else "",
        "notes": notes
        + (made.notes if made is not None else ["the folder has no tokenizer, nor has the file"]),
    }


def _fill(
    gguf: Any,
    writer: Any,
    names: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
    kinds: dict[str, Any],
    arrays: Iterator[np.ndarray],
    extra: dict[str, np.ndarray],
    tell: Callable[[int, int], None],
) -> None:
    """Announce every tensor, then write them in that order, each made when its turn comes."""
    for new, array in extra.items():
        _announce(gguf, writer, new, array.shape, gguf.GGMLQuantizationType.F32)
    for new, shape in shapes.items():
        _announce(gguf, writer, new, shape, kinds[new])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in extra.values():
        writer.write_tensor_data(array)
    for done, (array, (new, old)) in enumerate(zip(arrays, names.items(), strict=True)):
        tell(done, len(names))
        writer.write_tensor_data(_stored(gguf, array, kinds[new], old))
    tell(len(names), len(names))


def _checked(folder: Path, tensors: TensorFolder) -> tuple[Any, Family, list[str]]:
    """The config, its family, and the names of the model's tensors in its order; all are there with their shapes."""
    where = str(folder)
    held = sum(int(np.prod(tensors.shape(name))) for name in tensors.names())
    config, chosen = model_class_of(folder, len(tensors.names()), held)
    family = FAMILIES.get(config.model_type)
    fix = f"known: {', '.join(FAMILIES)}; or export to safetensors"
    if family is None or not chosen.__name__.endswith("ForCausalLM"):
        raise Unsupported(f"a {chosen.__name__} has no GGUF form here", where=where, fix=fix)
    act = config.hidden_activation if config.model_type == "gemma2" else config.hidden_act
    if act != family.activation:
        raise Unsupported(
            f"its activation {act!r} is not llama.cpp's ({family.activation})", where=where, fix=fix
        )
    rope = config.rope_parameters
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported("it rotates part of each head only", where=where, fix=fix)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in chosen(config).state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    for name, shape in wanted.items():
        if name not in tensors:
            raise Damaged(f"tensor {name!r:.100} is missing", where=where)
        if tensors.shape(name) != shape:
            what = f"tensor {name!r:.100} is {list(tensors.shape(name))}, config.json describes {list(shape)}"
            raise Damaged(what, where=where)
    return config, family, list(wanted)


def _names(gguf: Any, config: Any, family: Family, tensors: TensorFolder, order: list[str]) -> dict[str, str]:
    """GGUF name -> name in the folder, in the model's order; a tensor the model does not have is refused."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    table = gguf.get_tensor_name_map(arch, int(config.num_hidden_layers))
    names: dict[str, str] = {}
    for old in (*order, *sorted(set(tensors.names()) - set(order))):
        if _SKIPPED.search(old) or (old == "lm_head.weight" and config.tie_word_embeddings):
            continue
        new = table.get_name(old, try_suffixes=(".weight", ".bias")) if old in order else None
        if new is None:
            raise Unsupported(f"has no place in a GGUF of {family.arch}", where=old)
        if not tensors.dtype(old).is_floating_point:
            raise Unsupported(f"is {tensors.dtype(old)}: quantised weights are not exported", where=old)
        names[new] = old
    return names


def _vocabulary(folder: Path, config: Any) -> Vocabulary | None:
    tokenizer = load_tokenizer(folder)
    return None if tokenizer is None else vocabulary_of(tokenizer, int(config.vocab_size), str(folder))


def _describe(gguf: Any, writer: Any, config: Any, family: Family, kinds: dict[str, Any], type: str) -> None:
    file_type = gguf.LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"]
    head = _head_dim(config)
    writer.add_type("model")
    writer.add_file_type(file_type)
    if any(kind.name.startswith("Q") for kind in kinds.values()):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(_context(config, family))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    _describe_rotation(gguf, writer, config)
    if family.arch == "gemma2":
        _describe_gemma(writer, config)


def _describe_rotation(gguf: Any, writer: Any, config: Any) -> None:
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    extra = sorted(key for key, value in rope.items() if key not in _YARN and value is not None)
    if kind == "linear" or (kind == "yarn" and not extra):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            writer.add_rope_scaling_orig_ctx_len(int(original))
    elif kind not in ("default", "llama3"):
        what = f"its rotation {kind!r}{f' with {extra[0]}' if kind == 'yarn' else ''} is not exported"
        raise Unsupported(
            what, where="rope_parameters", fix="known: default, linear, llama3, yarn as it comes"
        )


def _describe_gemma(writer: Any, config: Any) -> None:
    count, caps = config.num_hidden_layers, (config.attn_logit_softcapping, config.final_logit_softcapping)
    wide = config.hidden_size // config.num_attention_heads  # of the 27B, which llama.cpp knows by its layers
    scale = wide if count == 46 else config.head_dim
    turns = ["sliding_attention" if at % 2 == 0 else "full_attention" for at in range(count)]
    if None in caps or list(config.layer_types) != turns or config.query_pre_attn_scalar != scale:
        what = "its caps, windows or scale are not those llama.cpp gives a gemma2"
        raise Unsupported(what, where="config.json")
    writer.add_sliding_window(int(config.sliding_window))
    writer.add_attn_logit_softcapping(float(caps[0]))
    writer.add_final_logit_softcapping(float(caps[1]))


def _speak(writer: Any, made: Vocabulary | None) -> None:
    if made is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(made.model)
    writer.add_tokenizer_pre(made.pre)
    writer.add_token_list(made.tokens)
    writer.add_token_types(made.kinds)
    if made.model == "gpt2":
        writer.add_token_merges(made.merges)
    else:
        writer.add_token_scores(made.scores)
    for name, at in made.special.items():
        getattr(writer, f"add_{name}_token_id")(at)
    writer.add_add_bos_token(made.add_bos)
    writer.add_add_eos_token(made.add_eos)
    writer.add_add_space_prefix(made.space_prefix)
    if made.template:
        writer.add_chat_template(made.template)


def _announce(gguf: Any, writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor_info(
        name, shape, np.dtype(np.float32), int(np.prod(shape)) // block * size, raw_dtype=kind
    )


def _kind(gguf: Any, type: str, name: str, shape: tuple[int, ...], names: dict[str, str]) -> Any:
    kinds = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return kinds.F32
    if type.startswith("q") and shape[-1] % _BLOCK:
        return kinds.F16
    output = name == "output.weight" or (name == "token_embd.weight" and "output.weight" not in names)
    return kinds.Q8_0 if output and type in ("q4_0", "q5_0") else kinds[TYPES[type]]


def _array(tensor: Tensor, name: str, config: Any, family: Family) -> np.ndarray:
    """The tensor in float32 as llama.cpp wants it."""
    tensor = tensor.to(torch.float32)
    rotated = _HEADS.search(name) if family.interleaved else None
    if rotated:
        heads = config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads
        tensor = interleave(tensor, int(heads))
    if family.shifted and name.endswith("norm.weight"):
        tensor = tensor + 1.0
    return tensor.contiguous().numpy()


def interleave(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, ...]: in each head, row i of the first half and row i of the second half become neighbours."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _stored(gguf: Any, array: np.ndarray, kind: Any, name: str) -> np.ndarray:
    """The bytes of a tensor in its type; one that cannot hold its values is refused."""
    if kind.name in ("F32", "BF16"):
        return gguf.quants.quantize(array, kind)
    # a quantised block has a scale in f16: its largest value over 127, 16 or 8
    limit = 65504.0 * {"F16": 1, "Q8_0": 127, "Q5_0": 16, "Q4_0": 8}[kind.name]
    if not bool((np.abs(array) <= limit).all()):
        raise BadInput(
            f"holds values that {kind.name.lower()} cannot", where=name, fix="use --type bf16 or f32"
        )
    return gguf.quants.quantize(array, kind)


def _frequencies(config: Any) -> dict[str, np.ndarray]:
    """llama3's stretching of the slow rotations, as the divisor of each frequency; nothing for other rotations."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    steps = torch.arange(0, _head_dim(config), 2, dtype=torch.float32) / _head_dim(config)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** steps
    return {"rope_freqs.weight": (plain / stretched).to(torch.float32).numpy()}


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _window(config: Any, family: Family) -> list[str]:
    if _context(config, family) == config.max_position_embeddings:
        return []
    return [
        f"its window of {config.sliding_window} tokens is unknown to llama.cpp: the file claims no longer context"
    ]


def _context(config: Any, family: Family) -> int:
    """Tokens the file claims: where llama.cpp knows no window, no more than fit in one."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    used = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    longest = int(config.max_position_embeddings)
    return min(longest, int(window)) if window and used and family.arch != "gemma2" else longest
