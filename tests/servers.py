"""HTTP servers on real sockets that respond as they are told, byte for byte, and record the requests."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import TYPE_CHECKING, NamedTuple, Self

from relay.sandbox.connection import Limits, Responder
from relay.sandbox.response import BEFORE_RESET_SECONDS, Close, Hang, Reset, Wait, Write
from relay.sandbox.response import Step as Action
from relay.sandbox.server import LoopThread
from relay.sandbox.server import Server as HttpServer

if TYPE_CHECKING:
    from pathlib import Path

    from relay.sandbox.connection import Connection
    from relay.sandbox.contract import Request

#: Deadline of a wait; no passing test needs it.
DEADLINE_SECONDS = 10.0

_LIMITS = Limits(request_timeout_seconds=600, idle_timeout_seconds=600, body_bytes=2**30, discarded_bytes=2**30)


class Received(NamedTuple):
    """One request and its connection's number. Header names are in lower case."""

    connection: int
    line: str
    headers: Mapping[str, str]
    body: bytes


#: Returns what to do with one request; the connection is kept unless that closes it.
Step = Callable[[Received], Iterable[Action]]


def head(status: int, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(status: int, body: bytes = b"", **headers: str) -> Step:
    """Respond, and keep the connection. Underscores of header names stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: [Write(head(status, {"Content-Length": str(len(body)), **named}) + body)]


def says(data: bytes) -> Step:
    """Send these bytes, HTTP or not, and close."""
    return lambda _: [Write(data), Close()]


def after(data: bytes, step: Step) -> Step:
    """Send these bytes, then continue with another step."""
    return lambda request: chain([Write(data)], step(request))


def later(seconds: float, step: Step) -> Step:
    """Pause before another step."""
    return lambda request: chain([Wait(seconds)], step(request))


def half_a_body(status: int, **headers: str) -> Step:
    """Announce a hundred bytes, send ten and close."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return says(head(status, {"Content-Length": "100", **named}) + b"0123456789")


def half_a_body_then_reset(status: int) -> Step:
    part = head(status, {"Content-Length": "100"}) + b"0123456789"
    return lambda _: [Write(part), Wait(BEFORE_RESET_SECONDS), Reset()]


def reset(_: Received) -> Iterable[Action]:
    """Read the request, then reset the connection."""
    return [Reset()]


def reset_unread(_: Received) -> Iterable[Action]:
    """Reset the connection once a request has begun; for `at_once`."""
    return [Reset()]


def hang(_: Received) -> Iterable[Action]:
    """Read the request and do not respond."""
    return [Hang()]


def byte_by_byte(data: bytes, *, every_seconds: float, at_once: bytes = b"") -> Step:
    """Send `at_once`, then a byte after each pause, then close."""

    def step(_: Received) -> Iterator[Action]:
        yield Write(at_once)
        for byte in data:
            yield Wait(every_seconds)
            yield Write(bytes([byte]))
        yield Close()

    return step


def endless(begun: bytes, part: bytes) -> Step:
    """Send a beginning, then a part repeatedly as fast as the client reads it, until the client leaves."""
    return lambda _: chain([Write(begun)], repeat(Write(part)))


def endless_body(status: int) -> Step:
    """Send a body that does not end."""
    return endless(head(status, {"Transfer-Encoding": "chunked"}), b"1000\r\n" + b"x" * 4096 + b"\r\n")


class Server(Responder):
    """Responds to requests on a free port of 127.0.0.1, each with the next step; the last step is for all others.

    `at_once` is done with each connection instead of reading requests. With `tls` it speaks https.
    """

    def __init__(self, *steps: Step, at_once: Step | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.closed = 0
        self._steps = list(steps)
        self._at_once = at_once
        self._changed = threading.Condition()
        self._thread = LoopThread("test-server")
        self._server = HttpServer(self, _LIMITS)
        address = self._thread.call(self._server.listen("127.0.0.1", tls=tls))
        self.url = f"{address}/v1/deployments"
        self.port = int(address.rpartition(":")[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close all connections."""
        self._thread.call(self._server.close())
        self._thread.stop()

    def await_requests(self, count: int) -> list[Received]:
        """Return the requests once there are that many."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.received) >= count, DEADLINE_SECONDS):
                raise TimeoutError(f"{len(self.received)} requests of {count} in {DEADLINE_SECONDS} s")
            return list(self.received)

    def await_closed(self, count: int) -> None:
        """Wait until that many connections are closed, so that their clients can know."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.closed >= count, DEADLINE_SECONDS):
                raise TimeoutError(f"{self.closed} connections of {count} closed in {DEADLINE_SECONDS} s")

    def on_connect(self, connection: Connection) -> Iterable[Action] | None:
        self.connections += 1
        if self._at_once is None or self._at_once is reset_unread:
            return None
        return self._at_once(Received(connection.number, "", {}, b""))

    def on_headers(self, connection: Connection) -> Iterable[Action] | None:  # noqa: ARG002 - the server's
        return [Reset()] if self._at_once is reset_unread else None

    def on_request(self, connection: Connection, request: Request) -> Iterable[Action]:
        line = f"{request.method.decode()} {request.path.decode('latin-1')} HTTP/1.1"
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
        received = Received(connection.number, line, headers, request.body)
        with self._changed:
            self.received.append(received)
            self._changed.notify_all()
        return (self._steps.pop(0) if len(self._steps) > 1 else self._steps[0])(received)

    def on_close(self, connection: Connection) -> None:  # noqa: ARG002 - the server's
        with self._changed:
            self.closed += 1
            self._changed.notify_all()


class Authority:
    """A certificate authority of the test's own, in a folder, made with `openssl`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = self._make("authority", "-x509", "-days", "2", "-addext", "basicConstraints=critical,CA:true")

    def server(self, name: str, *, san: str = "IP:127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """Return the TLS context of a server with a certificate for `san`; with `days` below zero it has expired."""
        request = self._make(name, "-addext", f"subjectAltName={san}")
        certificate = request.with_suffix(".crt")
        signer = ["-CA", str(self.file), "-CAkey", str(self.file.with_suffix(".key")), "-CAcreateserial"]
        files = ["-in", str(request), "-out", str(certificate)]
        _openssl("x509", "-req", "-days", str(days), "-copy_extensions", "copy", *signer, *files)
        return _context(certificate, request.with_suffix(".key"))

    def self_signed(self) -> ssl.SSLContext:
        """Return the TLS context of a server with a self-signed certificate."""
        certificate = self._make("self-signed", "-x509", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1")
        return _context(certificate, certificate.with_suffix(".key"))

    def _make(self, name: str, *options: str) -> Path:
        made = self._folder / f"{name}.pem"
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"]
        _openssl("req", *key, str(made.with_suffix(".key")), "-out", str(made), "-subj", f"/CN={name}", *options)
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
