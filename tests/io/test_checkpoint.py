"""save_checkpoint and load_checkpoint: the same bits back, a folder transformers loads, and never a mix of two saves.

Kills, faults, damage and hostile folders: tests/attacks.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.common import fill, forked, hear, plain_model, value_of
from secateur.errors import BadInput, Damaged, Locked, Unsupported
from secateur.io.checkpoint import load_checkpoint, load_state, save_checkpoint
from secateur.io.manifest import write_manifest
from secateur.io.tensors import TensorFolder

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64,
]  # fmt: skip


class Bag(torch.nn.Module):
    """A module whose state dict is whatever it is given."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return self.state


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.clone(memory_format=torch.contiguous_format).reshape(-1).untyped_storage())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    if set(a) != set(b):
        return False
    return all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and raw(a[n]) == raw(b[n]) for n in a)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda n: n != "__metadata__"
    )
    for name in draw(st.lists(names, max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=5))
        count = torch.Size(shape).numel() * dtype.itemsize
        generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
        high = 2 if dtype == torch.bool else 256
        data = torch.randint(0, high, (count,), dtype=torch.uint8, generator=generator)
        tensor = data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
        kind = draw(st.sampled_from(["plain", "tied", "transposed", "every second", "expanded"]))
        if kind == "tied" and state:
            tensor = state[draw(st.sampled_from(sorted(state)))]
        elif kind == "transposed" and tensor.dim() > 1:
            tensor = tensor.transpose(0, -1)
        elif kind == "every second" and tensor.dim():
            tensor = tensor[::2]
        elif kind == "expanded" and tensor.dim() and tensor.shape[0] == 1:
            tensor = tensor.expand(3, *tensor.shape[1:])
        state[name] = tensor
    return state


def round_trip(state: dict[str, torch.Tensor], format: str) -> tuple[bool, bool, bool]:
    """Whether the tensors, the bytes of a second save, and the modes of the files are what they should be."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # hundreds of times: syncing is tested elsewhere
        one = save_checkpoint(Path(root, "one"), model=Bag(state), format=format)
        back = load_state(one)
        two = save_checkpoint(Path(root, "two"), model=Bag(back), format=format)
        modes = {path.stat().st_mode & 0o777 for path in one.iterdir()}
        old = os.umask(0)
        os.umask(old)
        return same(back, state), contents(two) == contents(one), modes == {0o666 & ~old}


@given(state=states(), format=st.sampled_from(["dense", "sparse"]))
@settings(max_examples=80, deadline=None)
def test_save_load_save_is_byte_identical(state: dict[str, torch.Tensor], format: str) -> None:
    assert round_trip(state, format) == (True, True, True)


@pytest.mark.slow
@given(state=states(), format=st.sampled_from(["dense", "sparse"]))
@settings(max_examples=500, deadline=None)
def test_save_load_save_is_byte_identical_500_times(state: dict[str, torch.Tensor], format: str) -> None:
    assert round_trip(state, format) == (True, True, True)


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    save_checkpoint(tmp_path / "out", model=model)
    with TensorFolder(tmp_path / "out") as folder:
        assert sorted(folder.names()) == ["a.bias", "a.weight", "b.bias"]
    state = load_state(tmp_path / "out")
    assert state["b.weight"].data_ptr() == state["a.weight"].data_ptr() and same(state, model.state_dict())


def test_a_plain_module_needs_its_class(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    save_checkpoint(tmp_path / "out", model=model, extra={"plan.json": "{}", "notes": b"\x00"})
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "model.safetensors", "notes", "plan.json"]
    with pytest.raises(BadInput, match="model class"):
        load_checkpoint(tmp_path / "out")
    back = load_checkpoint(tmp_path / "out", lambda: torch.nn.Linear(3, 2), dtype=torch.bfloat16)
    assert torch.equal(back.weight, model.weight.bfloat16()) and not back.training
    with pytest.raises(Damaged, match="does not fit Linear"):
        load_checkpoint(tmp_path / "out", lambda: torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    "name", ["manifest.json", "../x", "a/b", "x.py", "x.bin", "", ".hidden", "x.index.json"]
)
def test_an_extra_file_may_not_take_any_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="extra"):
        save_checkpoint(tmp_path / "out", model=torch.nn.Linear(1, 1), extra={name: "x"})
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="meta"):
        save_checkpoint(tmp_path / "out", model=torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(BadInput, match="use dense or sparse"):
        save_checkpoint(tmp_path / "out", model=torch.nn.Linear(2, 2), format="zip")
    with pytest.raises(BadInput, match="not a tensor"):
        save_checkpoint(tmp_path / "out", model=Bag({"extra_state": object()}))
    assert not list(tmp_path.iterdir())


# --- transformers


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config.max_new_tokens = 7
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[::2] = 0
    return model


@pytest.fixture
def source(llama: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    llama.save_pretrained(folder, max_shard_size=12_000)
    for name in ("README.md", "LICENSE", "tokenizer.json", "modeling_x.py", "x.pkl", "results.json"):
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("format", ["dense", "sparse"])
def test_a_model_comes_back_bit_for_bit(llama: Any, tmp_path: Path, format: str) -> None:
    save_checkpoint(tmp_path / "out", model=llama, format=format, extra={"plan.json": "{}"})
    back = load_checkpoint(tmp_path / "out")
    assert type(back) is type(llama) and not back.training and same(back.state_dict(), llama.state_dict())
    assert back.generation_config.max_new_tokens == 7
    assert back.get_output_embeddings().weight.data_ptr() == back.get_input_embeddings().weight.data_ptr()
    ids = torch.arange(12)[None]
    assert torch.equal(back(ids).logits, llama(ids).logits)
    again = save_checkpoint(tmp_path / "again", model=back, format=format, extra={"plan.json": "{}"})
    assert contents(again) == contents(tmp_path / "out")


def test_transformers_loads_the_dense_folder_itself(llama: Any, source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = save_checkpoint(tmp_path / "out", model=llama, source=source)
    back = AutoModelForCausalLM.from_pretrained(out)
    assert back.dtype == torch.bfloat16 and same(back.state_dict(), llama.state_dict())
    shards = sorted(p.name for p in source.glob("model-*"))
    assert len(shards) > 2 and sorted(p.name for p in out.glob("model-*")) == shards
    assert {"README.md", "LICENSE", "tokenizer.json"} <= set(contents(out))
    assert not {"modeling_x.py", "x.pkl", "results.json"} & set(contents(out))


def test_transformers_finds_no_weights_in_a_sparse_folder_rather_than_random_ones(
    llama: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    out = save_checkpoint(tmp_path / "out", model=llama, format="sparse", max_shard=12_000)
    assert len(list(out.glob("sparse-*"))) > 2
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(out)


def test_a_class_may_be_named(llama: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    out = save_checkpoint(tmp_path / "out", model=llama)
    for model_class in (AutoModelForCausalLM, LlamaForCausalLM):
        back = load_checkpoint(out, model_class, dtype=torch.float32)
        assert type(back) is LlamaForCausalLM and back.dtype == torch.float32


@pytest.mark.parametrize("kind", ["mixtral", "gpt2", "vit"])
def test_other_kinds_of_model_come_back(kind: str, tmp_path: Path) -> None:
    import transformers as t

    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    models = {
        "mixtral": lambda: t.MixtralForCausalLM(
            t.MixtralConfig(**small, vocab_size=50, num_key_value_heads=1, num_local_experts=3)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, eos_token_id=1)
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**small, image_size=16, patch_size=8)),
    }
    model = models[kind]().eval()
    for format in ("dense", "sparse"):
        back = load_checkpoint(
            save_checkpoint(tmp_path / format, model=model, format=format, max_shard=20_000)
        )
        assert type(back) is type(model) and same(back.state_dict(), model.state_dict())


def test_no_sparsity_config_and_no_claim_of_being_gguf(llama: Any, tmp_path: Path) -> None:
    import copy

    model = copy.deepcopy(llama)
    model.config.sparsity_config = {"format": "dense", "targets": ["Linear"]}
    model.config.quantization_config = SimpleNamespace(quant_method="gguf", to_dict=lambda: {})
    model.hf_quantizer = SimpleNamespace(is_serializable=lambda: False)
    config = json.loads((save_checkpoint(tmp_path / "out", model=model) / "config.json").read_text())
    assert "sparsity_config" not in config and "quantization_config" not in config
    assert config["model_type"] == "llama" and config["dtype"] == "bfloat16"


def test_a_foreign_folder_loads_with_a_warning(llama: Any, source: Path) -> None:
    with pytest.warns(UserWarning, match=r"no manifest\.json"):
        back = load_checkpoint(source)
    assert same(back.state_dict(), llama.state_dict())


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_fit_the_config_are_refused(llama: Any, tmp_path: Path, change: str) -> None:
    out = save_checkpoint(tmp_path / "out", model=llama)
    config = json.loads((out / "config.json").read_text())
    config.update(
        {"missing": {"num_hidden_layers": 3}, "unexpected": {"num_hidden_layers": 1}}.get(
            change, {"vocab_size": 65}
        )
    )
    (out / "config.json").write_text(json.dumps(config))
    write_manifest(out)
    with pytest.raises((Damaged, Unsupported), match=str(out)):
        load_checkpoint(out)


def test_damage_is_refused_when_loading(llama: Any, tmp_path: Path) -> None:
    out = save_checkpoint(tmp_path / "out", model=llama)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-3] ^= 16
    (out / "model.safetensors").write_bytes(data)
    with pytest.raises(Damaged, match=r"model\.safetensors: tensor 'model\."):
        load_checkpoint(out)


def test_the_system_s_error_inside_safetensors_stays_an_oserror(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = save_checkpoint(tmp_path / "out", model=llama)
    before = contents(out)

    def full(*args: Any, **options: Any) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(llama), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(out, model=llama)
    assert caught.value.errno == 28 and contents(out) == before and len(list(tmp_path.iterdir())) == 1


def test_eight_writers_to_one_folder_never_mix(tmp_path: Path) -> None:
    out, model = tmp_path / "out", plain_model(6, 64)

    def writer(who: int, say: Any) -> None:
        fill(model, who)
        for _ in range(12):
            start = time.perf_counter()
            try:
                save_checkpoint(out, model=model)
                say("saved")
            except Locked as error:
                say(f"locked {'locked by' in str(error)} {time.perf_counter() - start < 5}")
                time.sleep(0.005)

    running = [forked(lambda say, who=who: writer(who, say)) for who in range(8)]
    lines = [line for _, read in running for line in hear(read)]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid, _ in running)
    assert len(lines) == 96 and set(lines) == {"saved", "locked True True"}
    assert value_of(out) in range(8)  # every byte is checked, and all weights are of one writer
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
