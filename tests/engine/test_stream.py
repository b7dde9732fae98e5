"""Streaming from folder to folder: the same model as in memory, bounded by a block, resumable to the same bytes."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.engine.calibrate import Calibration
from secateur.engine.events import Event
from secateur.engine.run import Options, compress
from secateur.engine.stream import stream
from secateur.errors import BadInput, Unsupported
from secateur.io.checkpoint import load_checkpoint
from secateur.io.tensors import TensorFolder
from secateur.registry import make
from tests.tinylm import save_tiny, tiny_llama

TOKENS = torch.randint(4, 64, (6, 12), generator=torch.Generator().manual_seed(1))
CALIBRATION = Calibration(tuple({"input_ids": row} for row in TOKENS), "random tokens")
JOBS: list[tuple[str, dict[str, Any], str]] = [
    ("magnitude", {}, "none"),
    ("essential_sparsity", {}, "none"),
    ("random", {"pattern": "2:4"}, "none"),
    ("wanda", {}, "layer"),
    ("wanda", {"allocate": "global"}, "block"),
    ("wanda", {"allocate": "owl"}, "none"),
    ("sparsegpt", {"pattern": "2:4"}, "block"),
    ("sparsegpt", {}, "layer"),
    ("l_obs", {}, "none"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("stream") / "source", num_hidden_layers=3)
    tiny_llama(num_hidden_layers=3).save_pretrained(folder, max_shard_size="6KB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(("method", "settings", "feed"), JOBS)
def test_streaming_cuts_exactly_what_memory_cuts(
    source: Path, tmp_path: Path, method: str, settings: dict[str, Any], feed: Any
) -> None:
    options = Options(feed=feed, batch=2)
    model = load_checkpoint_quietly(source)
    expected = compress(model, make(method, **settings), CALIBRATION, options)
    plan = stream(source, tmp_path / "out", make(method, **settings), CALIBRATION, options)
    assert plan.digest() == expected.plan.digest()
    assert plan.score_digest == expected.plan.score_digest
    got = load_checkpoint(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["digest"] == plan.digest()


@pytest.mark.parametrize(("method", "settings", "feed"), JOBS)
@pytest.mark.parametrize("stop", [1, 2])
def test_resume_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, method: str, settings: dict[str, Any], feed: Any, stop: int
) -> None:
    stream(source, tmp_path / "whole", make(method, **settings), CALIBRATION, Options(feed=feed, batch=2))

    def interrupt(event: Event) -> None:
        if event.stage == "cut" and event.done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken = Options(feed=feed, batch=2, listen=interrupt)
        stream(source, tmp_path / "part", make(method, **settings), CALIBRATION, broken)
    assert not (tmp_path / "part").exists()
    seen: list[Event] = []
    again = Options(feed=feed, batch=2, listen=seen.append)
    stream(source, tmp_path / "part", make(method, **settings), CALIBRATION, again, resume=True)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "part").iterdir())
    _, mismatch, errors = filecmp.cmpfiles(tmp_path / "whole", tmp_path / "part", names, shallow=False)
    assert (mismatch, errors) == ([], [])


def test_finished_blocks_are_not_cut_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(event: Event) -> None:
        if event.stage == "cut" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", make("wanda"), CALIBRATION, Options(listen=interrupt))
    wanda = type(make("wanda"))
    cut: list[str] = []
    score = wanda.score
    monkeypatch.setattr(
        wanda, "score", lambda self, w, x, site: (cut.append(site.name), score(self, w, x, site))[1]
    )
    stream(source, tmp_path / "out", make("wanda"), CALIBRATION, Options(), resume=True)
    assert {name.split(".")[2] for name in cut} == {"2"}


def test_another_job_does_not_take_over_what_this_one_left(source: Path, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.stage == "cut" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", make("wanda"), CALIBRATION, Options(listen=interrupt))
    stream(source, tmp_path / "out", make("wanda", sparsity=0.25), CALIBRATION, Options(), resume=True)
    with TensorFolder(tmp_path / "out") as tensors:
        for name in tensors.names():
            if "_proj" in name:
                assert (tensors.get(name) == 0).float().mean() == pytest.approx(0.25, abs=0.02)


def test_shards_files_and_dtype_stay_as_they_were(source: Path, tmp_path: Path) -> None:
    stream(source, tmp_path / "out", make("magnitude"), None)
    with TensorFolder(source) as before, TensorFolder(tmp_path / "out") as after:
        assert after.layout() == before.layout()
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_sparse_format_holds_the_same_weights(source: Path, tmp_path: Path) -> None:
    stream(source, tmp_path / "dense", make("wanda"), CALIBRATION)
    stream(source, tmp_path / "sparse", make("wanda"), CALIBRATION, format="sparse")
    with TensorFolder(tmp_path / "dense") as dense, TensorFolder(tmp_path / "sparse") as sparse:
        assert any(sparse.is_sparse(name) for name in sparse.names())
        for name in dense.names():
            assert torch.equal(dense.get(name), sparse.get(name))


def test_only_one_block_is_in_memory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.engine import stream as module

    held: list[int] = []
    keep = module._Folder.keep

    def watch(self: Any, block: Any, names: list[str]) -> None:
        layers = {
            n.split(".")[2] for n, p in self.model.named_parameters() if ".layers." in n and not p.is_meta
        }
        held.append(len(layers))
        keep(self, block, names)

    monkeypatch.setattr(module._Folder, "keep", watch)
    stream(source, tmp_path / "out", make("wanda"), CALIBRATION)
    assert held == [1, 1, 1]


def test_a_checkpoint_with_other_names_is_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "source")
    with pytest.raises(Unsupported, match="under another name; leave out --stream"):
        stream(tmp_path / "source", tmp_path / "out", make("magnitude"), None)
    assert not (tmp_path / "out").exists()


def test_no_calibration_is_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="wanda needs calibration data"):
        stream(source, tmp_path / "out", make("wanda"), None)


def load_checkpoint_quietly(folder: Path) -> torch.nn.Module:
    with pytest.warns(UserWarning, match="manifest"):
        return load_checkpoint(folder)
