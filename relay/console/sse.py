"""A page that stays true: its changing part, again and again, as server-sent events."""

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

#: The pause between two looks, in seconds.
PAUSE_SECONDS = 2.0

#: Pages that are kept true at once; what is more is told to come again later.
STREAMS = 32

#: How long a browser waits before it asks for a stream that broke off, in milliseconds.
RETRY_MILLISECONDS = 2000


class Streams:
    """The streams of this process, which all end when it stops."""

    def __init__(self) -> None:
        self._open = 0
        self._stopping = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Tell whether one more would be too many."""
        return self._open >= STREAMS

    def stop(self) -> None:
        """End all, at once."""
        self._stopping.set()

    def stream(self, session: Session, render: Callable[[], Awaitable[str]]) -> Response:
        """Stream what `render` makes until the session is over, the browser has gone, or we stop."""
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
                    yield event("away", str(error))
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
    """Write an event; each line of its content is one of the event's, whatever ends it."""
    lines = "".join(f"data: {line}\n" for line in content.splitlines() or [""])
    return f"event: {name}\n{lines}\n".encode(errors="replace")
