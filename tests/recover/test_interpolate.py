"""Interpolation: the ends bit for bit, Fisher weights by hand, batch norm against torch, layers cut against sorting."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from secateur.core.select import cut_count
from secateur.core.units import Site
from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.io.classifiers import load_classifier
from secateur.methods.weights.l_obs import LOBS
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.recover.interpolate import (
    cut_layers,
    fisher,
    interpolate,
    layer_groups,
    restate_batch_norm,
    tokens,
)
from secateur.signals.hessian import InputHessian

State = dict[str, Tensor]


def mlp(seed: int) -> nn.Module:
    return load_classifier("mlp-8-6", channels=1, size=3, classes=4, seed=seed)


def conv(seed: int) -> nn.Module:
    return load_classifier("conv-4-6", channels=1, size=5, classes=3, seed=seed)


def pair(seed: int, dtype: torch.dtype = torch.float32) -> tuple[State, State]:
    g = torch.Generator().manual_seed(seed)

    def end(count: int) -> State:
        w, b = torch.randn(3, 2, generator=g), torch.randn(3, generator=g)
        return {"w": w.to(dtype), "b": b.to(dtype), "n": torch.tensor(count)}

    return end(5), end(9)


@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_ends_are_bitwise_and_between_it_is_the_line(seed: int, alpha: float, dtype: torch.dtype) -> None:
    zero, tuned = pair(seed, dtype)
    for end, state in ((0, zero), (1, tuned)):
        found = interpolate(zero, tuned, end)
        assert all(torch.equal(found[n], state[n]) and found[n] is not state[n] for n in state)
    found = interpolate(zero, tuned, alpha)
    for name in ("w", "b"):
        assert found[name].dtype == dtype
        exact = (1 - alpha) * zero[name].double() + alpha * tuned[name].double()
        torch.testing.assert_close(found[name], exact.to(dtype))
    assert int(found["n"]) == (9 if alpha > 0 else 5), "whole numbers are the tuned end's, but at 0"
    same = interpolate(zero, zero, alpha)
    assert all(torch.equal(same[n], zero[n]) for n in zero), "equal ends give a flat path"


def test_infinite_entries_that_are_equal_stay() -> None:
    mask = {"m": torch.tensor([float("-inf"), 1.0])}
    assert interpolate(mask, {"m": torch.tensor([float("-inf"), 3.0])}, 0.25)["m"].tolist() == [
        float("-inf"),
        1.5,
    ]


@pytest.mark.parametrize(
    "change,line",
    [
        (lambda s: s.pop("b"), "b: the fine-tuned end has no entry of this name"),
        (lambda s: s.update(c=s["b"]), "c: the zero-shot end has no entry of this name"),
        (
            lambda s: s.update(w=s["w"].t()),
            r"w: zero-shot it is float32 \[3, 2\], fine-tuned float32 \[2, 3\]",
        ),
        (lambda s: s.update(w=s["w"].half()), r"w: zero-shot it is float32 \[3, 2\], fine-tuned float16"),
    ],
)
def test_states_of_two_networks(change, line: str) -> None:
    zero, tuned = pair(0)
    change(tuned)
    with pytest.raises(BadInput, match=line):
        interpolate(zero, tuned, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_alphas_that_are_none(alpha: float) -> None:
    with pytest.raises(BadInput, match="alpha"):
        interpolate(*pair(0), alpha)


def test_fisher_weights_by_hand() -> None:
    zero = {"w": torch.zeros(3), "b": torch.tensor(2.0)}
    tuned = {"w": torch.ones(3), "b": torch.tensor(4.0)}
    f0, f1 = {"w": torch.tensor([1.0, 0.0, 3e-8])}, {"w": torch.tensor([3.0, 0.0, 0.0])}
    found = interpolate(zero, tuned, 0.5, fishers=(f0, f1))
    # 3 / (1 + 3); both at the floor; 1e-8 / (3e-8 + 1e-8)
    torch.testing.assert_close(found["w"], torch.tensor([0.75, 0.5, 0.25]))
    assert float(found["b"]) == 3.0, "an entry without a Fisher value lies on the plain line"
    found = interpolate(zero, tuned, 0.2, fishers=(f0, f1))
    torch.testing.assert_close(found["w"], torch.tensor([0.6 / 1.4, 0.2, 0.2 / 2.6]))
    for end, state in ((0, zero), (1, tuned)):
        assert torch.equal(interpolate(zero, tuned, end, fishers=(f0, f1))["w"], state["w"])
    with pytest.raises(BadInput, match="fishers"):
        interpolate(zero, tuned, 0.5, fishers=(f0, {}))


def test_fisher_of_a_linear_model_is_known() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).train()
    x, y = torch.randn(7, 5), torch.randint(0, 3, (7,))
    found = fisher(model, x, y)
    slope = model(x).softmax(1) - F.one_hot(y, 3)  # d(-log p) / d logits
    torch.testing.assert_close(found["bias"], slope.square().mean(0))
    torch.testing.assert_close(found["weight"], (slope[:, :, None] * x[:, None]).square().mean(0))
    assert model.training and model.weight.grad is None
    with pytest.raises(BadInput, match="fisher"):
        fisher(model, x, y[:3])
    with pytest.raises(BadInput, match="requires_grad"):
        fisher(model.requires_grad_(False), x, y)


def test_tied_parameters_have_one_fisher_value_and_one_path() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    model.forward = lambda x: model["b"](model["a"](x))  # type: ignore[method-assign]
    found = fisher(model, torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert torch.equal(found["a.weight"], found["b.weight"]) and float(found["a.weight"].sum()) > 0
    assert layer_groups(model) == {"a": ("a.weight", "b.weight")}
    zero = {n: torch.zeros_like(t) for n, t in model.state_dict().items()}
    state, cut = cut_layers(model, zero, layer_groups(model), sparsity=0.5)
    assert cut == ["a.weight"] and torch.equal(state["a.weight"], state["b.weight"])
    assert int((state["a.weight"] == 0).sum()) == 4


class Noisy(nn.Module):
    """Batch norm behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_batch_norm_is_restated_as_torch_does_it() -> None:
    torch.manual_seed(0)
    ours, theirs = conv(0), conv(0)
    batches = [torch.rand(6, 1, 5, 5) for _ in range(3)]
    assert restate_batch_norm(ours.eval(), batches) == 2 and not ours.training
    update_bn(batches, theirs)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert restate_batch_norm(mlp(0), batches) == 0


def test_dropout_stays_off_and_modes_come_back() -> None:
    model = Noisy().train()
    norm = model.body[2]
    model.body[0].eval()
    batch = torch.rand(8, 1, 5, 5)
    restate_batch_norm(model, [batch])
    with torch.no_grad():
        clean = model.body[0](batch)
    torch.testing.assert_close(norm.running_mean, clean.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, clean.var((0, 2, 3)))
    assert norm.momentum == 0.3 and model.training and norm.training and not model.body[0].training


@pytest.mark.parametrize(
    "batches,line",
    [([], "no batch reached it"), ([torch.rand(1, 1, 3, 3)], "one value a channel")],
)
def test_statistics_come_back_where_they_cannot_be_measured(batches: list[Tensor], line: str) -> None:
    model = Noisy()
    restate_batch_norm(model, [torch.rand(8, 1, 5, 5)])
    before = deepcopy(model.state_dict())
    with pytest.raises(BadInput, match=line):
        restate_batch_norm(model, batches)
    assert (
        all(torch.equal(before[n], t) for n, t in model.state_dict().items())
        and model.body[2].momentum == 0.3
    )


@pytest.mark.parametrize("name", ["mlp-8-6", "conv-4-6", "vgg-4-6", "resnet20x0.5"])
@pytest.mark.parametrize("by", ["matrix", "block"])
def test_every_entry_is_in_one_layer(name: str, by: str) -> None:
    model = load_classifier(name, channels=1, size=8, classes=3)
    groups = layer_groups(model, by)
    assert sorted(n for names in groups.values() for n in names) == sorted(model.state_dict())


def test_layers_of_networks() -> None:
    assert list(layer_groups(mlp(0))) == ["hidden.0", "hidden.1", "linear"]
    groups = layer_groups(conv(0))
    assert list(groups) == ["stages.0.0.conv", "stages.1.0.conv", "linear"]
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert groups["stages.1.0.conv"] == ("stages.1.0.conv.weight", *(f"stages.1.0.bn.{n}" for n in norms))
    blocks = layer_groups(load_classifier("resnet20", channels=1, size=8, classes=3), "block")
    stages = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert list(blocks) == ["conv1", *stages, "linear"]
    with pytest.raises(BadInput, match="measure"):
        layer_groups(mlp(0), "blocks")


def test_layers_of_a_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    blocks = layer_groups(model, "block")
    inner = [name for name in blocks if name.endswith((".0", ".1"))]
    assert len(inner) == 2 and all(len(blocks[name]) >= 16 for name in inner)
    assert list(blocks)[-1] == "classifier" and len(blocks["classifier"]) == 2
    norm = next(n for n in model.state_dict() if n.endswith("layernorm.weight"))
    assert norm in blocks[inner[1]], "the norm behind the last block goes with it"
    assert sum(name.startswith(inner[0]) for name in layer_groups(model)) == 6


def test_vectors_before_any_matrix_are_a_layer() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4))
    ones, others = ("0.weight", "0.bias"), ("1.weight", "1.bias", "2.weight", "2.bias")
    assert layer_groups(model) == {"0": ones, "1": others}


def sorted_cut(values: Tensor, sparsity: float) -> Tensor:
    """Oracle: the smallest |values| become zero, of equal ones the first."""
    flat = values.flatten().tolist()
    gone = sorted(range(len(flat)), key=lambda i: (abs(flat[i]), i))[: cut_count(len(flat), sparsity)]
    return torch.tensor([0.0 if i in gone else v for i, v in enumerate(flat)]).view_as(values)


@pytest.mark.parametrize("of", ["difference", "tuned"])
@pytest.mark.parametrize("make", [mlp, conv])
def test_magnitude_cuts_what_sorting_cuts(make, of: str) -> None:
    zero, model = make(0).state_dict(), make(1)
    tuned = deepcopy(model.state_dict())
    layers = layer_groups(model)
    layer = list(layers)[1]
    state, cut = cut_layers(model, zero, {layer: layers[layer]}, "magnitude", 0.6, of=of)
    assert cut == [f"{layer}.weight"]
    base = zero[cut[0]] if of == "difference" else torch.zeros_like(zero[cut[0]])
    gone = sorted_cut(tuned[cut[0]] - base, 0.6) == 0
    assert torch.equal(state[cut[0]], torch.where(gone, base, tuned[cut[0]]))
    same = [torch.equal(state[n], tuned[n]) for n in state if n not in cut]
    assert all(same), "vectors and other layers stay"
    assert all(torch.equal(model.state_dict()[n], tuned[n]) for n in tuned), "the model keeps its weights"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_nothing_changes_at_zero_and_the_layer_is_zero_shot_at_one(method: str) -> None:
    zero, model = conv(0).state_dict(), conv(1)
    model.stages[0][0].bn.running_mean.fill_(0.7)
    tuned, layers, x = deepcopy(model.state_dict()), layer_groups(model), [torch.rand(4, 1, 5, 5)]
    state, cut = cut_layers(model, zero, layers, method, 0, batches=x)
    assert cut == [] and all(torch.equal(state[n], tuned[n]) for n in tuned)
    own = layers["stages.0.0.conv"]
    state, _ = cut_layers(model, zero, {"stages.0.0.conv": own}, method, 1, batches=x)
    for alpha in (0.0, 0.3, 1.0):
        between, plain = interpolate(zero, state, alpha), interpolate(zero, tuned, alpha)
        floats = [n for n in zero if zero[n].is_floating_point()]
        assert all(torch.equal(between[n], zero[n]) for n in floats if n in own)
        assert all(torch.equal(between[n], plain[n]) for n in floats if n not in own)


def unfolded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Oracle: every patch by slicing, [patches, in * rows * columns]."""
    (kh, kw), (ph, pw) = conv.kernel_size, conv.padding
    x = F.pad(x, (pw, pw, ph, ph))
    rows = [
        x[n, :, i : i + kh, j : j + kw].flatten()
        for n in range(len(x))
        for i in range(0, x.shape[2] - kh + 1, conv.stride[0])
        for j in range(0, x.shape[3] - kw + 1, conv.stride[1])
    ]
    return torch.stack(rows)


def test_patches_times_the_weight_are_the_convolution() -> None:
    x = torch.randn(2, 3, 7, 6)
    layer = nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0), bias=False)
    assert torch.equal(tokens(layer, x), unfolded(layer, x))
    out = layer(x).permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(tokens(layer, x) @ layer.weight.flatten(1).t(), out)
    line = nn.Conv1d(3, 5, 3, stride=2, padding=1, dilation=2, bias=False)
    x = torch.randn(2, 3, 9)
    torch.testing.assert_close(
        tokens(line, x) @ line.weight.flatten(1).t(), line(x).transpose(1, 2).reshape(-1, 5)
    )
    x = torch.randn(2, 3, 9)
    assert torch.equal(tokens(nn.Linear(9, 2), x), x.reshape(-1, 9))
    for bad in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(3, 4, 3, padding="same"), nn.Conv3d(1, 1, 1)):
        with pytest.raises(Unsupported, match="magnitude"):
            tokens(bad, torch.randn(1, 3, 5, 5))


def test_wanda_on_a_convolution_weighs_by_the_inputs() -> None:
    zero, model, x, name = conv(0).state_dict(), conv(1).eval(), torch.rand(6, 1, 5, 5), "stages.1.0.conv"
    own = {name: layer_groups(model)[name]}
    state, _ = cut_layers(model, zero, own, "wanda", 0.5, batches=x.split(4))
    with torch.no_grad():
        inside = model.stages[0]((x - model.mean) / model.std)
    norms = unfolded(model.stages[1][0].conv, inside).square().sum(0).sqrt()
    new, old = (s[f"{name}.weight"].flatten(1) for s in (model.state_dict(), zero))
    scores = (new - old).abs() * norms
    gone = torch.stack([sorted_cut(row, 0.5) == 0 for row in scores])
    assert torch.equal(state[f"{name}.weight"].flatten(1), torch.where(gone, old, new))


@pytest.mark.parametrize("of", ["difference", "tuned"])
@pytest.mark.parametrize("kind", [SparseGPT, LOBS])
def test_methods_that_update_see_the_inputs_and_the_bias(kind: type, of: str) -> None:
    zero, model, name = mlp(0).state_dict(), mlp(1).eval(), "hidden.1.weight"
    x = torch.rand(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    own = {"hidden.1": layer_groups(model)["hidden.1"]}
    nn.init.constant_(model.hidden[1].bias, 0.2)
    state, cut = cut_layers(model, zero, own, kind(damping=0.02), 0.5, of=of, batches=x.split(40))
    with torch.no_grad():
        inputs = model.hidden[0](((x - model.mean) / model.std).flatten(1)).relu()
    signal = InputHessian(8)
    signal.add(InputHessian.measure(inputs), len(inputs))
    signal.samples = 64
    base = {n: t if of == "difference" else torch.zeros_like(t) for n, t in zero.items()}
    difference, bias = (model.state_dict()[n] - base[n] for n in own["hidden.1"])
    wanted = kind(damping=0.02).cut(difference, signal, Site(name, (6, 8)), 0.5, bias)
    assert cut == [name] and int((state[name] == base[name]).sum()) == 24
    torch.testing.assert_close(state[name], base[name] + wanted.weight)
    assert torch.equal(state[name] == base[name], ~wanted.keep)
    new = bias if wanted.bias is None else wanted.bias
    torch.testing.assert_close(state["hidden.1.bias"], base["hidden.1.bias"] + new)
    assert (kind is LOBS) == (not torch.equal(state["hidden.1.bias"], model.hidden[1].bias))


def test_a_global_method_ranks_the_layers_together() -> None:
    zero, model = mlp(0).state_dict(), mlp(1)
    state, cut = cut_layers(model, zero, layer_groups(model), "essential_sparsity", 0.7)
    differences = torch.cat([(model.state_dict()[n] - zero[n]).flatten() for n in cut])
    expected = sorted_cut(differences, 0.7) == 0
    assert torch.equal(torch.cat([(state[n] == zero[n]).flatten() for n in cut]), expected)


def test_settings_of_a_method_are_kept() -> None:
    zero, model = mlp(0).state_dict(), mlp(1)
    own = {"hidden.1": layer_groups(model)["hidden.1"]}
    state, _ = cut_layers(model, zero, own, Magnitude(pattern="2:4"), 0.5, of="tuned")
    assert ((state["hidden.1.weight"].view(6, 2, 4) != 0).sum(2) == 2).all()
    with pytest.raises(BadInput, match=r"2:4 cuts 0\.5, not 0\.7"):
        cut_layers(model, zero, own, Magnitude(pattern="2:4"), 0.7)


def test_a_layer_without_a_matrix_to_cut_stays() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2))
    zero = {n: torch.zeros_like(t) for n, t in model.state_dict().items()}
    state, cut = cut_layers(model, zero, {"0": layer_groups(model)["0"]}, sparsity=0.5)
    assert cut == [] and torch.equal(state["0.weight"], model[0].weight)


@pytest.mark.parametrize(
    "how,error,line",
    [
        ({"sparsity": 1.5}, BadInput, "1.5 is not a fraction"),
        ({"sparsity": 1, "of": "tuned"}, BadInput, "1.0 is not a fraction"),
        ({"of": "zero"}, BadInput, "cut"),
        ({"method": "wanda"}, BadInput, "give images, or use magnitude"),
        ({"method": "gmp"}, BadInput, "while a network trains"),
        ({"method": Magnitude(allocate="owl")}, BadInput, "owl weighs whole blocks"),
        ({"method": "wnada"}, NoMatch, "did you mean 'wanda'"),
        ({"method": "wanda", "batches": [torch.zeros(2, 1, 3, 3) + 0.5]}, Unsupported, "only zeros"),
    ],
)
def test_mistakes(how: dict, error: type, line: str) -> None:
    model = mlp(1)
    with pytest.raises(error, match=line):
        cut_layers(model, mlp(0).state_dict(), layer_groups(model), **how)


def test_the_path_of_a_tuned_head_is_the_ensemble_of_the_outputs() -> None:
    zero, tuned, x = mlp(0), mlp(0), torch.rand(20, 1, 3, 3)
    with torch.no_grad():
        tuned.linear.weight.copy_(mlp(5).linear.weight)
        tuned.linear.bias.normal_()
        ends, between = [zero(x), tuned(x)], mlp(1)
        for alpha in (0.0, 0.25, 0.6, 1.0):
            between.load_state_dict(interpolate(zero.state_dict(), tuned.state_dict(), alpha))
            mixed = (1 - alpha) * ends[0] + alpha * ends[1]
            torch.testing.assert_close(between(x), mixed)
            assert torch.equal(between(x).argmax(1), mixed.argmax(1))
