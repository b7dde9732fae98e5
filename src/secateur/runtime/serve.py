"""An OpenAI-compatible server for one model: starlette's routes on uvicorn, one thread that decodes.

    POST /v1/chat/completions, POST /v1/completions      streamed (server-sent events) or whole
    GET /v1/models, GET /v1/models/NAME, GET /health

What a client can take is bounded: a line of so many requests (429 beyond), bodies of so many bytes (413) that come
within a time (408), heads too; a reader that stalls is cut off, and who has left is not answered further. There is no
authentication and no encryption: it is made for the machine it runs on, or to stand behind something that has both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secateur.errors import NoMatch, SecateurError, require
from secateur.runtime import chat
from secateur.runtime.decode import Decoder, Piece
from secateur.runtime.line import Job, Line
from secateur.runtime.web import patient, stoppable

if TYPE_CHECKING:
    import socket

    from starlette.applications import Starlette
    from starlette.requests import Request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
STOPPING = "the server is stopping"
BACKLOG = 512  # connections that the system accepts before we do
JOIN = 20.0  # seconds for the worker to come out of a step


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Args:
        queue: requests that wait while one is answered.
        max_tokens: of one answer; None: what the model's positions leave.
        body, bodies: bytes of one request, and of all that are being read.
        head_seconds, body_seconds, write_seconds: to send a request's head, its body, and to take a piece.
        connections: open at once (503 beyond).
        grace: seconds for the running answer when the server is stopped.
    """

    queue: int = 32
    max_tokens: int | None = None
    body: int = 4 * 2**20
    bodies: int = 64 * 2**20
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    connections: int = 512
    grace: float = 5.0


DEFAULT = Limits()


class Server:
    """One model behind HTTP.

    Args:
        decoder: of the model, which nobody else may use meanwhile.
        name: what clients call the model.
        log: called with one line for each request to an answer.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        name: str,
        limits: Limits = DEFAULT,
        log: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.decoder, self.tokenizer, self.name, self.limits, self.log = decoder, tokenizer, name, limits, log
        self.positions = decoder.positions or chat.UNKNOWN
        self.line = Line(decoder, tokenizer, limits.queue)
        self.created = int(time.time())
        self._reading = 0
        # one thread, so that many long prompts take the memory of one
        self._tokenizing = ThreadPoolExecutor(1, "secateur-tokenize")
        self._server: Any = None

    def run(self, listening: socket.socket, ready: Callable[[], object] = lambda: None) -> int:
        """Answer until stopped; the signal that stopped it (2 for Ctrl-C, 15 for SIGTERM), or 0."""
        limits = self.limits
        config = require("uvicorn", "serve").Config(
            self.app(),
            http=patient(limits.head_seconds),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level="critical",
            server_header=False,
            timeout_keep_alive=max(round(limits.head_seconds / 2), 1),
            backlog=BACKLOG,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=max(round(limits.grace), 1) + 2,
        )
        self._server = stoppable()(config, ready, self._closing)
        try:
            self._server.run(sockets=[listening])
        finally:
            self.line.close(ConnectionAbortedError(STOPPING))
            self.line.join(JOIN)
            self._tokenizing.shutdown(wait=False, cancel_futures=True)
        return self._server.stopped_by

    def stop(self) -> None:
        """From any thread: end `run`, as a signal would."""
        if self._server is not None:
            self._server.should_exit = True

    def app(self) -> Starlette:
        """The routes."""
        require("starlette", "serve")
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        async def unknown(request: Request, error: Exception) -> Any:
            status = getattr(error, "status_code", 500)
            words = {
                404: f"there is no {request.url.path[:80]}",
                405: f"{request.method} is not allowed here",
            }
            return answer(status, chat.error_body(words.get(status, "the request failed")))

        routes = [
            Route("/v1/chat/completions", functools.partial(self._answer, "chat"), methods=["POST"]),
            Route("/v1/completions", functools.partial(self._answer, "text"), methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: unknown, 500: unknown})
        app.router.redirect_slashes = False
        return app

    def _closing(self) -> None:
        """The server was told to stop: in its event loop, before it waits for what still runs."""
        why = ConnectionAbortedError(STOPPING)
        self.line.close(why)
        asyncio.get_running_loop().call_later(self.limits.grace, self.line.cut, why)

    async def _health(self, request: Request) -> Any:
        line = self.line
        state = {
            "status": "stopping" if line.closed else "ok",
            "model": self.name,
            "step": self.decoder.way,
            "running": int(line.running is not None),
            "inside": line.inside,
        }
        return answer(503 if line.closed else 200, state)

    async def _models(self, request: Request) -> Any:
        return answer(200, {"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Any:
        name = request.path_params["name"]
        if name != self.name:
            return refusal(
                NoMatch(f"there is no {name[:80]!r}", where="model", fix=f"this server has {self.name!r}")
            )
        return answer(200, self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "secateur"}

    # --- answers ----------------------------------------------------------------------------------------------------

    async def _answer(self, kind: chat.Kind, request: Request) -> Any:
        began = time.monotonic()
        done = await self._admit(kind, request)
        if not isinstance(done, Job):
            self.tell(kind, began, str(done.status_code))
            return done
        return (
            Stream(self, done, began) if done.ask.stream else await self._whole(done, request.receive, began)
        )

    async def _admit(self, kind: chat.Kind, request: Request) -> Any:
        """A job in the line, or the response that refuses it."""
        body = await self._body(request)
        if not isinstance(body, bytes):
            return body
        try:
            ask = chat.read(kind, chat.parse(body), self.name)
        except SecateurError as error:
            return refusal(error)
        if self.line.closed:
            return failure(ConnectionAbortedError(STOPPING))
        if seconds := self.line.enter():
            words = f"{self.limits.queue} requests are waiting already; come again in {seconds} s"
            return answer(429, chat.error_body(words, "rate_limit_error"), {"retry-after": str(seconds)})
        try:
            ids = await asyncio.get_running_loop().run_in_executor(
                self._tokenizing, chat.prompt_ids, ask, self.tokenizer, self.positions
            )
            count = chat.length_of(ask, len(ids), self.positions, self.limits.max_tokens)
            self.decoder.check(ids, count)
            if self.line.closed:
                raise ConnectionAbortedError(STOPPING)
        except BaseException as error:
            self.line.leave()
            if not isinstance(error, Exception):
                raise
            return refusal(error) if isinstance(error, SecateurError) else failure(error)
        job = Job(ask, ids, count)
        self.line.put(job)
        return job

    async def _body(self, request: Request) -> Any:
        """The bytes of a body within the limits, or the response that refuses it."""
        limits, body = self.limits, bytearray()
        if "application/json" not in request.headers.get("content-type", ""):
            return answer(415, chat.error_body("send JSON, with the header Content-Type: application/json"))
        try:
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        return answer(499, {})
                    body += message.get("body", b"")
                    self._reading += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if len(body) > limits.body:
                        return answer(413, chat.error_body(f"a body has at most {limits.body} bytes"))
                    if self._reading > limits.bodies:
                        return answer(
                            429,
                            chat.error_body("too much is being read", "rate_limit_error"),
                            {"retry-after": "1"},
                        )
        except TimeoutError:
            return answer(408, chat.error_body(f"the body took more than {limits.body_seconds:g} s"))
        finally:
            self._reading -= len(body)
        return bytes(body)

    async def _whole(self, job: Job, receive: Receive, began: float) -> Any:
        text, count, finish, failed = [], 0, "stop", None
        try:
            async with contextlib.aclosing(self.events(job, receive)) as events:
                async for piece in events:
                    text.append(piece.text)
                    count, finish = count + 1, piece.finish or finish
        except Exception as error:
            failed = failure(error)
        finally:
            self.line.drop(job)
        self.tell(
            job.ask.kind, began, f"{failed.status_code if failed else 200} {len(job.ids)}+{count} tokens"
        )
        return failed or answer(
            200, chat.Reply(job.ask.kind, self.name).whole("".join(text), finish, len(job.ids), count)
        )

    async def events(self, job: Job, receive: Receive) -> AsyncGenerator[Piece, None]:
        """The pieces of a job.

        Raises:
            ConnectionResetError: the client has gone.   ConnectionAbortedError: the server stops.
            Whatever decoding raised.
        """

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            job.events.put_nowait(ConnectionResetError("the client has gone"))

        watching = asyncio.create_task(watch())
        try:
            while (event := await job.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            watching.cancel()

    def tell(self, kind: chat.Kind, began: float, words: str) -> None:
        """A line for the log."""
        self.log(f"{kind} {words} {time.monotonic() - began:.2f} s")


class Stream:
    """A response of server-sent events, as an ASGI application."""

    def __init__(self, server: Server, job: Job, began: float) -> None:
        self.server, self.job, self.began = server, job, began

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        job, server = self.job, self.server
        count, ended = 0, ""
        reply = chat.Reply(job.ask.kind, server.name)

        async def write(text: str, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": text.encode(), "more_body": more}
            async with asyncio.timeout(server.limits.write_seconds):
                await send(message)

        try:
            async with contextlib.aclosing(server.events(job, receive)) as events:
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await write(data(reply.first()))
                async for piece in events:
                    count += 1
                    if piece.text:
                        await write(data(reply.chunk(piece.text, None)))
                    if piece.finish:
                        await write(data(reply.chunk("", piece.finish)))
            used = data(reply.counted(len(job.ids), count)) if job.ask.usage else ""
            await write(used + "data: [DONE]\n\n", more=False)
        except (TimeoutError, ConnectionResetError) as error:
            ended = " stalled" if isinstance(error, TimeoutError) else " gone"
            scope["state"]["abort"]()
        except Exception as error:
            ended = " failed"
            with contextlib.suppress(TimeoutError):
                await write(data(chat.error_body(words_of(error), "server_error")), more=False)
        finally:
            server.line.drop(job)
        server.tell(job.ask.kind, self.began, f"200{ended} {len(job.ids)}+{count} tokens")


def data(value: dict[str, Any] | None) -> str:
    """One server-sent event; "" for None."""
    return (
        "" if value is None else f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
    )


def answer(status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    """A JSON response."""
    from starlette.responses import JSONResponse

    return JSONResponse(value, status, headers)


def refusal(error: SecateurError) -> Any:
    """400, or 404 for a model that is not here, in OpenAI's shape; `param` is the field."""
    unknown = isinstance(error, NoMatch)
    return answer(
        404 if unknown else 400,
        chat.error_body(words_of(error), param=error.where, code="model_not_found" if unknown else ""),
    )


def failure(error: Exception) -> Any:
    """What is not the client's fault: 503 when the server stops, else 500."""
    if isinstance(error, ConnectionResetError):
        return answer(499, {})  # nobody reads it
    status = 503 if isinstance(error, ConnectionAbortedError) else 500
    return answer(status, chat.error_body(words_of(error), "server_error"))


def words_of(error: Exception) -> str:
    """One line, not too long."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= chat.SHOWN else words[: chat.SHOWN - 1] + "…"
