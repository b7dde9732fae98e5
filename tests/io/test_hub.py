"""Loading by name: folders, GGUF, the embedded model, no pickles, no foreign code, no waiting for an absent hub."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from secateur.errors import BadInput, Damaged, Locked, NoMatch, SecateurError, Unsupported
from secateur.io import hub
from secateur.io.hub import load, load_folder, load_tokenizer, resolve_folder
from tests.tinylm import save_tiny, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hub") / "tiny-model")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_a_folder_comes_back_bit_for_bit(folder: Path) -> None:
    loaded = load(str(folder))
    expected = tiny_llama().state_dict()
    assert all(torch.equal(expected[n], t) for n, t in loaded.model.state_dict().items())
    assert loaded.tokenizer("w0 w1")["input_ids"] == [1, 4, 5]
    assert loaded.folder == folder and loaded.name == str(folder) and not loaded.model.training


def test_dtype(folder: Path) -> None:
    assert load(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(str(folder)).model.dtype == torch.float32
    with pytest.raises(BadInput, match="did you mean 'float32'"):
        load(str(folder), dtype="float3")


def test_auto_keeps_a_stored_bfloat16(tmp_path: Path) -> None:
    tiny_llama().bfloat16().save_pretrained(tmp_path)
    model = load_folder(tmp_path)
    assert model.dtype == torch.bfloat16
    assert load_tokenizer(tmp_path) is None


def test_unknown_device(folder: Path) -> None:
    with pytest.raises(BadInput, match="no device 'gpu0'"):
        load(str(folder), device="gpu0")


def test_heads_by_config(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTForImageClassification

    small: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16
    }  # fmt: skip
    BertForMaskedLM(BertConfig(vocab_size=64, **small)).save_pretrained(tmp_path / "bert")
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **small)).save_pretrained(
        tmp_path / "vit"
    )
    assert type(load_folder(tmp_path / "bert")).__name__ == "BertForMaskedLM"
    assert type(load_folder(tmp_path / "vit")).__name__ == "ViTForImageClassification"
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    config["architectures"] = ["os.system"]  # a name from a file is only ever looked up among model classes
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    assert type(load_folder(tmp_path / "bert")).__name__ == "BertForMaskedLM"


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Damaged, match=r"1 tensors are missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_folder(tmp_path)


def test_a_cut_short_file_is_an_error(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Damaged, match="cut short"):
        load_folder(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(Unsupported) as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_does_not_run(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((tmp_path / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    load_folder(tmp_path)  # a known type: its own code from transformers
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": auto_map, "model_type": "evil"}))
    with pytest.raises(Unsupported, match="needs code from its own folder"):
        load_folder(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"model_type": "nonsense"}', '{"model_type": 3}', "{}"])
def test_a_bad_config_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SecateurError) as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_that_match_nothing(folder: Path, tmp_path: Path, no_hub: None) -> None:
    with pytest.raises(NoMatch, match="did you mean 'tiny-model'"):
        load(str(folder.parent / "tiny-modle"))
    with pytest.raises(NoMatch, match=r"no config\.json"):
        load(str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(Unsupported, match="not a model"):
        load(str(tmp_path / "x.txt"))
    for bad in ("./nope", "a/b/c", "with space", "nope.gguf", "~nobody"):
        with pytest.raises(NoMatch, match="no such file or folder"):
            load(bad)


def test_an_absent_hub_is_one_line_in_seconds(no_hub: None) -> None:
    start = time.monotonic()
    with pytest.raises(NoMatch, match=r"hub cannot be reached.*did you mean 'smollm2-135m'") as caught:
        load("smollm2-135")
    with pytest.raises(NoMatch, match="hub cannot be reached"):
        load("owner/model")
    assert time.monotonic() - start < 15
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_HUB_SECONDS", 0.1)
    start = time.monotonic()
    assert isinstance(hub._within(lambda: time.sleep(5)), TimeoutError)
    assert time.monotonic() - start < 2


def test_download_asks_for_no_pickles_and_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda name, timeout: None)
    )
    assert resolve_folder("owner/model") == folder
    assert asked["name"] == "owner/model" and asked["local_files_only"] is False
    assert not {"*.bin", "*.py", "*.pt"} & set(asked["allow_patterns"])


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML....")
    with pytest.raises(Damaged, match="does not start as a GGUF"):
        load(str(tmp_path / "x.gguf"))


def test_a_cut_short_gguf_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\x00" * 8)
    with pytest.raises(SecateurError) as caught:
        load(str(tmp_path / "x.gguf"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_converted_gguf_is_reused_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def convert(path: Path, out: Path) -> None:
        made.append(out)
        save_tiny(out)

    monkeypatch.setattr(hub, "_convert", convert)
    (tmp_path / "x.gguf").write_bytes(b"GGUF one")
    first = resolve_folder(str(tmp_path / "x.gguf"))
    assert resolve_folder(str(tmp_path / "x.gguf")) == first and len(made) == 1
    (tmp_path / "x.gguf").write_bytes(b"GGUF two")  # other bytes, same name
    assert resolve_folder(str(tmp_path / "x.gguf")) != first and len(made) == 2
    assert load(str(tmp_path / "x.gguf")).tokenizer is not None


def test_a_second_worker_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def locked(path: Path, out: Path) -> None:
        made.append(out)
        raise Locked("locked by pid 1")

    monkeypatch.setattr(hub, "_convert", locked)
    monkeypatch.setattr(
        hub.time, "sleep", lambda seconds: save_tiny(made[-1])
    )  # meanwhile the other one is done
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert resolve_folder(str(tmp_path / "x.gguf")) == made[0] and len(made) == 1
    (tmp_path / "x.gguf").write_bytes(b"GGUF another")
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hub, "_CONVERT_SECONDS", 0.0)
    with pytest.raises(Locked):  # the other one hangs
        resolve_folder(str(tmp_path / "x.gguf"))


@pytest.mark.slow
def test_the_embedded_model_from_its_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    import gguf

    reader = gguf.GGUFReader
    loaded = load("smollm2-135m")
    assert gguf.GGUFReader is reader  # what sped the reading up is gone again
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and loaded.model.dtype == torch.float32
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert getattr(loaded.model.config, "quantization_config", None) is None
    assert loaded.tokenizer.decode(loaded.tokenizer(" Paris")["input_ids"]) == " Paris"
    loaded.model.save_pretrained(tmp_path / "again")  # nothing of the GGUF stands in the way
    start = time.monotonic()
    load("smollm2-135m")
    assert time.monotonic() - start < 5
