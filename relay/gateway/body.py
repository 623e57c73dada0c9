"""A request's body as it comes in, no more in memory than is allowed and no longer waited for; and its answer."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from relay.gateway import report_parsing
from relay.gateway.asgi import tell
from relay.gateway.compression import decompress, is_compressed
from relay.gateway.report_parsing import Media
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Send

    from relay.gateway.report_parsing import Limits
    from relay.gateway.responses import Answer

#: How long a body may take from its first byte to its last.
BODY_SECONDS = 30.0

#: What is read and thrown away of a body after it was refused, in bytes and in seconds: a connection closed while
#: data come in is reset, and the client may never see why. Only larger or slower ones risk that.
DISCARD_BYTES = 4 * 1024 * 1024
DISCARD_SECONDS = 2.0


class Body:
    """One request's; `ended` once all of it has come.

    Its first part is there at once (`heads`): mostly it is all, and only what is not waits, under a time-out.
    """

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self._headers = headers
        self._asked = False
        self.ended = False

    async def read(self, media: Media, limits: Limits) -> bytes:
        """Read all of it, decompressed, or raise `Refused` with no more in hand than `limits` allow and one chunk.

        Compressed, it may be as large as many events: what it holds is known, and bounded, once it is decompressed.
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
            content = await self._read_on(content, declared, media, limits)
        report_parsing.check_size(max(declared, len(content)), media, content, limits)
        return content

    async def _read_on(self, begun: bytes, declared: int, media: Media, limits: Limits) -> bytes:
        content = bytearray(begun)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while not self.ended:
                    report_parsing.check_size(max(declared, len(content)), media, content, limits)
                    content += await self._chunk()
        except TimeoutError:
            reason = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, reason) from None
        return bytes(content)

    async def begin(self, size: int, *, seconds: float) -> bytes:
        """Return what has come once it is so many bytes, or all, or the time is over, or the client has left."""
        content = bytearray()
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            content += await self._chunk()
            if self.ended:
                return bytes(content)
            async with asyncio.timeout(seconds):
                while len(content) < size and not self.ended:
                    content += await self._chunk()
        return bytes(content)

    async def answer(self, answer: Answer, send: Send) -> None:
        """Send the answer; while the body is still coming it goes out at once, and then the connection is closed."""
        if self.ended:
            await tell(answer, send)
            return
        await tell(answer._replace(headers={**answer.headers, "Connection": "close"}), send, ends=False)
        await self._discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self) -> None:
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
