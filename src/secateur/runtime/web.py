"""What uvicorn leaves open: the address, clients that never finish a request's head, and how a server ends.

Its classes are extended inside functions, since uvicorn is an extra. Written against uvicorn 0.30 to 0.54.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from secateur.errors import require


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet; port 0 takes a free one.

    Raises:
        OSError: with host:port as its file name: in use, not ours, no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), f"{host}:{port}") from error
    return made


@functools.cache
def patient(seconds: float) -> type[Any]:
    """A protocol that gives up on a connection that has been without a whole request for `seconds`, from its start or
    from its last answer on: a head that comes drop by drop, or an answer that nobody takes. An application finds the
    way to do so at once as `scope["state"]["abort"]`.
    """
    base: Any = require("uvicorn.protocols.http.h11_impl", "serve").H11Protocol

    class Patient(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.app_state = {**self.app_state, "abort": self._abort}
            self._timer: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._timer is not None:
                self._timer.cancel()

        def _watch(self) -> None:
            busy = self.cycle is not None and not self.cycle.response_complete
            if busy and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif not busy and self._timer is None:
                self._timer = self.loop.call_later(seconds, self._abort)

        def _abort(self) -> None:
            self.transport.abort()

    return Patient


@functools.cache
def stoppable() -> type[Any]:
    """A uvicorn server that calls `ready()` when it listens and `closing()` before it waits for what still runs; Ctrl-C
    and SIGTERM end it (`stopped_by`), a second one at once, and neither is raised again.
    """
    base: Any = require("uvicorn", "serve").Server

    class Stoppable(base):
        def __init__(self, config: Any, ready: Callable[[], object], closing: Callable[[], object]) -> None:
            super().__init__(config)
            self._ready, self._closing, self.stopped_by = ready, closing, 0

        async def startup(self, *args: Any, **kwargs: Any) -> None:
            await super().startup(*args, **kwargs)
            self._ready()

        async def shutdown(self, *args: Any, **kwargs: Any) -> None:
            self._closing()
            await super().shutdown(*args, **kwargs)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def stop(number: int, frame: FrameType | None) -> None:
                self.force_exit, self.should_exit = self.should_exit, True
                self.stopped_by = self.stopped_by or number

            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Stoppable
