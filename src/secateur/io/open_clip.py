"""open_clip's folders as a CLIPModel of transformers, without the open_clip package.

    open_clip_config.json        {"model_cfg": {embed_dim, vision_cfg, text_cfg, quick_gelu}, "preprocess_cfg": {..}}
    open_clip_model.safetensors  the state dict under open_clip's names (or model.safetensors, where that is such a one)

Taken are CLIP's own two towers: a vision transformer with a class token and a causal text transformer that is pooled
at its end token. Every setting that would make another network (timm or ResNet towers, custom_text, layer scale,
attentional pooling, a mask or norm of another kind) is refused by name, and the tensors must be exactly those that the
settings ask for.

Names and settings were checked against open_clip's source of June 2026 (model.py, transformer.py, transform.py). Not
checked: a published checkpoint, since none could be had. open_clip cuts out the middle with torchvision, which for an
odd margin may lie one pixel beside the middle cut here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.errors import Damaged, Unsupported, require
from secateur.io.files import inside, read_small
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest
from secateur.io.tensors import TensorFolder
from secateur.io.vision import Steps

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # where nothing is said
_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"}
# they say how it was trained or started, or where its tokenizer came from; the network is the same
_NO_MATTER = {"patch_dropout", "hf_tokenizer_name", "init_logit_scale", "init_logit_bias", "pad_id", "bos_id"}
# what these say when they say nothing; any other value is another network
_PLAIN: dict[str, Any] = {"pos_embed_type": "learnable", "text_arch": "clip", "proj_type": "linear"}
_ARGMAX = 2  # to transformers' CLIP an end token of 2 means: pool where the largest token number is
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_RESBLOCK = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d{1,4})\.(.+)$")
_LEFT_OUT = {"attn_mask", "logit_bias"}  # a mask is made, and a bias is the same for every class


@dataclass(frozen=True)
class Tower:
    """One transformer: `positions` it knows, `heads` of its attention, `hidden` width of its MLP."""

    width: int
    layers: int
    heads: int
    hidden: int
    positions: int


@dataclass(frozen=True)
class Layout:
    """What model_cfg says, in plain numbers. eos: where text is pooled, `_ARGMAX` or a token's number."""

    embed: int
    vision: Tower
    text: Tower
    patch: int
    size: int
    vocabulary: int
    eos: int
    quick: bool


def load_open_clip(folder: Path) -> tuple[Any, Steps, tuple[float, ...], tuple[float, ...]]:
    """(CLIPModel in float32 and evaluation mode, what is done to an image before, its mean, its deviation).

    Raises:
        Unsupported: settings of another network, pickled weights only, or transformers is missing.
        Damaged: settings that cannot be read, or tensors that are not the settings'.
    """
    where = str(folder / CONFIG)
    found = strict_json(read_small(inside(folder, CONFIG), 8 << 20), where)
    settings = found.get("model_cfg") if isinstance(found, dict) else None
    if not isinstance(settings, dict):
        raise Damaged("holds no table model_cfg", where=where)
    if read_manifest(folder) is not None:
        check_manifest(folder)
    layout = read_layout(settings, where)
    cfg = found.get("preprocess_cfg") or {}
    steps = read_preprocessing(cfg, layout.size, where)
    path = weights_file(folder)
    with TensorFolder(path) as source:
        shapes = {name: source.shape(name) for name in source.names() if name not in _LEFT_OUT}
        check_shapes(shapes, layout, str(path))
        state = dict(pair for name in shapes for pair in rename(name, source.get(name).float()))
    transformers = require("transformers", "hf")
    with require("transformers.initialization", "hf").no_init_weights():  # every one of them is read
        model = transformers.CLIPModel(make_config(layout))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval(), *steps


def weights_file(folder: Path) -> Path:
    """The safetensors file of the folder."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        fix = "convert pickled weights to safetensors, or fetch them so"
        raise Unsupported(f"holds no {WEIGHTS[0]}", where=str(folder), fix=fix)
    return path


def read_layout(settings: dict[str, Any], where: str) -> Layout:
    """model_cfg in plain numbers; Unsupported names the first setting that is another network."""
    vision, text = settings.get("vision_cfg"), settings.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise Damaged("model_cfg lacks vision_cfg or text_cfg", where=where)
    _refuse(settings, {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}, "", where)
    _refuse(vision, _VISION | {"pool_type"}, "vision_cfg.", where)
    _refuse(text, _TEXT, "text_cfg.", where)
    if vision.get("pool_type", "tok") != "tok":
        raise _other(f"vision_cfg.pool_type {vision['pool_type']!r:.40}", where)
    pool, eos = text.get("pool_type", "argmax"), text.get("eos_id")
    if pool not in ("argmax", "eos") or (pool == "eos" and (type(eos) is not int or eos == _ARGMAX)):
        raise _other(f"text_cfg.pool_type {pool!r:.40} with eos_id {eos!r:.40}", where)
    if isinstance(vision.get("layers", 12), list):
        raise _other("a ResNet as image tower", where)

    def tower(cfg: dict[str, Any], name: str, width: int, heads: int | None, positions: int) -> Tower:
        width = _count(cfg, "width", width, name, where)
        heads = heads or width // max(1, _count(cfg, "head_width", 64, name, where))
        ratio = cfg.get("mlp_ratio", 4.0)
        if type(ratio) not in (int, float) or not 0 < ratio < 1000 or not heads or width % heads:
            raise _other(f"{name}width {width}, {heads} heads, mlp_ratio {ratio!r:.40}", where)
        return Tower(width, _count(cfg, "layers", 12, name, where), heads, int(width * ratio), positions)

    patch = _side(vision, "patch_size", 16, where)
    size = _side(vision, "image_size", 224, where)
    heads = _count(text, "heads", 8, "text_cfg.", where)
    context = _count(text, "context_length", 77, "text_cfg.", where)
    return Layout(
        embed=_count(settings, "embed_dim", 0, "", where),
        vision=tower(vision, "vision_cfg.", 768, None, (size // patch) ** 2 + 1),
        text=tower(text, "text_cfg.", 512, heads, context),
        patch=patch,
        size=size,
        vocabulary=_count(text, "vocab_size", 49408, "text_cfg.", where),
        eos=int(eos) if pool == "eos" and eos is not None else _ARGMAX,
        quick=settings.get("quick_gelu") is True,
    )


def read_preprocessing(
    cfg: dict[str, Any], size: int, where: str
) -> tuple[Steps, tuple[float, ...], tuple[float, ...]]:
    """What preprocess_cfg says is done to an image, with open_clip's defaults where it is silent."""
    mode, resample = cfg.get("resize_mode") or "shortest", cfg.get("interpolation") or "bicubic"
    resample = "bicubic" if resample == "random" else resample  # random is for training
    if mode not in ("shortest", "squash") or resample not in ("bicubic", "bilinear"):
        raise Unsupported(f"resize_mode {mode!r:.40} with {resample!r:.40}", where=where)
    numbers = [tuple(cfg.get(key) or default) for key, default in (("mean", MEAN), ("std", STD))]
    for some in numbers:
        if len(some) != 3 or not all(type(v) in (int, float) for v in some):
            raise Damaged(f"mean or std is {some!r:.60}", where=where)
    side = (size,) if mode == "shortest" else (size, size)
    mean, std = (tuple(float(v) for v in some) for some in numbers)
    return Steps(side, str(resample), (size, size), 1.0), mean, std


def make_config(layout: Layout) -> Any:
    """The CLIPConfig of transformers that is this layout."""
    transformers = require("transformers", "hf")
    act = "quick_gelu" if layout.quick else "gelu"

    def shared(tower: Tower) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.hidden,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "projection_dim": layout.embed,
            "hidden_act": act,
        }

    return transformers.CLIPConfig(
        projection_dim=layout.embed,
        text_config={
            **shared(layout.text),
            "vocab_size": layout.vocabulary,
            "max_position_embeddings": layout.text.positions,
            "eos_token_id": layout.eos,
            "bos_token_id": None,
            "pad_token_id": None,
        },
        vision_config={**shared(layout.vision), "image_size": layout.size, "patch_size": layout.patch},
    )


def check_shapes(found: dict[str, tuple[int, ...]], layout: Layout, where: str) -> None:
    """Damaged, naming a tensor, unless the file holds the layout's tensors and no other."""
    for name, tower in (("vision_cfg", layout.vision), ("text_cfg", layout.text)):
        if tower.layers > len(found):  # before so many names are made
            raise Damaged(f"{name}.layers is {tower.layers}, and it holds {len(found)} tensors", where=where)
    wanted = dict(_wanted(layout))
    for name, shape in wanted.items():
        held = found.get(name)
        if held != shape and not (name == "logit_scale" and held == (1,)):
            said = "is missing" if held is None else f"has shape {list(held)}, not {list(shape)}"
            raise Damaged(f"tensor {name!r:.80} {said}", where=where, fix=f"see {CONFIG}")
    extra = sorted(found.keys() - wanted.keys())
    if extra:
        raise Damaged(f"tensor {extra[0]!r:.80} has no place in it", where=where, fix=f"see {CONFIG}")


def rename(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One of open_clip's tensors as transformers has it: q, k and v apart, projections the other way round."""
    block = _RESBLOCK.match(name)
    if block:
        tower = "vision_model" if block[1] else "text_model"
        start, part, kind = f"{tower}.encoder.layers.{block[2]}", *block[3].rsplit(".", 1)
        if part == "attn":
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                yield f"{start}.self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}", rows.contiguous()
        else:
            yield f"{start}.{_BLOCK[part]}.{kind}", value
    elif name in ("visual.proj", "text_projection"):
        yield _TOP[name], value.t().contiguous()
    elif name == "logit_scale":
        yield name, value.reshape(())
    elif name in _TOP:
        yield _TOP[name], value
    else:
        stem, kind = name.rsplit(".", 1)
        yield f"{_TOP[stem]}.{kind}", value


def _wanted(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, as open_clip names them."""
    vision, text = layout.vision, layout.text
    for start, tower in (("visual.", vision), ("", text)):
        width, hidden = tower.width, tower.hidden
        yield f"{start}positional_embedding", (tower.positions, width)
        for i in range(tower.layers):
            block = f"{start}transformer.resblocks.{i}"
            yield f"{block}.attn.in_proj_weight", (3 * width, width)
            yield f"{block}.attn.in_proj_bias", (3 * width,)
            shapes = {
                "attn.out_proj": (width, width),
                "mlp.c_fc": (hidden, width),
                "mlp.c_proj": (width, hidden),
            }
            for part, shape in shapes.items():
                yield f"{block}.{part}.weight", shape
                yield f"{block}.{part}.bias", shape[:1]
            for part in ("ln_1", "ln_2"):
                yield f"{block}.{part}.weight", (width,)
                yield f"{block}.{part}.bias", (width,)
    for name, width in (
        ("visual.ln_pre", vision.width),
        ("visual.ln_post", vision.width),
        ("ln_final", text.width),
    ):
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)
    yield "visual.class_embedding", (vision.width,)
    yield "visual.conv1.weight", (vision.width, 3, layout.patch, layout.patch)
    yield "visual.proj", (vision.width, layout.embed)
    yield "token_embedding.weight", (layout.vocabulary, text.width)
    yield "text_projection", (text.width, layout.embed)
    yield "logit_scale", ()


def _refuse(cfg: dict[str, Any], known: set[str], start: str, where: str) -> None:
    for key, value in cfg.items():
        silent = value in (None, False) or value == _PLAIN.get(key, "") or value == {}
        if key not in known | _NO_MATTER and not silent:
            raise _other(f"{start}{key}", where)


def _other(what: str, where: str) -> Unsupported:
    fix = "CLIP's two plain transformers are read; use transformers' own format for others"
    return Unsupported(f"{what} is not supported", where=where, fix=fix)


def _count(cfg: dict[str, Any], key: str, default: int, start: str, where: str) -> int:
    value = cfg.get(key, default)
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise Damaged(f"{start}{key} is {value!r:.40}", where=where)
    return value


def _side(cfg: dict[str, Any], key: str, default: int, where: str) -> int:
    value = cfg.get(key, default)
    if isinstance(value, list) and len(set(map(repr, value))) == 1:
        value = value[0]
    if isinstance(value, list):
        raise _other(f"vision_cfg.{key} {value!r:.40}", where)
    return _count({key: value}, key, default, "vision_cfg.", where)
