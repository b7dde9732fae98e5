"""Models in and out by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.core.plan import Kept, Plan
from secateur.errors import BadInput, Damaged, NoMatch
from secateur.io.hub import Loaded
from secateur.io.store import as_loaded, check_out, load, save
from tests.tinylm import save_tiny, tiny_llama


def test_a_model_goes_out_and_comes_back(tmp_path):
    model = tiny_llama()
    plan = Plan("magnitude", {}, {"q": Kept.of(torch.ones(2, 8, dtype=torch.bool))})
    out = save(model, tmp_path / "out", plan=plan, extra={"note.txt": "hello"})
    loaded = load(out)
    assert all(torch.equal(v, loaded.model.state_dict()[n]) for n, v in model.state_dict().items())
    assert (out / "note.txt").read_text() == "hello" and '"method":"magnitude"' in (
        out / "plan.json"
    ).read_text()
    assert not list(out.glob("*.plan")) and len(list(out.glob("*.safetensors"))) == 1


def test_every_byte_is_checked_on_the_way_in(tmp_path):
    out = save(tiny_llama(), tmp_path / "out")
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[-3] ^= 4
    (out / "model.safetensors").write_bytes(raw)
    with pytest.raises(Damaged, match="crc32"):
        load(out)


def test_a_foreign_folder_loads_too(tmp_path):
    assert load(save_tiny(tmp_path / "x")).name == str(tmp_path / "x")
    with pytest.raises(NoMatch):
        load(tmp_path / "y")


def test_what_may_be_written(tmp_path):
    check_out(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty")
    with pytest.raises(BadInput, match="no format"):
        check_out(tmp_path / "new", format="zip")
    save(tiny_llama(), tmp_path / "ours")
    with pytest.raises(BadInput, match="--overwrite"):
        check_out(tmp_path / "ours")
    check_out(tmp_path / "ours", overwrite=True)
    save_tiny(tmp_path / "theirs")
    with pytest.raises(BadInput, match="did not write"):
        check_out(tmp_path / "theirs", overwrite=True)


def test_models_however_given():
    told = []
    module = nn.Linear(2, 2)
    assert as_loaded(module, "tokenizer", tell=told.append) == Loaded(module, "tokenizer", "Linear", None)
    loaded = Loaded(module, None, "x", None)
    assert as_loaded(loaded) is loaded and told == []
    with pytest.raises(NoMatch):
        as_loaded("./nothing", tell=told.append)
    assert told == [0]
