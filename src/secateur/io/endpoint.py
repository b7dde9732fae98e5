"""An OpenAI-compatible server as an asker: POST /v1/chat/completions by the standard library, with patience and care.

The key is read from the environment for each request. It is kept nowhere, goes to no other host (no redirect is
followed), crosses no network in the clear, and is taken out of whatever the server sends back, errors included.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from secateur.core.method import check_kinds
from secateur.errors import BadInput, Damaged, NoMatch, SecateurError
from secateur.io.descriptors import check_line
from secateur.io.header import strict_json

AGAIN = 2  # times that an answer without use is asked for anew
LIMIT = 1 << 20  # bytes of an answer
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds
_PASSING = (408, 425, 429)  # and all from 500: worth another try
_SPEAKER = re.compile(r"^(Q|A):[ \t]*", re.MULTILINE)


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's chat completions, on this machine or elsewhere.

    Args:
        url: http://localhost:8000, or with the path: https://host/v1, https://host/v1/chat/completions.
        model: the server's name for the model.
        key_variable: the environment variable that holds the key; None, or a variable that is not set: no key is sent.
        timeout: seconds for one answer.
        retries: after time-outs, connection errors, 408, 425, 429 and 5xx, with waits that double from 1 s to 60 s, or
            as long as the server says (60 s at most).
        temperature, max_tokens: of the answer; None leaves it to the server.

    Raises:
        BadInput: no such address, or a number out of range.
    """

    url: str
    model: str
    key_variable: str | None = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    temperature: float | None = 0.7
    max_tokens: int | None = 300

    def __post_init__(self) -> None:
        check_kinds(self)
        check_line(self.model, "model")
        _address(self.url)
        if not 0 < self.timeout < 1e5:
            raise BadInput(f"{self.timeout!r} s", where="timeout", fix="give seconds, such as 120")
        if not 0 <= self.retries <= 100:
            raise BadInput(f"{self.retries!r} is not in 0..100", where="retries")
        check_sampling(self.temperature, self.max_tokens)

    @property
    def name(self) -> str:
        return f"{self.model} at {_address(self.url).netloc} ({sampling(self.temperature, self.max_tokens)})"

    def answer(self, prompt: str, seed: int) -> str:
        """The text that the model answers.

        Raises:
            NoMatch: the server cannot be reached.   BadInput: it refuses, or is busy for too long.
            Damaged: it answers rubbish, three times.
        """
        body = {"model": self.model, "messages": turns(prompt), "seed": seed}
        body |= {} if self.temperature is None else {"temperature": self.temperature}
        body |= {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        key, data = self._key(), json.dumps(body).encode()
        failed = rubbish = 0
        while True:
            try:
                return self._text(self._post(data, key), key)
            except Damaged as error:
                rubbish, wait = rubbish + 1, None
                if rubbish > AGAIN:
                    raise Damaged(error.what, error.where, "look at what this server answers") from None
            except _Trouble as trouble:
                failed, wait = failed + 1, trouble.wait
                if failed > self.retries:
                    error = trouble.error
                    what = f"{error.what}, {failed} time{'s' * (failed > 1)}"
                    raise type(error)(what, error.where, error.fix) from None
            backoff = min(_FIRST_WAIT * 2 ** (failed + rubbish - 1), _LONGEST_WAIT)
            _sleep(backoff * random.uniform(0.5, 1.0) if wait is None else wait)

    @property
    def _where(self) -> str:
        return f"{self.model} at {_address(self.url).netloc}"

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        # a library would put such a key into its error
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise BadInput("holds characters that no key has", where=f"variable {self.key_variable}")
        address = _address(self.url)
        if key and address.scheme == "http" and not _here(address.hostname or ""):
            what = f"the key in {self.key_variable} would cross the network in the clear"
            raise BadInput(what, where=address.netloc, fix="use https, or unset the variable for this server")
        return key

    def _post(self, data: bytes, key: str) -> bytes:
        address, where = _address(self.url), self._where
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "secateur"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(address.geturl(), data, headers, method="POST")
        direct = [urllib.request.ProxyHandler({})] if _here(address.hostname or "") else []
        opener = urllib.request.build_opener(_NoRedirect, *direct)
        deadline = time.monotonic() + self.timeout
        try:
            with opener.open(request, timeout=self.timeout) as response:
                return _body(response, deadline, where)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, key) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                slow = BadInput(f"gives no answer in {self.timeout:g} s", where, "give it more time")
                raise _Trouble(slow) from None
            what = f"cannot be reached ({_short(str(reason), key) or type(reason).__name__})"
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise NoMatch(what, where, "check the address") from None
            raise _Trouble(NoMatch(what, where, "start the server, or check the address")) from None

    def _refusal(self, error: urllib.error.HTTPError, key: str) -> Exception:
        """What a status other than 200 means: worth another try, or an error at once."""
        where, status = self._where, f"answers {error.code}"
        if error.code in _PASSING or error.code >= 500:
            busy = BadInput(_said(status, error, key), where, "try again later")
            return _Trouble(busy, _retry_after(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            to = _short(urllib.parse.urlsplit(error.headers.get("Location") or "").netloc, key)
            what = f"{status}: it sends on to {to or 'another address'}, where the key is not sent"
            return BadInput(what, where, "name that address if you trust it")
        if error.code in (401, 403) and key:
            return BadInput(f"{status}: it refuses the key in {self.key_variable}", where, "check the key")
        if error.code in (401, 403):
            fix = f"set {self.key_variable}" if self.key_variable else "name a variable that holds a key"
            return BadInput(f"{status}: it wants a key", where, fix)
        return BadInput(_said(status, error, key), where, "check the address and the model's name")

    def _text(self, raw: bytes, key: str) -> str:
        found = strict_json(raw.replace(key.encode(), b"***") if key else raw, self._where, finite=False)
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices:
            said = _message(found, key)
            raise Damaged(f"answers without choices{': ' if said else ''}{said}", where=self._where)
        message = choices[0].get("message") if isinstance(choices[0], dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or not content.strip():
            raise Damaged("answers without text", where=self._where)
        return _hidden(content, key)


def turns(prompt: str) -> list[dict[str, str]]:
    """The messages of a chat: questions and answers in turn where the prompt is a row of `Q:` and `A:`, else one.

    The last answer is open: it is left out. (Small models that were trained on chats answer a prompt with examples in
    it by prose; to examples in turns they answer with a list.)
    """
    before, *parts = _SPEAKER.split(prompt)
    speakers, texts = parts[::2], [text.strip() for text in parts[1::2]]
    if before.strip() or not speakers or speakers != (["Q", "A"] * len(speakers))[: len(speakers)]:
        return [{"role": "user", "content": prompt}]
    roles = {"Q": "user", "A": "assistant"}
    said = [{"role": roles[who], "content": text} for who, text in zip(speakers, texts, strict=True)]
    return said[:-1] if speakers[-1] == "A" else said


# -- one exchange with a server ---------------------------------------------------------------------------------------


class _Trouble(Exception):
    """What may pass; `error` is raised when it does not, `wait` is how long the server wants us to wait."""

    def __init__(self, error: SecateurError, wait: float | None = None) -> None:
        self.error, self.wait = error, wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key along to wherever it leads."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _address(url: str) -> urllib.parse.SplitResult:
    """The address to post to; a bare host gets OpenAI's path."""
    fix = "write http://localhost:8000 or https://HOST/v1"
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, known = urllib.parse.urlsplit(""), False
    if not known or not url.isascii() or not url.isprintable() or " " in url:
        raise BadInput("is no address of a server", where="endpoint", fix=fix)
    if "@" in parts.netloc or parts.fragment:
        raise BadInput("holds a user, a password or a fragment", where="endpoint", fix=fix)
    path = parts.path.rstrip("/") or "/v1"
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return parts._replace(path=path)


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _body(response: Any, deadline: float, where: str) -> bytes:
    parts, size, whole = [], 0, response.length
    while whole is None or size < whole:
        part = response.read1(1 << 16)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > LIMIT:
            raise Damaged(f"answers more than {LIMIT} bytes", where=where)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    if whole is not None and size < whole:
        raise http.client.IncompleteRead(b"", whole - size)
    return b"".join(parts)


def _said(status: str, error: urllib.error.HTTPError, key: str) -> str:
    """The status and what the server says about it."""
    try:
        said = _message(strict_json(error.read(1 << 16), "", finite=False), key)
    except (OSError, http.client.HTTPException, Damaged):
        said = ""
    return f"{status}: {said or _short(str(error.reason), key)}".rstrip(": ")


def _message(found: Any, key: str) -> str:
    inner = found.get("error", found.get("detail", found.get("message"))) if isinstance(found, dict) else None
    inner = inner.get("message") if isinstance(inner, dict) else inner
    return _short(inner, key) if isinstance(inner, str) else ""


def _retry_after(text: str | None) -> float | None:
    """Seconds that a Retry-After asks for (a number or a date), 60 at most; None where it says nothing of use."""
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text or "") - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else None


def _short(text: str, key: str) -> str:
    """Fit for one line; the key is taken out before the cut, which could leave a part of it."""
    return "".join(c if c.isprintable() else " " for c in _hidden(text, key))[:120].strip()


def _hidden(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


def sampling(temperature: float | None, max_tokens: int | None) -> str:
    tokens = "server's length" if max_tokens is None else f"{max_tokens} tokens"
    return f"{'server' if temperature is None else f'temperature {temperature:g}'}, {tokens}"


def check_sampling(temperature: float | None, max_tokens: int | None) -> None:
    if temperature is not None and not 0 <= temperature <= 10:
        raise BadInput(f"{temperature!r} is not in 0..10", where="temperature")
    if max_tokens is not None and (type(max_tokens) is not int or not 0 < max_tokens <= 1 << 16):
        raise BadInput(f"{max_tokens!r} is not in 1..65536", where="max_tokens")
