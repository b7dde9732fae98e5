"""accelerate on models: the same outputs, tied and shared weights, what is left alone, the cache, undo."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.core.select import NM, keep_top
from secateur.errors import BadInput
from secateur.runtime import accelerate as module
from secateur.runtime import choice, library
from secateur.runtime.accelerate import accelerate, difference, model_bytes
from secateur.runtime.linear import PackedLinear, TwoWays
from tests.runtime.test_choice import clocked, way_name
from tests.tinylm import tiny_llama

__all__ = ["clocked"]  # a fixture
pytestmark = pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler")
FAST = {
    f"{kind} {values}": (0.1, 0.01)
    for kind in ("bitmask", "2:4")
    for values in ("float32", "bfloat16", "int8")
}
IDS = torch.arange(24)[None] % 64


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


def cut(model: nn.Module, keep: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """Half of every Linear of the blocks."""
    keep = keep or (lambda score: keep_top(score, score.shape[1] // 2))
    for name, part in model.named_modules():
        if type(part) is nn.Linear and "lm_head" not in name:
            part.weight.data *= keep(part.weight.abs())
    return model.eval()


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def kinds(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in model.modules():
        if isinstance(part, (PackedLinear, nn.Linear)):
            found[way_name(part)] = found.get(way_name(part), 0) + 1
    return found


def test_a_model_gives_the_same_logits_from_fewer_bytes(clocked: Any) -> None:
    clocked(FAST)
    model = cut(tiny_llama(tie_word_embeddings=False))
    wanted, before = logits(model), model_bytes(model)
    done = accelerate(model, IDS)
    assert kinds(model) == {"bitmask float32": 14, "dense": 1}, "the head is not cut"
    assert done.difference is not None and done.difference < 1e-6
    torch.testing.assert_close(logits(model), wanted)
    assert (
        done.before
        == before
        == 4 * sum(p.numel() for p in tiny_llama(tie_word_embeddings=False).parameters()) + 32
    )
    # q, o 16x16; k, v 8x16; gate, up 24x16; down 16x24: 4 bytes a kept weight, bits, 8 bytes a row and 40 of layout
    sides = [(16, 16), (16, 16), (8, 16), (8, 16), (24, 16), (24, 16), (16, 24)]
    saved = sum(2 * (2 * r * c - r * c // 8 - 8 * r - 40) for r, c in sides)
    assert done.after == before - saved == model_bytes(model)
    counts: dict[tuple[int, int], int] = {}
    for group in done.groups:  # small random masks may happen to be 3:4, which is another pattern
        counts[group.shape] = counts.get(group.shape, 0) + len(group.names)
    assert counts == {(16, 16): 4, (8, 16): 4, (24, 16): 4, (16, 24): 2, (64, 16): 1}
    assert done.share[0] == pytest.approx((14 * 0.11 + 1.1) / (15 * 1.1))


def test_the_rows_of_the_example_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fake(one: nn.Module, other: nn.Module, x: Tensor, cold: int, inside: bool) -> tuple[float, float]:
        seen.append((x.shape[1], inside))
        return 1.0, 1.0

    monkeypatch.setattr(choice, "race", fake)
    accelerate(cut(tiny_llama()), {"input_ids": IDS, "logits_to_keep": 1}, batch=2)
    assert {rows for rows, _ in seen} == {2, 24, 1}, "the head sees one row of the example"
    assert not any(inside for _, inside in seen), "the step is for one sequence"
    seen.clear()
    accelerate(cut(tiny_llama()), prompt=32, cache=False)
    assert set(seen) == {(1, True), (32, True)}


def test_generate_writes_the_same_tokens(clocked: Any) -> None:
    clocked({**FAST, "packed float32": (0.1, 0.2)})
    model: Any = cut(tiny_llama(initializer_range=0.4))
    how = {
        "input_ids": IDS[:, :8],
        "attention_mask": torch.ones(1, 8),
        "max_new_tokens": 12,
        "do_sample": False,
    }
    wanted = model.generate(**how)
    done = accelerate(model)
    assert isinstance(model.lm_head, TwoWays), "the head: a token packed, a prompt dense"
    assert torch.equal(model.generate(**how), wanted)
    assert model.get_output_embeddings() is model.lm_head and model.dtype == torch.float32
    done.undo()
    assert torch.equal(model.generate(**how), wanted) and kinds(model) == {"dense": 15}


def test_a_tied_head_costs_what_it_adds(clocked: Any) -> None:
    clocked({"packed float32": (0.1, 0.01)})
    model: Any = tiny_llama(tie_word_embeddings=True).eval()
    wanted, before = logits(model), model_bytes(model)
    done = accelerate(model)
    head = model.lm_head
    assert isinstance(head, PackedLinear) and head.kind == "dense"
    torch.testing.assert_close(logits(model), wanted)
    layouts = sum(part.layout.nbytes for part in model.modules() if isinstance(part, PackedLinear))
    assert done.after == before + layouts and layouts == 15 * 40, "the embedding's memory serves both"
    assert head.values.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    done.undo()
    assert model.lm_head.weight is model.model.embed_tokens.weight and model_bytes(model) == before
    clocked({"packed int8": (0.1, 0.01)})
    rounded = accelerate(model, values="int8")
    head = model.lm_head
    assert rounded.after - before == sum(
        part.nbytes + 40 - (4 * part.values.numel() if part is not head else 0)
        for part in model.modules()
        if isinstance(part, PackedLinear)
    ), "the embedding stays beside the head in int8"
    rounded.undo()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_undo_gives_the_bits_back(clocked: Any) -> None:
    clocked(FAST)
    model = cut(tiny_llama())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    done = accelerate(model)
    assert kinds(model)["bitmask float32"] == 14
    done.undo()
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    done.undo()
    rounded = accelerate(model, values="int8", tolerance=0.05, ways=("bitmask int8",))
    assert kinds(model)["bitmask int8"] == 14
    rounded.undo()
    weight = model.model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr, operator]
    was = state["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(weight, was) and difference(was, weight) < 0.01, "rounded weights stay rounded"


def test_int8_only_where_it_is_asked_for(clocked: Any) -> None:
    clocked({"2:4 int8": (0.001, 0.01), "2:4 float32": (0.5, 0.01)})
    ask: list[tuple[dict[str, Any], str]] = [({}, "2:4 float32"), ({"values": "int8"}, "2:4 int8")]
    for how, way in [*ask, ({"values": "int8", "tolerance": 1e-5}, "2:4 float32")]:
        model = cut(tiny_llama(), NM(2, 4).select)
        wanted = logits(model)
        accelerate(model, **how)
        assert kinds(model)[way] == 14
        assert difference(wanted, logits(model)) < (0.02 if "int8" in way else 1e-6)


def test_nothing_is_swapped_where_dense_wins(clocked: Any) -> None:
    clocked({})
    model = cut(tiny_llama())
    parts = list(model.modules())
    done = accelerate(model)
    assert all(one is other for one, other in zip(model.modules(), parts, strict=True))
    assert done.share == (1.0, 1.0) and done.after == done.before


def test_gpt2s_conv1d(clocked: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    clocked({**FAST, "packed float32": (0.1, 0.01)})
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=64)).eval()
    wanted = logits(model)
    done = accelerate(model, {"input_ids": IDS})
    assert kinds(model) == {"packed float32": 9} and done.difference is not None and done.difference < 1e-6
    done.undo()
    assert torch.equal(logits(model), wanted) and type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"


class Several(nn.Module):
    """One Linear in two places, two that share a weight, and those that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(16, 16)
        self.again = self.one
        self.first, self.second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.hooked = nn.Linear(16, 16)
        self.hooked.register_forward_hook(lambda *_: None)
        self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.table = nn.Embedding(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = (
            self.again(self.one(x))
            + self.second(self.first(x))
            + self.normed(self.hooked(x))
            + self.table.weight[0]
        )
        return self.layer(self.attention(x, x, x)[0])


def test_shared_modules_stay_shared_and_readers_are_left(clocked: Any) -> None:
    clocked({"packed float32": (0.1, 0.01)})
    torch.manual_seed(0)
    model = Several().eval()
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        wanted = model(x)
        done = accelerate(model, (x,))
        torch.testing.assert_close(model(x), wanted)
    assert isinstance(model.one, PackedLinear) and model.again is model.one
    assert isinstance(model.first, PackedLinear) and model.second is model.first
    assert [note.split()[0] for note in done.notes] == [
        "hooked",
        "normed",
        "attention.out_proj",
        "layer.self_attn.out_proj",
        "layer.linear1",
        "layer.linear2",
    ]
    assert "hooked stays dense: it has hooks" in done.notes
    done.undo()
    assert model.one is model.again and model.first.weight is model.second.weight
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=0)


def test_what_was_chosen_is_not_raced_again(clocked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(FAST)
    model = cut(tiny_llama())
    first = accelerate(model)
    first.undo()
    assert not any(group.choice.cached for group in first.groups)

    def never(*_: Any, **__: Any) -> tuple[float, float]:
        raise AssertionError("raced again")

    monkeypatch.setattr(choice, "race", never)
    again = accelerate(model)
    assert all(group.choice.cached for group in again.groups) and kinds(model)["bitmask float32"] == 14
    again.undo()
    with pytest.raises(AssertionError, match="raced again"):
        accelerate(model, cache=False)
    with pytest.raises(AssertionError, match="raced again"):
        accelerate(model, again=True)
    assert kinds(model) == {"dense": 15}


def test_a_layer_beyond_the_tolerance_stays_dense_whatever_the_first_did(
    clocked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked({"bitmask int8": (0.1, 0.01)})
    model: Any = cut(tiny_llama(num_hidden_layers=3))
    spoilt = "model.layers.2.mlp.down_proj"
    monkeypatch.setattr(module, "error_of", lambda target, made: 0.5 if target.name == spoilt else 0.01)
    done = accelerate(model, values="int8")
    assert type(model.model.layers[2].mlp.down_proj) is nn.Linear
    assert [way_name(layer.mlp.down_proj) for layer in model.model.layers[:2]] == ["bitmask int8"] * 2
    (note,) = done.notes
    assert note.startswith("model.layers.2.mlp.down_proj stays dense: bitmask int8 is off by")


def test_a_failure_leaves_the_model_as_it_was(clocked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(FAST)
    for values in ("same", "int8"):
        model = cut(tiny_llama())
        state = {name: value.clone() for name, value in model.state_dict().items()}
        real, calls = module._made, []

        def fails(*args: Any, real: Any = real, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == 8:
                raise MemoryError("no more")
            return real(*args)

        monkeypatch.setattr(module, "_made", fails)
        with pytest.raises(MemoryError):
            accelerate(model, values=values)
        monkeypatch.setattr(module, "_made", real)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert kinds(model) == {"dense": 15}


def test_what_was_replaced_is_let_go_on_the_way(clocked: Any) -> None:
    clocked(FAST)
    model = cut(tiny_llama(num_hidden_layers=4))
    old = [
        weakref.ref(part) for at, part in model.named_modules() if type(part) is nn.Linear and at != "lm_head"
    ]
    alive = []

    def report(stage: str, done: int, of: int, layer: str) -> None:
        if stage == "pack":
            alive.append(sum(one() is not None for one in old))

    accelerate(model, report=report)
    assert alive[0] == 28 and alive == sorted(alive, reverse=True)
    assert all(left <= 28 - done + 1 for done, left in enumerate(alive))


def test_compile_and_export_of_a_packed_model(clocked: Any) -> None:
    clocked({"bitmask float32": (0.1, 0.01)})
    model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)).eval()
    x = torch.randn(3, 16)
    with torch.no_grad():
        cut(model)
        wanted = model(x)
        accelerate(model)
        assert kinds(model) == {"bitmask float32": 2}
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), wanted)


def test_the_table_tells_what_was_done(clocked: Any) -> None:
    clocked({"bitmask float32": (0.1, 0.3)})
    model = cut(tiny_llama(), NM(2, 4).select)
    done = accelerate(model, IDS, ways=("packed", "bitmask"))
    lines = done.explain().splitlines()
    assert lines[0].split()[:3] == ["layers", "shape", "zeros"]
    assert lines[2].startswith("model.layers.*.self_attn.q_proj, o_proj x4") and "50% zeros, 2:4" in lines[2]
    assert "bitmask float32" in lines[2] and "2.75" in lines[2] and "dense from 5 rows" in lines[2]
    assert any(line.startswith("all tensors: 0.0 MB before") for line in lines)
    full = done.explain(full=True)
    assert "taken for a prompt" in full and "packed float32" in full and "taken for a token" in full
    rows = done.rows()
    assert (
        rows[0]["token"] == "bitmask float32" and rows[0]["prompt"] == "dense" and rows[0]["from_rows"] == 5
    )
    assert rows[0]["raced"][0]["way"] == "dense" and sum(len(row["layers"]) for row in rows) == 15


@pytest.mark.parametrize(
    "how,line",
    [
        ({"values": "int9"}, "'int9' is no values"),
        ({"aim": "sped"}, "'sped' is no aim; did you mean 'speed'"),
        ({"group": 7}, "groups of 7"),
        ({"batch": 0}, "batch and prompt are 1 or more"),
    ],
)
def test_what_is_refused(how: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        accelerate(tiny_llama(), **how)


def test_nan_is_told_with_its_layer(clocked: Any) -> None:
    clocked({"bitmask int8": (0.1, 0.01)})
    model: Any = cut(tiny_llama())
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(BadInput, match=r"model.layers.1.mlp.up_proj: NaN or Inf cannot be rounded"):
        accelerate(model, values="int8")
    assert kinds(model) == {"dense": 15}


def test_training_and_models_without_linears() -> None:
    with pytest.raises(BadInput, match=r"is in training mode; call model.eval\(\)"):
        accelerate(tiny_llama().train())
    done = accelerate(nn.Sequential(nn.ReLU()).eval())
    assert done.notes == ["Sequential holds no Linear or Conv1D that may be replaced"] and not done.groups
    assert done.explain().endswith("may be replaced")
    odd = type("Odd", (nn.Module,), {"forward": lambda self, x: "text"})().eval()
    with pytest.raises(BadInput, match="the model gives a str"):
        accelerate(odd, torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype,bound", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_smollm2_cut_in_half(dtype: str, bound: float) -> None:
    from secateur.io.store import load

    loaded = load("smollm2-135m", dtype=dtype)
    model: Any = cut(loaded.model)
    ids = torch.tensor([loaded.tokenizer("The quick brown fox jumps over the lazy dog. " * 8)["input_ids"]])  # type: ignore[misc]
    done = accelerate(model, {"input_ids": ids})
    assert done.difference is not None and done.difference < bound
    assert done.share[0] < 0.9 and done.share[1] <= 1.02, done.explain()
    assert all(group.error < (1e-5 if dtype == "float32" else 5e-3) for group in done.groups)
    done.undo()
    least = accelerate(model, {"input_ids": ids}, aim="memory")
    assert least.difference is not None and least.difference < bound
    if library.features()["path"] == "avx512":  # without it dense bfloat16 may be as fast, and stays
        assert least.after < 0.8 * least.before, least.explain()
