"""The gateway's server: listening, TLS, shutdown."""

from __future__ import annotations

import contextlib
import gc
import logging
import resource
import ssl
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from relay import hosts
from relay.console.routes import Console
from relay.errors import ConfigurationError
from relay.gateway.app import create_app
from relay.gateway.http_limits import LimitedHttpProtocol
from relay.hosts import url_of
from relay.http.counted_log import CountedLog
from relay.logs import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from relay.settings import GatewaySettings, Settings

#: Time for requests under way to end after SIGTERM; below the 10 s that `relay up` and Docker grant.
STOP_SECONDS = 8

#: Maximum connections that the kernel queues until they are accepted.
BACKLOG = 2048

#: The time between two checks of the certificate's files.
CERTIFICATE_SECONDS = 10

#: Thresholds of Python's garbage collector (`gc.set_threshold`).
GC_THRESHOLDS = (20_000, 10, 10)

log = logging.getLogger("relay.gateway")


def create_server(settings: Settings) -> uvicorn.Server:
    """Return the server. It logs no requests, because their paths may contain tokens."""
    certificate = _Certificate.of(settings.gateway)
    console = Console(settings)
    unreadable = CountedLog(get_logger("relay.gateway"), "unreadable requests")
    return _Server(
        console,
        unreadable,
        uvicorn.Config(
            create_app(settings, console),
            http=partial(LimitedHttpProtocol, unreadable=unreadable),  # type: ignore[arg-type]
            lifespan="on",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_context_factory=certificate.current if certificate else None,
            callback_notify=certificate.refresh if certificate else None,
            timeout_notify=CERTIFICATE_SECONDS,
        ),
    )


class _Server(uvicorn.Server):
    """A server that ends the console's streams before it waits for connections, and flushes the counted log."""

    def __init__(self, console: Console, unreadable: CountedLog, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._console = console
        self._unreadable = unreadable

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._console.stop()
        await super().shutdown(sockets)
        self._unreadable.close()


def listen(settings: GatewaySettings) -> socket.socket:
    """Listen, or raise `ConfigurationError`; from here on the kernel accepts connections."""
    try:
        return hosts.listen(settings.host, settings.port, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"the gateway cannot listen on {settings.host}, port {settings.port} (gateway.host, gateway.port): "
            f"{error.strerror}"
        ) from error


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, which is raised again after the responses to the requests under way."""
    _allow_many_connections()
    server = create_server(settings)
    _collect_rarely()
    with listen(settings.gateway) as listening:
        announce(url_of(listening, scheme="https" if settings.gateway.tls_cert else "http"))
        server.run(sockets=[listening])


def _allow_many_connections() -> None:
    """Raise the soft limit of file descriptors to the hard limit: each connection is one, and many stay open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: hard may be more than the kernel takes
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _collect_rarely() -> None:
    """Exclude the modules from garbage collection, and collect less often.

    Requests leave almost no garbage, and collecting took a third of a request's processor time (benchmarks/).
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class _Certificate:
    """The server's certificate and key; connections made after a change of the files use the new ones."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._version = self._read_version()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load()

    @classmethod
    def of(cls, settings: GatewaySettings) -> _Certificate | None:
        """Load the certificate of the settings, None for plain HTTP; raise `ConfigurationError` if it is unusable."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        try:
            return cls(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"gateway.tls_cert {settings.tls_cert} and gateway.tls_key {settings.tls_key} cannot be used: {error}"
            ) from error

    def current(self, *_: object) -> ssl.SSLContext:
        """Return the context, as uvicorn's `ssl_context_factory`."""
        return self.context

    async def refresh(self) -> None:
        """Load changed files; unusable ones leave the certificate as it is."""
        try:
            version = self._read_version()
            if version != self._version:
                self._load()
                self._version = version
        except (OSError, ssl.SSLError) as error:
            log.warning("the certificate that was read before stays in use: %s", error)

    def _load(self) -> None:
        """Load both or neither: the context would keep the certificate if the key did not match."""
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
        self.context.load_cert_chain(*self._files)

    def _read_version(self) -> list[tuple[int, int]]:
        return [(found.st_ino, found.st_mtime_ns) for found in (path.stat() for path in self._files)]
