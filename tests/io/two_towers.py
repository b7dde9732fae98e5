"""Tiny CLIP and SigLIP folders with random weights, a word tokenizer and an image processor, for tests of towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ("a", "photo", "of", "cat", "dog", "frog", "with", "long", "ears", "wings", "the", ".")
LENGTH, SIDE, WIDTH = 9, 24, 12


def tokenizer(end: str = "</s>", start: str = "<s>") -> Any:
    """Small letters, one number a word; `start` and `end` around them, if not empty. The end has the largest number."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: at for at, word in enumerate(("<pad>", "<unk>", *WORDS, "<s>", "</s>"))}
    held = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    held.normalizer = normalizers.Lowercase()
    held.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, vocab[mark]) for mark in (start, end) if mark]
    held.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=marks
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=held, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def shape(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **changes,
    }


def clip(eos: int | None = None) -> Any:
    import transformers

    torch.manual_seed(0)
    count = len(WORDS) + 4
    config = transformers.CLIPConfig(
        projection_dim=WIDTH,
        text_config=shape(
            vocab_size=count, max_position_embeddings=LENGTH, eos_token_id=count - 1 if eos is None else eos
        ),
        vision_config=shape(image_size=SIDE, patch_size=8),
    )
    model = transformers.CLIPModel(config).eval()
    return louder(model)


def siglip() -> Any:
    import transformers

    torch.manual_seed(1)
    config = transformers.SiglipConfig(
        text_config=shape(vocab_size=len(WORDS) + 4, max_position_embeddings=LENGTH, projection_size=16),
        vision_config=shape(image_size=SIDE, patch_size=8),
    )
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.0)
    return louder(model)


def louder(model: Any) -> Any:
    """Random weights of transformers are so small that all inputs look alike; these tell them apart."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim >= 1 and "logit" not in name and "norm" not in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def processor(kind: str = "clip", **changes: Any) -> Any:
    import transformers

    if kind == "siglip":
        return transformers.SiglipImageProcessorPil(**{"size": {"height": SIDE, "width": SIDE}, **changes})
    sides = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return transformers.CLIPImageProcessorPil(**{**sides, **changes})


def save(folder: Path, kind: str = "clip", tokens: Any = None) -> Path:
    """A folder as transformers' users have it: no manifest."""
    (clip() if kind == "clip" else siglip()).save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    (tokens or tokenizer(start="<s>" if kind == "clip" else "")).save_pretrained(folder)
    return folder


def pictures(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """uint8 [n, H, W, C]: waves with some grain."""
    random = np.random.RandomState(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack(
        [np.stack([np.sin((3 + i) * x + (1 + c) * y + i) for c in range(channels)], -1) for i in range(count)]
    )
    return np.clip(127.5 + 100 * waves + 20 * random.randn(*waves.shape), 0, 255).astype(np.uint8)
