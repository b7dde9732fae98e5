"""open_clip's folders: the same embeddings as its own forward, written out in plain torch from its own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import Damaged, NoMatch, SecateurError, Unsupported
from secateur.io.hub import resolve_folder
from secateur.io.manifest import write_manifest
from secateur.io.open_clip import CONFIG, MEAN, STD, load_open_clip, read_layout, rename
from secateur.io.towers import load_towers, save_towers

transformers = pytest.importorskip("transformers")
pytest.importorskip("PIL")

from safetensors.torch import save_file  # noqa: E402

from tests.io import two_towers as tiny  # noqa: E402

EMBED, WORDS = 12, len(tiny.WORDS) + 4
SETTINGS: dict[str, Any] = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 9, "vocab_size": WORDS, "width": 20, "heads": 4, "layers": 3},
}


def tensors(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under open_clip's names."""
    generator = torch.Generator().manual_seed(3)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    out: dict[str, Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        out[name] = 0.3 * torch.randn(shape, generator=generator)

    def norm(name: str, width: int) -> None:
        out[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        draw(f"{name}.bias", width)

    for start, cfg in (("visual.", vision), ("", text)):
        width, hidden = cfg["width"], int(cfg["width"] * cfg.get("mlp_ratio", 4))
        for i in range(cfg["layers"]):
            block = f"{start}transformer.resblocks.{i}."
            draw(f"{block}attn.in_proj_weight", 3 * width, width)
            draw(f"{block}attn.in_proj_bias", 3 * width)
            for part, rows, columns in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", hidden, width),
                ("mlp.c_proj", width, hidden),
            ):
                draw(f"{block}{part}.weight", rows, columns)
                draw(f"{block}{part}.bias", rows)
            norm(f"{block}ln_1", width)
            norm(f"{block}ln_2", width)
    side = vision["image_size"] // vision["patch_size"]
    draw("visual.class_embedding", vision["width"])
    draw("visual.positional_embedding", side * side + 1, vision["width"])
    draw("visual.conv1.weight", vision["width"], 3, vision["patch_size"], vision["patch_size"])
    draw("visual.proj", vision["width"], settings["embed_dim"])
    norm("visual.ln_pre", vision["width"])
    norm("visual.ln_post", vision["width"])
    draw("token_embedding.weight", text["vocab_size"], text["width"])
    draw("positional_embedding", text["context_length"], text["width"])
    norm("ln_final", text["width"])
    draw("text_projection", text["width"], settings["embed_dim"])
    out["logit_scale"] = torch.tensor(4.6)
    return out


def make(folder: Path, changes: dict[str, Any] | None = None, **preprocess: Any) -> Path:
    """A folder as `push_to_hf_hub` of open_clip leaves it. changes: {"vision_cfg.layers": 3, "quick_gelu": True}."""
    settings = json.loads(json.dumps(SETTINGS))
    for key, value in (changes or {}).items():
        at, _, last = key.rpartition(".")
        (settings[at] if at else settings)[last] = value
    folder.mkdir(parents=True)
    body = {"model_cfg": settings, "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), **preprocess}}
    (folder / CONFIG).write_text(json.dumps(body))
    tiny.tokenizer().save_pretrained(folder)
    save_file(tensors(SETTINGS | settings), folder / "open_clip_model.safetensors")
    return folder


def oracle(
    state: dict[str, Tensor], settings: dict[str, Any], pixels: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """open_clip's two towers, plainly: pre-norm blocks around nn.MultiheadAttention, class token, end-token pooling."""
    quick = settings.get("quick_gelu", False)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def blocks(x: Tensor, start: str, count: int, heads: int, mask: Tensor | None) -> Tensor:
        for i in range(count):
            name = f"{start}transformer.resblocks.{i}"
            attention = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
            attention.load_state_dict(
                {
                    key.removeprefix(f"{name}.attn."): v
                    for key, v in state.items()
                    if key.startswith(f"{name}.attn.")
                }
            )
            y = norm(x, f"{name}.ln_1")
            x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = F.linear(
                norm(x, f"{name}.ln_2"), state[f"{name}.mlp.c_fc.weight"], state[f"{name}.mlp.c_fc.bias"]
            )
            y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
            x = x + F.linear(y, state[f"{name}.mlp.c_proj.weight"], state[f"{name}.mlp.c_proj.bias"])
        return x

    vision, text = settings["vision_cfg"], settings["text_cfg"]
    with torch.no_grad():
        x = (
            F.conv2d(pixels, state["visual.conv1.weight"], stride=vision["patch_size"])
            .flatten(2)
            .transpose(1, 2)
        )
        x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        x = norm(x + state["visual.positional_embedding"], "visual.ln_pre")
        x = blocks(x, "visual.", vision["layers"], vision["width"] // vision["head_width"], None)
        images = norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]
        t = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        t = norm(blocks(t, "", text["layers"], text["heads"], mask), "ln_final")
        pooled = t[torch.arange(len(ids)), ids.argmax(1)]
        return images, pooled @ state["text_projection"]


def ids_of(texts: list[str]) -> Tensor:
    """As open_clip pads: with zeros to the full length."""
    found = tiny.tokenizer()(texts, padding="max_length", max_length=9, truncation=True, return_tensors="pt")
    return found["input_ids"]


TEXTS = ["a photo of a cat.", "the dog", "the frog with wings and long ears of a long long dog", ""]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("ratio", [4, 4.9231])
def test_embeddings_are_those_of_open_clips_forward(tmp_path: Path, quick: bool, ratio: float) -> None:
    folder = make(tmp_path / "oc", {"quick_gelu": quick, "vision_cfg.mlp_ratio": ratio})
    settings = json.loads((folder / CONFIG).read_text())["model_cfg"]
    images = tiny.pictures(3, 24, 24)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    wanted, words = oracle(tensors(settings), settings, pixels, ids_of(TEXTS))
    towers = load_towers(folder)
    torch.testing.assert_close(towers.embed_images(images), F.normalize(wanted, dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(towers.embed_texts(TEXTS), F.normalize(words, dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(towers.image_module()(pixels_01(images)).detach(), wanted, rtol=0, atol=1e-4)
    assert towers.width == EMBED and towers.logit_scale == pytest.approx(np.exp(4.6), rel=1e-6)


def pixels_01(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def test_activation_and_order_matter_to_the_oracle() -> None:
    """Each part that a wrong mapping could lose changes the outcome by far more than the tolerance."""
    state, pixels, ids = tensors(SETTINGS), torch.randn(2, 3, 24, 24), ids_of(TEXTS[:2])
    images, texts = oracle(state, SETTINGS, pixels, ids)
    other, words = oracle(state, {**SETTINGS, "quick_gelu": True}, pixels, ids)
    assert float((images - other).abs().max()) > 1e-2 and float((texts - words).abs().max()) > 1e-2
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    q, k, v = state[name].chunk(3)
    found = dict(rename(name, state[name]))
    for letter, part in zip("qkv", (q, k, v), strict=True):
        assert torch.equal(found[f"vision_model.encoder.layers.0.self_attn.{letter}_proj.weight"], part)
    swapped = {**state, name: torch.cat([v, k, q])}
    assert float((oracle(swapped, SETTINGS, pixels, ids)[0] - images).abs().max()) > 1e-2


def test_the_end_token_may_be_named(tmp_path: Path) -> None:
    """pool_type eos pools at the first end token, wherever it stands among the numbers."""
    folder = make(tmp_path / "oc", {"text_cfg.pool_type": "eos", "text_cfg.eos_id": WORDS - 1})
    plain = load_towers(make(tmp_path / "plain"))
    torch.testing.assert_close(
        load_towers(folder).embed_texts(TEXTS), plain.embed_texts(TEXTS), rtol=0, atol=1e-6
    )


def test_preprocessing_is_the_folders(tmp_path: Path) -> None:
    images = tiny.pictures(2, 50, 35)
    short = load_towers(make(tmp_path / "short")).embed_images(images)
    squashed = load_towers(make(tmp_path / "squash", resize_mode="squash", interpolation="bilinear"))
    from PIL import Image

    pictures = [np.asarray(Image.fromarray(i).resize((24, 24), Image.Resampling.BILINEAR)) for i in images]
    torch.testing.assert_close(squashed.embed_images(images), squashed.embed_images(np.stack(pictures)))
    cut = [np.asarray(Image.fromarray(i).resize((24, 34), Image.Resampling.BICUBIC))[5:29] for i in images]
    torch.testing.assert_close(short, load_towers(tmp_path / "short").embed_images(np.stack(cut)))
    grey = load_towers(make(tmp_path / "grey", mean=[0.5] * 3, std=[0.5] * 3))
    assert float((grey.embed_images(images) - short).abs().max()) > 1e-3


def test_its_form_is_only_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "oc")
    with pytest.raises(Unsupported, match="is only read"):
        save_towers(tmp_path / "out", load_towers(folder), folder)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_both_kinds_is_read_as_transformers(tmp_path: Path) -> None:
    folder = tiny.save(make(tmp_path / "both"))
    assert load_towers(folder).width == tiny.WIDTH
    assert load_towers(folder).logit_scale == pytest.approx(np.exp(2.6592), rel=1e-5)


def test_tensors_that_do_not_matter_may_be_there(tmp_path: Path) -> None:
    folder = make(tmp_path / "oc", {"init_logit_bias": -10})
    held = {**tensors(SETTINGS), "logit_bias": torch.tensor(-10.0), "attn_mask": torch.zeros(9, 9)}
    held["logit_scale"] = held["logit_scale"].reshape(1)
    wanted = load_towers(folder).embed_texts(TEXTS)
    save_file(held, folder / "open_clip_model.safetensors")
    towers = load_towers(folder)
    assert torch.equal(towers.embed_texts(TEXTS), wanted) and towers.logit_scale == pytest.approx(np.exp(4.6))


def test_half_precision_is_brought_to_float32(tmp_path: Path) -> None:
    folder = make(tmp_path / "oc")
    save_file({k: v.half() for k, v in tensors(SETTINGS).items()}, folder / "open_clip_model.safetensors")
    model, *_ = load_open_clip(folder)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("custom_text", True, "custom_text is not supported"),
        ("multimodal_cfg", {"width": 8}, "multimodal_cfg is not supported"),
        ("vision_cfg.timm_model_name", "vit_base", "vision_cfg.timm_model_name is not supported"),
        ("vision_cfg.layers", [3, 4, 6, 3], "ResNet"),
        ("vision_cfg.ls_init_value", 0.1, "vision_cfg.ls_init_value is not supported"),
        ("vision_cfg.attentional_pool", True, "attentional_pool"),
        ("vision_cfg.no_ln_pre", True, "no_ln_pre"),
        ("vision_cfg.pool_type", "avg", "pool_type 'avg'"),
        ("vision_cfg.pos_embed_type", "sin_cos_2d", "pos_embed_type"),
        ("vision_cfg.norm_kwargs", {"eps": 1e-6}, "norm_kwargs"),
        ("vision_cfg.image_size", [24, 32], "image_size"),
        ("text_cfg.hf_model_name", "roberta-base", "hf_model_name"),
        ("text_cfg.no_causal_mask", True, "no_causal_mask"),
        ("text_cfg.pool_type", "last", "pool_type 'last'"),
        ("text_cfg.proj_bias", True, "proj_bias"),
        ("text_cfg.text_arch", "modern", "text_arch"),
        ("vision_cfg.head_width", 5, "3 heads"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path: Path, key: str, value: Any, line: str) -> None:
    settings = json.loads(json.dumps(SETTINGS))
    at, _, last = key.rpartition(".")
    (settings[at] if at else settings)[last] = value
    with pytest.raises(Unsupported, match=line) as caught:
        read_layout(settings, "config")
    assert "\n" not in str(caught.value)


def test_settings_that_say_nothing_are_let_through() -> None:
    settings = json.loads(json.dumps(SETTINGS))
    settings |= {"custom_text": False, "init_logit_bias": None}
    settings["vision_cfg"] |= {
        "timm_model_name": None,
        "patch_dropout": 0.5,
        "pool_type": "tok",
        "image_size": [24, 24],
    }
    settings["text_cfg"] |= {"hf_tokenizer_name": "x/y", "proj_type": "linear", "tokenizer_kwargs": {}}
    layout = read_layout(settings, "config")
    assert (layout.vision.heads, layout.text.heads, layout.vision.hidden, layout.vision.positions) == (
        2,
        4,
        64,
        10,
    )


def drop(folder: Path) -> None:
    held = tensors(SETTINGS)
    del held["visual.transformer.resblocks.1.ln_2.bias"]
    save_file(held, folder / "open_clip_model.safetensors")


def reshape(folder: Path) -> None:
    save_file(
        {**tensors(SETTINGS), "text_projection": torch.zeros(EMBED, 20)},
        folder / "open_clip_model.safetensors",
    )


def add(folder: Path) -> None:
    save_file({**tensors(SETTINGS), "visual.extra": torch.zeros(2)}, folder / "open_clip_model.safetensors")


def rename_weights(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")


def endless(folder: Path) -> None:
    body = json.loads((folder / CONFIG).read_text())
    body["model_cfg"]["text_cfg"]["layers"] = 10**6
    (folder / CONFIG).write_text(json.dumps(body))


def flip(folder: Path) -> None:
    write_manifest(folder)
    path = folder / "open_clip_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil, error, line",
    [
        (drop, Damaged, r"resblocks\.1\.ln_2\.bias' is missing"),
        (reshape, Damaged, r"text_projection' has shape \[12, 20\], not \[20, 12\]"),
        (add, Damaged, r"visual\.extra' has no place"),
        (rename_weights, Unsupported, "holds no open_clip_model.safetensors"),
        (endless, Damaged, "layers is 1000000"),
        (flip, Damaged, "is damaged"),
        (lambda f: (f / CONFIG).write_text('{"embed_dim": 3}'), Damaged, "no table model_cfg"),
        (lambda f: (f / CONFIG).write_text("{"), Damaged, CONFIG),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(
    tmp_path: Path, spoil: Any, error: type[SecateurError], line: str
) -> None:
    folder = make(tmp_path / "oc")
    spoil(folder)
    with pytest.raises(error, match=line) as caught:
        load_towers(folder)
    assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_may_have_open_clips_form_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = make(tmp_path / "downloaded")
    info = SimpleNamespace(model_info=lambda name, timeout: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(folder))
    towers = load_towers("owner/model")
    assert towers.name == "owner/model" and towers.width == load_towers(folder).width
    with pytest.raises(NoMatch, match=r"no config\.json under this name"):
        resolve_folder("owner/model")
