"""GGUF: what gguf's reader, transformers and llama.cpp read back is the model that was in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.convert import to_sparse
from secateur.io.export_gguf import TYPES, export_gguf, interleave
from secateur.io.manifest import write_manifest
from tests.docs.tiny import tiny_model
from tests.io.ggufs import ROPE, back, loaded, made
from tests.tinylm import save_tiny

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 17, 300, 2, 41, 44, 7], [9, 9, 401, 60, 1, 13, 99]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a byte-level tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("gguf") / "tiny")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_float32_comes_back_bit_for_bit_and_says_what_it_is(tiny: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = export_gguf(tiny, tmp_path / "a.gguf", "f32", tell=lambda done, total: told.append((done, total)))
    wanted, got = loaded(tiny).state_dict(), back(tmp_path / "a.gguf").state_dict()
    assert set(got) == set(wanted) and all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert told[-1] == (20, 20) and [done for done, _ in told] == list(range(21))
    parameters = sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    assert found["parameters"] == parameters and found["tensors"] == {"f32": 20} and not found["notes"]
    assert found["bytes"] == (tmp_path / "a.gguf").stat().st_size
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert fields["general.architecture"] == "llama" and fields["general.name"] == "tiny"
    assert fields["general.file_type"] == 0 and "general.quantization_version" not in fields
    config = json.loads((tiny / "config.json").read_text())
    for key, name in {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "vocab_size": "vocab_size",
        "rope.dimension_count": "head_dim",
    }.items():
        assert fields[f"llama.{key}"] == config[name], key
    assert fields["llama.rope.freq_base"] == config["rope_parameters"]["rope_theta"]
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert fields["tokenizer.ggml.model"] == "gpt2" and len(fields["tokenizer.ggml.tokens"]) == 512


@pytest.mark.parametrize("type", TYPES)
def test_each_type_rounds_as_it_should_and_keeps_zeros(tiny: Path, tmp_path: Path, type: str) -> None:
    state = load_file(tiny / "model.safetensors")
    for name, tensor in state.items():
        if "proj" in name:
            tensor[:, ::2] = 0.0
    folder = tmp_path / "cut"
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    found = export_gguf(folder, tmp_path / "a.gguf", type)
    got = back(tmp_path / "a.gguf").state_dict()
    # of a float its last bit; of a block of 32 half a step, or one for what lies beyond the last, and its f16 scale
    step = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127, "q5_0": 1 / 16, "q4_0": 1 / 8}
    for name, tensor in state.items():
        kind = "f32" if tensor.dim() == 1 else type
        kind = "q8_0" if "embed" in name and type in ("q4_0", "q5_0") else kind
        difference, size = (got[name] - tensor).abs(), tensor.abs()
        if kind.startswith("q"):
            difference, size = (
                difference.reshape(-1, 32),
                (1 + 2**-11) * size.reshape(-1, 32).amax(1)[:, None],
            )
        extra = 2**-11 if kind.startswith("q") else 0.0
        assert bool((difference <= (step[kind] + extra) * size + 6e-8).all()), name
        if "proj" in name:
            assert torch.count_nonzero(got[name][:, ::2]) == 0
        assert kind == "f32" or not torch.equal(got[name], tensor)
    version = "general.quantization_version" in gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert version == type.startswith("q") and sum(found["tensors"].values()) == 20
    assert found["tensors"][type] == {"f32": 20, "q5_0": 14, "q4_0": 14}.get(type, 15)
    close = {"f32": 1e-6, "f16": 1e-3, "bf16": 1e-2, "q8_0": 2e-2}.get(type, 0.3)
    wanted = logits(loaded(folder))
    assert float((logits(back(tmp_path / "a.gguf")) - wanted).abs().max()) <= close * float(
        wanted.abs().max()
    )


def test_rows_that_do_not_divide_stay_f16(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", "llama", intermediate_size=80)
    found = export_gguf(folder, tmp_path / "a.gguf", "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.1.ffn_down.weight"] == "F16" and kinds["blk.1.ffn_up.weight"] == "Q8_0"
    assert found["tensors"] == {"q8_0": 14, "f16": 2, "f32": 5}
    assert found["notes"] == ["the folder has no tokenizer, nor has the file"]


def test_the_output_matrix_keeps_eight_bits(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", "llama", tie_word_embeddings=False)
    export_gguf(folder, tmp_path / "a.gguf", "q4_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["output.weight"] == "Q8_0" and kinds["token_embd.weight"] == "Q4_0"


@pytest.mark.parametrize(
    "model_type,arch,changes",
    [
        ("llama", "llama", {"tie_word_embeddings": False, "head_dim": 32}),
        ("mistral", "llama", {"sliding_window": None, "head_dim": 16}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", {"head_dim": 128}),
        ("gemma2", "gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}),
    ],
)
def test_other_families_give_their_logits(tmp_path: Path, model_type: str, arch: str, changes: dict) -> None:
    folder = made(tmp_path / "m", model_type, **changes)
    found = export_gguf(folder, tmp_path / "a.gguf", "f32")
    assert found["architecture"] == arch
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["general.architecture"].contents() == arch
    # transformers reads a mistral as a llama, and not all that a gemma2's file says
    config = {} if arch == "llama" else {"config": transformers.AutoConfig.from_pretrained(folder)}
    model = back(tmp_path / "a.gguf", **config)
    torch.testing.assert_close(logits(model), logits(loaded(folder)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bias", ["q_proj.bias", "k_proj.bias"])
def test_biases_of_a_llama_are_turned_with_their_rows(tmp_path: Path, bias: str) -> None:
    folder = made(tmp_path / "m", "llama", attention_bias=True)
    export_gguf(folder, tmp_path / "a.gguf", "f32")
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    wanted = load_file(folder / "model.safetensors")[f"model.layers.1.self_attn.{bias}"]
    got = tensors["blk.1.attn_" + bias.replace("_proj", "")]
    heads = wanted.reshape(-1, 2, 8)  # [heads, halves, 8]
    assert got.tolist() == torch.stack([heads[:, 0], heads[:, 1]], -1).reshape(-1).tolist()
    assert tensors["blk.1.attn_output.bias"].shape == (64,)


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 4))
def test_interleave_makes_neighbours_of_the_halves(heads: int, half: int, columns: int) -> None:
    rows = torch.arange(heads * 2 * half * columns).reshape(heads * 2 * half, columns)
    out = interleave(rows, heads)
    for head in range(heads):
        for at in range(half):
            top = head * 2 * half
            assert torch.equal(out[top + 2 * at], rows[top + at])
            assert torch.equal(out[top + 2 * at + 1], rows[top + half + at])


def test_a_sparse_folder_gives_the_same_file(tiny: Path, tmp_path: Path) -> None:
    state = load_file(tiny / "model.safetensors")
    for tensor in state.values():
        if tensor.dim() == 2:
            tensor[:, ::2] = 0.0
    dense = tmp_path / "tiny"
    dense.mkdir()
    save_file(state, dense / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (dense / name).write_bytes((tiny / name).read_bytes())
    to_sparse(dense, tmp_path / "sparse")
    assert (tmp_path / "sparse" / "sparse.safetensors").is_file()
    export_gguf(dense, tmp_path / "a.gguf", "q8_0", name="x")
    export_gguf(tmp_path / "sparse", tmp_path / "b.gguf", "q8_0", name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    "rope,wanted",
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
            {"type": "yarn", "factor": 2.0, "original_context_length": 64},
        ),
    ],
)
def test_stretched_rotations_are_named(tmp_path: Path, rope: dict, wanted: dict) -> None:
    folder = made(tmp_path / "m", "llama", rope_parameters={**ROPE, **rope})
    export_gguf(folder, tmp_path / "a.gguf", "f32")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert {key: fields[f"llama.rope.scaling.{key}"].contents() for key in wanted} == wanted


def test_llama3_rotations_are_divisors_of_the_frequencies(tmp_path: Path) -> None:
    rope = {
        **ROPE,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = made(tmp_path / "m", "llama", rope_parameters=rope)
    export_gguf(folder, tmp_path / "a.gguf", "f32")
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    divisors = torch.from_numpy(tensors["rope_freqs.weight"])
    used = loaded(folder).model.rotary_emb.inv_freq
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / divisors, used)
    # a wave shorter than 64 / 4 tokens is left alone, one longer than 64 / 1 slowed eightfold
    waves = 2 * torch.pi / plain
    assert bool((divisors[waves < 16] == 1).all()) and bool((divisors[waves > 64] == 8).all())


def test_a_window_the_runtime_does_not_know_shortens_the_context(tmp_path: Path) -> None:
    folder = made(tmp_path / "m", "mistral", sliding_window=32, head_dim=16)
    found = export_gguf(folder, tmp_path / "a.gguf", "f32")
    assert gguf.GGUFReader(tmp_path / "a.gguf").fields["llama.context_length"].contents() == 32
    assert "its window of 32 tokens" in found["notes"][0]


@pytest.mark.parametrize(
    "model_type,changes,line",
    [
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 1}, "a GPT2LMHeadModel has no GGUF form"),
        ("llama", {"hidden_act": "gelu"}, "its activation 'gelu'"),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}, "rotation 'dynamic'"),
        (
            "llama",
            {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0}},
            "rotation 'yarn' with beta_fast",
        ),
        ("llama", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}, "part of each head"),
        ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 32}, "not those llama.cpp gives a gemma2"),
    ],
)
def test_what_a_runtime_would_compute_otherwise_is_refused(
    tmp_path: Path, model_type: str, changes: dict, line: str
) -> None:
    folder = made(tmp_path / "m", model_type, **changes)
    with pytest.raises(Unsupported, match=line):
        export_gguf(folder, tmp_path / "a.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_other_weights_than_the_config_describes_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    cases: list[tuple[dict[str, torch.Tensor], type[Exception], str]] = [
        ({k: v for k, v in state.items() if k != name}, Damaged, f"tensor '{name}' is missing"),
        ({**state, name: state[name][1:]}, Damaged, r"is \[23, 16\], config.json describes \[24, 16\]"),
        (
            {**state, "model.extra.weight": state[name].clone()},
            Unsupported,
            "model.extra.weight: has no place",
        ),
        ({**state, name: state[name].to(torch.int8)}, Unsupported, "is torch.int8"),
        ({**state, name: state[name].fill_(7e4)}, BadInput, f"{name}: holds values that f16 cannot"),
        ({**state, name: state[name].fill_(float("nan"))}, BadInput, f"{name}: holds values that f16 cannot"),
    ]
    for tensors, error, line in cases:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(error, match=line):
            export_gguf(folder, tmp_path / "a.gguf")
    assert export_gguf(folder, tmp_path / "a.gguf", "bf16")["tensors"] == {"bf16": 16, "f32": 5}
    with pytest.raises(BadInput, match="'q4_k' is no type"):
        export_gguf(folder, tmp_path / "b.gguf", "q4_k")
    write_manifest(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt", "other": "bytes"})
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        export_gguf(folder, tmp_path / "b.gguf")
