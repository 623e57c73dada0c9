"""A TCP proxy with faults on demand, between any two parts.

    with Proxy(port) as link:                 connect to link.port instead
        link.stall()                          a black hole both ways, for old and new connections, until resume()
        link.stall(Way.REPLIES, new=False)    only replies, only on connections that are open now
        link.cut_reply(b"EVALSHA", nth=3)     the third such command runs, its reply is dropped
        assert link.cuts == 1                 the evidence
        link.retarget(other_port)             new connections go elsewhere, as after a failover by name

Every cut connection ends in a reset; `slow_close` makes an orderly close late.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from relay.sandbox.server import LoopThread

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 65_536

#: Makes a close send RST instead of FIN.
NO_LINGER = struct.pack("ii", 1, 0)


class Way(StrEnum):
    REQUESTS = "requests"
    REPLIES = "replies"


class Proxy:
    """Forwards bytes; its methods may be called from any thread."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._upstream = (host, port)
        self._links: set[_Link] = set()
        self._thread = LoopThread("proxy")
        self._server: asyncio.Server | None = None
        self._stalls_new: set[Way] = set()
        self._latency_seconds = 0.0
        self._slow_close_seconds = 0.0
        self._cut_after: dict[Way, int] = {}
        self._pattern: bytes | None = None
        self._matches_left = 0
        self.port = 0
        #: Evidence: connections accepted, commands that matched, connections reset, chunks held by a stall.
        self.accepted = self.matched = self.cuts = self.held = 0
        #: Bytes forwarded.
        self.passed = dict.fromkeys(Way, 0)

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._call(lambda: [link.abort() for link in list(self._links)])
        self._thread.stop()

    @property
    def open_connections(self) -> int:
        return len(self._links)

    def latency(self, seconds: float) -> None:
        """Delay each chunk this long, both ways."""
        self._latency_seconds = seconds

    def stall(self, *ways: Way, existing: bool = True, new: bool = True) -> None:
        """Forward nothing in these directions (both, if none is given); connections stay open."""
        chosen = set(ways or Way)

        def stall() -> None:
            if new:
                self._stalls_new |= chosen
            for link in self._links if existing else ():
                for way in chosen:
                    link.gates[way].clear()

        self._call(stall)

    def resume(self) -> None:
        """End all stalls; held bytes are forwarded."""

        def resume() -> None:
            self._stalls_new = set()
            for link in self._links:
                for gate in link.gates.values():
                    gate.set()

        self._call(resume)

    def retarget(self, port: int, host: str = "127.0.0.1") -> None:
        """Connect new connections to another server; open ones are kept."""

        def retarget() -> None:
            self._upstream = (host, port)

        self._call(retarget)

    def reset_all(self) -> int:
        """Reset every connection that is open; return how many."""

        def reset_all() -> int:
            links = list(self._links)
            for link in links:
                link.cut()
            return len(links)

        return self._call(reset_all)

    def refuse(self) -> None:
        """Refuse new connections."""

        async def refuse() -> None:
            if self._server:
                self._server.close()
            self._server = None

        self._thread.call(refuse())

    def listen(self) -> None:
        """Accept connections, on the previous port."""

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]

        self._thread.call(listen())

    def slow_close(self, seconds: float) -> None:
        """Forward the end of a connection only after this long."""
        self._slow_close_seconds = seconds

    def cut_after(self, count: int, way: Way = Way.REPLIES) -> None:
        """Reset each connection once this many bytes went this way; the rest is dropped."""
        self._cut_after[way] = count

    def cut_reply(self, pattern: bytes, nth: int = 1) -> None:
        """Let the nth command with these bytes run, and reset the connection instead of forwarding its reply, once.

        A pattern that TCP splits is not found; a command is one chunk unless it is large.
        """
        self._pattern, self._matches_left = pattern, nth

    # On its loop

    def _call(self, act: Callable[[], object]) -> int:
        async def call() -> object:
            return act()

        result = self._thread.call(call())
        return result if isinstance(result, int) else 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(writer, self)
        self._links.add(link)
        for way in self._stalls_new:
            link.gates[way].clear()
        try:
            await link.gates[Way.REQUESTS].wait()
            their_reader, link.server = await asyncio.open_connection(*self._upstream)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, Way.REQUESTS, reader, link.server))
                pumps.create_task(self._pump(link, Way.REPLIES, their_reader, writer))
        except* (OSError, _Over):
            pass
        finally:
            link.abort()
            self._links.discard(link)

    async def _pump(self, link: _Link, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            if not link.gates[way].is_set():
                self.held += 1
                await link.gates[way].wait()
            if self._latency_seconds:
                await asyncio.sleep(self._latency_seconds)
            if way is Way.REQUESTS:
                self._look_for_pattern(link, data)
            elif link.drops_reply:
                link.cut()
                raise _Over
            limit = self._cut_after.get(way)
            allowed = len(data) if limit is None else max(0, limit - link.passed[way])
            link.passed[way] += min(allowed, len(data))
            self.passed[way] += min(allowed, len(data))
            sink.write(data[:allowed])
            await sink.drain()
            if allowed < len(data):
                link.cut()
                raise _Over
        if self._slow_close_seconds:
            await asyncio.sleep(self._slow_close_seconds)
        raise _Over

    def _look_for_pattern(self, link: _Link, data: bytes) -> None:
        if self._pattern is None or self._pattern not in data:
            return
        self.matched += 1
        self._matches_left -= 1
        if self._matches_left == 0:
            self._pattern = None
            link.drops_reply = True


class _Over(Exception):  # noqa: N818 - the end of a connection is not an error
    """One side has ended, so the other must."""


class _Link:
    def __init__(self, client: asyncio.StreamWriter, proxy: Proxy) -> None:
        self._proxy = proxy
        self._client = client
        self.server: asyncio.StreamWriter | None = None
        self.gates = {way: asyncio.Event() for way in Way}
        for gate in self.gates.values():
            gate.set()
        self.passed = dict.fromkeys(Way, 0)
        self.drops_reply = False

    def cut(self) -> None:
        """Reset both sides."""
        self._proxy.cuts += 1
        for gate in self.gates.values():
            gate.set()  # its waiters find the connection closed
        for writer in filter(None, (self._client, self.server)):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()

    def abort(self) -> None:
        for writer in filter(None, (self._client, self.server)):
            writer.transport.close()
