"""A connection: bounds on a request's head, in bytes and in time, and on how long it may send nothing.

httptools keeps what it has begun to read until it is whole, of any size and for any time, before anybody has looked
at a token. So what makes neither a head nor a body is counted here: a request line and headers, but also the trailers
and the extensions of a body in chunks.
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

    from relay.http.counted import CountedLog

#: The largest head, as other servers have it or less; it may be one piece larger if a body ends in its first.
MAX_HEAD_BYTES = 64 * 1024

#: How long a head may take from its first byte to its last.
HEAD_SECONDS = 10.0

#: How long a connection may send nothing, unless it waits for an answer.
IDLE_SECONDS = 60.0

#: Requests of one connection that may wait while the one before them is answered, some twenty kilobytes each, and
#: what may have come of their bodies: uvicorn reads on after each answer, whatever it holds.
MAX_PIPELINED = 1000
MAX_PIPELINED_BYTES = 1024 * 1024

#: Bytes that the parser is given at once. A socket gives up to 256 KiB, and a head of that size must not get through
#: because it came at once.
PIECE_BYTES = 16 * 1024


class BoundedHeads(HttpToolsProtocol):
    """One connection; answers 431 or 408 to a head that is out of bounds, and closes it.

    So it does with the rest of a body that comes after its answer, which no reader bounds.
    """

    def __init__(self, *args: Any, unreadable: CountedLog, **named: Any) -> None:
        super().__init__(*args, **named)
        self._unreadable = unreadable
        #: Bytes since the last of which something came.
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        #: Whether a request has begun whose body has not ended.
        self._is_in_body = False
        #: When the last bytes came, on the loop's clock.
        self._heard_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the time."""
        super().connection_made(transport)
        self._heard_at = self.loop.time()
        self._idle_timer = self.loop.call_later(IDLE_SECONDS, self._check_idle)

    def _check_idle(self) -> None:
        """Close the connection if it has sent nothing for too long; else look again when it would have."""
        seconds = self.loop.time() - self._heard_at
        if self._is_answering():  # that is its reader's to bound: a page of the console stays open for hours
            seconds = 0.0
        elif seconds >= IDLE_SECONDS:
            self.transport.close()
            return
        self._idle_timer = self.loop.call_later(IDLE_SECONDS - seconds, self._check_idle)

    def data_received(self, data: bytes) -> None:
        """Parse what came; mostly it is a request, the whole and nothing else."""
        if len(data) <= PIECE_BYTES:
            self._parse(data)
            return
        for start in range(0, len(data), PIECE_BYTES):
            self._parse(data[start : start + PIECE_BYTES])
            if self.transport.is_closing():
                return

    def _parse(self, piece: bytes) -> None:
        self._pending += len(piece)
        self._heard_at = self.loop.time()
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
            self._bound()

    def _bound(self) -> None:
        """Refuse too much, and have an eye on the time while a head is under way.

        A body's time is its reader's to bound, and between two requests that of an idle connection counts.
        """
        if self._pending > MAX_HEAD_BYTES:
            reason = f"the request's head has more than {MAX_HEAD_BYTES} bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)
        elif not self._pending or self.transport.is_closing():
            self._unset_timer()
        elif self._timer is None and not self._is_answering():
            self._timer = self.loop.call_later(HEAD_SECONDS, self._out_of_time)

    def _out_of_time(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's head did not arrive within {HEAD_SECONDS:g} s")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Close, after an answer unless that would stand in the middle of another."""
        self._unset_timer()
        if self.transport.is_closing():
            return
        if not self._is_answering() and not self._is_in_body:
            content = to_json(responses.refusal(status, reason).document)
            headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + headers % len(content) + content)
        self.transport.close()

    def _is_answering(self) -> bool:
        # uvicorn has None before the first request, and types it as never None.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._unset_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    # What the parser calls when something has come

    def on_headers_complete(self) -> None:
        """Take a head; who reads the body need not wait for a first part of it, be it empty."""
        self._pending = 0
        self._is_in_body = True
        super().on_headers_complete()
        self.cycle.message_event.set()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if not self.cycle.response_complete:
            self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take a request's end."""
        self._pending = 0
        self._is_in_body = False
        super().on_message_complete()
