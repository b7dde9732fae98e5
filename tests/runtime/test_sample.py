"""Choosing a token: what is left is what transformers' processors leave, draws follow the probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput
from secateur.runtime import sample
from secateur.runtime.sample import GREEDY, Sampling, choose


def theirs(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """Probabilities by transformers' logits processors, in generate()'s order."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = logits.double()[None]
    ids = torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(how.temperature)(ids, scores)
    if how.top_k:
        scores = TopKLogitsWarper(how.top_k)(ids, scores)
    if how.top_p < 1:
        scores = TopPLogitsWarper(how.top_p)(ids, scores)
    return scores.softmax(-1)[0]


def frequencies(logits: torch.Tensor, how: Sampling, draws: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    found = torch.tensor([choose(logits, how, random) for _ in range(draws)])
    return torch.bincount(found, minlength=len(logits)).double() / draws


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 12),
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.integers(0, 14),
)
def test_draws_follow_the_probabilities_of_transformers(
    seed: int, size: int, temperature: float, top_p: float, top_k: int
) -> None:
    logits = 2 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    how = Sampling(temperature, top_p, min(top_k, size))
    wanted, found = theirs(logits, how), frequencies(logits, how, 300)
    assert bool((found[wanted == 0] == 0).all()), "a token that was to be left out was drawn"
    assert (found - wanted).abs().max() < 0.17  # six standard deviations of 300 draws


def test_draws_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "FIRST", 4)  # what is past the likeliest few is sorted in full
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1))
    for how in (Sampling(1.0, 0.5), Sampling(0.1, 0.3), Sampling(1.0, top_k=9), Sampling(1.0, 0.6, 20)):
        wanted, found = theirs(logits, how), frequencies(logits, how, 2000)
        assert bool((found[wanted == 0] == 0).all())
        assert (found - wanted).abs().max() < 0.06
        assert bool((found > 0).sum() > 0.6 * (wanted > 1 / 500).sum())


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    random = torch.Generator()
    logits = torch.tensor([0.0, 3.0, -torch.inf, 3.0])
    assert choose(logits, GREEDY, random) == 1
    assert choose(logits, Sampling(5.0, top_k=1), random) in (1, 3)
    assert choose(logits, Sampling(1e-300), random) in (1, 3), "no overflow"
    assert choose(torch.tensor([0.0, -torch.inf]), Sampling(100.0), random) == 0


def test_logits_that_decide_must_be_finite() -> None:
    random = torch.Generator()
    for how in (GREEDY, Sampling(1.0)):
        for bad in (torch.nan, torch.inf):
            with pytest.raises(BadInput, match=r"the likeliest logit is (nan|inf)"):
                choose(torch.tensor([1.0, bad, 2.0]), how, random)
        with pytest.raises(BadInput, match="-inf"):
            choose(torch.full((3,), -torch.inf), how, random)


@pytest.mark.parametrize(
    "settings,line",
    [
        ({"temperature": -0.1}, "temperature: -0.1"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.1}, "top_p: 1.1"),
        ({"top_k": -1}, "top_k: -1"),
        ({"seed": 2**63}, "seed: 9223372036854775808"),
    ],
)
def test_ranges(settings: dict[str, float], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        Sampling(**settings)  # pyright: ignore[reportArgumentType]
