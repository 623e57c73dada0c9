"""A request's body as it comes in: no more of it in memory than is allowed, and no longer waited for."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from relay.gateway import reports
from relay.gateway.reports import Answer, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from relay.gateway.reports import Limits, Media

#: How long a body may take from its first byte to its last.
BODY_SECONDS = 30.0

#: What is read and thrown away of a body after it was refused, in bytes and in seconds: a connection closed while
#: data come in is reset, and the client may never see why. Only larger or slower ones risk that.
DISCARD_BYTES = 4 * 1024 * 1024
DISCARD_SECONDS = 2.0


class Body:
    """One request's; `ended` once all of it has come."""

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self._headers = headers
        self._asked = False
        self.ended = False

    async def read(self, media: Media, limits: Limits) -> bytes:
        """Read all of it, or raise `Refused` with no more in hand than `limits` allow and one chunk."""
        declared = reports.declared_size(self._headers)
        content: bytes | bytearray = b""
        reports.check_size(declared, media, content, limits)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                content = await self._chunk()  # mostly it is all
                while not self.ended:
                    reports.check_size(max(declared, len(content)), media, content, limits)
                    content = bytearray(content) if isinstance(content, bytes) else content
                    content += await self._chunk()
        except TimeoutError:
            reason = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        reports.check_size(max(declared, len(content)), media, content, limits)
        return bytes(content)

    async def begin(self, size: int, *, seconds: float) -> bytes:
        """Return what has come once it is so many bytes, or all, or the time is over, or the client has left."""
        content = bytearray()
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(seconds):
                while len(content) < size and not self.ended:
                    content += await self._chunk()
        return bytes(content)

    async def discard(self) -> None:
        """Throw away what comes, within bounds; nothing comes from a client that waits for 100 (Continue)."""
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


class Farewell(JSONResponse):
    """An answer while the body is still coming: it goes out at once, then the connection is closed."""

    def __init__(self, answer: Answer, body: Body) -> None:
        super().__init__(answer.document, answer.status, {**answer.headers, "Connection": "close"})
        self._rest = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - Starlette's
        """Send the answer, then read on for a while."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await self._rest.discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
