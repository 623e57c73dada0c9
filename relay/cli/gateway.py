"""`relay gateway`: the HTTP gateway."""

from __future__ import annotations

import contextlib
import signal
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from relay.errors import ConfigurationError
from relay.settings import Settings


def gateway(
    *,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; * listens on all IPv4 and IPv6 addresses; default: gateway.host."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 picks a free port; default: gateway.port.")
    ] = None,
) -> None:
    """Accept deployment events over HTTP, in the deployment API's own request.

    Answers 202 once Redis has the event. Prints its URL when it listens; on SIGTERM it answers the requests under way
    and exits.

    \b
    Examples:
      relay gateway
      RELAY_GATEWAY__TOKEN=secret relay gateway --host "*" --port 8080
      curl http://127.0.0.1:8080/ -H 'Content-Type: application/json' \\
        -d '{"image": {"url": "ghcr.io/acme/api@sha256:…"}, "environment": {"name": "production"}}'
      curl http://127.0.0.1:8080/ -H 'Content-Type: application/x-ndjson' --data-binary @events.jsonl
      curl http://127.0.0.1:8080/readyz
    """  # noqa: D301 - \b keeps typer from joining the lines
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after its shutdown
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise ConfigurationError("the gateway needs the extra `gateway`: pip install 'deployment-relay[gateway]'")
    given = {"host": host, "port": port}
    settings = Settings.load(gateway={name: value for name, value in given.items() if value is not None})
    from relay import logs  # noqa: PLC0415 - needs the extra
    from relay.gateway.server import serve  # noqa: PLC0415 - the same

    logs.configure(settings, role="gateway")
    with contextlib.suppress(KeyboardInterrupt):
        serve(settings, announce=_announce)


def _announce(url: str) -> None:
    typer.echo(f"Gateway on {url}")  # echo flushes
