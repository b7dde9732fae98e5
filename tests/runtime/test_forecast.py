"""The forecast: bytes to the byte against packed models, times from probes that the test invents, verdicts, and a check
against what is then measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.core.select import NM, Blocks, keep_top
from secateur.errors import BadInput, Unsupported
from secateur.runtime import forecast as module
from secateur.runtime import library, probes
from secateur.runtime.accelerate import accelerate, model_bytes
from secateur.runtime.decode import Decoder
from secateur.runtime.forecast import Forecast, Native, Row, cases, forecast, layers_of, misfit, verdicts
from secateur.runtime.pace import Pace, pace
from secateur.runtime.probes import KEPT, Case, Layer, Probe
from secateur.runtime.sliver import sliver
from secateur.runtime.stubs import stubs
from secateur.runtime.ways import targets
from tests.tinylm import tiny_llama

pytestmark = pytest.mark.skipif(library.load() is None, reason="secateur was installed without a C compiler")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128, "pad_token_id": None}
WAYS = {
    "50% float32": ("bitmask float32", "packed float32"),
    "50% int8": ("bitmask int8", "packed int8"),
    "2:4 bfloat16": ("2:4 bfloat16", "packed bfloat16"),
    "70% 16x1 int8": ("16x1 int8", "packed int8"),
    "dense int8": ("packed int8",),
    "dense int4": ("packed int4",),
}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel takes a nanosecond a byte and ten a row of x; all that is not weights takes a millisecond a token."""

    def seconds(made: Any, xs: list[list[Tensor]]) -> list[tuple[float, float]]:
        sizes = [part.packed.bytes if hasattr(part, "packed") else part.weight.nbytes for part in made]
        return [(1e-9 * size + 1e-8 * some[0].shape[1], 0.1) for size, some in zip(sizes, xs, strict=True)]

    monkeypatch.setattr(probes, "_seconds", seconds)
    monkeypatch.setattr(
        module,
        "pace",
        lambda model, prompt, count, clock=None, reread=True: Pace(0.02, 0.001, prompt, 0.0, "lean"),
    )


def cut(model: nn.Module, name: str) -> nn.Module:
    """The model that a case speaks of."""
    for at, part in model.named_modules():
        if type(part) is nn.Linear and "lm_head" not in at and "dense" not in name:
            score = part.weight.abs()
            sparsity = 0.7 if "70%" in name else 0.5
            if "2:4" in name:
                mask = NM(2, 4).select(score)
            elif "16x1" in name:
                mask = Blocks(16, 1).select(score, sparsity)
            else:
                mask = keep_top(score, int(score.shape[1] * sparsity))
            part.weight.data *= mask
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", WAYS)
def test_bytes_are_those_of_the_packed_model(
    timed: None, name: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(tie_word_embeddings=tied, **SIZES)
    row = next(row for row in forecast(model).rows if row.name == name)
    monkeypatch.setattr("secateur.runtime.choice.race", lambda *_: (1.0, 0.1))
    values = name.rpartition(" ")[2]
    packed = cut(tiny_llama(tie_word_embeddings=tied, **SIZES), name)
    values = "same" if values == "float32" else values
    done = accelerate(packed, values=values, ways=WAYS[name], cache=False, tolerance=0.5)
    layouts = 40 * sum(hasattr(part, "layout") for part in packed.modules())
    # masks of the probes are random: their counts differ by what chance does
    assert layouts == 40 * 15 and abs(row.bytes - (done.after - layouts)) <= 0.02 * done.after


def test_the_first_row_is_the_model_as_it_is(timed: None) -> None:
    for tied in (True, False):
        model = tiny_llama(tie_word_embeddings=tied, **SIZES)
        found = forecast(model, prompt=32)
        first = found.rows[0]
        assert (
            first.name == "dense float32, torch" and first.bytes == model_bytes(model) and found.length == 32
        )
        # 14 layers of the blocks and the head, which sees one row of the prompt
        weights = 4 * (2 * (64 * 64 * 2 + 32 * 64 * 2 + 96 * 64 * 3) + 128 * 64)
        assert first.token == pytest.approx(0.001 + 1e-9 * weights + 15 * 1e-8)
        assert first.prompt == pytest.approx(0.02 + 1e-9 * weights + (14 * 32 + 1) * 1e-8)
        assert first.spread == pytest.approx(0.1 * (first.token - 0.001) / first.token)
        assert first.rate == 1 / first.token and found.other == (0.001, 0.02)


def test_a_large_matrix_is_probed_in_part(timed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(tie_word_embeddings=False, **SIZES)
    whole = forecast(model).rows
    monkeypatch.setattr(probes, "LIMIT", 48 * 64)
    for row, part in zip(whole, forecast(model).rows, strict=True):
        assert row.bytes == pytest.approx(part.bytes, rel=0.02)


def test_whole_layers_in_the_kernels_count_from_matrices_of_which_a_quarter_is_kept(
    timed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is that of the quarters, and what each kernel takes longer than its quarter; nothing is below bare."""

    def paced(model: Any, prompt: int, count: int, clock: Any = None, reread: bool = True) -> Pace:
        part = model.model.layers[0].mlp.up_proj
        if not hasattr(part, "packed"):
            return Pace(0.02, 0.001, prompt, 0.0, "lean")
        return Pace(0.5, 1e-3 * (3 if len(part.packed.values) else 2), prompt, 0.0, "native")

    monkeypatch.setattr(module, "pace", paced)
    model = tiny_llama(tie_word_embeddings=False, **SIZES)
    layers = layers_of(model, targets(model)[0])
    thin = sum(x.count * 1e-9 * sliver(x.rows, x.columns, KEPT).packed.bytes for x in layers)
    rest = model_bytes(model) - sum(4 * x.count * x.rows * x.columns for x in layers)
    for name in ("dense int8", "70% 16x1 int8"):
        case = next(case for case in cases("float32") if case.name == name)
        found = forecast(model, chosen=[case])
        kernels = 1e-9 * (found.rows[0].bytes - rest)
        assert found.rows[0].token == pytest.approx(3e-3 + kernels - thin, abs=1e-9)
        assert found.rows[0].prompt < 0.1 and found.packed == 2e-3 and found.other == (0.001, 0.02)
    huge = Native(bare=5e-3, thin=3e-3)
    free = [Probe(0, 0.0, 0.0, 0.0, 1.0)] * len(layers)
    row = module._row(
        cases("float32")[2], layers, free, torch.float32, 0, Pace(0.1, 0.1, 8, 0.0, "lean"), huge
    )
    assert row.token == 5e-3


def test_channels_narrow_the_mlp(timed: None) -> None:
    rows = {row.name: row for row in forecast(tiny_llama(tie_word_embeddings=False, **SIZES)).rows}
    less = rows["dense int8"].bytes - rows["30% channels int8"].bytes
    # 96 inner channels become 64: 70% of them, to the next 16 rows (64) and 32 columns (64)
    assert less == 2 * (3 * 32 * 64 + 2 * 4 * 32)


def test_the_model_is_left_as_it_was(timed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    parts = list(model.modules())
    found, _ = targets(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = model(ids).logits
        with pytest.raises(KeyboardInterrupt), stubs(found) as traffic:
            before, start = traffic.seconds, traffic.clock()
            assert float(model(ids).logits.abs().sum()) == 0, "no layer multiplies"
            assert traffic.seconds > before and traffic.clock() > start
            raise KeyboardInterrupt
        forecast(model)
        assert all(one is other for one, other in zip(model.modules(), parts, strict=True))
        assert torch.equal(model(ids).logits, wanted)


def test_shapes_that_do_not_fit_are_left_out_and_told(timed: None) -> None:
    model = tiny_llama(
        hidden_size=36, intermediate_size=50, num_attention_heads=2, num_key_value_heads=1, pad_token_id=None
    )
    found = forecast(model)
    names = {row.name for row in found.rows}
    assert {"50% int8", "dense int8"} <= names and not names & {"dense int4", "2:4 int8", "2:4 bfloat16"}
    assert "dense int4 is left out: groups of 32 do not divide 36 columns" in found.notes
    assert "2:4 int8 is left out: 50 columns do not come in fours" in found.notes
    assert misfit(Case("c", "dense", "int8", channels=0.3), [Layer(8, 8, 1, True, "", False, False)])


def test_layers_are_counted_by_shape() -> None:
    model = tiny_llama(tie_word_embeddings=True, **SIZES)
    found = {(x.rows, x.columns, x.inner): x for x in layers_of(model, targets(model)[0])}
    assert {key: layer.count for key, layer in found.items()} == {
        (64, 64, ""): 4,
        (32, 64, ""): 4,
        (96, 64, "rows"): 4,
        (64, 96, "columns"): 2,
        (128, 64, ""): 1,
    }
    head = found[128, 64, ""]
    assert head.tied and head.last and not head.cut and found[64, 64, ""].cut


def row(name: str, size: int, token: float, plain: bool = False) -> Row:
    return Row(name, plain, size, token, 1.0, 0.0)


def test_verdicts_say_when_rounding_is_enough() -> None:
    rows = [
        row("dense float32, torch", 400_000_000, 0.04, True),
        row("dense int8", 100_000_000, 0.01, True),
        row("dense int4", 60_000_000, 0.008, True),
        row("50% bfloat16", 120_000_000, 0.012),
        row("50% int8", 70_000_000, 0.006),
        row("90% int8", 20_000_000, 0.002),
    ]
    assert verdicts(rows) == [
        "50% bfloat16: plain dense int4 is as small (60 of 120 MB) and faster (125 against 83 tokens a second)",
        "50% int8: 1.33x the speed of dense int4, the best plain rounding as small",
        "90% int8: smaller than every plain rounding",
    ]


def test_cases_follow_the_dtype() -> None:
    names = [case.name for case in cases("bfloat16")]
    assert (
        names[0] == "dense bfloat16, torch" and "50% float32" not in names and "dense bfloat16" not in names
    )
    assert len(set(names)) == len(names) and sum(case.plain for case in cases("float32")) == 4
    assert cases("float32")[0].name == "dense float32, torch" and "50% float32" in {
        c.name for c in cases("float32")
    }


def t5() -> Any:
    import transformers

    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()


def bert() -> Any:
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64)).eval()


def test_what_cannot_be_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="no Linear or Conv1D"):
        forecast(nn.ReLU().eval())
    with pytest.raises(BadInput, match="training mode"):
        forecast(tiny_llama().train())
    with pytest.raises(Unsupported, match="not a causal language model"):
        forecast(nn.Sequential(nn.Linear(64, 64)).eval())
    for other, line in ((t5(), "not a causal language model"), (bert(), "gives no logits of a next token")):
        with pytest.raises(Unsupported, match=line):
            forecast(other, prompt=8)
    monkeypatch.setattr(library, "load", lambda: None)
    with pytest.raises(Unsupported, match="no compiled kernels to probe"):
        forecast(tiny_llama())


def test_pace_is_short_where_positions_are_few() -> None:
    found = pace(tiny_llama(), prompt=500, count=8, repeats=1)
    assert found.length == 64 - 8 - 1 and found.rate == 1 / found.token > 0 and found.way == "lean"
    assert pace(tiny_llama(), prompt=4, count=500, repeats=1).length == 1


@pytest.mark.parametrize(("reread", "readings"), [(True, 4), (False, 1)])
def test_pace_reads_the_prompt_as_often_as_asked(
    reread: bool, readings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, step, lengths, positions = Decoder.read, Decoder.step, [], []

    def counted(self: Decoder, ids: Any, room: int) -> Any:
        lengths.append(len(ids))
        return read(self, ids, room)

    def seen(self: Decoder, token: int) -> Any:
        positions.append(self.length)
        return step(self, token)

    monkeypatch.setattr(Decoder, "read", counted)
    monkeypatch.setattr(Decoder, "step", seen)
    assert pace(tiny_llama(), prompt=9, count=5, reread=reread).prompt > 0
    assert lengths.count(9) == readings and positions[-20:] == [*range(9, 14)] * 4


def test_probes_on_this_machine() -> None:
    found: Forecast = forecast(tiny_llama(**SIZES), prompt=8)
    assert found.seconds > 0 and found.bandwidth > 1e8 and len(found.rows) == len(cases("float32"))
    assert all(row.token > 0 and row.prompt > 0 and row.spread >= 0 for row in found.rows)
    assert found.rows[0].token > found.other[0] and found.packed is not None
    assert all(row.token >= found.packed for row in found.rows[1:])
    assert forecast(tiny_llama(**SIZES).half(), prompt=8, chosen=cases("float16")[:1]).packed is None
