"""`relay up`: everything on this machine, until told to stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.connection import without_password
from relay.errors import ChildFailed
from relay.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

    from relay.processes import Ended
    from relay.stack import Stack

#: How often to look for a signal while waiting for a child to end.
LOOK_SECONDS = 0.5


def up(
    *,
    data: Annotated[Path, typer.Option(help="Directory of the private Redis's data, and of the logs.")] = Path(
        "relay-data"
    ),
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The gateway's port on 127.0.0.1; default: gateway.port.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="The worker's processes.")] = None,
) -> None:
    """Run everything on this machine: Redis, a worker, the gateway, and an API to deliver to.

    Redis is a private one with its data in --data, unless RELAY_REDIS_URL (or redis.url in RELAY_CONFIG's file) is
    set. The API is a sandbox that checks and records what it gets, unless RELAY_API_URL is set. Ctrl-C stops all of
    it, and so does SIGTERM; what was accepted stays in --data and goes on at the next start.

    \b
    Examples:
      relay up
      RELAY_API_URL=https://… RELAY_API_TOKEN_FILE=token relay up --data /var/lib/relay
    """  # noqa: D301 - \b keeps typer from joining the lines
    from relay.stack import Stack  # noqa: PLC0415 - starts processes; only this command needs it

    settings = Settings.load()
    stack = Stack(
        data,
        redis_url=settings.redis.url if _is_set(settings, "redis") else None,
        api_url=settings.require_api().url if settings.api.url else None,
    )
    interrupt_on_sigterm()
    try:
        with stack:
            stack.start_worker("worker", concurrency=concurrency)
            stack.start_gateway(settings.gateway.port if port is None else port)
            _announce(stack)
            ended = _wait(stack)
            raise ChildFailed(f"{ended}; its output is in {stack.log_path(ended.name)}")
    except KeyboardInterrupt:
        typer.echo("stopped")


def _is_set(settings: Settings, section: str) -> bool:
    """Tell whether a section's URL was given, not defaulted."""
    part: BaseModel = getattr(settings, section)
    return section in settings.model_fields_set and "url" in part.model_fields_set


def _announce(stack: Stack) -> None:
    typer.echo(f"Redis     {without_password(stack.redis_url)}")
    typer.echo(f"API       {stack.api_url}")
    typer.echo(f"Gateway   {stack.gateway_url}")
    typer.echo(f"Logs      {stack.directory}")
    typer.echo("")
    typer.echo("In another terminal:")
    typer.echo(f"  export RELAY_REDIS_URL={without_password(stack.redis_url)}")
    typer.echo(f"  relay report nginx@sha256:{'0' * 64}")
    typer.echo("  relay status")
    typer.echo("Ctrl-C stops everything.")


def _wait(stack: Stack) -> Ended:
    while (ended := stack.wait_any(LOOK_SECONDS)) is None:
        pass
    return ended


def interrupt_on_sigterm() -> None:
    """Make SIGTERM do what Ctrl-C does, so that children are stopped tidily."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
