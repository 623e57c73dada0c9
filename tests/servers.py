"""HTTP servers on real sockets that answer as they are told, byte for byte, and remember what they were asked."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from pathlib import Path

#: How long a server may take for what it was told; nothing a passing test waits for.
DEADLINE_SECONDS = 10.0

#: Makes close() send RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)


class Received(NamedTuple):
    """One request, and the number of the connection that it came by. Header names are in lower case."""

    connection: int
    line: str
    headers: Mapping[str, str]
    body: bytes


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._buffer = b""

    def read_request(self, number: int) -> Received | None:
        """Read one request; None when the client has closed the connection."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for each in lines:
            name, _, value = each.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            if not self._receive():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Received(number, line, headers, body)

    def drain(self) -> None:
        """Read what the client sends until it closes the connection."""
        while self._receive():
            self._buffer = b""

    def await_bytes(self) -> None:
        """Wait until a request has begun, and leave it unread."""
        self._connection.recv(1, socket.MSG_PEEK)

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def reset(self) -> None:
        """Close with RST, so that the other end sees a reset connection."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._connection.close()

    def hang(self) -> None:
        """Say nothing until the server is stopped."""
        self._server.stopped.wait(6 * DEADLINE_SECONDS)

    def pause(self, seconds: float) -> bool:
        """Let time pass between two bytes; tell whether the server still runs."""
        return not self._server.stopped.wait(seconds)

    def _receive(self) -> bool:
        data = self._connection.recv(65_536)
        self._buffer += data
        return bool(data)


#: Answers one request; True keeps the connection open for the next.
Step = Callable[[Peer], bool]


def head(status: int, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Said So", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(status: int, body: bytes = b"", **headers: str) -> Step:
    """Answer whole and keep the connection. Underscores of header names stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def step(peer: Peer) -> bool:
        peer.send(head(status, {"Content-Length": str(len(body)), **named}) + body)
        return True

    return step


def says(data: bytes) -> Step:
    """Send these bytes, HTTP or not, and close."""

    def step(peer: Peer) -> bool:
        peer.send(data)
        return False

    return step


def after(data: bytes, step: Step) -> Step:
    """Send these bytes, then go on with another step."""

    def both(peer: Peer) -> bool:
        peer.send(data)
        return step(peer)

    return both


def later(seconds: float, step: Step) -> Step:
    """Let time pass before another step."""
    return lambda peer: peer.pause(seconds) and step(peer)


def half_a_body(status: int, **headers: str) -> Step:
    """Announce a hundred bytes, send ten and close."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return says(head(status, {"Content-Length": "100", **named}) + b"0123456789")


def reset(peer: Peer) -> bool:
    """Read the request, then reset the connection."""
    peer.reset()
    return False


def reset_unread(peer: Peer) -> bool:
    """Reset the connection once a request has begun, without reading it."""
    peer.await_bytes()
    return reset(peer)


def half_a_body_then_reset(status: int) -> Step:
    def step(peer: Peer) -> bool:
        peer.send(head(status, {"Content-Length": "100"}) + b"0123456789")
        peer.reset()
        return False

    return step


def hang(peer: Peer) -> bool:
    """Read the request and say nothing."""
    peer.hang()
    return False


def byte_by_byte(data: bytes, *, every_seconds: float, at_once: bytes = b"") -> Step:
    """Send `at_once`, then a byte every now and then."""

    def step(peer: Peer) -> bool:
        peer.send(at_once)
        for byte in data:
            if not peer.pause(every_seconds):
                return False
            peer.send(bytes([byte]))
        return False

    return step


def endless(begun: bytes, part: bytes) -> Step:
    """Send a beginning, then a part again and again as fast as it is read, until the client has had enough."""

    def step(peer: Peer) -> bool:
        peer.send(begun)
        while True:
            peer.send(part)

    return step


def endless_body(status: int) -> Step:
    """Send a body that does not end."""
    return endless(head(status, {"Transfer-Encoding": "chunked"}), b"1000\r\n" + b"x" * 4096 + b"\r\n")


class Server:
    """Answers requests on a free port of 127.0.0.1, each with the next step; the last step is for all others.

    `at_once` is done instead with each connection before anything is read. With `tls` it speaks https.
    """

    def __init__(self, *steps: Step, at_once: Step | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.closed = 0
        self.stopped = threading.Event()
        self._steps = list(steps)
        self._at_once = at_once
        self._tls = tls
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="test-server")]

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1/deployments"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close all connections; who hangs ends."""
        self.stopped.set()
        with socket.socket() as waker:  # closing a listener does not end an accept() under way
            waker.connect_ex(("127.0.0.1", self.port))
        with self._changed:
            for connection in self._open:
                _shut(connection)
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
        self._listener.close()

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

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with self._changed:
                if self.stopped.is_set():
                    connection.close()
                    return
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                self.connections += 1
                self._open.add(connection)
                number = self.connections
            thread = threading.Thread(target=self._serve, args=(connection, number), name="test-server")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError):  # the client has gone, or we have been stopped
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            peer = Peer(self, connection)
            if self._at_once:
                self._at_once(peer)
            else:
                while (request := peer.read_request(number)) is not None and self._step(request)(peer):
                    pass
        with self._changed:
            self._open.discard(connection)
            connection.close()
            self.closed += 1
            self._changed.notify_all()

    def _step(self, request: Received) -> Step:
        with self._changed:
            self.received.append(request)
            self._changed.notify_all()
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)


class Authority:
    """A certificate authority of the test's own, in a folder; `openssl` does the work."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = self._make("authority", "-x509", "-days", "2", "-addext", "basicConstraints=critical,CA:true")

    def server(self, name: str, *, san: str = "IP:127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """Return what a server needs whose certificate is for `san`; with `days` below zero it has expired."""
        request = self._make(name, "-addext", f"subjectAltName={san}")
        certificate = request.with_suffix(".crt")
        signer = ["-CA", str(self.file), "-CAkey", str(self.file.with_suffix(".key")), "-CAcreateserial"]
        files = ["-in", str(request), "-out", str(certificate)]
        _openssl("x509", "-req", "-days", str(days), "-copy_extensions", "copy", *signer, *files)
        return _context(certificate, request.with_suffix(".key"))

    def self_signed(self) -> ssl.SSLContext:
        """Return what a server needs whose certificate nobody vouches for."""
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
