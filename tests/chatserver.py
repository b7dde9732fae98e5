"""A real HTTP server in a thread that answers as a script says, well or badly, for tests of what asks one."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """POST only; what was asked goes to `server.seen`, the next act of `server.script` answers (the last stays)."""

    server: ChatServer

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.guard:
            self.server.seen.append((self.path, dict(self.headers), json.loads(raw)))
            script = self.server.script
            act = script.pop(0) if len(script) > 1 else script[0]
        act(self)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class ChatServer(ThreadingHTTPServer):
    """`seen`: (path, headers, body) of every request."""

    daemon_threads = True

    def __init__(self, script: list[Act]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.guard = script, threading.Lock()
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up


@contextmanager
def serving(*script: Act) -> Iterator[ChatServer]:
    with ChatServer(list(script)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def says(text: str) -> Act:
    """A chat completion."""
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
    return lambda handler: handler.reply(200, body)


def echoes(template: str) -> Act:
    """A chat completion with {} filled by the last question's class."""

    def act(handler: Handler) -> None:
        question = handler.server.seen[-1][2]["messages"][-1]["content"]
        name = question.split(" can a ")[-1].split(" be told")[0]
        says(template.replace("{}", name))(handler)

    return act


def raw(body: bytes, status: int = 200, **headers: str) -> Act:
    return lambda handler: handler.reply(status, body, **headers)


def fails(status: int, message: str = "", **headers: str) -> Act:
    body = json.dumps({"error": {"message": message}}).encode() if message else b"<html>oops</html>"
    return raw(body, status, **headers)


def hangs(seconds: float) -> Act:
    return lambda handler: time.sleep(seconds)


def drips(every: float, count: int) -> Act:
    """A body of which one byte comes at a time."""

    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(count))
        handler.end_headers()
        for _ in range(count):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(every)

    return act


def cuts(after: bytes = b"") -> Act:
    """The connection is reset, after the head and some of the body if there is any."""

    def act(handler: Handler) -> None:
        if after:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(after) + 100))
            handler.end_headers()
            handler.wfile.write(after)
            handler.wfile.flush()
        else:
            linger = struct.pack("ii", 1, 0)  # close resets the connection
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.shutdown(socket.SHUT_RDWR) if after else handler.connection.close()

    return act


def floods(size: int) -> Act:
    """A valid answer of `size` bytes and more, without its length in the head."""

    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b'{"x": "')
        for _ in range(size >> 16):
            handler.wfile.write(b"x" * (1 << 16))
        handler.wfile.write(b'"}')

    return act
