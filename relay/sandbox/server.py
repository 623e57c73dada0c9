"""A server for the sandbox's connections, in an event loop or in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from relay import hosts
from relay.errors import ConfigurationError
from relay.sandbox.connection import Connection, Limits

try:
    from uvloop import new_event_loop
except ImportError:  # pragma: no cover - where uvloop has no wheel; slower, and the same otherwise
    new_event_loop = asyncio.new_event_loop  # type: ignore[assignment,unused-ignore]

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine

    from relay.sandbox.connection import Responder

#: Between two ticks: checks of idle and slow connections, flushes of the record file; less for short time-outs.
TICK_SECONDS: Final = 0.2
#: Connections that the kernel queues.
BACKLOG: Final = 1024
#: Deadline of the connections' end when the server closes, before and after they are aborted.
CLOSE_SECONDS: Final = 0.1
#: Deadline of a call into a loop's thread, and of the thread's end.
THREAD_SECONDS: Final = 10.0

__all__ = ["LoopThread", "Server", "new_event_loop"]

_Result = TypeVar("_Result")


class Server:
    """Serves connections; belongs to one event loop."""

    def __init__(self, responder: Responder, limits: Limits) -> None:
        self.connections: set[Connection] = set()
        self._responder = responder
        self._limits = limits
        self._numbers = itertools.count(1)
        self._servers: list[asyncio.Server] = []
        self._ticking: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int = 0, tls: ssl.SSLContext | None = None) -> str:
        """Listen on an address and return its URL, or raise ConfigurationError."""
        loop = asyncio.get_running_loop()
        try:
            listening = hosts.listen(host, port, backlog=BACKLOG)
            self._servers.append(await loop.create_server(self._connect, sock=listening, backlog=BACKLOG, ssl=tls))
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host} port {port}: {error}") from error
        self._ticking = self._ticking or loop.create_task(self._tick())
        return hosts.url_of(listening, scheme="https" if tls else "http")

    async def close(self) -> None:
        """Close everything; pending responses are not sent."""
        for server in self._servers:
            server.close()
        if self._ticking:
            self._ticking.cancel()
        for close in (Connection.close, Connection.abort):  # TLS and clients that do not read hold up a close
            closing = [connection.closed for connection in self.connections]
            for connection in tuple(self.connections):
                close(connection)
            if closing:
                await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        self._responder.on_tick()

    def _connect(self) -> Connection:
        return Connection(self._responder, self._limits, next(self._numbers), self.connections)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_SECONDS, self._limits.request_timeout_seconds / 4))
            now = time.monotonic()
            for connection in tuple(self.connections):
                connection.check_timeouts(now)
            self._responder.on_tick()


class LoopThread:
    """An event loop in a thread of its own, to be called from other threads."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop = new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine in the thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(THREAD_SECONDS)

    def stop(self) -> None:
        """Cancel all tasks and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(THREAD_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_tasks())
        finally:
            self._loop.close()


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
