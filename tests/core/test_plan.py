"""Plans: bits that survive packing, comparison, merging, and a refusal of the wrong model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.core.plan import Kept, Plan, pack, unpack
from secateur.errors import BadInput, NoMatch


def mask(*rows: str) -> Tensor:
    """'x.' is kept, cut."""
    return torch.tensor([[c == "x" for c in row] for row in rows])


def plan(**sites: Tensor) -> Plan:
    return Plan("wanda", {"sparsity": 0.5}, {name: Kept.of(keep) for name, keep in sites.items()})


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**31))
def test_packing_is_lossless(shape: list[int], seed: int) -> None:
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack(keep)
    assert bits.dtype == torch.uint8 and len(bits) == -(-keep.numel() // 8)
    assert torch.equal(unpack(bits, tuple(shape)), keep)
    kept = Kept.of(keep)
    assert torch.equal(kept.mask(), keep) and kept.count == int(keep.sum())
    assert kept.sparsity == pytest.approx(1 - float(keep.float().mean()))


def test_unit_0_is_bit_0_and_the_last_byte_is_padded_with_zeros() -> None:
    assert pack(mask("x........")).tolist() == [1, 0]
    assert pack(mask(".x......x")).tolist() == [2, 1]
    assert pack(torch.ones(3, 3, dtype=torch.bool)).tolist() == [255, 1]


def test_a_strided_mask_packs_as_it_reads() -> None:
    keep = mask("x.x", ".xx").t()
    assert torch.equal(pack(keep), pack(keep.contiguous()))


def test_sparsity_is_over_all_units() -> None:
    assert plan(a=mask("x.", ".."), b=mask("xxxx")).sparsity == pytest.approx(3 / 8)
    assert Plan("wanda", {}).sparsity == 0.0


def test_agreement_counts_positions_and_kept_ones() -> None:
    a, b = plan(a=mask("xx..")), plan(a=mask("x.x."), other=mask("x"))
    assert a.agreement(b) == {"positions": 0.5, "jaccard": pytest.approx(1 / 3)}
    assert a.agreement(a) == {"positions": 1.0, "jaccard": 1.0}
    assert plan(a=mask("xx..")).agreement(plan(a=mask("..xx"))) == {"positions": 0.0, "jaccard": 0.0}
    assert plan(a=mask("....")).agreement(plan(a=mask("....")))["jaccard"] == 1.0
    with pytest.raises(NoMatch, match="share no site"):
        a.agreement(plan(z=mask("x")))
    with pytest.raises(BadInput, match="a"):
        a.agreement(plan(a=mask("x.x.x")))


def test_random_masks_have_the_jaccard_of_the_sheet() -> None:
    stream = torch.Generator().manual_seed(0)
    a, b = (plan(a=torch.rand(500, 500, generator=stream) < 0.4) for _ in range(2))
    assert a.agreement(b)["jaccard"] == pytest.approx(0.4 / (2 - 0.4), abs=0.01)  # q / (2 - q)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_merging_cuts_what_either_cuts(first: int, second: int) -> None:
    masks = [torch.rand(5, 7, generator=torch.Generator().manual_seed(s)) < 0.6 for s in (first, second)]
    a, b = plan(a=masks[0], only=mask("x.")), plan(a=masks[1], more=mask(".x"))
    merged = a.merge(b)
    assert torch.equal(merged.sites["a"].mask(), masks[0] & masks[1])
    assert list(merged.sites) == ["a", "only", "more"] and merged.sites["only"] == a.sites["only"]
    assert merged.made == {"merged": [a.digest(), b.digest()]} and merged.method == "wanda+wanda"
    assert b.merge(a).sites["a"].count == merged.sites["a"].count


def test_merging_keeps_what_the_user_should_know() -> None:
    a, b = plan(a=mask("x.")), Plan("sparsegpt", {"damping": 0.1}, {"a": Kept.of(mask("xx"))}, updates=True)
    a.notes, b.notes = ["one"], ["two"]
    merged = a.merge(b)
    assert merged.updates and merged.notes == ["one", "two"]
    assert merged.config == {"wanda": {"sparsity": 0.5}, "sparsegpt": {"damping": 0.1}}
    assert a.sites["a"].count == 1 and a.notes == ["one"], "merging changed a plan"
    with pytest.raises(BadInput, match="differ"):
        a.merge(plan(a=mask("x.x")))


def test_digest_names_sites_and_bits() -> None:
    base = plan(a=mask("x."), b=mask(".x"))
    assert base.digest() == plan(a=mask("x."), b=mask(".x")).digest()
    others = [
        plan(a=mask("xx"), b=mask(".x")),
        plan(b=mask(".x"), a=mask("x.")),
        plan(a=mask("x."), c=mask(".x")),
    ]
    assert len({base.digest(), *(other.digest() for other in others)}) == 4


def test_a_plan_for_another_model_is_refused() -> None:
    made = plan(**{"layers.0.up": mask("x.", ".x")})
    made.expect({"layers.0.up": (2, 2), "layers.0.down": (2, 2)})
    with pytest.raises(NoMatch, match=r"layers\.0\.up.*layers\.0\.upp"):
        made.expect({"layers.0.upp": (2, 2)})
    with pytest.raises(BadInput, match=r"layers\.0\.up"):
        made.expect({"layers.0.up": (2, 3)})
