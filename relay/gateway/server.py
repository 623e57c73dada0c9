"""How the gateway listens, over TLS if it has a certificate, and how it ends."""

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
from relay.gateway.http_limits import BoundedHeads
from relay.hosts import url_of
from relay.http.counted import CountedLog
from relay.logs import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from relay.settings import GatewaySettings, Settings

#: How long requests under way have to end after SIGTERM; below the 10 s that `relay up` and Docker grant.
STOP_SECONDS = 8

#: Connections that the kernel holds until they are accepted.
BACKLOG = 2048

#: How often the certificate's file is looked at.
CERTIFICATE_SECONDS = 10

#: Objects between two collections of the youngest generation, and how many of these make one of the next.
GC_THRESHOLDS = (20_000, 10, 10)

log = logging.getLogger("relay.gateway")


def create_server(settings: Settings) -> uvicorn.Server:
    """Make the server, which logs no requests: their paths may hold what their senders should not have put there."""
    certificate = _Certificate.of(settings.gateway)
    console = Console(settings)
    unreadable = CountedLog(get_logger("relay.gateway"), "unreadable requests")
    return _Server(
        console,
        unreadable,
        uvicorn.Config(
            create_app(settings, console),
            http=partial(BoundedHeads, unreadable=unreadable),  # type: ignore[arg-type]
            lifespan="on",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_context_factory=certificate.give if certificate else None,
            callback_notify=certificate.refresh if certificate else None,
            timeout_notify=CERTIFICATE_SECONDS,
        ),
    )


class _Server(uvicorn.Server):
    """Ends the console's streams before it waits for all connections to end, and then writes the last counts."""

    def __init__(self, console: Console, unreadable: CountedLog, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._console = console
        self._unreadable = unreadable

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._console.stop()
        await super().shutdown(sockets)
        self._unreadable.close()


def listen(settings: GatewaySettings) -> socket.socket:
    """Listen, or raise `ConfigurationError`: from here on the kernel takes connections."""
    try:
        return hosts.listen(settings.host, settings.port, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"the gateway cannot listen on {settings.host}, port {settings.port} (gateway.host, gateway.port): "
            f"{error.strerror}"
        ) from error


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, which is raised again once the requests under way have had their answers."""
    _allow_many_connections()
    server = create_server(settings)
    _collect_rarely()
    with listen(settings.gateway) as listening:
        announce(url_of(listening, scheme="https" if settings.gateway.tls_cert else "http"))
        server.run(sockets=[listening])


def _allow_many_connections() -> None:
    """Have as many descriptors as this process may have: a connection is one, and many clients keep theirs open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: hard may be more than the kernel takes
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _collect_rarely() -> None:
    """Spare the modules from being searched for garbage, and the requests under way from its being done often.

    Requests leave next to none, and searching took a third of the processor time of one (benchmarks/).
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class _Certificate:
    """The server's certificate and key; connections made after the files have changed get the new ones."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._seen = self._mark()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load()

    @classmethod
    def of(cls, settings: GatewaySettings) -> _Certificate | None:
        """Return what the settings name, None for plain HTTP; `ConfigurationError` if it cannot be used."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        try:
            return cls(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"gateway.tls_cert {settings.tls_cert} and gateway.tls_key {settings.tls_key} cannot be used: {error}"
            ) from error

    def give(self, *_: object) -> ssl.SSLContext:
        """Return the context that the server is to use, whatever it knows of certificates."""
        return self.context

    async def refresh(self) -> None:
        """Load the files again if they have changed; what cannot be used leaves what was loaded before."""
        try:
            seen = self._mark()
            if seen != self._seen:
                self._load()
                self._seen = seen
        except (OSError, ssl.SSLError) as error:
            log.warning("the certificate stays the one that was read before: %s", error)

    def _load(self) -> None:
        """Load both, or neither: the context takes a certificate before it finds that the key is another's."""
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
        self.context.load_cert_chain(*self._files)

    def _mark(self) -> list[tuple[int, int]]:
        return [(found.st_ino, found.st_mtime_ns) for found in (path.stat() for path in self._files)]
