"""Clients that want a server dead: 200 at once, slow ones, vanishing ones, huge, broken and deep bodies, noise.

    python attacks/serve.py --rounds 5

A tiny model is served by a process of its own. After each round nobody may be left in its line, and a question must get
the answer it got before; what it takes of memory in the first two rounds has to do for all that come.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attacks.common import report, rng

MEGABYTES = 8.0  # what memory may differ by from one round to another: freed pages are not all given back
QUEUE, BODY, HEAD_SECONDS = 32, 2**20, 1.0
QUESTION = {"prompt": "The license", "max_tokens": 24, "temperature": 0}


def server(folder: str) -> None:
    """In the process of its own: make a model, serve it, say the port."""
    from secateur.engine.memory import one_heap
    from secateur.runtime.decode import Decoder
    from secateur.runtime.serve import Limits, Server
    from secateur.runtime.web import bound
    from tests.runtime.server import tiny

    one_heap()  # as the command does
    model, tokenizer = tiny(Path(folder))
    limits = Limits(
        queue=QUEUE, body=BODY, head_seconds=HEAD_SECONDS, body_seconds=HEAD_SECONDS, write_seconds=2.0
    )
    with bound("127.0.0.1", 0) as address:
        port = address.getsockname()[1]
        Server(Decoder(model), tokenizer, "tiny", limits).run(address, lambda: print(port, flush=True))


class Target:
    """The server as its attackers see it."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid, self.port = pid, port

    def post(self, body: bytes, path: str = "/v1/completions") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            got = connection.getresponse()
            return got.status, json.loads(got.read())
        finally:
            connection.close()

    def raw(self, data: bytes) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        made.sendall(data)
        return made

    def health(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def resident(self) -> float:
        """Megabytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@contextlib.contextmanager
def target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--server", str(Path(folder) / "tiny")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            yield Target(process.pid, int(process.stdout.readline()))
        finally:
            process.terminate()
            process.communicate(timeout=60)


def at_once(count: int, attack: Callable[[int], object]) -> list[BaseException]:
    """`count` threads that attack together; what they raised."""
    start, raised = threading.Barrier(count), []

    def one(number: int) -> None:
        start.wait()
        try:
            attack(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def flood(aim: Target, clients: int, figures: dict[str, Any]) -> None:
    """All ask at once: as many as fit are answered, the others told to come again."""
    statuses: list[int] = []
    body = json.dumps({**QUESTION, "max_tokens": 200}).encode()
    raised = at_once(clients, lambda number: statuses.append(aim.post(body)[0]))
    figures["answered"] += statuses.count(200)
    figures["told_to_wait"] += statuses.count(429)
    figures["failures"] += [f"flood: {type(error).__name__}: {error}" for error in raised[:3]]
    if set(statuses) - {200, 429} or statuses.count(200) < min(QUEUE, clients):
        figures["failures"].append(f"flood: statuses {sorted(set(statuses))}, {statuses.count(200)} answered")


def loris(aim: Target, clients: int, figures: dict[str, Any]) -> None:
    """Heads and bodies that come byte by byte; meanwhile a question is answered."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n"
    held = [aim.raw(head[: 9 + number % 40] if number % 2 else head + b"\r\n{") for number in range(clients)]
    end = time.monotonic() + 6 * HEAD_SECONDS
    began = time.monotonic()
    if aim.post(json.dumps(QUESTION).encode())[0] != 200:
        figures["failures"].append("loris: a question was not answered")
    figures["slowest_beside_loris_s"] = max(
        figures["slowest_beside_loris_s"], round(time.monotonic() - began, 2)
    )
    while held and time.monotonic() < end:
        for connection in list(held):
            try:
                connection.sendall(b" ")
                connection.setblocking(False)
                if connection.recv(65536) == b"":
                    raise ConnectionResetError
            except BlockingIOError:
                connection.settimeout(30)
            except OSError:
                connection.close()
                held.remove(connection)
                figures["cut_off"] += 1
            else:
                connection.settimeout(30)
        time.sleep(0.05)
    if held:
        figures["failures"].append(f"loris: {len(held)} of {clients} were still connected")
    for connection in held:
        connection.close()


def vanish(aim: Target, clients: int, seed: int, figures: dict[str, Any]) -> None:
    """Clients that ask for much and leave at any moment, politely or not."""
    body = json.dumps({"prompt": "The", "max_tokens": 8000, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"

    def one(number: int) -> None:
        drawn = random.Random(seed * 1000 + number)
        connection = aim.raw(head.encode() + body[: drawn.choice([len(body), len(body), 5])])
        time.sleep(drawn.uniform(0, 0.5))
        if drawn.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    figures["failures"] += [f"vanish: {error}" for error in at_once(clients, one)[:3]]
    figures["vanished"] += clients


def broken(aim: Target, seed: int, figures: dict[str, Any]) -> None:
    """Bodies that are no request: each is refused with a status of its own."""
    random_ = rng(seed)
    whole = json.dumps({**QUESTION, "stop": ["a", "b"], "seed": 3}).encode()
    bodies: list[tuple[bytes, set[int]]] = [
        (b"[" * 500_000, {400}),
        (b'{"prompt":' * 90_000, {400}),
        (b'{"prompt": "' + b"a " * 500_000 + b'"}', {400}),
        (json.dumps({"prompt": "\U0001f30d" * 80_000}).encode(), {400}),
        (
            b'{"messages": [' + b'{"role": "user", "content": "a b c "},' * 20_000 + b'{"role": "user"}]}',
            {400},
        ),
        (b'{"prompt": "a", "x": [' + b"[]," * 300_000 + b"1]}", {200}),
        (b'{"prompt": "' + b"a" * BODY + b'"}', {413}),
        (b"9" * 100_000, {400}),
        (b'{"prompt": "a", "max_tokens": ' + b"9" * 4000 + b"}", {400}),
        (b'{"prompt": "\\ud800"}', {400}),
        (b"\xff\xfe\x00" * 1000, {400}),
    ]
    for _ in range(40):
        cut = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            cut[random_.randrange(len(cut))] = random_.randrange(256)
        bodies.append((bytes(cut), {200, 400}))
    for body, wanted in bodies:
        try:
            status, found = aim.post(body)
        except OSError as error:  # the refusal came before all of the body was sent
            if wanted != {413}:
                figures["failures"].append(f"broken: {body[:40]!r}: {type(error).__name__}")
            continue
        figures["refused"] += status != 200
        if status not in wanted or (status != 200 and "\n" in found["error"]["message"]):
            figures["failures"].append(f"broken: {body[:40]!r}: {status} {str(found)[:120]}")


def noise(aim: Target, seed: int, clients: int) -> None:
    """What is no HTTP at all."""
    random_ = rng(seed)
    for _ in range(clients):
        with contextlib.suppress(OSError):
            connection = aim.raw(random_.randbytes(random_.randint(1, 5000)))
            connection.settimeout(0.05)
            connection.recv(1000)
            connection.close()


def run(rounds: int = 5, clients: int = 200, seed: int = 0) -> dict[str, Any]:
    """`rounds` of every attack by `clients`. Returns figures and a list of failures, which must be empty."""
    figures: dict[str, Any] = dict.fromkeys(("answered", "told_to_wait", "cut_off", "vanished", "refused"), 0)
    figures |= {"slowest_beside_loris_s": 0.0, "resident_mb": [], "failures": []}
    with target() as aim:
        before = aim.post(json.dumps(QUESTION).encode())[1]["choices"]
        figures["resident_mb"].append(round(aim.resident(), 1))
        for number in range(rounds):
            flood(aim, clients, figures)
            loris(aim, clients // 2, figures)
            vanish(aim, clients, seed + number, figures)
            broken(aim, seed + number, figures)
            noise(aim, seed + number, clients // 4)
            if not _settles(aim):
                figures["failures"].append(f"round {number}: somebody is left in the line: {aim.health()}")
            if aim.post(json.dumps(QUESTION).encode())[1].get("choices") != before:
                figures["failures"].append(f"round {number}: another answer than before")
            figures["resident_mb"].append(round(aim.resident(), 1))
    early, last = max(figures["resident_mb"][1:3]), figures["resident_mb"][-1]
    if last - early > MEGABYTES:
        figures["failures"].append(f"memory grew: {figures['resident_mb']} MB")
    return figures


def _settles(aim: Target, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := aim.health())["inside"] == 0 and found["running"] == 0:
            return True
        time.sleep(0.05)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        server(options.server)
        return 0
    return report("serve", run(options.rounds, options.clients, options.seed))


if __name__ == "__main__":
    sys.exit(main())
