"""`relay sandbox`: a stand-in for the deployment API."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import Annotated

import typer


def sandbox(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; keep to loopback; * is all of both families.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8300,
    token: Annotated[str | None, typer.Option(help="The expected bearer token; without it any token passes.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file with the token.")] = None,
    record: Annotated[Path | None, typer.Option(help="Append each request to this file as a JSON line.")] = None,
    keep: Annotated[
        int, typer.Option(min=1, help="Requests held in memory; the counts are not limited.")
    ] = 1_000_000,
    fault: Annotated[list[str] | None, typer.Option(help="A fault rule in JSON; may be repeated.")] = None,
) -> None:
    """Stand in for the deployment API: validate, record, and be slow or fail on demand.

    Accepts the API's POST on any path, and serves its own endpoints under /_sandbox/.

    \b
    Examples:
      relay sandbox --token secret --record requests.jsonl
      relay sandbox --fault '{"kind": "status", "sequence": [503, 429, 202], "repeat": true}'
      relay sandbox --fault '{"kind": "latency", "seconds": 0.2, "environment": "prod*"}'
      curl http://127.0.0.1:8300/_sandbox/counts
      curl -X PUT http://127.0.0.1:8300/_sandbox/faults -d '[{"kind": "reset", "count": 3}]'
      curl -X DELETE http://127.0.0.1:8300/_sandbox/faults
    """  # noqa: D301 - \b keeps typer from joining the lines
    from relay.sandbox import read_settings, serve  # noqa: PLC0415 - only this command needs the server

    settings = read_settings(
        host=host,
        port=port,
        token=token,
        token_file=token_file,
        record=record,
        keep=keep,
        faults=fault or (),
    )
    serve(settings, announce=_announce)


def _announce(url: str) -> None:
    typer.echo(f"Sandbox API on {url}")  # echo flushes
