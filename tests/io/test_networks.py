"""The small networks: parameter counts of the papers, a ResNet recomputed by hand, normalisation, seeds, names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput, NoMatch
from secateur.io.networks import OptionA, Settings, full_name, is_network, make_network, skeleton


def settings(architecture: str, **changes: Any) -> Settings:
    base: dict[str, Any] = {"channels": 3, "size": 32, "classes": 10}
    base |= changes
    half = (0.5,) * base["channels"]
    return Settings(**{"architecture": architecture, "mean": half, "std": half, **base})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    # counted from the published weight files of akamaster/pytorch_resnet_cifar10 (option A has no weights)
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)],
)
def test_resnets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count(skeleton(settings(name))) == parameters


def resnet_parameters(depth: int, widths: tuple[int, int, int], channels: int, classes: int) -> int:
    """Convolution weights, two numbers a channel of batch norm, the last layer."""
    first, *_ = widths
    total = 9 * channels * first + 2 * first
    inputs = first
    for width in widths:
        for _ in range((depth - 2) // 6):
            total += 9 * inputs * width + 9 * width * width + 4 * width
            inputs = width
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "depth", "widths"),
    [
        ("resnet44", 44, (16, 32, 64)),
        ("resnet110", 110, (16, 32, 64)),
        ("resnet20x2", 20, (32, 64, 128)),
        ("resnet20x0.5", 20, (8, 16, 32)),
        ("resnet32x0.25", 32, (4, 8, 16)),
    ],
)
def test_width_and_depth(name: str, depth: int, widths: tuple[int, int, int]) -> None:
    assert count(skeleton(settings(name, channels=1, classes=7))) == resnet_parameters(depth, widths, 1, 7)


def test_other_networks_have_the_shapes_their_names_say() -> None:
    lenet = make_network(settings("lenet", channels=1, size=28))
    assert count(lenet) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    mlp = make_network(settings("mlp-64-100-50", channels=1, size=8))
    assert [tuple(p.shape) for n, p in mlp.named_parameters() if n.endswith("weight")] == [
        (64, 64),
        (100, 64),
        (50, 100),
        (10, 50),
    ]
    conv = make_network(settings("conv", channels=1, size=8))
    assert count(conv) == 9 * (16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + 32 * 10 + 10
    for name, size, map_size in (
        ("conv", 8, 8),
        ("conv", 32, 8),
        ("conv", 28, 7),
        ("vgg", 32, 4),
        ("vgg", 8, 1),
    ):
        model: Any = make_network(settings(name, size=size))
        assert model.stages(torch.zeros(1, 3, size, size)).shape[2:] == (map_size, map_size)
    with pytest.raises(BadInput, match="1 pixel after 3 stages"):
        skeleton(settings("vgg-4-4-4-4", size=8))


def oracle(state: dict[str, Tensor], x: Tensor, mean: float, std: float) -> Tensor:
    """A ResNet in evaluation mode, written out over its tensors with the formulas of He et al., no modules."""

    def norm(x: Tensor, at: str) -> Tensor:
        shift, scale = state[f"{at}.running_mean"], (state[f"{at}.running_var"] + 1e-5).rsqrt()
        x = (x - shift.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        return x * state[f"{at}.weight"].view(1, -1, 1, 1) + state[f"{at}.bias"].view(1, -1, 1, 1)

    x = torch.relu(norm(F.conv2d((x - mean) / std, state["conv1.weight"], padding=1), "bn1"))
    for layer in (1, 2, 3):
        for block in range(3):
            at = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            inner = F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(torch.relu(norm(inner, f"{at}.bn1")), state[f"{at}.conv2.weight"], padding=1)
            inner = norm(inner, f"{at}.bn2")
            if stride == 2:
                side = torch.zeros(len(x), x.shape[1] // 2, *inner.shape[2:])
                x = torch.cat([side, x[:, :, ::2, ::2], side], 1)
            x = torch.relu(inner + x)
    return x.flatten(2).mean(2) @ state["linear.weight"].t() + state["linear.bias"]


def test_resnet20_is_the_paper_s() -> None:
    random = torch.Generator().manual_seed(0)
    model = make_network(settings("resnet20", size=16, mean=(0.4,) * 3, std=(0.2,) * 3), seed=1).eval()
    state = model.state_dict()
    for name, tensor in state.items():  # batch norms that do something
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
    x = torch.rand(4, 3, 16, 16, generator=random)
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(state, x, 0.4, 0.2), rtol=1e-4, atol=1e-4)


def test_option_a_by_hand() -> None:
    x = torch.arange(2 * 9.0).view(1, 2, 3, 3)
    got = OptionA(3, 2)(x)
    assert got.shape == (1, 5, 2, 2)
    assert got[0, 1].tolist() == [[0, 2], [6, 8]] and got[0, 2].tolist() == [[9, 11], [15, 17]]
    assert not got[0, [0, 3, 4]].any()


@pytest.mark.parametrize("name", ["mlp", "lenet", "conv", "vgg", "resnet20"])
def test_normalisation_is_inside(name: str) -> None:
    plain = make_network(settings(name, size=8, mean=(0.0,) * 3, std=(1.0,) * 3)).eval()
    inside = make_network(settings(name, size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))).eval()
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    normal = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 1.0, 2.0]).view(
        1, 3, 1, 1
    )
    with torch.no_grad():
        torch.testing.assert_close(inside(x), plain(normal))
        assert not torch.allclose(inside(x), plain(x))
    assert not {"mean", "std"} & inside.state_dict().keys()  # settings, not weights


@pytest.mark.parametrize("name", ["mlp", "lenet", "conv", "vgg", "resnet20"])
def test_equal_seeds_give_equal_weights_and_touch_no_global_state(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (make_network(settings(name, size=8), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["linear.weight"], other["linear.weight"])
    assert all(tensor.isfinite().all() for tensor in one.values())


def test_weights_have_the_spread_of_he_and_glorot() -> None:
    mlp = make_network(settings("mlp-400", size=16)).state_dict()["hidden.0.weight"]
    assert mlp.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.01)
    lenet = make_network(settings("lenet-400", size=16)).state_dict()["hidden.0.weight"]
    assert lenet.std().item() == pytest.approx((2 / (768 + 400)) ** 0.5, rel=0.01)
    conv: Any = make_network(settings("vgg-8-128")).stages
    assert conv[1][1].conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)


def test_names() -> None:
    assert full_name("mlp") == "mlp-128-128" and full_name("conv-4") == "conv-4"
    for bad in (
        "resnet21",
        "resnet20x",
        "resnet20x0",
        "mlp-0",
        "mlp-",
        "conv-16-",
        "lenet5",
        "",
        "resnet20 ",
    ):
        assert not is_network(bad), bad
    with pytest.raises(NoMatch, match=r"did you mean .*'resnet20'"):
        full_name("resnet21")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"classes": 0}, "classes: 0 is not a count"),
        ({"size": 1.5}, "size: 1.5 is not a count"),
        ({"channels": True, "mean": (0.5,), "std": (0.5,)}, "channels: True is not a count"),
        ({"mean": (0.5,)}, "mean: .*give 3 numbers"),
        ({"std": (0.5, float("nan"), 0.5)}, "std: .*give 3 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "would divide by zero"),
    ],
)
def test_bad_settings(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        settings("conv", **changes)


def test_a_batch_of_another_kind_is_one_line() -> None:
    model = make_network(settings("conv-16-32-32", size=8))
    for bad in (torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(BadInput, match=r"conv-16-32-32: a batch of .*\[N, 3, H, W\]"):
            model(bad)
