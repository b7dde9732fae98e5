"""`secateur deck`: folders of classifiers in, a deck out that `secateur evaluate --corruptions` measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.images import load_images
from secateur.robustness.deck import load_deck, reference_spectra
from tests.cli.tiny import secateur
from tests.robustness.images import needs_pillow


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cards")
    made = []
    for seed, classes in enumerate((10, 10, 10, 7)):
        net = load_classifier("mlp-4", channels=1, size=8, classes=classes, seed=seed)
        made.append(save_classifier(net, folder / f"card{seed}"))
    return made


def test_a_gated_deck_from_the_command_line_is_measured(cards: list[Path], here: Path) -> None:
    needs_pillow()
    words = ["--augments", "none,gaussian,none", "--images", "digits", "--limit", "200", "--seed", "3"]
    said = secateur("deck", *cards[:3], *words, "--gated", "--out", "d", "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found["groups"] == {"gaussian": 1, "none": 2} and found["gated"] is True
    assert found["weight_bits"] == 3 * 32 * (64 * 4 + 4 * 10)
    deck = load_deck("d")
    wanted = reference_spectra(load_images("digits", "train", limit=200).images, ["none", "gaussian"], 3)
    assert deck.gated and all(torch.equal(deck.spectra[name], s) for name, s in wanted.items())
    measured = ["--corruptions", "cifar-c", "--images", "digits", "--names", "contrast", "--severities", "2"]
    said = secateur("evaluate", "d", *measured, "--limit", "60", "--beside", cards[0])
    assert said.status == 0 and "contrast" in said.out, said.err


def test_a_plain_deck_needs_no_images_and_is_replaced_when_asked(cards: list[Path], here: Path) -> None:
    words = ["deck", *cards[:2], "--augments", "none,augmix", "--out", "d"]
    said = secateur(*words)
    assert said.status == 0 and "d: 2 cards (1 augmix, 1 none), plain average" in said.out, said.err
    assert not load_deck("d").gated and not load_deck("d").spectra
    said = secateur(*words)
    assert said.status == 2 and "exists already" in said.err
    assert secateur("deck", cards[0], "--augments", "none", "--out", "d", "--overwrite").status == 0
    assert len(load_deck("d").cards) == 1


@pytest.mark.parametrize(
    "chosen, more, words",
    [
        ((0, 1), ["--augments", "none"], "2 cards and 1 augmentations"),
        ((0, 1), ["--augments", "none,blur"], "'blur' is no augmentation"),
        ((0, 3), ["--augments", "none,none"], "card 1 has classes 7"),
        ((0,), ["--augments", "none", "--gated"], "no images for the gate"),
        ((0,), ["--augments", "none", "--gated", "--images", "digitz"], "digitz"),
        ((0,), [], "--augments"),
    ],
)
def test_what_makes_no_deck_is_one_line_and_leaves_nothing(
    cards: list[Path], here: Path, chosen: tuple[int, ...], more: list[str], words: str
) -> None:
    said = secateur("deck", *(cards[i] for i in chosen), *more, "--out", "d")
    assert said.status == 2 and words in said.err and said.err.count("\n") == 1
    assert not list(here.iterdir())


def test_a_folder_that_is_no_card(cards: list[Path], here: Path) -> None:
    said = secateur("deck", cards[0].with_name("card9"), "--augments", "none", "--out", "d")
    assert said.status == 2 and "card9: no network, file or folder" in said.err
