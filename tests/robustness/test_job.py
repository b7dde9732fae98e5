"""Classifiers by name on corrupted images, from the function and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secateur.cli.main import main
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.images import load_images
from secateur.robustness.evaluate import evaluate_corruptions


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    made = []
    for seed in range(2):
        net = load_classifier("mlp-8", channels=1, size=8, classes=10, seed=seed)
        made.append(save_classifier(net, folder / f"net{seed}"))
    return made


def test_the_command_writes_page_table_and_figures(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(models[0]), "--beside", str(models[1]), "--images", "digits", "--limit", "60"]
    words += ["--corruptions", "cifar-c", "--names", "fog,contrast,brightness", "--severities", "1,5"]
    words += ["--cache", str(tmp_path / "set"), "--out", str(tmp_path / "shift.html")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "net0" in shown and "net1" in shown and "60 images, severities 1, 5" in shown
    body = json.loads((tmp_path / "shift.json").read_text())
    data = load_images("digits", "test", limit=60)
    direct = evaluate_corruptions(
        load_classifier(models[1]),
        data.images,
        data.labels,
        names=["fog", "contrast", "brightness"],
        severities=[1, 5],
    )
    name, found = body["results"][1]
    assert name == "net1" and found["corruptions"] == direct["corruptions"]
    page = (tmp_path / "shift.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page and "secateur rendering" in page
    assert (tmp_path / "shift.csv").read_text().count("\n") == 1 + 2 * 7
    assert (tmp_path / "shift.md").read_text().startswith("| Corruption")
    assert (tmp_path / "set" / "manifest.json").is_file()
    assert main(words) == 2  # the page exists
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "more, words",
    [
        ([], "no images"),
        (["--images", "digits", "--names", "fogg"], "fog"),
        (["--images", "digits", "--severities", "1,x"], "no severities"),
        (["--images", "digits", "--severities", "6"], "6"),
        (["--images", "digitz"], "digitz"),
    ],
)
def test_bad_words_are_one_line(
    models: list[Path], capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(["evaluate", str(models[0]), "--corruptions", "cifar-c", *more]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "Traceback" not in said


def test_an_unknown_table(models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(models[0]), "--corruptions", "cifar", "--images", "digits"]) == 2
    assert "cifar-c" in capsys.readouterr().err
