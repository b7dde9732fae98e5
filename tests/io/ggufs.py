"""Tiny models of every family that has a GGUF form, how they are read back, and texts that tokenizers trip over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "Hello world, it's 2024 and we've 12345 of them.",
    "  two  spaces\n\n\tand a tab\r\n  ",
    "Größe, naïve café 日本語 🙂",
    "def f(x):\n    return x != 1",
    "",
]
ROPE = {"rope_theta": 10000.0}


SIZE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def made(folder: Path, model_type: str, **changes: Any) -> Path:
    """A tiny random model of a family, without a tokenizer; its norms are not all one, its biases not zero."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SIZE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.9, 0.3)
    model.save_pretrained(folder)
    return folder


def back(file: Path, **config: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **config
    ).eval()


def loaded(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
