"""Ask a language model for descriptors: an OpenAI-compatible endpoint (endpoint.py), or a transformers model here.

    asker = Endpoint("http://localhost:8000", "qwen")            # or LocalModel("smollm2-135m")
    found = ask(["robin", "wren"], asker, cache=Path("answers"))

One file an answer lies in `cache`, under sha256 of (asker, prompt, seed), written as soon as the answer is there: what
was answered stays when a later question fails, and nothing is asked twice. An answer of no use is not kept.
The prompt is a few questions with answers, then the question, in the manner of Menon & Vondrick, Visual Classification
via Description from Large Language Models (2022), in words of our own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from secateur.core.scores import digest
from secateur.errors import BadInput, Damaged, SecateurError, Unsupported
from secateur.io.descriptors import Descriptors, check_line, check_names, clean
from secateur.io.endpoint import AGAIN, LIMIT, Endpoint, check_sampling, sampling, turns
from secateur.io.files import read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.store import load

__all__ = ["PROMPT", "Asker", "Endpoint", "LocalModel", "ask", "prompt_for"]

PLACE = "{class}"
PROMPT = """\
Q: By which visible features can a lighthouse be told in a photo?
A:
- tall, slender tower
- round walls that narrow towards the top
- lamp room of glass under a small dome
- bands of red and white paint
- narrow windows one above the other
- rocks or sea at its foot

Q: By which visible features can a red squirrel be told in a photo?
A:
- small animal with reddish brown fur
- large bushy tail held over the back
- tufts of hair on the ears
- white belly
- dark round eyes
- sits upright on a branch

Q: By which visible features can a {class} be told in a photo?
A:
-"""
_STEP = 1_000_003  # between the seeds of answers that are asked for anew
_FORMAT = 1
_NAME = 300


class Asker(Protocol):
    """Who is asked. The name is one line that tells askers apart whose answers may differ."""

    @property
    def name(self) -> str: ...

    def answer(self, prompt: str, seed: int) -> str: ...


def ask(
    classes: Sequence[str],
    asker: Asker,
    *,
    template: str = PROMPT,
    cache: Path | None = None,
    seed: int = 0,
    tell: Callable[[int, int, str], None] | None = None,
) -> Descriptors:
    """Descriptors of every class; the source of each is "ASKER, DATE, prompt SHA256".

    Args:
        template: holds `{class}` where the name goes.
        cache: folder of the answers; made where it is missing.
        tell: is called with (done, of, class) before the first question and after each answer.

    Raises:
        BadInput: names, template or seed; three answers without a descriptor.   And what the asker raises, with the
        class in front.   Damaged: a file of the cache.
    """
    classes = tuple(classes)
    check_names(classes)
    check_line(asker.name, "name of the asker")
    if len(asker.name) > _NAME:
        raise BadInput(f"has {len(asker.name)} characters", where="name of the asker", fix=f"{_NAME} at most")
    if type(seed) is not int or not 0 <= seed < 1 << 31:
        raise BadInput(f"{seed!r:.40} is no whole number in [0, 2^31)", where="seed")
    prompts = [prompt_for(name, template) for name in classes]
    if cache is not None:
        if cache.exists() and not cache.is_dir():
            raise BadInput("is no folder", where=str(cache), fix="name a folder for the answers")
        cache.mkdir(parents=True, exist_ok=True)
    words: list[str] = []
    owner: list[int] = []
    sources: list[str] = []
    for place, (name, prompt) in enumerate(zip(classes, prompts, strict=True)):
        if tell is not None:
            tell(place, len(classes), name)
        found, date = _one(name, prompt, asker, cache, seed)
        words += found
        owner += [place] * len(found)
        sources += [f"{asker.name}, {date}, prompt {_sha(prompt)[:12]}"] * len(found)
    if tell is not None:
        tell(len(classes), len(classes), classes[-1])
    return Descriptors(classes, tuple(words), tuple(owner), tuple(sources))


def prompt_for(class_name: str, template: str = PROMPT) -> str:
    """The question for one class; `_` in its name becomes a space. BadInput where the template has no `{class}`."""
    if PLACE not in template:
        raise BadInput(f"holds no {PLACE}", where="template", fix=f"write {PLACE} where the name goes")
    return template.replace(PLACE, class_name.replace("_", " "))


class LocalModel:
    """A language model that transformers loads, with its chat template where it has one.

    Args:
        name_or_folder: smollm2-135m, a folder, a .gguf file or a hub name, as for `io.store.load`.
        temperature: 0 takes the likeliest token each time.
        max_tokens: of the answer.

    Raises:
        Unsupported: a model that writes no text, or has no tokenizer.   And what `io.store.load` raises.
    """

    def __init__(
        self,
        name_or_folder: str | Path,
        *,
        temperature: float = 0.7,
        max_tokens: int = 160,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        check_sampling(temperature, max_tokens)
        loaded = load(str(name_or_folder), dtype=dtype, device=device)
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.temperature, self.max_tokens = temperature, max_tokens
        can = getattr(self.model, "can_generate", None)
        if self.tokenizer is None or can is None or not can():
            raise Unsupported("writes no text", where=str(name_or_folder), fix="name a causal language model")
        # a few entries of every tensor tell two models of one name apart
        some = [p.detach().reshape(-1)[:: max(1, p.numel() // 16)] for p in self.model.parameters()]
        base = " ".join(Path(name_or_folder).name.split())
        self.name = f"{base} {digest(*some)[:8]} ({sampling(temperature, max_tokens)})"

    @torch.no_grad()
    def answer(self, prompt: str, seed: int) -> str:
        """What the model goes on with; the same for the same seed, and the random state outside stays as it was."""
        tokenizer, text = self.tokenizer, prompt
        chat = bool(getattr(tokenizer, "chat_template", None))
        if chat:
            text = tokenizer.apply_chat_template(turns(prompt), tokenize=False, add_generation_prompt=True)
        device = next(self.model.parameters()).device
        encoded = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)
        inputs = {k: encoded[k].to(device) for k in ("input_ids", "attention_mask") if k in encoded}
        start = inputs["input_ids"].shape[1]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and start + self.max_tokens > room:
            what = (
                f"a prompt of {start} tokens and an answer of {self.max_tokens} exceed its {room} positions"
            )
            raise BadInput(what, where=self.name, fix="shorten the template, or lower max_tokens")

        def asks_itself(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            """A model without end of answer invents the next question; nothing after it is of use."""
            return torch.tensor(
                ["\nQ:" in tokenizer.decode(row[start:][-8:]) for row in ids], device=ids.device
            )

        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        how: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            how = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            out = self.model.generate(
                **inputs,
                **how,
                max_new_tokens=self.max_tokens,
                pad_token_id=pad,
                stopping_criteria=[asks_itself],
            )
        said = tokenizer.decode(out[0, start:], skip_special_tokens=True)
        # goes on behind the dash that opens the list
        return said if chat or not prompt.rstrip().endswith("-") else f"- {said}"


# -- answers and their cache ------------------------------------------------------------------------------------------


def _one(name: str, prompt: str, asker: Asker, cache: Path | None, seed: int) -> tuple[list[str], str]:
    """Descriptors of one class, and the date they were answered."""
    asked = {"format": _FORMAT, "asker": asker.name, "seed": seed, "prompt": prompt}
    path = None if cache is None else cache / f"{_sha(json.dumps([asker.name, prompt, seed]))}.json"
    if path is not None and path.exists():
        kept = _cached(path, asked)
        if found := clean(kept["answer"]):
            return found, kept["date"]
    for attempt in range(1 + AGAIN):
        try:
            answer = asker.answer(prompt, seed + attempt * _STEP)
        except SecateurError as error:
            raise type(error)(error.what, f"{name!r:.80}: {error.where}", error.fix) from error
        if found := clean(answer):
            date = datetime.now(UTC).date().isoformat()
            if path is not None:
                write_atomic(path, json.dumps({**asked, "date": date, "answer": answer}, indent=1) + "\n")
            return found, date
    what = f"{asker.name} answers nothing that could be a descriptor, {1 + AGAIN} times"
    raise BadInput(what, where=repr(name)[:80], fix="ask another model, or write some by hand")


def _cached(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    found = strict_json(read_small(path, 8 * LIMIT), str(path))
    date, answer = (found.get("date"), found.get("answer")) if isinstance(found, dict) else (None, None)
    right = isinstance(date, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", date) and isinstance(answer, str)
    if not right or found != {**asked, "date": date, "answer": answer}:
        raise Damaged("is not the answer to its question", where=str(path), fix="remove it to ask again")
    return found


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
