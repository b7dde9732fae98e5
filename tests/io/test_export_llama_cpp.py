"""GGUF files in llama.cpp itself, where llama-cpp-python is, and the embedded model there and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from secateur.errors import Unsupported
from secateur.io.export_gguf import export_gguf
from tests.docs.tiny import tiny_model
from tests.io.ggufs import ROPE, TEXTS, back, loaded, made

transformers = pytest.importorskip("transformers")


RUN = """
import json, sys
import llama_cpp
import numpy as np

asked = json.load(sys.stdin)
model = llama_cpp.Llama(asked["file"], n_ctx=256, n_threads=1, logits_all=True, verbose=False)
model.eval(asked["ids"])
logits = np.array(model.scores[: len(asked["ids"])])
words = [model.tokenize(text.encode(), add_bos=False, special=True) for text in asked["texts"]]
chosen = list(asked["ids"])
for _ in range(asked["more"]):
    chosen.append(int(np.argmax(model.scores[model.n_tokens - 1])))
    model.eval(chosen[-1:])
np.save(asked["out"], logits)
print(json.dumps({"words": words, "chosen": chosen}))
"""


def llama(file: Path, ids: list[int], texts: list[str], more: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
    """What llama.cpp makes of ids and texts, in a process of its own: this Python's, or SECATEUR_LLAMA_PYTHON's."""
    python = os.environ.get("SECATEUR_LLAMA_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, timeout=120).returncode:
        pytest.skip("llama-cpp-python cannot be imported: it is built from source, which no extra asks for")
    out = file.with_suffix(".npy")
    asked = json.dumps({"file": str(file), "ids": ids, "texts": texts, "more": more, "out": str(out)})
    done = subprocess.run([python, "-c", RUN], input=asked, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.from_numpy(np.load(out)), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model_type,changes", [("llama", {}), ("qwen2", {}), ("qwen3", {"head_dim": 32}),
    ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8}}),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}),
    ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 32}}),
])  # fmt: skip
def test_llama_cpp_gives_the_logits(tmp_path: Path, model_type: str, changes: dict) -> None:
    folder, tiny = made(tmp_path / "m", model_type, **changes), tiny_model(tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    export_gguf(folder, tmp_path / "a.gguf", "f32")
    ids = torch.randint(1, 512, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    got, said = llama(tmp_path / "a.gguf", ids, TEXTS)
    with torch.no_grad():
        wanted = loaded(folder)(torch.tensor([ids])).logits[0]
    # its cache of keys and values is f16
    assert float((got - wanted).abs().max()) <= 5e-3 * float(wanted.abs().max())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # a family may cut text in its own way
    assert said["words"] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def cutters() -> dict[str, Any]:
    from tokenizers import pre_tokenizers

    from tests.io import vocabularies as v

    def after(first: Any) -> Any:
        return pre_tokenizers.Sequence([first, v.BARE])

    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), v.WHOLE])
    return {
        "gpt-2": lambda: v.byte_level(v.WHOLE),
        "smollm": lambda: v.byte_level(digits),
        "llama-bpe": lambda: v.byte_level(after(v.split(v.LLAMA3))),
        "qwen2": lambda: v.byte_level(after(v.split(v.LLAMA3.replace("{1,3}", "")))),
        "prepended": lambda: v.sentencepiece(v.PREFIXED),
        "metaspace": lambda: v.sentencepiece(None, v.META),
        "no prefix": lambda: v.sentencepiece(None, v.NEVER),
    }


@pytest.mark.parametrize(
    "kind", ["gpt-2", "smollm", "llama-bpe", "qwen2", "prepended", "metaspace", "no prefix"]
)
def test_llama_cpp_cuts_text_as_the_tokenizer_does(tmp_path: Path, kind: str) -> None:
    made(tmp_path / "m", "llama")
    cutters()[kind]().save_pretrained(tmp_path / "m")
    found = export_gguf(tmp_path / "m", tmp_path / "a.gguf", "f32")
    texts = [*TEXTS, "a <|end|> b</s>", "x" * 50 + " " * 9 + "y", "THIS isn't IT'S", "1 22 333 4444 55555"]
    if kind == "metaspace":
        assert "begins with" in found["notes"][0]
        texts = [text for text in texts if not text.startswith(" ")]
    _, said = llama(tmp_path / "a.gguf", [1, 2], texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert said["words"] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def real() -> Path:
    from secateur.io.hub import resolve_folder

    try:
        return resolve_folder("smollm2-135m")
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_embedded_model_comes_back_as_it_was_read(real: Path, tmp_path: Path) -> None:
    export_gguf(real, tmp_path / "a.gguf", "f32")
    got, wanted = back(tmp_path / "a.gguf").state_dict(), load_file(real / "model.safetensors")
    assert len(wanted) == 272 and all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(real),
        transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf"),
    ]
    for text in TEXTS:
        assert len({tuple(tokenizer(text)["input_ids"]) for tokenizer in tokenizers}) == 1
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


@pytest.mark.slow
@pytest.mark.parametrize("type,ratio", [("f16", 1e-3), ("q8_0", 1e-2)])
def test_llama_cpp_goes_on_as_transformers_does(real: Path, tmp_path: Path, type: str, ratio: float) -> None:
    from secateur.io.embedded import embedded_text

    tokenizer = transformers.AutoTokenizer.from_pretrained(real)
    ids = tokenizer(embedded_text()[1][0])["input_ids"][:160]
    export_gguf(real, tmp_path / "a.gguf", type)
    got, _ = llama(tmp_path / "a.gguf", ids, [])
    model = loaded(real)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    loss = [float(torch.nn.functional.cross_entropy(x[:-1], torch.tensor(ids[1:]))) for x in (got, wanted)]
    assert abs(loss[0] - loss[1]) < ratio * loss[1]
    prompt = tokenizer("The capital of France is")["input_ids"]
    _, said = llama(tmp_path / "a.gguf", prompt, [], more=12)
    chosen = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
    assert said["chosen"] == chosen
