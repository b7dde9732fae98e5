"""Two towers by name: the same embeddings as transformers gives for its own processor's pixels and tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError, Unsupported
from secateur.io.checkpoint import save_checkpoint
from secateur.io.towers import LoadedTowers, Towers, load_towers, save_towers

transformers = pytest.importorskip("transformers")
pytest.importorskip("PIL")

from tests.io import two_towers as tiny  # noqa: E402

TEXTS = ["a photo of a cat.", "the dog", "A Photo of the FROG with wings and long long long ears", ""]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("towers") / request.param, request.param)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "clip")


def model_of(folder: Path) -> Any:
    return (tiny.clip if folder.name == "clip" else tiny.siglip)()


def oracle_images(folder: Path, images: np.ndarray) -> Tensor:
    """transformers' own way: its processor on Pillow pictures, its get_image_features, then length 1."""
    from PIL import Image

    pictures = [Image.fromarray(image.squeeze()) for image in images]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        return F.normalize(model_of(folder).get_image_features(**pixels).pooler_output, dim=1)


def oracle_texts(folder: Path, texts: list[str]) -> Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    how = {"truncation": True, "max_length": tiny.LENGTH, "return_tensors": "pt"}
    if folder.name == "siglip":
        tokens = {"input_ids": tokenizer(texts, padding="max_length", **how)["input_ids"]}
    else:
        tokens = {
            key: value
            for key, value in tokenizer(texts, padding=True, **how).items()
            if key != "token_type_ids"
        }
    with torch.no_grad():
        return F.normalize(model_of(folder).get_text_features(**tokens).pooler_output, dim=1)


@pytest.mark.parametrize("size", [(32, 32), (24, 24), (97, 61), (61, 97), (240, 320), (11, 40)])
def test_images_are_those_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    images = tiny.pictures(3, *size)
    got, wanted = load_towers(folder).embed_images(images), oracle_images(folder, images)
    assert got.dtype == torch.float32 and not got.requires_grad
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)
    assert float((wanted[0] - wanted[1]).norm()) > 0.05, "the oracle must tell images apart"


def test_grey_images_are_taken_for_colour(folder: Path) -> None:
    grey = tiny.pictures(2, 40, 33, channels=1)
    towers = load_towers(folder)
    got = towers.embed_images(grey)
    torch.testing.assert_close(got, towers.embed_images(np.repeat(grey, 3, axis=3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(got, oracle_images(folder, grey), rtol=0, atol=2e-6)


def test_texts_are_those_of_transformers(folder: Path) -> None:
    got, wanted = load_towers(folder).embed_texts(TEXTS), oracle_texts(folder, TEXTS)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)
    assert float((wanted[0] - wanted[1]).norm()) > 0.05
    cut = " ".join(["cat"] * 50)  # longer than the model can read
    assert torch.isfinite(load_towers(folder).embed_texts([cut])).all()


def test_logits_are_those_of_the_whole_model_up_to_siglips_bias(folder: Path) -> None:
    towers = load_towers(folder)
    images = tiny.pictures(2, 24, 24)
    model, tokenizer = model_of(folder), transformers.AutoTokenizer.from_pretrained(folder)
    pad = "max_length" if folder.name == "siglip" else True
    ids = tokenizer(TEXTS[:2], padding=pad, max_length=tiny.LENGTH, truncation=True, return_tensors="pt")[
        "input_ids"
    ]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(list(images), return_tensors="pt")
    with torch.no_grad():
        wanted = model(input_ids=ids, **pixels).logits_per_image
    bias = -12.0 if folder.name == "siglip" else 0.0
    got = towers.logit_scale * towers.embed_images(images) @ towers.embed_texts(TEXTS[:2]).t() + bias
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_fields(folder: Path) -> None:
    towers: Towers = load_towers(str(folder))
    assert towers.name == str(folder)
    assert towers.width == (16 if folder.name == "siglip" else tiny.WIDTH)
    wanted = 4.7 if folder.name == "siglip" else 2.6592
    assert towers.logit_scale == pytest.approx(np.exp(wanted), rel=1e-6)
    assert towers.embed_images(np.zeros((0, 5, 5, 3), np.uint8)).shape == (0, towers.width)
    assert towers.embed_texts([]).shape == (0, towers.width)


def test_more_than_one_step_gives_the_same_rows(clip_folder: Path) -> None:
    towers, images = load_towers(clip_folder), tiny.pictures(70, 24, 24)
    whole = towers.embed_images(torch.from_numpy(images))
    apart = torch.cat([towers.embed_images(images[:64]), towers.embed_images(images[64:])])
    assert whole.shape == (70, tiny.WIDTH) and torch.equal(whole, apart)


def test_digest_is_of_weights_and_preprocessing(clip_folder: Path, tmp_path: Path) -> None:
    first = load_towers(clip_folder).digest
    assert first == load_towers(clip_folder).digest and len(first) == 64
    copied = shutil.copytree(clip_folder, tmp_path / "copy")
    assert load_towers(copied).digest == first, "a folder's name is not in it"
    tiny.processor(image_mean=[0.4, 0.5, 0.5]).save_pretrained(copied)
    assert load_towers(copied).digest != first
    other = tiny.clip()
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 1
    other.save_pretrained(clip_folder)
    assert load_towers(clip_folder).digest != first


def test_a_manifest_saves_hashing_and_changes_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {}
    for made in (tiny.processor(), tiny.tokenizer()):
        made.save_pretrained(tmp_path / "parts")
    for path in (tmp_path / "parts").iterdir():
        extra[path.name] = path.read_bytes()
    save_checkpoint(tmp_path / "kept", model=tiny.clip(), extra=extra)
    plain = shutil.copytree(tmp_path / "kept", tmp_path / "plain")
    (plain / "manifest.json").unlink()
    wanted = load_towers(plain).digest
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("a file was hashed again"))
    assert load_towers(tmp_path / "kept").digest == wanted


def test_a_damaged_byte_is_found_where_there_is_a_manifest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "kept", model=tiny.clip(), tokenizer=tiny.tokenizer())
    path = tmp_path / "kept" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match="damaged"):
        load_towers(tmp_path / "kept")


def test_the_image_module_gives_the_same_embeddings_and_gradients(folder: Path) -> None:
    towers = load_towers(folder)
    images = tiny.pictures(2, 24, 24)
    module = towers.image_module()
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    out = module(floats)
    found = out.detach()
    torch.testing.assert_close(F.normalize(found, dim=1), towers.embed_images(images), rtol=0, atol=1e-6)
    assert abs(float(found.norm(dim=1).mean()) - 1) > 1e-3, "it does not normalise"
    out.sum().backward()
    missing = [name for name, value in module.named_parameters() if value.grad is None]
    assert not missing
    assert all(value.grad is None for value in towers.image.parameters()), "a copy was trained"


def test_another_image_tower_can_be_put_in(clip_folder: Path) -> None:
    towers, images = load_towers(clip_folder), tiny.pictures(2, 24, 24)
    before, texts = towers.embed_images(images), towers.embed_texts(TEXTS)
    module = towers.image_module()
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(1.3)
    changed = towers.replace_image(module.state_dict())
    wanted = F.normalize(module(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255), dim=1)
    torch.testing.assert_close(changed.embed_images(images), wanted.detach(), rtol=0, atol=1e-6)
    assert torch.equal(towers.embed_images(images), before) and torch.equal(changed.embed_texts(TEXTS), texts)
    assert changed.digest != towers.digest
    assert towers.replace_image(module.state_dict()).digest == changed.digest
    state = module.state_dict()
    state.pop("projection.weight")
    with pytest.raises(BadInput, match=r"projection\.weight"):
        towers.replace_image(state)


def test_a_changed_image_tower_is_saved_into_its_folder(folder: Path, tmp_path: Path) -> None:
    towers, images = load_towers(folder), tiny.pictures(2, 40, 30)
    module = towers.image_module()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    changed = towers.replace_image(module.state_dict())
    out = save_towers(tmp_path / "out", changed, folder)
    again = load_towers(out)
    assert torch.equal(again.embed_images(images), changed.embed_images(images))
    assert torch.equal(again.embed_texts(TEXTS), towers.embed_texts(TEXTS))
    assert again.logit_scale == towers.logit_scale and again.digest not in (towers.digest, changed.digest)
    assert float((again.embed_images(images) - towers.embed_images(images)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 4), np.uint8),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused(clip_folder: Path, images: Any) -> None:
    with pytest.raises(BadInput, match="images"):
        load_towers(clip_folder).embed_images(images)


def test_texts_of_another_kind_are_refused(clip_folder: Path) -> None:
    with pytest.raises(BadInput, match="text 1 is a int"):
        load_towers(clip_folder).embed_texts(["a", 3])  # type: ignore[list-item]


def test_nan_weights_are_named_by_the_row(clip_folder: Path) -> None:
    model = tiny.clip()
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    model.save_pretrained(clip_folder)
    with pytest.raises(BadInput, match=r"images: row 0 \(and 1 more\) holds NaN"):
        load_towers(clip_folder).embed_images(tiny.pictures(2, 24, 24))


def test_a_tokenizer_without_end_token_is_refused(clip_folder: Path) -> None:
    tiny.tokenizer(end="").save_pretrained(clip_folder)
    for texts in (TEXTS, ["cat"], [""]):
        with pytest.raises(Damaged, match="no end token"):
            load_towers(clip_folder).embed_texts(texts)


def test_a_tokenizer_of_a_larger_model_is_refused(clip_folder: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(clip_folder)
    with pytest.raises(Damaged, match="knows token 16, its text tower 16"):
        load_towers(clip_folder).embed_texts(["a zebra"])


def test_openais_old_end_token_is_pooled_where_it_is_largest(clip_folder: Path) -> None:
    wanted = load_towers(clip_folder).embed_texts(TEXTS)
    tiny.clip(eos=2).save_pretrained(clip_folder)
    torch.testing.assert_close(load_towers(clip_folder).embed_texts(TEXTS), wanted, rtol=0, atol=1e-6)


def missing(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).unlink()
    return str(folder)


def pickled(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return str(folder)


def other_kind(folder: Path) -> str:
    for path in folder.iterdir():
        path.unlink()
    transformers.ViTConfig(**tiny.shape()).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "spoil, error, line",
    [
        (lambda f: missing(f, "preprocessor_config.json"), Unsupported, "preprocessor_config.json"),
        (lambda f: missing(f, "tokenizer.json", "tokenizer_config.json"), Unsupported, "has no tokenizer"),
        (lambda f: missing(f, "config.json"), NoMatch, "no config.json"),
        (pickled, Unsupported, "pickled"),
        (other_kind, Unsupported, "type 'vit' has no two towers"),
        (lambda f: f"{f}x", NoMatch, "no such file or folder"),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(
    clip_folder: Path, spoil: Any, error: type[SecateurError], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        load_towers(spoil(clip_folder))
    assert "\n" not in str(caught.value)


def test_a_processor_of_newer_transformers_is_read(clip_folder: Path) -> None:
    wanted = load_towers(clip_folder).embed_images(tiny.pictures(1, 50, 30))
    (clip_folder / "preprocessor_config.json").unlink()
    both = transformers.CLIPProcessor(image_processor=tiny.processor(), tokenizer=tiny.tokenizer())
    both.save_pretrained(clip_folder)
    assert not (clip_folder / "preprocessor_config.json").exists()
    assert torch.equal(load_towers(clip_folder).embed_images(tiny.pictures(1, 50, 30)), wanted)


def test_real_images_through_a_tiny_model(folder: Path, shared_data: Path) -> None:
    """CIFAR's size and a photo's."""
    from PIL import Image

    from secateur.io.images import load_images

    small = load_images(shared_data / "cifar10_small", "test", limit=4).images
    photo = np.asarray(
        Image.open(shared_data / "imagenet_sample_1000" / "n01440764_tench.jpg").convert("RGB")
    )[None]
    towers: LoadedTowers = load_towers(folder)
    for images in (small, photo):
        torch.testing.assert_close(
            towers.embed_images(images), oracle_images(folder, images), rtol=0, atol=2e-6
        )
