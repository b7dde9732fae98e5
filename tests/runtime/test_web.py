"""Slow clients and many connections are cut off; an address that cannot be had is named."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from secateur.runtime.web import bound
from tests.runtime.server import Client, post, raw, serving, tiny, until_closed

COMPLETE = "/v1/completions"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return tiny(tmp_path_factory.mktemp("web") / "tiny")


@pytest.fixture(scope="module")
def client(parts: tuple[Any, Any]) -> Iterator[Client]:
    with serving(*parts, body=2000, head_seconds=0.5, body_seconds=0.5) as made:
        yield made


def test_who_never_ends_a_head_or_a_body_is_cut_off(client: Client) -> None:
    began = time.monotonic()
    silent, slow = raw(client, b""), raw(client, b"POST /v1/comp")
    body = raw(client, post(COMPLETE, b'{"prompt"', 500))
    used = raw(client, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    with contextlib.suppress(ConnectionError):  # a busy machine may sleep until it is cut off
        for _ in range(4):  # drop by drop
            time.sleep(0.1)
            slow.sendall(b"l")
    assert until_closed(silent) == b"" and until_closed(slow) == b""
    assert until_closed(body).startswith(b"HTTP/1.1 408 ")
    assert until_closed(used).startswith(b"HTTP/1.1 200 "), "kept open for a while, not for ever"
    assert 0.3 < time.monotonic() - began < 10
    assert client.complete("The", max_tokens=1)[0] == 200


def test_a_body_is_counted_while_it_comes(client: Client) -> None:
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection = raw(client, chunked + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    connection.close()
    assert client.server._reading == 0


def test_a_reader_that_stalls_is_cut_off(parts: tuple[Any, Any]) -> None:
    with serving(*parts, write_seconds=0.3, connections=8) as client:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", client.port))
        body = json.dumps(
            {"prompt": "The", "max_tokens": 8000, "stream": True, "temperature": 1, "seed": 1}
        ).encode()
        made.sendall(post(COMPLETE, body))
        end = time.monotonic() + 30
        while not any("stalled" in line for line in client.lines) and time.monotonic() < end:
            time.sleep(0.05)
        assert any("stalled" in line for line in client.lines)
        assert client.settles() and client.complete("The", max_tokens=2)[0] == 200
        assert b"[DONE]" not in until_closed(made)


def test_too_many_connections_are_turned_away(parts: tuple[Any, Any]) -> None:
    with serving(*parts, connections=4, head_seconds=2) as client:
        held = [raw(client, b"") for _ in range(6)]
        time.sleep(0.1)
        assert client.send("GET", "/health")[0] == 503
        for connection in held:
            assert until_closed(connection) == b""
        assert client.send("GET", "/health")[0] == 200


def test_an_address_that_cannot_be_had_is_named() -> None:
    with bound("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(OSError) as caught:
            bound("127.0.0.1", port)
        assert caught.value.filename == f"127.0.0.1:{port}" and "in use" in str(caught.value)
    with pytest.raises(OSError) as caught:
        bound("no.such.host.invalid", 80)
    assert caught.value.filename == "no.such.host.invalid:80"
