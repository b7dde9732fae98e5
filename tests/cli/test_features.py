"""`secateur features` from the command line: a random CLIP on real digits, stored arrays, and one line for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secateur.io.descriptors import Descriptors, random_words, read_descriptors, write_descriptors
from secateur.io.images import load_images
from tests.cli.tiny import secateur
from tests.features.tiny import NAMES, TinyTowers, pictures, words
from tests.io import two_towers

pytest.importorskip("PIL", reason="Pillow prepares the images")
ROUND = {"0": "round and closed", "1": "one upright stroke", "7": "a bar over a slanted stroke"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random CLIP, as transformers' users have them."""
    pytest.importorskip("transformers")
    return two_towers.save(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two descriptors for each digit."""
    path = tmp_path_factory.mktemp("words") / "digits.json"
    each = [(i, text) for i in range(10) for text in (ROUND.get(str(i), f"curve {i}"), f"the mark {i}")]
    owner, found = zip(*each, strict=True)
    write_descriptors(path, Descriptors(tuple(map(str, range(10))), found, owner, ("by hand",) * 20))
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings on disk, with their descriptors."""
    folder, towers = tmp_path_factory.mktemp("stored"), TinyTowers()
    write_descriptors(folder / "words.json", words())
    np.save(folder / "rows.npy", towers.embed_texts(list(words().words)).numpy())
    np.save(folder / "prompts.npy", towers.embed_texts(list(NAMES)).numpy())
    for name, count, seed in (("train", 30, 1), ("test", 20, 2)):
        images = pictures(count, seed)
        np.save(folder / f"{name}.npy", towers.embed_images(images.images).numpy())
        np.save(folder / f"{name}-labels.npy", images.labels)
    return folder


def flags(stored: Path, out: Path) -> list[str | Path]:
    texts = [
        "--descriptors",
        stored / "words.json",
        "--rows",
        stored / "rows.npy",
        "--prompts",
        stored / "prompts.npy",
    ]
    sets = ["--train", stored / "train.npy", stored / "train-labels.npy"]
    sets += ["--test", stored / "test.npy", stored / "test-labels.npy"]
    return [*texts, *sets, "--scale", "20", "--out", out]


def test_stored_arrays_fit_explain_and_evaluate_without_a_model(stored: Path, tmp_path: Path) -> None:
    said = secateur("features", "fit", *flags(stored, tmp_path / "head"), "--shots", "8", "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found["method"] == "slr_avd" and found["accuracy"]["test"]["1"] > 0.8
    assert (tmp_path / "head.html").read_text("utf-8").startswith("<!doctype html>")
    said = secateur("features", "explain", tmp_path / "head", "--top", "2", "--json")
    reasons = json.loads(said.out)
    assert list(reasons) == list(NAMES) and all(len(pairs) <= 2 for pairs in reasons.values())
    test = ["--test", stored / "test.npy", stored / "test-labels.npy"]
    said = secateur("features", "evaluate", tmp_path / "head", *test, "--alpha", "1,0", "--json")
    assert json.loads(said.out)["accuracy"]["test"] == {
        "1": found["accuracy"]["test"]["1"],
        "0": found["accuracy"]["test"]["0"],
    }
    said = secateur("features", "evaluate", tmp_path / "head", *test)
    assert said.status == 0 and "alpha 0.5" in said.out


def test_random_words_stand_in_for_descriptors(described: Path, tmp_path: Path) -> None:
    out = tmp_path / "random.json"
    said = secateur("features", "describe", described, "--random", "--seed", "3", "--out", out, "--json")
    assert said.status == 0, said.err
    before, after = read_descriptors(described), read_descriptors(out)
    assert after == random_words(before, 3) and after.owner == before.owner and after.words != before.words
    assert json.loads(said.out) == {
        "file": str(out), "classes": len(before.classes), "descriptors": len(before.words)
    }  # fmt: skip
    said = secateur("features", "describe", described, "--random", "--ask", "x", "--out", tmp_path / "b.json")
    assert said.status == 2 and "nobody is asked" in said.err


def test_a_clip_folder_on_real_images(clip: Path, described: Path, tmp_path: Path) -> None:
    common = ["--model", clip, "--images", "digits", "--limit", "300", "--cache", tmp_path / "cache"]
    said = secateur(
        "features", "fit", "--descriptors", described, *common, "--shots", "8", "--lam", "0.003",
        "--out", tmp_path / "head",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert "slr_avd:" in said.out and "features used" in said.out and "lam 0.003" in said.out
    page = (tmp_path / "head.html").read_text("utf-8")
    assert "data:image/png;base64," in page and "<h2>7</h2>" in page
    out = tmp_path / "why.html"
    said = secateur("features", "explain", tmp_path / "head", *common, "--class", "7", "--out", out)
    assert said.status == 0 and "7\n" in said.out and "<h2>7</h2>" in out.read_text("utf-8")
    said = secateur(
        "features", "evaluate", tmp_path / "head", *common, "--corruptions", "cifar-c", "--names", "contrast",
        "--severity", "5", "--alpha", "1", "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    found = json.loads(said.out)
    row = found["corruptions"]["1"]
    assert row["clean"] == found["accuracy"]["digits/test"]["1"]
    assert row["robust"] == row["corruptions"]["contrast"]["5"]


def test_tuning_writes_a_model_and_a_head_that_go_together(
    clip: Path, described: Path, tmp_path: Path
) -> None:
    common = ["--model", clip, "--images", "digits", "--limit", "160"]
    said = secateur(
        "features", "fit", "--descriptors", described, *common, "--lam", "0.003", "--out", tmp_path / "head"
    )
    assert said.status == 0, said.err
    said = secateur(
        "features", "tune", tmp_path / "head", *common, "--epochs", "1", "--batch", "32", "--lr", "1e-4",
        "--out", tmp_path / "tuned", "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    path = json.loads(said.out)["accuracy"]["digits/test"]
    assert len(path) == 11
    tuned = ["--model", tmp_path / "tuned" / "model", "--images", "digits", "--limit", "160"]
    said = secateur("features", "evaluate", tmp_path / "tuned" / "head", *tuned, "--alpha", "1", "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)["accuracy"]["digits/test"]["1"]
    assert abs(found - path["0.5"]) <= 2 / 160, (
        "Pillow resizes for use, torch for training: an image may differ"
    )
    assert load_images("digits", "test").name == "digits/test"
    said = secateur("features", "evaluate", tmp_path / "tuned" / "head", *common)
    assert said.status == 2 and " is not " in said.err and said.err.count("\n") == 1


def test_the_prompt_is_shown_and_nothing_asked(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("tench\nchurch\n", encoding="utf-8")
    said = secateur("features", "describe", tmp_path / "classes.txt", "--show-prompt")
    assert said.status == 0 and "tench" in said.out


@pytest.mark.parametrize(
    ("words_", "line"),
    [
        (["features"], "STEP"),
        (["features", "fitt"], "fit"),
        (["features", "fit", "--method", "wanda"], "slr_avd"),
        (["features", "fit", "--descriptors", "x.json", "--out", "y"], "--model"),
        (["features", "describe", "nothing.txt"], "nothing.txt"),
        (["features", "explain", "nowhere"], "nowhere"),
        (["compress", "smollm2-135m", "slr_avd"], "secateur features fit"),
    ],
)
def test_mistakes_are_one_line(words_: list[str], line: str) -> None:
    said = secateur(*words_)
    assert said.status == 2 and line in said.err and said.err.count("\n") == 1, said.err


def test_a_head_is_not_replaced_unasked(stored: Path, tmp_path: Path) -> None:
    for status in (0, 2):
        said = secateur("features", "fit", "--method", "zero_shot", *flags(stored, tmp_path / "head"))
        assert said.status == status, said.err
    said = secateur(
        "features", "fit", "--method", "ridge_probe", *flags(stored, tmp_path / "head"), "--overwrite"
    )
    assert said.status == 0, said.err
    said = secateur("features", "explain", tmp_path / "head")
    assert said.status == 2 and "uses no texts" in said.err
