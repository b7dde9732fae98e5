"""A real server on a free port in a thread, and requests to it with nothing but http.client."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.decode import Decoder
from secateur.runtime.serve import Limits, Server
from secateur.runtime.web import bound
from tests.docs.tiny import tiny_model

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.first %}"
    "{{ raise_exception('an answer comes after a question') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


class SlowDecoder(Decoder):
    """A model that takes `pause` seconds a token."""

    pause = 0.0

    def step(self, token: int) -> Tensor:
        time.sleep(self.pause)
        return super().step(token)


def tiny(folder: Path) -> tuple[Any, Any]:
    """Model and byte-level tokenizer with a chat template; its answers do not repeat themselves."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = []  # an answer ends when a test wants it to
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), tokenizer


class Client:
    """What a test says to a server."""

    def __init__(self, server: Server, port: int, lines: list[str]) -> None:
        self.server, self.port, self.lines = server, port, lines
        self.decoder: Any = server.decoder

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (parsed if it is JSON), headers in lower case."""
        connection = self.connect()
        raw = body if isinstance(body, bytes | str | None) else json.dumps(body)
        kind = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, raw, {**kind, **(headers or {})})
        got = connection.getresponse()
        text = got.read().decode()
        connection.close()
        is_json = "json" in (got.headers.get("content-type") or "")
        return (
            got.status,
            json.loads(text) if is_json else text,
            {k.lower(): v for k, v in got.headers.items()},
        )

    def chat(self, content: str = "Say it", **fields: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": content}]
        return self.send("POST", "/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})[
            :2
        ]

    def complete(self, prompt: Any = "The license", **fields: Any) -> tuple[int, Any]:
        return self.send("POST", "/v1/completions", {"prompt": prompt, "temperature": 0, **fields})[:2]

    def stream(self, path: str, fields: dict[str, Any]) -> list[Any]:
        """The events of a stream; the last is the word [DONE]."""
        status, text, headers = self.send("POST", path, {**fields, "stream": True})
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), text
        events = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
        return [event if event == "[DONE]" else json.loads(event) for event in events]

    def settles(self, seconds: float = 5.0) -> bool:
        """Whether within that time nobody is in the line any more."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.server.line.inside == 0 and self.server.line.running is None:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def serving(
    model: Any, tokenizer: Any, *, pause: float = 0.0, name: str = "tiny", **limits: Any
) -> Iterator[Client]:
    """A server for the duration of a block; it must end within seconds."""
    decoder = SlowDecoder(model)
    decoder.pause = pause
    lines: list[str] = []
    server = Server(decoder, tokenizer, name, Limits(**{"grace": 0.5, **limits}), lines.append)
    listening = threading.Event()
    with bound("127.0.0.1", 0) as address:
        address.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # who does not read is noticed soon
        port = address.getsockname()[1]
        thread = threading.Thread(target=server.run, args=(address, listening.set), daemon=True)
        thread.start()
        assert listening.wait(20)
        client = Client(server, port, lines)
        try:
            yield client
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive(), "the server did not end"


def raw(client: Client, text: bytes) -> socket.socket:
    """A connection on which this was sent."""
    made = socket.create_connection(("127.0.0.1", client.port), timeout=20)
    made.sendall(text)
    return made


def post(path: str, body: bytes, length: int | None = None, more: str = "") -> bytes:
    """A request; `length` may lie about its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    got = b""
    try:
        while part := connection.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    connection.close()
    return got


def vanish(connection: socket.socket) -> None:
    """Reset, as when a program is killed with data under way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
