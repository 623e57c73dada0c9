"""`relay up`: all parts of the relay on this machine, until stopped."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.errors import ChildFailed, ConfigurationError
from relay.redaction import redact_url
from relay.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

    from relay.processes.stack import Stack
    from relay.processes.supervisor import Ended

#: Time between two checks for a signal while waiting for the end of a child, in seconds.
LOOK_SECONDS = 0.5


def up(
    *,
    data: Annotated[Path, typer.Option(help="Directory of the private Redis's data and of the logs.")] = Path(
        "relay-data"
    ),
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The gateway's port on 127.0.0.1; default: gateway.port.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Number of the worker's processes.")] = None,
    flower: Annotated[bool, typer.Option("--flower", help="Run Flower too, on 127.0.0.1, with a password.")] = False,
    flower_port: Annotated[int, typer.Option(min=0, max=65535, help="Flower's port; 0 picks a free one.")] = 5555,
) -> None:
    """Run all parts of the relay on this machine: Redis, a worker, the gateway, and a destination.

    Redis is a private one with its data in --data, unless RELAY_REDIS_URL (or redis.url in RELAY_CONFIG's file) is
    set. The destination is a sandbox that checks and records events, unless RELAY_API_URL is set; with a Redis of
    your own it must be set. Ctrl-C and SIGTERM stop all of it. Accepted events stay in --data and are delivered after
    the next start.

    Flower's password is that of FLOWER_BASIC_AUTH (user:password), or a new one that is printed.

    \b
    Examples:
      relay up
      relay up --flower
      RELAY_API_URL=https://… RELAY_API_TOKEN_FILE=token relay up --data /var/lib/relay
    """  # noqa: D301 - \b keeps typer from joining the lines
    from relay.processes.stack import Stack  # noqa: PLC0415 - starts processes; only this command needs it

    settings = Settings.load()
    if _is_set(settings, "redis") and not settings.api.url:
        raise ConfigurationError(
            "redis.url (RELAY_REDIS_URL) is set and api.url (RELAY_API_URL) is not: events there would go to a "
            "sandbox, and count as delivered. Set RELAY_API_URL too, or unset RELAY_REDIS_URL"
        )
    if settings.broker.url and not _is_set(settings, "redis"):
        raise ConfigurationError(
            "broker.url (RELAY_BROKER_URL) is set and redis.url (RELAY_REDIS_URL) is not: reports to that broker "
            "would go to a private Redis. Set RELAY_REDIS_URL too, or unset RELAY_BROKER_URL"
        )
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
            if flower:
                start_flower(stack, flower_port)
            _announce(stack)
            ended = wait_for_end(stack)
            raise ChildFailed(f"{ended}; its output is in {stack.log_path(ended.name)}")
    except KeyboardInterrupt:
        typer.echo("stopped")


def _is_set(settings: Settings, section: str) -> bool:
    """Return whether a section's URL was set, and is not the default."""
    part: BaseModel = getattr(settings, section)
    return section in settings.model_fields_set and "url" in part.model_fields_set


def start_flower(stack: Stack, port: int) -> None:
    """Start Flower, and print its URL, and its password if it is a new one."""
    configured = os.environ.get("FLOWER_BASIC_AUTH")
    basic_auth = configured or f"relay:{secrets.token_urlsafe(12)}"
    stack.start_flower(port, basic_auth=basic_auth)
    user, _, password = basic_auth.partition(":")
    login = "with FLOWER_BASIC_AUTH" if configured else f"as {user} with the password {password}"
    typer.echo(f"Flower    {stack.flower_url} {login}")


def _announce(stack: Stack) -> None:
    typer.echo(f"Redis     {redact_url(stack.redis_url)}")
    typer.echo(f"API       {stack.api_url}")
    typer.echo(f"Gateway   {stack.gateway_url}")
    typer.echo(f"Logs      {stack.directory}")
    typer.echo("")
    typer.echo("In another terminal:")
    typer.echo(f"  export RELAY_REDIS_URL={redact_url(stack.redis_url)}")
    typer.echo(f"  relay report nginx@sha256:{'0' * 64}")
    typer.echo("  relay status")
    typer.echo("Ctrl-C stops everything.")


def wait_for_end(stack: Stack) -> Ended:
    """Wait for the end of a process that the others need; that of Flower is only printed."""
    while True:
        ended = stack.wait_any(LOOK_SECONDS)
        if ended is not None and ended.name == "flower":
            typer.echo(f"{ended}, and the rest goes on; its output is in {stack.log_path('flower')}", err=True)
        elif ended is not None:
            return ended


def interrupt_on_sigterm() -> None:
    """Have SIGTERM act like Ctrl-C, so that children are stopped one by one."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
