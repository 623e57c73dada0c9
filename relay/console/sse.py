"""Live pages: their changing parts, sent again as server-sent events."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from relay.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.responses import Response

    from relay.console.session import Session

#: The time between two updates.
PAUSE_SECONDS = 2.0

#: Maximum live pages; further ones are refused, and a browser tries again later.
STREAMS = 32

#: The time after which a browser reconnects.
RETRY_MILLISECONDS = 2000


class Streams:
    """The streams of this process."""

    def __init__(self) -> None:
        self._open = 0
        self._stopping = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Return whether there are `STREAMS`."""
        return self._open >= STREAMS

    def stop(self) -> None:
        """End all streams."""
        self._stopping.set()

    def stream(self, session: Session, render: Callable[[], Awaitable[str]]) -> Response:
        """Stream the results of `render` until the session is over, the browser disconnects, or the process stops."""
        return StreamingResponse(self._events(session, render), media_type="text/event-stream")

    async def _events(self, session: Session, render: Callable[[], Awaitable[str]]) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
            sent = ""
            while not self._stopping.is_set():
                if time.time() >= session.ends_at:
                    yield event("over", "the session is over")
                    return
                try:
                    part = await render()
                except QueueUnavailable as error:
                    sent = ""
                    yield event("unavailable", str(error))
                else:
                    yield event("page", part) if part != sent else b": the same\n\n"
                    sent = part
                await self._pause()
        finally:
            self._open -= 1

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await self._stopping.wait()
        except TimeoutError:
            return


def event(name: str, content: str) -> bytes:
    """Encode an event; each line of the content, by any line ending, is one data line."""
    lines = "".join(f"data: {line}\n" for line in content.splitlines() or [""])
    return f"event: {name}\n{lines}\n".encode(errors="replace")
