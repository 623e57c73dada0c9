"""`/metrics` on a port of its own, for estates that keep it off the gateway's."""

from __future__ import annotations

import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError
from relay.metrics.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from relay.metrics.exporter import Exporter
    from relay.settings import MetricsSettings

#: How long a connection may say nothing.
IDLE_SECONDS = 10.0


class MetricsServer(ThreadingHTTPServer):
    """Listens from the start; `serve_forever` answers. Raises `ConfigurationError` if it cannot listen."""

    daemon_threads = True

    def __init__(self, settings: MetricsSettings, exporter: Exporter) -> None:
        self.exporter = exporter
        host = settings.host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, settings.port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on {settings.host}, port {settings.port} (metrics.host, metrics.port): "
                f"{error.strerror}"
            ) from error

    @property
    def url(self) -> str:
        """Where the metrics are, whichever port it got."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: MetricsServer
    timeout = IDLE_SECONDS
    server_version, sys_version = "relay", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(b"ok\n", "text/plain; charset=utf-8")
        elif path == "/metrics":
            self._answer(self.server.exporter.scrape(), CONTENT_TYPE)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _answer(self, body: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log no requests: a scrape each fifteen seconds is no news."""
