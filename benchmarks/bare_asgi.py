"""The least possible gateway, as a baseline: `python -m benchmarks.bare_asgi [REDIS_URL]`.

Without a URL it only answers 202. With one it answers once Redis has the unparsed body under a new id; requests
during a round trip share the next. It checks no token, parses no event, and limits nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from typing import TYPE_CHECKING

import redis.asyncio
import uvicorn

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

STREAM = "bare"


class Bare:
    """An ASGI app."""

    def __init__(self, url: str | None) -> None:
        self._client = redis.asyncio.Redis.from_url(url) if url else None
        self._waiting: list[tuple[bytes, str, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Read the first part of the body, and answer."""
        message = await receive()
        event_id = secrets.token_hex(16)
        if self._client is not None:
            await self._add(self._client, message["body"], event_id)
        body = b'{"id":"%s"}' % event_id.encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _add(self, client: redis.asyncio.Redis, body: bytes, event_id: str) -> None:
        taken = asyncio.get_running_loop().create_future()
        self._waiting.append((body, event_id, taken))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_waiting(client))
        await taken

    async def _send_waiting(self, client: redis.asyncio.Redis) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            pipeline = client.pipeline(transaction=False)
            for body, event_id, _ in group:
                pipeline.execute_command("XADD", STREAM, "*", "event", body, "id", event_id)
            await pipeline.execute()
            for *_, taken in group:
                taken.set_result(None)
        self._sending = None


def main() -> None:
    """Serve on a free port, and print the URL."""
    app = Bare(sys.argv[1] if len(sys.argv) > 1 else None)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
