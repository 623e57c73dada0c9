"""Limits of a connection: the size and time of a request's head, pipelined requests, and idle time.

httptools buffers an incomplete head of any size for any time, before a token was checked. So the bytes that are not
yet part of a head or a body are counted here: a request line and headers, but also the trailers and extensions of a
body in chunks.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from relay.gateway import responses

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from relay.http.counted_log import CountedLog

#: Maximum head, at least that of other servers; one piece more if a body ends in its first piece.
MAX_HEAD_BYTES = 64 * 1024

#: Maximum time from the first byte of a head to its last.
HEAD_SECONDS = 10.0

#: Maximum time without a byte from the client, unless it waits for a response.
IDLE_SECONDS = 60.0

#: Maximum pipelined requests of one connection, about 20 kB each, and maximum received bytes of their bodies: uvicorn
#: reads on after each response without a limit.
MAX_PIPELINED = 1000
MAX_PIPELINED_BYTES = 1024 * 1024

#: Maximum bytes given to the parser at once. A socket returns up to 256 KiB, in which a whole head of that size would
#: pass unchecked.
PIECE_BYTES = 16 * 1024


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. A head beyond a limit is answered 431 or 408, and the connection closed.

    The rest of a body after its response is limited in the same way, because no reader limits it.
    """

    def __init__(self, *args: Any, unreadable: CountedLog, **named: Any) -> None:
        super().__init__(*args, **named)
        self._unreadable = unreadable
        #: Bytes received that are not yet part of a complete head or of a body.
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        #: Whether a request has begun whose body has not ended.
        self._is_in_body = False
        #: On the loop's clock.
        self._last_received_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the idle timer."""
        super().connection_made(transport)
        self._last_received_at = self.loop.time()
        self._idle_timer = self.loop.call_later(IDLE_SECONDS, self._check_idle)

    def _check_idle(self) -> None:
        """Close the connection if it is idle for too long, else check again when it would be."""
        seconds = self.loop.time() - self._last_received_at
        if self._is_responding():  # limited by the endpoint: a page of the console stays open for hours
            seconds = 0.0
        elif seconds >= IDLE_SECONDS:
            self.transport.close()
            return
        self._idle_timer = self.loop.call_later(IDLE_SECONDS - seconds, self._check_idle)

    def data_received(self, data: bytes) -> None:
        """Parse received data, mostly exactly one request."""
        if len(data) <= PIECE_BYTES:
            self._parse(data)
            return
        for start in range(0, len(data), PIECE_BYTES):
            self._parse(data[start : start + PIECE_BYTES])
            if self.transport.is_closing():
                return

    def _parse(self, piece: bytes) -> None:
        self._pending += len(piece)
        self._last_received_at = self.loop.time()
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # the request goes on as HTTP/1.1
            self._unreadable.note("an upgrade to another protocol, which the gateway does not speak")
        except httptools.HttpParserError:
            self._unreadable.note("not HTTP/1.1")
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")
            return
        if len(self.pipeline) > MAX_PIPELINED:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, f"more than {MAX_PIPELINED} requests wait for an answer here")
        elif self.pipeline and sum(len(cycle.body) for cycle, _ in self.pipeline) > MAX_PIPELINED_BYTES:
            self._refuse(
                HTTPStatus.TOO_MANY_REQUESTS, f"more than {MAX_PIPELINED_BYTES} bytes wait for an answer here"
            )
        elif self._pending or self._timer is not None:
            self._limit_head()

    def _limit_head(self) -> None:
        """Refuse a head that is too large, and limit its time while it is incomplete.

        The endpoint limits the time of a body, and the idle timer that between two requests.
        """
        if self._pending > MAX_HEAD_BYTES:
            reason = f"the request's head has more than {MAX_HEAD_BYTES} bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)
        elif not self._pending or self.transport.is_closing():
            self._unset_timer()
        elif self._timer is None and not self._is_responding():
            self._timer = self.loop.call_later(HEAD_SECONDS, self._out_of_time)

    def _out_of_time(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's head did not arrive within {HEAD_SECONDS:g} s")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Close the connection, after an error response unless that would be in the middle of another."""
        self._unset_timer()
        if self.transport.is_closing():
            return
        if not self._is_responding() and not self._is_in_body:
            content = to_json(responses.refusal(status, reason).document)
            headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + headers % len(content) + content)
        self.transport.close()

    def _is_responding(self) -> bool:
        # uvicorn has None before the first request, and types it as never None.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._unset_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    # Callbacks of the parser

    def on_headers_complete(self) -> None:
        """Accept a head; the endpoint can read the first part of the body without waiting, even an empty one."""
        self._pending = 0
        self._is_in_body = True
        super().on_headers_complete()
        self.cycle.message_event.set()

    def on_body(self, body: bytes) -> None:
        """Accept a part of a body."""
        if not self.cycle.response_complete:
            self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Accept the end of a request."""
        self._pending = 0
        self._is_in_body = False
        super().on_message_complete()
