"""HTTP requests and responses over ASGI: the headers that are read, the body within bounds, and the response."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

import starlette.responses
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from relay.gateway import report_parsing
from relay.gateway.compression import decompress, is_compressed
from relay.gateway.report_parsing import Media
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from relay.gateway.report_parsing import Limits
    from relay.gateway.responses import Response

#: Maximum time from the first byte of a body to its last.
BODY_SECONDS = 30.0

#: Maximum that is read and discarded of a refused body, in bytes and in seconds. Closing a connection while data
#: arrive resets it, and the client may never see the response; only larger or slower bodies risk that.
DISCARD_BYTES = 4 * 1024 * 1024
DISCARD_SECONDS = 2.0

#: The headers that reports and reviews use; reading all of them takes twice as long.
_HEADERS = {
    name.encode(): name
    for name in (
        *("authorization", "content-encoding", "content-length", "content-type", "expect"),
        *("idempotency-key", "ce-id", "ce-source", "ce-time", "ce-type", "ce-specversion"),
        *("host", "origin", "sec-fetch-site", "prefer", "x-relay-token"),
    )
}


def read_headers(scope: Scope) -> dict[str, str]:
    """Return the headers in use by lower-case name: the first of a repeated one, all of `Prefer`."""
    found = {
        _HEADERS[name]: value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in _HEADERS
    }
    if "prefer" in found:  # a list header: repetitions are joined (RFC 7240, section 2)
        found["prefer"] = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"prefer")
    return found


async def send_response(response: Response, send: Send, *, ends: bool = True) -> None:
    """Send a response without Starlette's `Response`, which is slow for thousands of reports a second."""
    content = b"" if response.document is None else to_json(response.document)
    headers = [(b"content-length", b"%d" % len(content))]
    if content:
        headers.append((b"content-type", b"application/json"))
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": not ends})


def to_starlette(response: Response) -> starlette.responses.Response:
    """Return the response as Starlette's."""
    if response.document is None:
        return starlette.responses.Response(b"", response.status, response.headers)
    content = to_json(response.document)
    return starlette.responses.Response(content, response.status, response.headers, media_type="application/json")


class RequestBody:
    """The body of one request, read within bounds of size and time; `ended` once all of it was received.

    The first part is available without waiting (`http_limits`) and is mostly the whole body, so only further parts
    are read under a time-out.
    """

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self._headers = headers
        self._asked = False
        self.ended = False

    async def read(self, media: Media, limits: Limits) -> bytes:
        """Return the whole body, decompressed; raise `Refused` with at most `limits` and one chunk in memory.

        A compressed body may be as large as one with many events: its kind is known only once it is decompressed.
        """
        if not is_compressed(self._headers):
            return await self._read(media, limits)
        content = decompress(await self._read(Media.LINES, limits), limits.many)
        report_parsing.check_size(len(content), media, content, limits)
        return content

    async def _read(self, media: Media, limits: Limits) -> bytes:
        declared = report_parsing.declared_size(self._headers)
        report_parsing.check_size(declared, media, b"", limits)
        content = await self._chunk()
        if not self.ended:
            content = await self._read_rest(content, declared, media, limits)
        report_parsing.check_size(max(declared, len(content)), media, content, limits)
        return content

    async def _read_rest(self, first: bytes, declared: int, media: Media, limits: Limits) -> bytes:
        content = bytearray(first)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self.ended:
                    report_parsing.check_size(max(declared, len(content)), media, content, limits)
                    content += await self._chunk()
        except TimeoutError:
            reason = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        return bytes(content)

    async def read_start(self, size: int, *, seconds: float) -> bytes:
        """Return the body as far as it was received after `size` bytes, its end, `seconds`, or a disconnect."""
        content = bytearray()
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            content += await self._chunk()
            if self.ended:
                return bytes(content)
            async with asyncio.timeout(seconds):
                while len(content) < size and not self.ended:
                    content += await self._chunk()
        return bytes(content)

    async def respond(self, response: Response, send: Send) -> None:
        """Send the response; before the end of the body it is sent at once, and the connection is then closed."""
        if self.ended:
            await send_response(response, send)
            return
        closing = response._replace(headers={**response.headers, "Connection": "close"})
        await send_response(closing, send, ends=False)
        await self._discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self) -> None:
        """Discard the rest of the body, within bounds; a client that waits for 100 (Continue) sends none."""
        if not self._asked and self._headers.get("expect", "").lower() == "100-continue":
            return
        left = DISCARD_BYTES
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(DISCARD_SECONDS):
                while left > 0 and not self.ended:
                    left -= len(await self._chunk())

    async def _chunk(self) -> bytes:
        self._asked = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.ended = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk
