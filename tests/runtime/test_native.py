"""The step in the kernels against the models' own passes: every path, halves of both sorts, long answers, extremes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.runtime import decode, library, native
from secateur.runtime.decode import Decoder, agree
from secateur.runtime.lean import Lean
from secateur.runtime.linear import PackedLinear, TwoWays
from tests.tinylm import tiny_llama

PATHS = library.features()["paths"]
pytestmark = pytest.mark.skipif(not PATHS, reason="the kernels were not built")


def tiny(kind: str = "Llama", **changes: Any) -> Any:
    """Two layers; six heads that share two of keys, of eight entries."""
    import transformers

    settings: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 52,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 400,
        "initializer_range": 0.2,
    }
    if kind == "Llama":
        return tiny_llama(**(settings | changes))
    settings |= {"vocab_size": 64, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(settings | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter.data)
    return model


def packed(model: Any, of: Callable[[str], bool] = lambda name: True, **how: Any) -> Any:
    """The model with its linear layers, those `of` says, packed as they are."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and of(name):
            parent, _, child = name.rpartition(".")
            made = PackedLinear.from_linear(module, **({"kind": "dense"} | how))
            setattr(model.get_submodule(parent), child, made)
    return model


def steps(model: Any, step: type[Lean], ids: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [len(ids), vocabulary], token by token from the first."""
    config = model.config
    shape = (1, config.num_key_value_heads, len(ids), model.model.layers[0].self_attn.head_dim)
    keys, values = ([torch.full(shape, torch.nan, dtype=dtype) for _ in range(2)] for _ in range(2))
    made, line = step(model, keys, values), torch.arange(len(ids))
    with torch.inference_mode():
        rows = [
            made(torch.tensor([[token]]), line[at : at + 1], line[: at + 1]) for at, token in enumerate(ids)
        ]
    return torch.stack(rows)


def whole(model: Any, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


IDS = [(7 * at + 3) % 64 for at in range(300)]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Any:
    library.use(request.param)
    yield request.param
    library.use(PATHS[-1])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 34, "hidden_size": 45}),
        ("Llama", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 66}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {"num_attention_heads": 4, "hidden_size": 32, "head_dim": 8}),
    ],
)
def test_a_long_answer_has_the_logits_of_the_models_own_pass(
    kind: str, changes: dict[str, Any], threads: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = tiny(kind, **changes)
    wanted = whole(model.double(), IDS)
    found = steps(packed(model.float()), native.Native, IDS)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)


def test_large_scores_and_gates_are_as_exact(path: str) -> None:
    model = tiny()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 40
        layer.mlp.gate_proj.weight.data *= 60
    scores: list[float] = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda m, x, y: scores.append(float(y.abs().max()))
    )
    wanted = whole(model.double(), IDS[:40])
    model.model.layers[0].mlp.gate_proj._forward_hooks.clear()
    assert scores[0] > 90, "beyond where e^x is all there is"
    plain = steps(model.float(), Lean, IDS[:40]).double()
    found = steps(packed(model), native.Native, IDS[:40]).double()
    assert (found - wanted).abs().max() < 2 * (plain - wanted).abs().max() + 1e-6 * wanted.abs().max()


def test_half_precision_is_as_near_to_the_truth_as_the_lean_step(path: str) -> None:
    model = tiny().bfloat16()
    wanted = whole(model.double(), IDS[:200])
    model.bfloat16()
    plain = steps(model, Lean, IDS[:200], torch.bfloat16).double()
    found = steps(packed(model), native.Native, IDS[:200], torch.bfloat16).double()
    assert (found - wanted).square().mean() < 1.3 * (plain - wanted).square().mean()


@pytest.mark.parametrize(
    "how", [{"kind": "bitmask"}, {"kind": "dense", "values": "int8"}, {"kind": "2:4", "values": "bfloat16"}]
)
def test_packed_layers_multiply_as_they_do_alone(how: dict[str, Any], path: str) -> None:
    model = tiny()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data[:, ::2] = 0  # half of it, in fours too
    packed(model, lambda name: name != "lm_head", **how)
    wanted, found = (steps(model, step, IDS[:20]) for step in (Lean, native.Native))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("left", "runs"),
    [
        ("0.self_attn.v_proj", [(False, [0]), (True, [1, 2, 3])]),
        ("0.mlp.down_proj", [(True, [0]), (False, [1]), (True, [2, 3])]),
        ("1.mlp", [(True, [0, 1, 2]), (False, [3])]),
        ("layers", [(False, [0, 1, 2, 3])]),
    ],
)
def test_halves_that_are_not_packed_run_as_before(left: str, runs: list[Any], dtype: torch.dtype) -> None:
    model = packed(tiny().to(dtype), lambda name: left not in name)
    room = [torch.zeros(1, 2, 4, 8, dtype=dtype) for _ in range(2)]
    assert native.Native(model, room, room).runs == runs
    assert native.fits(model) == any(there for there, _ in runs)
    wanted, found = (steps(model, step, IDS[:30], dtype) for step in (Lean, native.Native))
    if dtype == torch.float32:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=3e-5)
    assert agree(found, wanted)


def test_of_two_ways_the_one_for_a_token_is_taken() -> None:
    model = tiny()
    wanted = whole(model, IDS[:9])
    packed(model)
    for layer in model.model.layers:
        few = layer.mlp.up_proj
        layer.mlp.up_proj = TwoWays(few, few.dense(), 4)
        layer.mlp.down_proj = TwoWays(layer.mlp.down_proj, layer.mlp.down_proj.dense(), 1)  # never for few
    found = steps(model, native.Native, IDS[:9])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=3e-5)
    room = [torch.zeros(1, 2, 4, 8) for _ in range(2)]
    assert native.Native(model, room, room).runs == [(True, [0]), (False, [1]), (True, [2]), (False, [3])]
    for layer in model.model.layers:
        layer.mlp.down_proj = layer.mlp.down_proj.few
    assert native.Native(model, room, room).runs == [(True, [0, 1, 2, 3])]


def test_models_that_stay_with_other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not native.fits(tiny()), "nothing packed"
    assert not native.suits(tiny(num_hidden_layers=0))
    half = packed(tiny())
    half.model.embed_tokens.half()
    assert not native.fits(half) and not native.fits(nn.Linear(2, 2))
    assert native._halves(packed(tiny(hidden_act="gelu"))) == [True, False, True, False]
    odd = packed(tiny())
    odd.model.layers[1].self_attn.scaling = 1.0
    assert native._halves(odd) == [True, True, False, False]
    monkeypatch.setattr(library, "load", lambda: None)
    assert not native.fits(packed(tiny()))


def test_the_decoder_takes_it_and_says_what_compiling_has_left() -> None:
    model = tiny()
    prompt = [5, 9, 33]
    wanted = list(decode.tokens(Decoder(model), prompt, max_tokens=60))
    decoder = Decoder(packed(model), compile=True)
    assert decoder.way == "native"
    assert decoder.notices == ["not compiled: the step runs in the compiled kernels"]
    assert list(decode.tokens(decoder, prompt, max_tokens=60)) == wanted
    longer = list(decode.tokens(decoder, prompt, max_tokens=300))  # keys and values are made anew
    assert longer[:60] == wanted


def test_weights_that_are_loaded_between_two_answers_are_seen() -> None:
    model, other = packed(tiny()), tiny()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    decoder = Decoder(model)
    first = list(decode.tokens(decoder, [5, 9, 33], max_tokens=20))
    wanted = list(decode.tokens(Decoder(other), [5, 9, 33], max_tokens=20))
    model.load_state_dict(packed(other).state_dict())
    assert list(decode.tokens(decoder, [5, 9, 33], max_tokens=20)) == wanted != first


def test_a_step_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = native.Native.through
    monkeypatch.setattr(native.Native, "through", lambda self, *rest: right(self, *rest).roll(1, -1))
    assert Decoder(packed(tiny())).way == "lean"


def test_nan_reaches_the_logits(path: str) -> None:
    model = packed(tiny())
    model.model.embed_tokens.weight.data[5, 3] = torch.nan
    found = steps(model, native.Native, [4, 5])
    assert bool(found[0].isfinite().all()) and bool(found[1].isnan().all())


def test_the_kernel_refuses_what_does_not_fit_together() -> None:
    model = packed(tiny())
    room = [torch.zeros(1, 2, 4, 8) for _ in range(2)]
    step = native.Native(model, room, room)
    line, token = torch.arange(9), torch.tensor([[1]])
    with torch.inference_mode(), pytest.raises(BadInput, match="a layer does not fit together"):
        step(token, line[4:5], line[:5])  # position 4 of 4
    names = ("layers", "cos", "sin", "scale", "count", "dtype", "hidden", "size", "room")
    right = struct.unpack("3Pd5q", step.stack)
    for name, wrong in {"count": 1, "dtype": 2, "hidden": 47, "size": 9, "room": 0}.items():
        step.stack = struct.pack("3Pd5q", *(dict(zip(names, right, strict=True)) | {name: wrong}).values())
        with torch.inference_mode(), pytest.raises(BadInput):
            step(token, line[:1], line[:1])
