"""The page of a head: the images shown are those with the largest cosine."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.apply.heads import Shots
from secateur.features import Data, fit, texts_of, write_page
from secateur.features.page import firing
from tests.features.tiny import NAMES, TinyTowers, pictures, words

pytest.importorskip("PIL", reason="Pillow draws the pictures")


def test_the_images_are_those_nearest_to_the_text() -> None:
    towers, images = TinyTowers(), pictures(10)
    texts, rows = texts_of(towers, words()), towers.embed_images(images.images)
    for text, row in [(words().words[3], texts.rows[3]), ("[bar]", texts.prompts[1])]:
        wanted = sorted(range(len(rows)), key=lambda i: -float(rows[i] @ row))[:3]
        assert firing(texts, text, rows) == wanted
    assert len(firing(texts, "[bar]", rows[:2])) == 2


def test_a_page_shows_texts_weights_and_pictures(tmp_path: Path) -> None:
    from PIL import Image

    towers, images = TinyTowers(), pictures(10)
    shots = Shots(towers.embed_images(images.images), torch.from_numpy(images.labels))
    data = Data(texts_of(towers, words()), words(), shots, {"test": shots})
    fitted = fit("slr_avd", data, shots=8)
    out = write_page(
        fitted, tmp_path / "page.html", pictures=images, tests=data.tests, command="secateur <x>"
    )
    page = out.read_text("utf-8")
    assert all(f"<h2>{name}</h2>" in page for name in NAMES) and "secateur &lt;x&gt;" in page
    assert "<script" not in page and "img-src data:" in page
    coded = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    assert coded
    first = Image.open(io.BytesIO(base64.b64decode(coded[0])))
    assert first.size == (64, 64) and np.asarray(first).std() > 10
    only = write_page(fitted, tmp_path / "one.html", only=["bar"]).read_text("utf-8")
    assert "<h2>bar</h2>" in only and "<h2>disc</h2>" not in only and "1 of 3 classes" in only
