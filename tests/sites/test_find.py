"""Blocks and sites of models nobody wrote code for: names, sharing, lists that are no depth, globs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import NoMatch, Unsupported
from secateur.sites.find import Block, check_dtype, find_blocks, pick, uncut_matrices


class Layer(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, 12), nn.Linear(12, width), nn.LayerNorm(width)


class Other(Layer):
    pass


class Model(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(20, 8), nn.ModuleList(layers), nn.Linear(8, 20)


class Conv1D(nn.Module):
    """As in GPT-2: weight [in, out]."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.nf, self.weight, self.bias = (
            out,
            nn.Parameter(torch.randn(width, out)),
            nn.Parameter(torch.zeros(out)),
        )


class Experts(nn.Module):
    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.num_experts = 3
        if transposed:
            self.is_transposed = True
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 12) if transposed else torch.randn(3, 12, 8))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 12))
        self.router = nn.Parameter(torch.randn(3, 8))


def found(model: nn.Module) -> dict[str, list[str]]:
    return {block.name: [site.name for site in block.sites] for block in find_blocks(model)}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {site.name: site.site.shape for block in find_blocks(model) for site in block.sites}


def test_layers_are_blocks_and_their_linears_sites() -> None:
    model = Model([Layer(), Layer()])
    assert found(model) == {f"layers.{i}": [f"layers.{i}.up", f"layers.{i}.down"] for i in (0, 1)}
    assert uncut_matrices(model, find_blocks(model)) == ["head"]
    assert shapes(model)["layers.0.up"] == (12, 8)


def test_site_names_are_those_of_the_state_dict() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model([Layer(), Layer()])

    for model in (
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        nn.ModuleList([Layer(), Layer()]),
        Wrapped(),
        nn.Linear(4, 4),
    ):
        names = set(model.state_dict())
        for block in find_blocks(model):
            for site in block.sites:
                assert f"{site.name}.weight".lstrip(".") in names, site.name
                assert not site.name.startswith("."), site.name


def test_a_model_that_repeats_nothing_is_one_block() -> None:
    mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert found(mlp) == {"": ["0", "2"]}


def test_the_outermost_list_wins() -> None:
    """Stages of layers (ConvNeXt): the stages are the blocks, though each holds a list."""
    stages = [Model([Layer(), Layer()]) for _ in range(2)]
    assert list(found(Model(list(stages)))) == ["layers.0", "layers.1"]


def test_an_outer_list_wins_a_tie_with_an_inner_one() -> None:
    class Stage(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(depth))

    assert list(found(nn.ModuleList([Stage(2), Stage(0)]))) == ["0", "1"]


def test_a_list_of_mixed_layers_is_still_the_depth() -> None:
    layers: list[nn.Module] = [Layer(), Other(), Layer(), Other()]
    layers[1].inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert list(found(Model(layers))) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert len(shapes(Model(layers))) == 10


def test_a_list_that_names_a_module_twice_is_not_walked_in_its_order() -> None:
    a, b = Layer(), Layer()
    a.inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model = Model([a, b, a, b])
    assert list(found(model)) == [""] and len(shapes(model)) == 7
    assert all(site.uses == (2 if "layers" in site.name else 1) for site in find_blocks(model)[0].sites)


def test_the_bigger_of_two_towers_is_walked_and_the_other_named() -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.vision = Model([Layer(4), Layer(4)]), Model([Layer(16), Layer(16)])

    model = Clip()
    assert list(found(model)) == ["vision.layers.0", "vision.layers.1"]
    assert "text.layers.0.up" in uncut_matrices(model, find_blocks(model))


def test_transposed_weights_are_seen_as_out_by_in() -> None:
    layers = [nn.Sequential(Conv1D(12, 8)) for _ in range(2)]
    site = find_blocks(Model(list(layers)))[0].sites[0]
    assert site.site.shape == (12, 8) and site.transposed and site.view().shape == (12, 8)
    site.view()[3, 5] = 42.0
    owner: Any = site.owner
    assert owner.weight[5, 3] == 42.0, "writing to the view does not reach the model"
    assert site.bias() is not None and site.bias().shape == (12,)  # type: ignore[union-attr]


@pytest.mark.parametrize("transposed", [False, True])
def test_every_expert_of_a_fused_tensor_is_a_site(transposed: bool) -> None:
    model = Model([Experts(transposed), Experts(transposed)])
    assert shapes(model) == {f"layers.{i}.gate_up_proj[{e}]": (12, 8) for i in (0, 1) for e in range(3)}
    site = find_blocks(model)[1].sites[2]
    before = site.owner.gate_up_proj.clone()  # type: ignore[operator,union-attr]
    site.view().zero_()
    after = site.owner.gate_up_proj  # type: ignore[union-attr]
    assert torch.equal(after[:2], before[:2]) and not after[2].any() and site.bias() is None  # type: ignore[index,union-attr]


def test_shared_weights_are_one_site_with_all_its_uses() -> None:
    for tie in ("parameter", "memory"):
        model = Model([Layer(), Layer(), Layer()])
        first, last = model.get_submodule("layers.0.up"), model.get_submodule("layers.2.up")
        last.weight = first.weight if tie == "parameter" else nn.Parameter(first.weight.data)  # type: ignore[union-attr]
        sites = {site.name: site.uses for block in find_blocks(model) for site in block.sites}
        assert sites.pop("layers.0.up") == 2 and "layers.2.up" not in sites
        assert set(sites.values()) == {1} and len(sites) == 4, tie


def test_a_weight_tied_to_the_embedding_knows_it() -> None:
    model = Model([Layer(), Layer()])
    model.head.weight = model.embed.weight
    assert set(found(model)) == {"layers.0", "layers.1"}


def test_on_the_meta_device_every_weight_is_its_own() -> None:
    with torch.device("meta"):
        model = Model([Layer(), Layer()])
    sites = [site for block in find_blocks(model) for site in block.sites]
    assert len(sites) == 4 and all(site.uses == 1 for site in sites)


@pytest.mark.parametrize(
    "model", [nn.LayerNorm(4), nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Conv2d(3, 4, 3), nn.Identity()]
)
def test_a_model_without_a_matrix_is_refused(model: nn.Module) -> None:
    with pytest.raises(Unsupported, match=type(model).__name__):
        find_blocks(model)


# -- globs -------------------------------------------------------------------------------------------------------------


def names(blocks: list[Block]) -> list[str]:
    return [site.name for block in blocks for site in block.sites]


def test_globs_choose_and_leave_out() -> None:
    blocks = find_blocks(Model([Layer(), Layer()]))
    assert names(pick(blocks)) == names(blocks)
    assert names(pick(blocks, ["*.up"])) == ["layers.0.up", "layers.1.up"]
    assert names(pick(blocks, ["*.up", "layers.1.*"], ["layers.1.up"])) == ["layers.0.up", "layers.1.down"]
    assert len(pick(blocks, ["layers.1.*"])) == 2, "the walk still passes through every block"


def test_an_experts_full_name_is_a_name_not_a_glob() -> None:
    blocks = find_blocks(Model([Experts(), Experts()]))
    assert names(pick(blocks, ["layers.1.gate_up_proj[2]"])) == ["layers.1.gate_up_proj[2]"]
    assert len(names(pick(blocks, [], ["layers.1.gate_up_proj[2]"]))) == 5


@pytest.mark.parametrize(
    ("only", "skip", "word"),
    [
        (["*.upp"], [], "up"),
        ([], ["layer.0.*"], "layers"),
        (["*.up"], ["*.up"], "skip"),
        ([], ["*"], "skip"),
        (["UP"], [], "UP"),
    ],
)
def test_a_glob_that_matches_nothing_is_an_error(only: list[str], skip: list[str], word: str) -> None:
    with pytest.raises(NoMatch, match=word):
        pick(find_blocks(Model([Layer(), Layer()])), only, skip)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_weights_that_are_no_numbers_are_refused(dtype: torch.dtype) -> None:
    model = Model([Layer(), Layer()])
    up: Any = model.get_submodule("layers.1.up")
    up.weight = nn.Parameter(torch.zeros(12, 8, dtype=dtype), requires_grad=False)
    site = find_blocks(model)[1].sites[0]
    with pytest.raises(Unsupported, match=r"layers\.1\.up.*dequantised"):
        check_dtype(site)


def test_the_view_shares_storage_and_asks_for_no_gradient() -> None:
    site = find_blocks(Model([Layer(), Layer()]))[0].sites[0]
    view: Tensor = site.view()
    assert not view.requires_grad and view.data_ptr() == site.owner.weight.data_ptr()  # type: ignore[union-attr,operator]
