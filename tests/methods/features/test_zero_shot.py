"""zero_shot: three heads without an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.apply.heads import Texts
from secateur.errors import BadInput
from secateur.registry import make
from tests.methods.features.towers import towers


def oracle(texts: Texts, h: Tensor, features: str, gamma: float) -> Tensor:
    """Logits [n, C] by the words of the paper: mean cosine with the own descriptors, cosine with the prompt."""
    out = torch.zeros(len(h), len(texts.classes))
    for i, x in enumerate(h):
        for c in range(len(texts.classes)):
            own = [float(x @ row) for row, owner in zip(texts.rows, texts.owner, strict=True) if owner == c]
            mean, prompt = sum(own) / len(own), float(x @ texts.prompts[c])
            out[i, c] = {"cp": prompt, "vd": mean, "avd": gamma * mean + prompt}[features]
    return texts.scale * out


@pytest.mark.parametrize("features", ["cp", "vd", "avd"])
@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_heads_are_what_the_paper_says(features: str, gamma: float) -> None:
    world = towers()
    x = world.shots(1, seed=3).embeddings
    head = make("zero_shot", features=features, gamma=gamma).fit(world.texts)
    torch.testing.assert_close(head.logits(x), oracle(world.texts, x, features, gamma), rtol=1e-4, atol=1e-4)


def test_cp_is_the_class_prompts_themselves() -> None:
    texts = towers().texts
    assert torch.equal(make("zero_shot").fit(texts).weight, texts.prompts)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(BadInput, match="features"):
        make("zero_shot", features="all")
    with pytest.raises(BadInput, match="gamma"):
        make("zero_shot", gamma=-1.0)
    texts = towers().texts
    bare = Texts(texts.classes, texts.prompts, (), torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(BadInput, match="no descriptors"):
        make("zero_shot", features="vd").fit(bare)
