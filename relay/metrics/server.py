"""`/metrics` on a port of its own, for installations that keep it off the gateway's port.

prometheus_client's own server would lose: time-outs (a client that sends nothing keeps its thread for ever), `*` for
both address families, the check of the Host header against DNS rebinding, `/healthz`, and 404 for other paths.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from relay import hosts
from relay.errors import ConfigurationError
from relay.metrics.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from relay.metrics.exporter import Exporter
    from relay.settings import MetricsSettings

#: Time-out of a silent connection.
IDLE_SECONDS = 10.0

#: Maximum duration of a connection: request, scrape and answer.
CONNECTION_SECONDS = 60.0

#: Connections that may wait to be accepted.
BACKLOG = 128

log = logging.getLogger("relay.metrics")


class MetricsServer(ThreadingHTTPServer):
    """Listens when created; `serve_forever` answers. Raises `ConfigurationError` if it cannot listen."""

    daemon_threads = True

    def __init__(self, settings: MetricsSettings, exporter: Exporter) -> None:
        self.exporter = exporter
        #: On loopback a web page could reach the server through a browser here, with a name that resolves to
        #: loopback.
        self.is_local = hosts.is_loopback(settings.host)
        try:
            listening = hosts.listen(settings.host, settings.port, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on {settings.host}, port {settings.port} (metrics.host, metrics.port): "
                f"{error.strerror}"
            ) from error
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self._connections: dict[int, tuple[socket.socket, float]] = {}

    @property
    def url(self) -> str:
        """URL of the metrics, with the actual port."""
        return f"{hosts.url_of(self.socket)}/metrics"

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Answer in a thread of its own, with a deadline for the connection."""
        self._connections[id(request)] = request, time.monotonic() + CONNECTION_SECONDS
        super().process_request(request, client_address)

    def close_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Close an answered connection."""
        self._connections.pop(id(request), None)
        super().close_request(request)

    def service_actions(self) -> None:
        """Shut down connections past their deadline; called twice a second."""
        now = time.monotonic()
        for request, ends_at in list(self._connections.values()):
            if now >= ends_at:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's
        """Log a defect in one line; ignore clients that disconnect early."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("a scrape failed: %s", type(error).__qualname__)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: MetricsServer
    timeout = IDLE_SECONDS
    server_version, sys_version = "relay", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        host = urlsplit(f"//{self.headers.get('Host', 'localhost')}").hostname or ""
        if self.server.is_local and path != "/healthz" and not hosts.is_loopback(host):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "the Host header names another machine")
        elif path == "/healthz":
            self._answer(b"ok\n", "text/plain; charset=utf-8")
        elif path == "/metrics":
            self._answer(self.server.exporter.scrape(), CONTENT_TYPE)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "the paths are /metrics and /healthz")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _answer(self, body: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log no requests: there is a scrape every few seconds."""
