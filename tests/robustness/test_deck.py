"""Decks: what the sheet asks of the mean and of the gate, the folder they come back from, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.evaluate.classify import accuracy, logits, to_batch
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.images import load_images
from secateur.io.networks import Classifier
from secateur.losses.jsd import jsd
from secateur.robustness import augment
from secateur.robustness.augment import augmix, gaussian_augment
from secateur.robustness.deck import (
    AUGMENTS,
    Deck,
    DeckLogits,
    augmented,
    load_any,
    load_deck,
    memory_bits,
    reference_spectra,
    save_deck,
    spectrum,
)
from secateur.robustness.evaluate import evaluate_corruptions
from tests.robustness.images import blobs, needs_pillow


def card(seed: int = 0, name: str = "mlp-6", **other: Any) -> Classifier:
    return load_classifier(name, **{"channels": 1, "size": 8, "classes": 10, "seed": seed, **other}).eval()


def batch(count: int = 12, seed: int = 0, size: int = 8) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def oracle(image: np.ndarray) -> np.ndarray:
    """The amplitude spectrum of one channel from the definition of the transform, zero frequency in the middle."""
    height, width = image.shape
    out = np.zeros((height, width))
    for u in range(height):
        for v in range(width):
            waves = [
                image[y, x] * np.exp(-2j * math.pi * (u * y / height + v * x / width))
                for y in range(height)
                for x in range(width)
            ]
            out[(u + height // 2) % height, (v + width // 2) % width] = math.log(1 + abs(sum(waves)))
    return out


# -- the mean -------------------------------------------------------------------------------------------


def test_the_mean_by_hand() -> None:
    class Fixed(nn.Module):
        def __init__(self, *odds: float) -> None:
            super().__init__()
            self.odds = torch.tensor(odds)

        def forward(self, images: Tensor) -> Tensor:
            return self.odds.log().expand(len(images), -1)

    deck = Deck([Fixed(1, 3), Fixed(3, 2), Fixed(1, 1)], ["none"] * 3)
    wanted = torch.tensor([(0.25 + 0.6 + 0.5) / 3, (0.75 + 0.4 + 0.5) / 3]).expand(4, 2)
    torch.testing.assert_close(deck(batch(4)), wanted)
    torch.testing.assert_close(deck.log_probabilities(batch(4)), wanted.log())


@given(st.integers(1, 4), st.integers(0, 5))
@settings(deadline=None, max_examples=12)
def test_equal_cards_say_what_one_says(count: int, seed: int) -> None:
    one = card(seed)
    with torch.no_grad():
        found, wanted = Deck([one] * count, ["none"] * count)(batch()), one(batch()).softmax(1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_rows_sum_to_one_and_the_order_of_the_cards_is_nothing() -> None:
    cards, names, images = [card(s) for s in range(4)], ["none", "augmix", "none", "gaussian"], batch(70)
    spectra = {"none": spectrum(images), "augmix": spectrum(images) + 1, "gaussian": spectrum(images) + 2}
    for gated in (False, True):
        first = Deck(cards, names, spectra=spectra, gated=gated)(images)
        assert (first >= 0).all() and (first.sum(1) - 1).abs().max() < 1e-6
        for order in ((3, 2, 1, 0), (1, 0, 3, 2)):
            turned = Deck([cards[i] for i in order], [names[i] for i in order], spectra=spectra, gated=gated)
            torch.testing.assert_close(turned(images), first, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_logits_of_a_deck_are_the_logarithms_of_its_probabilities() -> None:
    deck = Deck([card(0), card(1)], ["none", "none"])
    torch.testing.assert_close(DeckLogits(deck)(batch()).softmax(1), deck(batch()))
    one = card()
    one.linear.weight.mul_(1e4)  # probabilities below the smallest float32
    assert DeckLogits(Deck([one], ["none"]))(batch()).isfinite().all()


def test_evaluate_corruptions_measures_a_deck() -> None:
    deck, images = Deck([card(0), card(1)], ["none", "none"]), load_images("digits", "test", limit=50)
    found = evaluate_corruptions(
        DeckLogits(deck), images.images, images.labels, names=["contrast"], severities=[3]
    )
    right = deck(to_batch(images.images)).argmax(1) == torch.from_numpy(images.labels)
    assert found["clean"]["accuracy"] == int(right.sum()) / 50


# -- the gate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 5, 4), (3, 3, 6)])
def test_the_spectrum_is_the_mean_of_the_channels_spectra(shape: tuple[int, int, int]) -> None:
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    wanted = np.mean([oracle(channel.numpy()) for image in images for channel in image], axis=0)
    np.testing.assert_allclose(spectrum(images).numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert spectrum(images).dtype == torch.float32


def test_the_spectrum_of_8_bits_in_any_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = blobs(9, 8, 10)
    whole = spectrum(images)
    assert whole.shape == (8, 10) and torch.equal(whole, spectrum(to_batch(images)))
    monkeypatch.setattr("secateur.robustness.deck._AT_ONCE", 8 * 10 * 3 * 2)
    assert torch.equal(spectrum(images), whole)
    with pytest.raises(BadInput, match="no images"):
        spectrum(images[:0])


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_the_distance_does_not_see_circular_shifts_nor_the_order(down: int, right: int, seed: int) -> None:
    images = batch(66, seed)
    deck = Deck([card(), card()], ["none", "augmix"], spectra=dict.fromkeys(AUGMENTS[::2], torch.ones(8, 8)))
    wanted = deck.distances(images)
    order = torch.randperm(66, generator=torch.Generator().manual_seed(seed))
    for changed in (images.roll((down, right), (2, 3)), images[order]):
        assert deck.distances(changed) == pytest.approx(wanted, rel=1e-5)


def test_distances_by_hand() -> None:
    spectra = {"none": torch.full((8, 8), 2.0), "gaussian": torch.full((8, 8), 4.0)}
    images = torch.zeros(3, 1, 8, 8)
    images[:, :, 0, 0] = math.e**3 - 1  # a single pixel: flat amplitude; its log(1 + .) is 3
    deck = Deck([card(0), card(1)], ["none", "gaussian"], spectra=spectra)
    assert deck.distances(images) == pytest.approx({"none": 1 / 4, "gaussian": 1 / 16})
    assert deck.gate(images) == "gaussian"


def test_a_batch_equal_to_the_reference_is_at_distance_0() -> None:
    needs_pillow()
    images = blobs(64, 8, 8, 1)
    spectra = reference_spectra(images, AUGMENTS, seed=4)
    deck = Deck([card(s) for s in range(3)], AUGMENTS, spectra=spectra)
    for name in AUGMENTS:
        assert deck.distances(augmented(to_batch(images), name, 4))[name] == 0
    assert torch.equal(spectra["none"], spectrum(images))
    assert list(spectra) == list(AUGMENTS)


def test_the_gate_finds_the_augmentation_of_training_batches() -> None:
    """Sheet: at least 95% of batches of 128 images; each seed here draws other augmentations than the reference's."""
    needs_pillow()
    images = load_images("digits", "train").images
    deck = Deck([card(s) for s in range(3)], AUGMENTS, spectra=reference_spectra(images, AUGMENTS))
    for name in AUGMENTS:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: 10 * 128]
        changed = augmented(to_batch(images), name, seed=7)[order]
        found = [deck.gate(part) for part in changed.split(128)]
        assert len(found) == 10 and found.count(name) >= 0.95 * len(found), (name, found)


@torch.no_grad()
def test_a_gated_deck_asks_the_chosen_cards_only() -> None:
    names = ["none", "gaussian", "none"]
    cards, images = [card(s) for s in range(3)], batch(64)
    spectra = {"none": spectrum(images), "gaussian": spectrum(images) * 3}
    deck = Deck(cards, names, spectra=spectra)
    assert deck.gated and deck.gate(images) == "none"
    torch.testing.assert_close(deck(images), (cards[0](images).softmax(1) + cards[2](images).softmax(1)) / 2)
    deck.gated = False
    torch.testing.assert_close(deck(images), torch.stack([c(images).softmax(1) for c in cards]).mean(0))


# -- the augmentations' lines of the sheet --------------------------------------------------------------


def test_augmix_of_share_0_and_gaussian_of_none_are_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_pillow()
    images = batch(6)
    assert torch.equal(gaussian_augment(images, probability=0.0), images)
    assert torch.equal(gaussian_augment(images, sigma=0.0, probability=1.0), images)
    assert augmented(images, "none") is images
    made = augment.Draws

    class Unmixed:
        def __init__(self, *args: Any) -> None:
            self.each = [Still(g) for g in made(*args).each]

    class Still:
        """A generator whose Beta share is 0."""

        def __init__(self, generator: np.random.Generator) -> None:
            self._generator = generator

        def beta(self, a: float, b: float) -> float:
            return 0.0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._generator, name)

    assert not torch.equal(augmix(images), images)
    monkeypatch.setattr(augment, "Draws", Unmixed)
    assert torch.equal(augmix(images), images)


def test_the_divergence_of_three_equal_answers_is_0() -> None:
    said = card()(batch()).detach()
    assert float(jsd([said, said, said])) == pytest.approx(0, abs=1e-7)


# -- bits, folders --------------------------------------------------------------------------------------


@torch.no_grad()
def test_memory_counts_non_zeros_and_masks() -> None:
    sparse, binary, whole = card(0), card(1), card(2)
    first, last = 64 * 6, 6 * 10
    for net in (sparse, binary):
        for layer, kept in ((net.hidden[0], 20), (net.linear, 5)):
            flat = layer.weight.view(-1)
            flat[kept:] = 0
            if net is binary:
                flat[:kept] = flat[:kept].sign() * 0.3
    masks = first + last
    assert memory_bits(Deck([sparse], ["none"])) == 25 * 32 + masks
    assert memory_bits(Deck([binary], ["none"])) == 25 + masks
    assert memory_bits(Deck([whole], ["none"])) == 32 * masks
    assert memory_bits(Deck([sparse, binary, whole], ["none"] * 3)) == 25 * 33 + 34 * masks


def deck_of_three(gated: bool = True) -> Deck:
    spectra = {name: spectrum(batch(64)) + place for place, name in enumerate(("gaussian", "none"))}
    return Deck([card(0), card(1), card(2)], ["none", "gaussian", "none"], spectra=spectra, gated=gated)


@pytest.mark.parametrize("gated", [True, False])
def test_a_deck_comes_back_from_its_folder(tmp_path: Path, gated: bool) -> None:
    deck = deck_of_three(gated)
    folder = save_deck(deck, tmp_path / "deck")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["card-0", "card-1", "card-2", "deck.json", "manifest.json", "spectra.safetensors"]
    back = load_deck(folder)
    assert back.augments == deck.augments and back.gated is gated and not back.training
    assert all(torch.equal(back.spectra[n], s) for n, s in deck.spectra.items()) and len(back.spectra) == 2
    assert torch.equal(back(batch(64)), deck(batch(64)))
    save_deck(Deck([card(5)], ["none"]), folder)  # the new one whole in the place of the old
    assert len(load_deck(folder).cards) == 1 and not load_deck(folder).spectra
    assert [path.name for path in tmp_path.iterdir()] == ["deck"]


def test_the_same_deck_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save_deck(deck_of_three(), tmp_path / name) for name in "ab")
    for path in first.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_a_card_that_cannot_be_written_leaves_the_old_deck(tmp_path: Path) -> None:
    folder = save_deck(deck_of_three(), tmp_path / "deck")
    with pytest.raises(SecateurError):
        save_deck(Deck([card(), nn.Flatten()], ["none", "none"]), folder)
    assert len(load_deck(folder).cards) == 3 and [path.name for path in tmp_path.iterdir()] == ["deck"]


def test_load_any_takes_decks_folders_and_names(tmp_path: Path) -> None:
    deck = deck_of_three(False)
    save_deck(deck, tmp_path / "deck")
    save_classifier(card(3), tmp_path / "card")
    images = load_images("digits", "test", limit=40)
    for found, wanted in (
        (load_any(tmp_path / "deck", channels=1, classes=10), DeckLogits(deck)),
        (load_any(str(tmp_path / "card"), channels=1, classes=10), card(3)),
    ):
        assert torch.equal(logits(found, images.images), logits(wanted, images.images))
        assert 0 <= accuracy(found, images.images, images.labels) <= 1
    with pytest.raises(BadInput, match="classes 7 was asked for"):
        load_any(tmp_path / "deck", classes=7)
    with pytest.raises(BadInput, match="channels 3 was asked for"):
        load_any(tmp_path / "deck", channels=3)
    with pytest.raises(NoMatch):
        load_any(tmp_path / "dekc")


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_deck(deck_of_three(), tmp_path / "deck")
    weights = folder / "card-1" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Damaged, match=r"card-1/model\.safetensors"):
        load_deck(folder)
    weights.write_bytes(data)
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    with pytest.raises(Damaged, match="manifest"):
        load_deck(folder)
    with pytest.raises(NoMatch, match=r"deck\.json"):
        load_deck(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"augments": []}, {"augments": ["none", "crop"]}, {"augments": "none"}, {"gated": 1}, {"gated": True},
     {"version": 2}, {"format": "other"}, {"augments": [1]}],
)  # fmt: skip
def test_a_deck_json_that_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    from secateur.io.manifest import write_manifest

    folder = save_deck(Deck([card()], ["none"]), tmp_path / "deck")
    path = folder / "deck.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_manifest(folder)
    with pytest.raises(SecateurError) as error:
        load_deck(folder)
    assert "\n" not in str(error.value) and error.value.exit_status == 2


# -- bad input ------------------------------------------------------------------------------------------


def test_what_makes_no_deck_is_one_line() -> None:
    flat, bad = torch.ones(8, 8), torch.full((8, 8), math.nan)
    cases: list[tuple[str, list[nn.Module], Any, dict[str, Any]]] = [
        ("no card", [], [], {}),
        ("2 cards and 1 augm", [card(), card()], ["none"], {}),
        ("1 cards and 1 augm", [card()], "none", {}),
        ("'gausian' is no augm.*gaussian", [card()], ["gausian"], {}),
        ("count as none", [card()], ["crop-flip"], {}),
        ("classes 5, card 0 10", [card(), card(classes=5)], ["none", "none"], {}),
        ("size 16, card 0 8", [card(), card(size=16)], ["none", "none"], {}),
        ("channels 3, card 0 1", [card(), card(channels=3)], ["none", "none"], {}),
        ("no spectrum of 'none'", [card()], ["none"], {"gated": True}),
        ("no spectrum of 'none'", [card()], ["none"], {"spectra": {"augmix": flat}}),
        ("no spectrum", [card()], ["none"], {"spectra": {"none": flat[0]}}),
        ("no spectrum", [card()], ["none"], {"spectra": {"none": bad}}),
        ("no spectrum", [card()], ["none"], {"spectra": {"none": 0 * flat}}),
        ("sizes", [card(), card()], ["none", "augmix"], {"spectra": {"none": flat, "augmix": torch.ones(4, 4)}}),
    ]  # fmt: skip
    for words, cards, augments, more in cases:
        with pytest.raises(BadInput, match=words) as error:
            Deck(cards, augments, **more)
        assert "\n" not in str(error.value)


def test_images_that_the_gate_cannot_judge() -> None:
    deck = Deck([card(name="conv-4")], ["none"], spectra={"none": torch.ones(8, 8)})
    with pytest.raises(BadInput, match="16 x 16, the spectra are of 8 x 8"):
        deck(batch(4, size=16))
    with pytest.raises(BadInput, match="NaN"):
        deck(batch(4) * math.nan)
    with pytest.raises(BadInput, match="no spectra"):
        Deck([card()], ["none"]).gate(batch(4))
    with pytest.raises(BadInput, match="no augmentation"):
        reference_spectra(blobs(4), ["blur"])


def test_cards_that_answer_in_other_shapes() -> None:
    deck = Deck([nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))], ["none", "none"])
    with pytest.raises(BadInput, match=r"\[4, 3\] and \[4, 64\] to 4 images"):
        deck(batch(4))
