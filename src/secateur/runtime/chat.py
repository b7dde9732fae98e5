"""What an OpenAI client sends and gets: requests read strictly, answers in the shape it expects.

A field that is known must have its type and range; a known field that asks for what is not here (log probabilities,
tools, several answers) is refused by name; an unknown field is ignored, as OpenAI's service does. Prompts go through
the tokenizer's chat template, which transformers runs in jinja's sandbox; a model without one answers completions only.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.runtime.sample import Sampling

Kind = Literal["chat", "text"]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
STOPS = 4  # strings in "stop", as OpenAI's service has it
DEFAULT_TEXT = 16  # tokens of a completion that names no max_tokens, the same
SHOWN = 200  # characters of an error's message
UNKNOWN = 32768  # positions of a model that names none: an answer must end, and memory too
LONG = 32  # characters a position: a text longer than all positions times that is looked at in part first

# field -> whether this value asks for nothing
_NOT_HERE: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1 and value is not True,
    "best_of": lambda value: value == 1 and value is not True,
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
    "tools": lambda value: value == [],
    "functions": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "response_format": lambda value: value == {"type": "text"},
    "logit_bias": lambda value: value == {},
    "frequency_penalty": lambda value: value == 0,
    "presence_penalty": lambda value: value == 0,
}


@dataclass(frozen=True)
class Ask:
    """A request that was read: what to continue (messages, text or token ids) and how."""

    kind: Kind
    prompt: Any
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    usage: bool


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        BadInput: no JSON, not UTF-8, NaN, nested too deep, or not an object.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=constant)
    except RecursionError:
        raise BadInput("is nested too deep", where="body") from None
    except ValueError as error:  # of the decoder, of the parser, of a number with too many digits
        raise BadInput(f"is no JSON ({_short(error, 80)})", where="body") from None
    if not isinstance(fields, dict):
        raise BadInput("is no JSON object", where="body")
    return fields


def read(kind: Kind, fields: dict[str, Any], name: str) -> Ask:
    """The request of these fields for the model `name`.

    Raises:
        BadInput: a field of the wrong type or range (`where` names it).   NoMatch: another model.
        Unsupported: a field that asks for what is not here.
    """
    asked = fields.get("model")
    if asked is not None and not isinstance(asked, str):
        raise BadInput("is no string", where="model")
    if asked is not None and asked != name:
        raise NoMatch(f"there is no {asked[:80]!r}", where="model", fix=f"this server has {name!r}")
    for field, nothing in _NOT_HERE.items():
        if fields.get(field) is not None and not nothing(fields[field]):
            raise Unsupported("not supported by this server", where=field, fix="leave it out")
    limit = fields.get("max_completion_tokens")
    field = "max_tokens" if limit is None else "max_completion_tokens"
    most = _number(fields, field, None, 1, 2**31, whole=True)
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadInput("is no object", where="stream_options")
    return Ask(
        kind,
        _messages(fields) if kind == "chat" else _prompt(fields),
        most,
        Sampling(
            temperature=_number(fields, "temperature", 1.0, 0, 2),
            # 0, which OpenAI's range includes, leaves the likeliest token
            top_p=max(_number(fields, "top_p", 1.0, 0, 1), 1e-9),
            top_k=max(_number(fields, "top_k", 0, -1, 2**31, whole=True), 0),
            seed=_number(fields, "seed", None, -(2**63), 2**63 - 1, whole=True),
        ),
        _stops(fields),
        _flag(fields, "stream"),
        _flag(options, "include_usage"),
    )


def prompt_ids(ask: Ask, tokenizer: Any, positions: int = UNKNOWN) -> list[int]:
    """The tokens of the prompt.

    Args:
        positions: of the model. A text far longer is refused after a part of it: a token takes tokenizers 100 bytes.

    Raises:
        BadInput: messages that the chat template refuses, or far too much text.
        Unsupported: chat with a model that has no template.
    """
    if ask.kind == "text" and not isinstance(ask.prompt, str):
        return list(ask.prompt)
    text, special = ask.prompt, True
    if ask.kind == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise Unsupported(
                "this model has no chat template", where="messages", fix="use /v1/completions with a prompt"
            )
        try:
            text = tokenizer.apply_chat_template(ask.prompt, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of the model's maker: it may raise anything
            raise BadInput(
                f"the model's chat template refuses them ({type(error).__name__}: {_short(error, 100)})",
                where="messages",
            ) from None
        special = False  # the template has written the special tokens itself
    if len(text) > LONG * positions:
        count = len(tokenizer(text[: LONG * positions], verbose=False)["input_ids"])
        if count > 2 * positions:
            raise _too_long(ask, f"more than {count}", positions)
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def length_of(ask: Ask, prompt: int, positions: int, most: int | None) -> int:
    """How many tokens the answer may have: what was asked, else all that the server and the model leave.

    Raises:
        BadInput: more than `most`, or than the model's `positions` leave after `prompt` tokens.
    """
    field = "max_tokens"
    left = positions - prompt
    if left < 1:
        raise _too_long(ask, str(prompt), positions)
    if ask.max_tokens is None:
        return min(left, most or left, DEFAULT_TEXT if ask.kind == "text" else left)
    if most is not None and ask.max_tokens > most:
        raise BadInput(
            f"{ask.max_tokens} is more than this server gives", where=field, fix=f"ask for at most {most}"
        )
    if ask.max_tokens > left:
        raise BadInput(
            f"{ask.max_tokens} after a prompt of {prompt} tokens are more than the model's {positions} positions",
            where=field,
            fix=f"ask for at most {left}",
        )
    return ask.max_tokens


class Reply:
    """The JSON of one answer, whole or in chunks."""

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind, self.name = kind, name
        self.id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, text: str, finish: str, prompt: int, count: int) -> dict[str, Any]:
        """The answer at once."""
        said: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return self._shape("chat.completion", [self._choice(said, finish)], usage(prompt, count))

    def first(self) -> dict[str, Any] | None:
        """What a chat's stream begins with."""
        if self.kind == "text":
            return None
        said = {"delta": {"role": "assistant", "content": ""}}
        return self._shape("chat.completion.chunk", [self._choice(said, None)])

    def chunk(self, text: str, finish: str | None) -> dict[str, Any]:
        """Some more text of a stream, or its end."""
        said: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            said = {"delta": {"content": text} if text or finish is None else {}}
        return self._shape("chat.completion.chunk", [self._choice(said, finish)])

    def counted(self, prompt: int, count: int) -> dict[str, Any]:
        """The last chunk of a stream that asked for its usage."""
        return self._shape("chat.completion.chunk", [], usage(prompt, count))

    def _choice(self, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish}

    def _shape(self, kind: str, choices: list[Any], used: dict[str, int] | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.name,
            "choices": choices,
            **({"usage": used} if used else {}),
        }


def usage(prompt: int, count: int) -> dict[str, int]:
    """Tokens read and written; an end token counts, though it has no text."""
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def error_body(
    message: str, kind: str = "invalid_request_error", param: str = "", code: str = ""
) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code or None}}


def _too_long(ask: Ask, count: str, positions: int) -> BadInput:
    return BadInput(
        f"{count} tokens leave no room for an answer in the model's {positions} positions",
        where="messages" if ask.kind == "chat" else "prompt",
        fix="shorten it",
    )


def _messages(fields: dict[str, Any]) -> list[dict[str, str]]:
    given = fields.get("messages")
    if not isinstance(given, list) or not given:
        raise BadInput("is no list of at least one message", where="messages")
    return [_message(item, f"messages[{at}]") for at, item in enumerate(given)]


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise BadInput("is no object with a role", where=where)
    if item["role"] not in ROLES:
        raise BadInput(f"{item['role'][:40]!r} is none of {', '.join(ROLES)}", where=f"{where}.role")
    content = item.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise BadInput(
                "has a part that is not text", where=f"{where}.content", fix="this model reads text only"
            )
        content = "".join(part for part in parts if part)
    if content is None and item["role"] == "assistant":
        content = ""
    if not isinstance(content, str):
        raise BadInput("is no string", where=f"{where}.content")
    return {"role": ROLES[item["role"]], "content": _encodable(content, f"{where}.content")}


def _prompt(fields: dict[str, Any]) -> str | list[int]:
    given = fields.get("prompt")
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, str) and given:
        return _encodable(given, "prompt")
    if isinstance(given, list) and given:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in given):
            return given
        if all(isinstance(item, str | list) for item in given):
            raise Unsupported("one prompt a request", where="prompt", fix="send them one by one")
    raise BadInput("is neither text nor a list of token ids", where="prompt")


def _stops(fields: dict[str, Any]) -> tuple[str, ...]:
    given = fields.get("stop")
    given = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(given, list) or not all(isinstance(item, str) and item for item in given):
        raise BadInput("is neither a string nor a list of strings, none of them empty", where="stop")
    if len(given) > STOPS:
        raise BadInput(f"{len(given)} strings", where="stop", fix=f"give at most {STOPS}")
    return tuple(given)


def _number(
    fields: dict[str, Any], name: str, default: Any, low: float, high: float, whole: bool = False
) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise BadInput(f"is no {'whole ' if whole else ''}number", where=name)
    if not low <= value <= high:
        raise BadInput(f"{_short(value, 40)} is not in [{low}, {high}]", where=name)
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadInput("is neither true nor false", where=name)
    return bool(value)


def _encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("holds half of a surrogate pair, which is no character", where=where) from None
    return text


def _short(value: object, size: int) -> str:
    words = " ".join(str(value).split())
    return words if len(words) <= size else words[: size - 1] + "…"
