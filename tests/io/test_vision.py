"""transformers' classifiers behind [0, 1] images: the same numbers as through their own image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.vision import PROCESSOR, Steps, apply_steps, read_steps

transformers = pytest.importorskip("transformers")
pytest.importorskip("PIL")


def tiny_vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config).eval()


def vit_processor(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "size": {"height": 16, "width": 16},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }
    return transformers.ViTImageProcessorPil(**{**settings, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_vit().save_pretrained(tmp_path / "vit")
    vit_processor().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def pictures(height: int, width: int) -> tuple[np.ndarray, Tensor]:
    """Smooth uint8 [3, H, W, 3] and the same as floats [3, 3, H, W] in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.stack([np.sin(a * x + b * y + c) for c in range(3)], -1) for a, b in ((3, 1), (5, 4), (1, 6))]
    array = np.round(127.5 + 127 * np.stack(waves)).astype(np.uint8)
    return array, torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("side", [(16, 16), (40, 40), (30, 21)])
def test_logits_are_those_behind_the_processor(folder: Path, side: tuple[int, int]) -> None:
    model = load_classifier(folder, channels=3, size=99, classes=5)  # any size will do
    array, images = pictures(*side)
    with torch.no_grad():
        wanted = tiny_vit()(**vit_processor()(list(array), return_tensors="pt")).logits
        got = model(images)
    assert got.shape == (3, 5) and not model.training
    # a processor rounds to whole grey levels after it has resized, we do not
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 if side == (16, 16) else 5e-3)


@pytest.mark.parametrize(
    "processor",
    [
        vit_processor(resample=3),
        vit_processor(resample=0),
        vit_processor(do_normalize=False, do_rescale=False),
        vit_processor(rescale_factor=1 / 127.5),
        vit_processor(do_resize=False),
        transformers.BitImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 14, "width": 12}),
        transformers.BitImageProcessorPil(size={"shortest_edge": 17}, do_center_crop=False),
        transformers.BitImageProcessorPil(do_resize=False, crop_size={"height": 31, "width": 41}),
        transformers.ConvNextImageProcessorPil(size={"shortest_edge": 16}, crop_pct=0.7),
        transformers.ConvNextImageProcessorPil(size={"shortest_edge": 400}),
    ],
    ids=["cubic", "nearest", "raw", "scaled", "as it is", "crop", "short side", "pad", "convnext", "warped"],
)
def test_steps_are_the_processor_s(processor: Any) -> None:
    steps = read_steps(processor, "here")
    for side in ((40, 30), (30, 44)):
        array, images = pictures(*side)
        wanted = processor(list(array), return_tensors="pt", do_normalize=False)["pixel_values"].float()
        got = apply_steps(images, steps)
        assert got.shape == wanted.shape
        levels = (got - wanted).abs() / steps.factor * 255
        assert levels.mean() < 0.6 and levels.max() < 3, (levels.mean(), levels.max())


def test_a_fitting_picture_is_left_alone() -> None:
    _, images = pictures(16, 16)
    assert apply_steps(images, Steps((16, 16), "bicubic", (16, 16), 1.0)) is not None
    assert torch.equal(apply_steps(images, Steps((16,), "bilinear", (16, 16), 1.0)), images)


def test_saved_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    model = load_classifier(folder)
    with torch.no_grad():
        model.get_parameter("model.classifier.weight")[0] = 0
    out = save_classifier(model, tmp_path / "cut")
    back = load_classifier(out)
    _, images = pictures(16, 16)
    with torch.no_grad():
        assert torch.equal(back(images), model(images))
    assert (
        back.settings == model.settings and (out / PROCESSOR).read_text() == (folder / PROCESSOR).read_text()
    )
    # and it is still a folder of transformers
    again = transformers.AutoModelForImageClassification.from_pretrained(out)
    assert not again.classifier.weight[0].any()


def test_settings_are_the_processor_s(folder: Path) -> None:
    settings = load_classifier(folder).settings
    assert (settings.architecture, settings.size, settings.classes) == ("ViTForImageClassification", 16, 5)
    assert settings.mean == (0.4, 0.5, 0.6) and settings.std == (0.2, 0.3, 0.4)
    with pytest.raises(BadInput, match="classes 10 was asked for, the model has 5"):
        load_classifier(folder, classes=10)
    with pytest.raises(BadInput, match=r"a batch of torch.uint8"):
        load_classifier(folder)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_what_cannot_be_fed_rightly_is_refused(folder: Path, tmp_path: Path) -> None:
    transformers.DetrImageProcessorPil().save_pretrained(folder)
    with pytest.raises(Unsupported, match=r"image processor DetrImageProcessorPil .*is not known here"):
        load_classifier(folder)
    (folder / PROCESSOR).write_text("{")
    with pytest.raises(Damaged, match=rf"{PROCESSOR}: cannot be read"):
        load_classifier(folder)
    (folder / PROCESSOR).unlink()
    with pytest.raises(Unsupported, match=f"has no {PROCESSOR}"):
        load_classifier(folder)
    config = tiny_vit().config
    transformers.ViTModel(config).save_pretrained(tmp_path / "body")
    vit_processor().save_pretrained(tmp_path / "body")
    with pytest.raises(Unsupported, match="ViTModel is no image classifier"):
        load_classifier(tmp_path / "body")
    with pytest.raises(Unsupported, match="a size of"):
        read_steps(transformers.BitImageProcessorPil(size={"shortest_edge": 8, "longest_edge": 9}), "here")
