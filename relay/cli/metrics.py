"""`relay metrics`: serves the metrics on a port of its own."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from relay.errors import ConfigurationError
from relay.settings import Settings


def metrics(
    *,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; * is all addresses of both families; default: metrics.host."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 picks a free port; default: metrics.port.")
    ] = None,
) -> None:
    """Serve metrics for Prometheus: exact for the whole cluster, and equal from every process.

    The gateway serves the same at /metrics. Prints its URL when it listens. While Redis is not reachable the answer
    is relay_up 0.

    \b
    Examples:
      relay metrics
      relay metrics --host "*" --port 9780
      curl -s http://127.0.0.1:9780/metrics | grep relay_waiting_events
    """  # noqa: D301 - \b keeps typer from joining the lines
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if find_spec("prometheus_client") is None:
        raise ConfigurationError("metrics need the extra `gateway`: pip install 'deployment-relay[gateway]'")
    given = {"host": host, "port": port}
    settings = Settings.load(metrics={name: value for name, value in given.items() if value is not None})
    from relay.metrics.exporter import Exporter  # noqa: PLC0415 - needs the extra
    from relay.metrics.server import MetricsServer  # noqa: PLC0415 - the same

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.WARNING)
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(Exporter(settings)) as exporter,
        MetricsServer(settings.metrics, exporter) as server,
    ):
        typer.echo(f"Metrics on {server.url}")  # echo flushes
        server.serve_forever()
