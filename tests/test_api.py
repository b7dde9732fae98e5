"""The public names: few, lazy, and enough."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import secateur
from secateur.errors import BadInput, NoMatch
from tests.tinylm import save_tiny, tiny_llama, tiny_tokenizer


@pytest.fixture
def ids() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randint(4, 60, (4, 16))


def test_every_public_name_is_there():
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
    assert len(secateur.__all__) <= 15 and set(secateur.__all__) <= set(dir(secateur))
    assert secateur.Wanda(sparsity=0.5) == secateur.make("wanda", sparsity=0.5)
    with pytest.raises(AttributeError, match="wnada"):
        secateur.wnada  # noqa: B018
    with pytest.raises(AttributeError):
        secateur.Wnada  # noqa: B018


def test_importing_it_imports_nothing_heavy():
    code = "import sys, secateur; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_two_folders_are_also_verbs(ids):
    import secateur.apply.mask
    import secateur.evaluate.perplexity as perplexity

    model = tiny_llama()
    plan = secateur.plan(model, secateur.Magnitude(sparsity=0.5))
    assert secateur.apply(plan, model).plan is plan
    assert callable(perplexity.perplexity) and secateur.apply.mask.apply is not None
    row = secateur.evaluate(model, ids)
    assert row["sparsity"] == 0.5 and row["metrics"]["perplexity"] > 1


def test_compress_changes_the_model_and_undo_brings_it_back(ids):
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = secateur.compress(model, secateur.SparseGPT(pattern="2:4"), ids)
    assert result.model is model and result.plan.updates and abs(result.plan.sparsity - 0.5) < 1e-9
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_leaves_the_model_and_applying_it_is_the_cut(ids):
    model, other = tiny_llama(), tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = secateur.plan(model, "wanda", ids, feed="block")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    secateur.apply(plan, model)
    secateur.compress(other, "wanda", ids, feed="block")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_five_lines_from_a_name_to_a_folder(tmp_path, ids):
    save_tiny(tmp_path / "dense")
    result = secateur.compress(tmp_path / "dense", secateur.Wanda(sparsity=0.5), ids, out=tmp_path / "half")
    loaded = secateur.load(tmp_path / "half")
    assert result.folder == tmp_path / "half" and loaded.tokenizer is not None
    assert secateur.evaluate(loaded, ids)["sparsity"] == 0.5
    with pytest.raises(BadInput, match="exists already"):
        secateur.compress(tmp_path / "dense", "magnitude", out=tmp_path / "half")
    again = secateur.compress(tmp_path / "dense", "magnitude", out=tmp_path / "half", overwrite=True)
    assert again.plan.method == "magnitude"


def test_text_for_a_bare_module_needs_its_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"w{i % 60}" for i in range(500)))
    settings = {"samples": 2, "length": 16}
    with pytest.raises(BadInput, match="tokenizer"):
        secateur.compress(tiny_llama(), "wanda", tmp_path / "a.txt", **settings)
    result = secateur.compress(
        tiny_llama(), "wanda", tmp_path / "a.txt", tokenizer=tiny_tokenizer(), **settings
    )
    assert result.plan.made["calibration"] == "a.txt, 2 windows of 16 tokens, seed 0"


def test_streaming_needs_names(ids, tmp_path):
    for model, out, settings in (
        (tiny_llama(), tmp_path / "x", {}),
        ("m", None, {}),
        ("m", tmp_path / "x", {"max_shard": 5}),
    ):
        with pytest.raises(BadInput, match="streaming"):
            secateur.compress(model, "magnitude", ids, out=out, stream=True, **settings)


def test_listing_methods():
    rows = secateur.list_methods(needs="inputnorms")
    assert [row["name"] for row in rows] == ["wanda"] and rows[0]["what"].startswith(
        "keep the weights that matter"
    )
    assert all(set(row) == set(rows[0]) for row in secateur.list_methods())
    with pytest.raises(NoMatch, match="after"):
        secateur.list_methods(when="aftr")


def test_listeners_hear_every_stage(tmp_path, ids):
    save_tiny(tmp_path / "dense")
    heard = []
    secateur.compress(tmp_path / "dense", "wanda", ids, out=tmp_path / "half", listen=heard.append)
    assert list(dict.fromkeys(event.stage for event in heard)) == ["load", "cut", "save"]
