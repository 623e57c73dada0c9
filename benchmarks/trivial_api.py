"""The cheapest API for the benchmarks: `python -m benchmarks.trivial_api`.

It answers each POST with 202 and records the first time of its Idempotency-Key. It checks nothing else, and knows
just enough HTTP/1.1 for clients that send a Content-Length and keep their connections. `relay sandbox`, which
validates and records each request, would dominate the measurement: 24 µs of processor time a request, against 2.5 µs
here.

    GET /counts   {"requests": 3, "distinct": 2, "last_unix_seconds": 1.5}    the time of the last distinct one
    GET /receipts one line for each distinct key: the key, a tab, its first time in Unix seconds
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import cast

import uvloop

_ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_KEY = b"\r\nidempotency-key:"


class Received:
    """The requests received."""

    def __init__(self) -> None:
        self.requests = 0
        self.first_seen: dict[bytes, float] = {}
        self._last_unix_seconds = 0.0

    def note(self, key: bytes) -> None:
        """Count a request and record its key's first time."""
        self.requests += 1
        if key not in self.first_seen:
            self.first_seen[key] = self._last_unix_seconds = time.time()

    def counts(self) -> bytes:
        """Return the body of `GET /counts`."""
        counts = {
            "requests": self.requests,
            "distinct": len(self.first_seen),
            "last_unix_seconds": self._last_unix_seconds,
        }
        return json.dumps(counts).encode()

    def receipts(self) -> bytes:
        """Return the body of `GET /receipts`."""
        return b"".join(b"%b\t%.6f\n" % receipt for receipt in self.first_seen.items())


class Connection(asyncio.Protocol):
    """One client's connection: answers complete requests in order, and keeps a part of one for the next bytes."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete."""
        data = self._rest + data
        answers = []
        start = 0
        while (end := data.find(_END_OF_HEAD, start)) >= 0:
            head = data[start:end]
            names = head.lower()
            past = end + len(_END_OF_HEAD) + int(_value(head, names, _LENGTH) or 0)
            if past > len(data):
                break
            answers.append(self._answer(head, names))
            start = past
        self._rest = data[start:]
        if answers:
            self._transport.write(b"".join(answers))

    def _answer(self, head: bytes, names: bytes) -> bytes:
        if head.startswith(b"GET /counts "):
            return _with_body(self._received.counts())
        if head.startswith(b"GET /receipts "):
            return _with_body(self._received.receipts())
        self._received.note(_value(head, names, _KEY))
        return _ACCEPTED


def _value(head: bytes, names: bytes, name: bytes) -> bytes:
    """Return a header's value, b"" without it; `names` is the head in lower case."""
    at = names.find(name)
    if at < 0:
        return b""
    at += len(name)
    end = head.find(b"\r\n", at)
    return head[at : end if end >= 0 else len(head)].strip()


def _with_body(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    received = Received()
    server = await loop.create_server(lambda: Connection(received), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await stopping.wait()


if __name__ == "__main__":
    uvloop.run(_serve())
