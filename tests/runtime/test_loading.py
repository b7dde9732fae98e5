"""load_packed: the logits of the dense load, on the file's own memory, in little more of it; damage is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.checkpoint import load_checkpoint
from secateur.io.convert import to_sparse
from secateur.io.packing import Packing
from secateur.runtime import library
from secateur.runtime.accelerate import accelerate
from secateur.runtime.decode import Decoder
from secateur.runtime.embedding import PackedEmbedding
from secateur.runtime.linear import PackedLinear
from secateur.runtime.loading import load_packed
from tests.runtime.test_accelerate import cut
from tests.tinylm import tiny_llama

IDS = torch.arange(24)[None] % 64
pytestmark = pytest.mark.filterwarnings("ignore:.*no manifest")


def folder_of(tmp_path: Path, packing: Packing | None, **changes: Any) -> Path:
    """Half of a tiny Llama, written dense and then in parts."""
    model: Any = cut(tiny_llama(**changes))
    model.save_pretrained(tmp_path / "dense")
    return to_sparse(tmp_path / "dense", tmp_path / "parts", packing)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def kinds(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in model.modules():
        if isinstance(part, (PackedLinear, nn.Linear, nn.Embedding)):
            found[type(part).__name__] = found.get(type(part).__name__, 0) + 1
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("packing", "packed_ends"),
    [
        (None, False),
        (Packing("bitmask"), False),
        (Packing("auto", "bfloat16"), True),
        (Packing("auto", "int8"), True),
    ],
)
def test_logits_are_those_of_the_dense_load(
    tmp_path: Path, packing: Packing | None, packed_ends: bool, tied: bool
) -> None:
    folder = folder_of(tmp_path, packing, tie_word_embeddings=tied, attention_bias=True)
    wanted, model = load_checkpoint(folder), load_packed(folder)
    ends = (
        {"PackedLinear": 15, "PackedEmbedding": 1}
        if packed_ends
        else {"PackedLinear": 14, "Embedding": 1, "Linear": 1}
    )
    assert kinds(model) == ends and not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    torch.testing.assert_close(logits(model), logits(wanted), rtol=1e-4, atol=1e-4)
    made: Any = model
    assert made.config.name_or_path == str(folder) and made.generation_config.eos_token_id == 2
    if tied and packed_ends:
        assert isinstance(made.model.embed_tokens, PackedEmbedding)
        assert made.lm_head.values.data_ptr() == made.model.embed_tokens.values.data_ptr()
    assert Decoder(model).way == ("native" if library.load() is not None else "lean")


def test_it_computes_in_the_dtype_asked_for_and_values_stay(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Packing("auto", "int8"))
    model: Any = load_packed(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16 and model.lm_head.values.dtype == torch.int8
    near = logits(load_checkpoint(folder))
    assert float((logits(model).float() - near).norm() / near.norm()) < 2e-2


def test_accelerate_leaves_what_is_packed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    model = load_packed(folder_of(tmp_path, Packing("auto", "int8")))
    before = kinds(model)
    done = accelerate(model)
    assert "16 layers are packed already and stay as they are" in done.notes
    assert kinds(model) == before and done.before == done.after


def test_weights_lie_in_the_file(tmp_path: Path) -> None:
    """Private maps: all parts of a file are one memory, and what is written to it does not reach the file."""
    folder = folder_of(tmp_path, None)
    size, raw = (folder / "sparse.safetensors").stat().st_size, (folder / "sparse.safetensors").read_bytes()
    model: Any = load_packed(folder)
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    starts = [layer.values.data_ptr() for layer in layers] + [model.model.norm.weight.data_ptr()]
    assert max(starts) - min(starts) < size
    layers[0].values.zero_()
    assert (folder / "sparse.safetensors").read_bytes() == raw


def changed(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Path:
    """The weights written again after a change; without the manifest, which would see it first."""
    path = folder / "sparse.safetensors"
    with safe_open(path, "pt") as file:
        tensors, text = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, text)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, text)
    (folder / "manifest.json").unlink()
    return folder


WIDE: Any = {"hidden_size": 64, "intermediate_size": 96}  # so that half of a row is worth a mask
UP = "model.layers.0.mlp.up_proj"


def renamed(tensors: dict[str, Tensor], text: dict[str, str]) -> None:
    """Another model's names: one is strange, and so one is missing."""
    tensors["model.other.weight"] = tensors.pop("model.norm.weight")


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (lambda t, text: t.pop("model.norm.weight"), Damaged, "1 tensors are missing for the model, first 'model.norm"),
        (lambda t, text: t.update(more=torch.ones(2)), Damaged, "1 tensors are unexpected for the model, first 'more'"),
        (lambda t, text: t.update({"model.norm.weight": torch.ones(3)}), Damaged, r"is \[3\], not \[64\]"),
        (renamed, Unsupported, "'model.other.weight' has no place of its own in the model; load it dense"),
        (lambda t, text: t.update({f"{UP}.mask": t[f"{UP}.mask"] ^ 1}), Damaged, f"{UP}.weight: the mask"),
        (lambda t, text: t.update({f"{UP}.scales": t[f"{UP}.scales"] / 0}), Damaged, "NaN or Inf in scales"),
        (lambda t, text: text.update({"secateur.version": "2"}), Unsupported, "is written as 'packed 2'"),
    ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path: Path, change: Any, error: type[Exception], line: str) -> None:
    folder = changed(folder_of(tmp_path, Packing("bitmask", "int8"), **WIDE), change)
    with pytest.raises(error, match=line) as caught:
        load_packed(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_byte_that_the_manifest_does_not_know_and_a_file_cut_short(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Packing("bitmask", "int8"), **WIDE)
    path = folder / "sparse.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Damaged, match="crc32 differs"):
        load_packed(folder)
    path.write_bytes(raw[:-9])
    with pytest.raises(Damaged, match="cut short inside"):
        load_packed(folder)
    with pytest.raises(BadInput, match=r"has no config\.json"):
        load_packed(tmp_path)


def test_a_conv1d_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: Any = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name and name.endswith("weight"):
                parameter[::2] = 0
    model.save_pretrained(tmp_path / "dense")
    folder = to_sparse(tmp_path / "dense", tmp_path / "parts")
    with pytest.raises(Unsupported, match="is packed, and Conv1D multiplies its other side; load it dense"):
        load_packed(folder)


MEASURE = """
import json, re, sys, time
import transformers.models.llama.modeling_llama
from secateur.runtime.loading import load_packed
from secateur.runtime.accelerate import model_bytes

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before, start = peak(), time.perf_counter()
model = load_packed(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "grown": peak() - before, "bytes": model_bytes(model)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_loading_takes_no_more_memory_than_the_folder(tmp_path: Path) -> None:
    """18 MB of parts; imports are left out; a dense form of one matrix in float32 would be 29 MB."""
    big: Any = {"hidden_size": 1024, "intermediate_size": 7168, "vocab_size": 512, "num_hidden_layers": 1}
    folder = folder_of(
        tmp_path, Packing("bitmask", "int8"), num_attention_heads=8, num_key_value_heads=8, **big
    )
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(said.stdout)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert found["bytes"] == pytest.approx(size, rel=0.02)
    assert found["grown"] < 1.1 * size
