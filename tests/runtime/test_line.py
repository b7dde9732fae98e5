"""The line: bounded, in order, and nobody who has left is answered further."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any

import pytest

from secateur.runtime.chat import Ask
from secateur.runtime.decode import Decoder, Piece
from secateur.runtime.line import Job, Line
from secateur.runtime.sample import GREEDY
from secateur.runtime.serve import Server, Stream
from tests.runtime.server import SlowDecoder, post, raw, serving, tiny, vanish
from tests.tinylm import tiny_llama, tiny_tokenizer

COMPLETE = "/v1/completions"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return tiny(tmp_path_factory.mktemp("line") / "tiny")


def test_the_line_is_bounded_and_moves_on(parts: tuple[Any, Any]) -> None:
    with serving(*parts, pause=0.02, queue=3) as client:
        found: list[tuple[int, Any, dict[str, str]]] = []

        def ask() -> None:
            body = {"prompt": "The", "max_tokens": 10, "temperature": 0}
            found.append(client.send("POST", COMPLETE, body))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(status for status, _, _ in found)
        assert statuses == [200] * 4 + [429] * 8, "one is answered, three wait"
        refused = next(answer for answer in found if answer[0] == 429)
        assert refused[1]["error"]["type"] == "rate_limit_error" and int(refused[2]["retry-after"]) >= 1
        assert "3 requests are waiting" in refused[1]["error"]["message"]
        assert len({json.dumps(body["choices"]) for status, body, _ in found if status == 200}) == 1
        assert client.settles() and client.complete("The", max_tokens=2)[0] == 200


def test_who_has_left_is_not_answered(parts: tuple[Any, Any]) -> None:
    with serving(*parts, pause=0.01, queue=4) as client:
        long = json.dumps({"prompt": "The", "max_tokens": 5000}).encode()
        streamed = json.dumps({"prompt": "The", "max_tokens": 5000, "stream": True}).encode()
        for body, leave in (
            (long, vanish),
            (streamed, vanish),
            (long, socket.socket.close),
            (streamed, socket.socket.close),
        ):
            first, waiting = raw(client, post(COMPLETE, body)), raw(client, post(COMPLETE, body))
            end = time.monotonic() + 10
            line = client.server.line
            while (line.inside < 2 or line.running is None) and time.monotonic() < end:
                time.sleep(0.01)
            assert client.server.line.inside == 2 and client.server.line.running is not None
            leave(waiting)
            while client.server.line.inside > 1 and time.monotonic() < end:
                time.sleep(0.01)
            assert client.server.line.inside == 1 and not client.server.line._waiting
            before = client.decoder.length
            leave(first)
            assert client.settles(1.0), "a place was kept"
            assert client.decoder.length < before + 60
        assert client.complete("The", max_tokens=2)[0] == 200


def test_who_stalls_before_the_first_piece_is_not_answered(parts: tuple[Any, Any]) -> None:
    decoder = SlowDecoder(parts[0])
    decoder.pause = 0.01
    server = Server(decoder, parts[1], "tiny")
    aborted: list[int] = []

    async def stalled(message: Any) -> None:
        raise TimeoutError

    async def silent() -> Any:
        await asyncio.sleep(60)

    async def ask() -> None:
        assert server.line.enter() == 0
        job = Job(Ask("text", "The", None, GREEDY, (), True, False), [5, 6], 5000)
        server.line.put(job)
        await Stream(server, job, 0.0)({"state": {"abort": lambda: aborted.append(1)}}, silent, stalled)
        assert job.cancelled
        end = time.monotonic() + 10
        while server.line.inside and time.monotonic() < end:
            await asyncio.sleep(0.01)

    asyncio.run(ask())
    assert aborted == [1] and server.line.inside == 0 and decoder.length < 500
    server.line.close(ConnectionAbortedError("over"))
    assert server.line.join(5)


def test_a_chats_answer_stands_for_itself() -> None:
    model, tokenizer = tiny_llama(eos_token_id=None, initializer_range=0.4), tiny_tokenizer()
    line = Line(Decoder(model), tokenizer, 4)

    async def asked(kind: Any) -> str:
        line.enter()
        job = Job(Ask(kind, "w1", None, GREEDY, (), False, False), [5, 6], 6)
        line.put(job)
        found = []
        while isinstance(piece := await job.events.get(), Piece):
            found.append(piece.text)
        return "".join(found)

    chat, text = asyncio.run(asked("chat")), asyncio.run(asked("text"))
    assert text == f" {chat}" and len(chat.split()) > 3
    line.close(ConnectionAbortedError("over"))
    assert line.join(5)
