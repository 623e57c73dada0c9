"""The least that answers 202 over uvicorn, to hold the gateway against: `python -m benchmarks.bare_asgi`."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

BODY = b'{"id":"0123456789abcdef0123456789abcdef"}'


async def app(_scope: Scope, receive: Receive, send: Send) -> None:
    """Read what is there of the body, and answer."""
    await receive()
    headers = [(b"content-length", b"%d" % len(BODY)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def main() -> None:
    """Serve on a free port, and print the URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
