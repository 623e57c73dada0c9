"""TLS servers with the certificates that a test needs: a real Redis, and one that records bytes."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest
import trustme

from relay.processes.embedded_redis import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DEADLINE_SECONDS = 20.0

#: The host that all clients of the tests use: an address of this machine, without a name server.
HOST = "127.0.0.1"


class Case(StrEnum):
    """Defect of a server's certificate."""

    RIGHT = "right"
    OTHER_NAME = "other name"
    UNKNOWN_AUTHORITY = "unknown authority"
    EXPIRED = "expired"


#: Defects that a client must refuse.
WRONG = (Case.OTHER_NAME, Case.UNKNOWN_AUTHORITY, Case.EXPIRED)


class Certificates:
    """An authority that clients trust, in `ca_file`, and the servers' certificates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)

    def of(self, case: Case, name: str = HOST) -> Path:
        """Return a file with a key and a certificate."""
        past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        match case:
            case Case.RIGHT:
                made = self._authority.issue_cert(name)
            case Case.OTHER_NAME:
                made = self._authority.issue_cert("redis.example.com")
            case Case.UNKNOWN_AUTHORITY:
                made = trustme.CA().issue_cert(name)
            case Case.EXPIRED:
                made = self._authority.issue_cert(name, not_after=past)
        return self._written(made, f"{case.name.lower()}-{name}.pem")

    def client(self) -> Path:
        """Return a file with a client's key and certificate."""
        return self._written(self._authority.issue_cert("relay-worker"), "client.pem")

    def _written(self, made: trustme.LeafCert, name: str) -> Path:
        file = self._folder / name
        made.private_key_and_cert_chain_pem.write_to_path(file)
        return file


class Recorder:
    """Accepts TLS connections, records every decrypted byte, and answers none."""

    def __init__(self, certificate: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._listener = socket.create_server((HOST, 0))
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._is_stopped = False
        self._threads = [threading.Thread(target=self._accept, name="recorder")]
        self._decrypted = bytearray()
        self._handshakes = 0
        self._ends_at = b""

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def decrypted(self) -> bytes:
        """All bytes that clients sent over connections that they accepted."""
        with self._changed:
            return bytes(self._decrypted)

    @property
    def handshakes(self) -> int:
        """Number of connections whose handshake has ended, with success or not."""
        with self._changed:
            return self._handshakes

    def forget(self, *, ends_at: bytes = b"") -> None:
        """Reset the records; close a connection after these bytes, so that its client does not wait for an answer."""
        with self._changed:
            self._decrypted.clear()
            self._handshakes = 0
            self._ends_at = ends_at

    def wait_for_handshakes(self, count: int = 1, seconds: float = DEADLINE_SECONDS) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._handshakes >= count, seconds), self._handshakes

    def wait_for_bytes(self, wanted: bytes, seconds: float = DEADLINE_SECONDS) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: wanted in self._decrypted, seconds), bytes(self._decrypted)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_stopped = True
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        with socket.socket() as waker:  # closing a listener does not end an accept() under way
            waker.connect_ex((HOST, self.port))
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            with self._changed:
                if self._is_stopped:
                    accepted.close()
                    return
                self._open.add(accepted)
            thread = threading.Thread(target=self._serve, args=(accepted,), name="recorder")
            self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            accepted.settimeout(DEADLINE_SECONDS)
            try:
                spoken = self._context.wrap_socket(accepted, server_side=True)
            finally:
                with self._changed:
                    self._handshakes += 1
                    self._changed.notify_all()
            with self._changed:
                self._open.add(spoken)
                self._open.discard(accepted)
            with spoken:
                while got := spoken.recv(4096):
                    with self._changed:
                        self._decrypted += got
                        self._changed.notify_all()
                        if self._ends_at and self._ends_at in self._decrypted:
                            return


class RedisServer(NamedTuple):
    """A Redis, and its TLS port."""

    port: int
    tls_port: int


@contextmanager
def redis_server(
    folder: Path, options: Mapping[str, str], certificates: Certificates | None = None
) -> Iterator[RedisServer]:
    """Run a real `redis-server` with lines of redis.conf; with certificates, on a second port with TLS as well.

    The server of the wheel has no TLS, so this is the one of PATH.
    """
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("needs redis-server on PATH, with TLS: apt-get install redis-server")
    served = RedisServer(free_port(), free_port())
    lines = [
        f"port {served.port}",
        "bind 127.0.0.1",
        'save ""',
        f"dir {folder}",
        *(f"{k} {v}" for k, v in options.items()),
    ]
    if certificates:
        file = certificates.of(Case.RIGHT)
        lines += [f"tls-port {served.tls_port}", f"tls-cert-file {file}", f"tls-key-file {file}"]
        lines += [f"tls-ca-cert-file {certificates.ca_file}"]
    configuration = folder / "redis.conf"
    configuration.write_text("\n".join(lines) + "\n")
    log = folder / "redis.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, configuration], stdout=output, stderr=output)
    try:
        _await_answer(process, served.port, log)
        yield served
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)


def _await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server accepts connections: any of its commands may be renamed."""
    waiting = threading.Event()
    for _ in range(int(DEADLINE_SECONDS / 0.02)):
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        waiting.wait(0.02)
    pytest.fail(f"redis-server did not start: {log.read_text()}")
