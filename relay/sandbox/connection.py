"""One HTTP connection of the sandbox: parses requests, and plays the steps of the responses in order.

A request that is complete while an earlier response is played is queued. Reading continues meanwhile, so that the
connection notices when the client leaves.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, cast

from relay.errors import ConfigurationError
from relay.sandbox.contract import MAX_BODY_BYTES, Request
from relay.sandbox.response import Close, Hang, Reset, Response, Step, Wait, Write

try:
    import httptools
except ImportError as error:  # pragma: no cover - a bare install
    raise ConfigurationError("the sandbox needs httptools: pip install 'deployment-relay[gateway]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Maximum request line and headers, in bytes.
MAX_HEAD_BYTES: Final = 32 * 1024
#: Maximum bytes of a body that are read and discarded before the response is 413 and the connection is closed.
MAX_DISCARDED_BYTES: Final = 1024 * 1024
#: Maximum queued requests; then reading stops.
MAX_QUEUED: Final = 64

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a connection."""

    request_timeout_seconds: float = 30.0  #: deadline of a request's reception, and of a response's reading
    idle_timeout_seconds: float = 75.0  #: an idle connection is closed after this
    body_bytes: int = MAX_BODY_BYTES
    discarded_bytes: int = MAX_DISCARDED_BYTES


class Ending(StrEnum):
    """How the exchange of one request and its response ended."""

    ANSWERED = "answered"
    CUT = "cut"  #: by the server
    LEFT = "left"  #: by the client


class Responder:
    """What a server does with connections and requests. All methods are called in the server's event loop."""

    def on_connect(self, connection: Connection) -> Iterable[Step] | None:
        """Return steps to play instead of reading from a new connection, or None."""

    def on_headers(self, connection: Connection) -> Iterable[Step] | None:
        """Return steps to play instead of reading a request's body, or None."""

    def on_request(self, connection: Connection, request: Request) -> Iterable[Step]:
        """Return the steps of the response."""
        raise NotImplementedError

    def on_end(self, connection: Connection, ending: Ending, *, has_status: bool) -> None:
        """Note the end of an exchange; `has_status`: the status was sent."""

    def on_close(self, connection: Connection) -> None:
        """Note that a connection is closed."""

    def on_unreadable(self) -> None:
        """Note input that is not HTTP."""

    def on_tick(self) -> None:
        """Do what is done regularly."""


class Connection(asyncio.Protocol):
    """One client's connection, and the parser's callbacks."""

    def __init__(self, responder: Responder, limits: Limits, number: int, connections: set[Connection]) -> None:
        self.number = number
        self.peer_port = self.port = 0
        self.is_busy = False  #: a request is read whose exchange has not ended
        self._responder = responder
        self._limits = limits
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport
        self._steps: Iterator[Step] | None = None  # of the response that is played
        self._has_status = False
        self._timer: asyncio.TimerHandle | None = None
        self._queued: deque[Request] = deque()
        self._ended = False  # no further request is read
        self._write_blocked_at: float | None = None
        self._reading = False  # a request has begun
        self._last_active = time.monotonic()
        self._begin_request()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        # A stream server gives no other transport; uvloop's does not inherit from it, so it cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self.peer_port, self.port = (transport.get_extra_info(name)[1] for name in ("peername", "sockname"))
        self._connections.add(self)
        steps = self._responder.on_connect(self)
        if steps is not None:
            self._ended = True
            self._start(steps)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the cause makes no difference
        """Release everything, unanswered requests included."""
        self._connections.discard(self)
        self._stop()
        self._end_exchange(Ending.LEFT)
        self._responder.on_close(self)
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse."""
        if self._ended:
            return
        if self._reading and not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ended = True  # the rest is not HTTP/1.1; the request itself is complete
        except httptools.HttpParserError:
            self._refuse(400)
        else:
            if self._head_bytes > MAX_HEAD_BYTES and not self._head_done:
                self._refuse(431)

    def pause_writing(self) -> None:
        """Pause the response: the client does not read."""
        self._write_blocked_at = time.monotonic()

    def resume_writing(self) -> None:
        """Continue the response."""
        self._write_blocked_at = None
        if self._steps is not None and self._timer is None:
            self._play()

    # Called by the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin_request()
        self._reading = True
        self._last_active = time.monotonic()

    def on_url(self, url: bytes) -> None:
        """Add a part of the path."""
        self._path += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431)
        else:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Respond before the body where the headers suffice."""
        self._head_done = True
        if self._ended:
            return
        steps = self._responder.on_headers(self)
        if steps is not None:
            self._ended = True
            self._start(steps)
            return
        expect = self._headers.get(b"expect")
        if expect is None:
            return
        if expect.lower() != b"100-continue":
            self._refuse(417)
        elif int(self._headers.get(b"content-length", b"0")) > self._limits.body_bytes:
            self._too_large = True
            self._complete(closes=True)
        elif self._steps is None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Add a part of the body, up to the limit."""
        kept = self._limits.body_bytes - self._body_bytes
        self._body_bytes += len(body)
        if kept > 0:
            self._body.append(body[:kept])
        self._too_large = self._body_bytes > self._limits.body_bytes
        if self._body_bytes > self._limits.discarded_bytes:
            self._complete(closes=True)

    def on_message_complete(self) -> None:
        """Complete the request."""
        self._complete(closes=not self._parser.should_keep_alive() or self._parser.should_upgrade())

    # Called by the server and its responder

    def check_timeouts(self, now: float) -> None:
        """Close a connection that is idle, or whose client is too slow to send or to read."""
        limits = self._limits
        blocked_at = self._write_blocked_at
        if blocked_at is not None and now - blocked_at > limits.request_timeout_seconds:
            self._transport.abort()
        elif self._steps is not None or self._ended:
            return
        elif self._reading and now - self._last_active > limits.request_timeout_seconds:
            self._refuse(408)
        elif not self._reading and now - self._last_active > limits.idle_timeout_seconds:
            self.close()

    def send(self, data: bytes) -> None:
        """Send bytes beside any response."""
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection, once the bytes handed to the transport are sent."""
        self._stop()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection, and drop unsent bytes."""
        self._stop()
        self._transport.abort()

    def reset(self) -> None:
        """Close the connection with RST instead of FIN, and drop unsent bytes."""
        self._stop()
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    # One request

    def _begin_request(self) -> None:
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._too_large = False

    def _complete(self, *, closes: bool) -> None:
        if self._ended:
            return
        self._reading = False
        self._ended = closes
        method, body = self._parser.get_method(), b"".join(self._body)
        request = Request(method, self._path, self._headers, body, self._too_large, closes)
        if self._steps is None:
            self._respond(request)
            return
        self._queued.append(request)
        if len(self._queued) >= MAX_QUEUED:
            self._transport.pause_reading()

    def _refuse(self, status: int) -> None:
        """Respond to input that is not a request, and close."""
        if self._ended:
            return
        self._responder.on_unreadable()
        if self._steps is None:
            self._transport.write(Response(status=status).head(closes=True))
        self.close()

    # One response

    def _respond(self, request: Request) -> None:
        self.is_busy, self._has_status = True, False
        self._start(self._responder.on_request(self, request))

    def _start(self, steps: Iterable[Step]) -> None:
        self._steps = iter(steps)
        self._play()

    def _play(self) -> None:
        self._timer = None
        while self._steps is not None and self._write_blocked_at is None and not self._transport.is_closing():
            match next(self._steps, None):
                case Write(data, has_status, is_last):
                    self._has_status = self._has_status or has_status
                    if is_last:
                        self._end_exchange(Ending.ANSWERED)  # before the client can see the end
                    self._transport.write(data)
                case Wait(seconds):
                    self._timer = self._loop.call_later(seconds, self._play)
                    return
                case Hang():
                    return
                case Reset():
                    self._end_exchange(Ending.CUT)
                    self.reset()
                case Close():
                    self._end_exchange(Ending.ANSWERED)
                    self.close()
                case None:
                    self._finish()

    def _finish(self) -> None:
        self._end_exchange(Ending.ANSWERED)
        self._steps = None
        self._last_active = time.monotonic()
        if self._queued:
            request = self._queued.popleft()
            if len(self._queued) == MAX_QUEUED - 1:
                self._transport.resume_reading()
            self.is_busy, self._has_status = True, False
            self._steps = iter(self._responder.on_request(self, request))

    def _end_exchange(self, ending: Ending) -> None:
        if self.is_busy:
            self.is_busy = False
            self._responder.on_end(self, ending, has_status=self._has_status)

    def _stop(self) -> None:
        self._ended = True
        self._steps = None
        self._queued.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
