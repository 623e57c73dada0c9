"""How one HTTP connection goes.

Bytes in, requests out in order, scripts played: a request that comes while an earlier one's answer is
still being played waits its turn. Reading goes on meanwhile, so that a client that leaves is noticed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import httptools

from relay.sandbox.contract import MAX_BODY_BYTES, Request
from relay.sandbox.control import PREFIX, control
from relay.sandbox.script import ResetNow, Step, Wait, WaitForever, Write, http_answer, json_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.sandbox.settings import SandboxSettings
    from relay.sandbox.standin import StandIn

#: The longest request line and headers, in bytes.
MAX_HEAD_BYTES: Final = 32 * 1024
#: How much of a body is read and thrown away before the answer is 413 and the connection closed, in bytes.
MAX_DISCARDED_BYTES: Final = 1024 * 1024
#: Requests that may wait for an earlier answer before reading stops.
MAX_WAITING: Final = 64

_LINGER_NOT_AT_ALL: Final = struct.pack("ii", 1, 0)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_WANTED: Final = frozenset({b"authorization", b"content-type", b"content-length", b"idempotency-key", b"expect"})


class _Turn(NamedTuple):
    """A request that came in whole, and whether the connection is kept after its answer."""

    request: Request
    keep_alive: bool


class Connection(asyncio.Protocol):
    """One client's connection, and the parser's callbacks."""

    def __init__(self, standin: StandIn, settings: SandboxSettings, number: int, register: set[Connection]) -> None:
        self._standin = standin
        self._settings = settings
        self._number = number
        self._register = register
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._steps: Iterator[Step] | None = None  # the answer that is being played
        self._keep_alive = True  # after the answer that is being played
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[_Turn] = deque()
        self._ended = False  # no further request is read
        self._write_blocked_at: float | None = None
        self._reading = False  # a request has begun to come in
        self._last_seen = time.monotonic()
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._body_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._too_large = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # A stream server gives no other; uvloop's is none by inheritance, so it cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self._register.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it went makes no difference
        """Let go of everything, the unanswered too."""
        self._register.discard(self)
        self._ended = True
        self._steps = None
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse; whole requests are taken up on the way."""
        if self._ended:
            return
        was_in_head = self._reading and not self._head_done
        if was_in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ended = True  # what follows is not HTTP/1.1; the request itself was taken
        except httptools.HttpParserError:
            self._refuse(400)
        else:
            if self._head_bytes > MAX_HEAD_BYTES and not self._head_done:
                self._refuse(431)

    def pause_writing(self) -> None:
        """Stop playing: the client does not read."""
        self._write_blocked_at = time.monotonic()

    def resume_writing(self) -> None:
        """Go on playing."""
        self._write_blocked_at = None
        if self._steps is not None and self._timer is None:
            self._play()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._clear_request()
        self._reading = True
        self._last_seen = time.monotonic()

    def on_url(self, url: bytes) -> None:
        """Take the path, or a part of it."""
        self._path += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header if it is one that matters."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431)
            return
        name = name.lower()
        if name in _WANTED:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Say at once what need not wait for the body."""
        self._head_done = True
        expect = self._headers.get(b"expect")
        if expect is None or self._ended:
            return
        if expect.lower() != b"100-continue":
            self._refuse(417)
        elif int(self._headers.get(b"content-length", b"0")) > MAX_BODY_BYTES:
            self._too_large = True
            self._complete(keep_alive=False)
        elif self._steps is None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, as far as it is wanted."""
        self._body_bytes += len(body)
        if self._body_bytes <= MAX_BODY_BYTES:
            self._body = self._body + body if self._body else body
        elif not self._too_large:
            self._too_large = True
            self._body += body[: MAX_BODY_BYTES - len(self._body)]
        if self._body_bytes > MAX_DISCARDED_BYTES:
            self._complete(keep_alive=False)

    def on_message_complete(self) -> None:
        """Take the request up."""
        keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._complete(keep_alive=keep_alive)

    # What the server calls.

    def check_patience(self, now: float) -> None:
        """Close a connection that is idle, or whose client is too slow to send or to read."""
        settings = self._settings
        blocked_at = self._write_blocked_at
        if blocked_at is not None and now - blocked_at > settings.request_timeout_seconds:
            self._transport.abort()
        elif self._steps is not None or self._ended:
            return
        elif self._reading and now - self._last_seen > settings.request_timeout_seconds:
            self._refuse(408)
        elif not self._reading and now - self._last_seen > settings.idle_timeout_seconds:
            self._end()

    def abandon(self) -> None:
        """Close at once: the stand-in stops. What was handed to the transport still goes out."""
        self._end()

    # One request.

    def _clear_request(self) -> None:
        self._path = b""
        self._headers = {}
        self._body = b""
        self._body_bytes = 0
        self._head_bytes = 0
        self._head_done = False
        self._too_large = False

    def _complete(self, *, keep_alive: bool) -> None:
        if self._ended:
            return
        self._reading = False
        self._ended = not keep_alive
        headers = self._headers.get
        request = Request(
            self._parser.get_method(),
            self._path,
            headers(b"authorization"),
            headers(b"content-type"),
            headers(b"idempotency-key"),
            self._body,
            self._too_large,
        )
        if self._steps is None:
            self._take_up(_Turn(request, keep_alive))
            self._play()
            return
        self._waiting.append(_Turn(request, keep_alive))
        if len(self._waiting) >= MAX_WAITING:
            self._transport.pause_reading()

    def _take_up(self, turn: _Turn) -> None:
        if turn.request.path.startswith(PREFIX):
            steps: Iterator[Step] = iter((Write(self._control(turn)),))
        else:
            script = self._standin.take(turn.request, connection=self._number, keep_alive=turn.keep_alive)
            steps = iter(script.steps)
        self._steps, self._keep_alive = steps, turn.keep_alive

    def _control(self, turn: _Turn) -> bytes:
        reply = control(self._standin, turn.request)
        data = json_answer(reply.status, reply.document, keep_alive=turn.keep_alive)
        return data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if turn.request.method == b"HEAD" else data

    # The answer.

    def _play(self) -> None:
        self._timer = None
        while self._steps is not None and self._write_blocked_at is None:
            match next(self._steps, None):
                case Write(data):
                    self._transport.write(data)
                case None:
                    self._finish()
                case Wait(seconds):
                    self._timer = self._loop.call_later(seconds, self._play)
                    return
                case WaitForever():
                    return
                case ResetNow():
                    self._reset()

    def _finish(self) -> None:
        self._steps = None
        self._last_seen = time.monotonic()
        if not self._keep_alive:
            self._end()
        elif self._waiting:
            self._take_up(self._waiting.popleft())
            if len(self._waiting) == MAX_WAITING - 1:
                self._transport.resume_reading()

    def _refuse(self, status: int) -> None:
        """Answer what is no request, and close."""
        if self._ended:
            return
        self._standin.counters.note_unreadable()
        if self._steps is None:
            self._transport.write(http_answer(status, keep_alive=False))
        self._end()

    def _reset(self) -> None:
        self._ended = True
        self._steps = None
        tcp = self._transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
        self._transport.abort()

    def _end(self) -> None:
        self._ended = True
        self._steps = None
        self._waiting.clear()
        self._transport.close()
