"""`relay resume`: ends the pause of environments, or the throttle of a destination."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli.options import Json, name_or_id
from relay.cli.queue_client import open_queue
from relay.queue import health, pausing
from relay.queue.dead_letters import moment
from relay.queue.health import HealthState
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from relay.cli.queue_client import QueueConnection

Environments = Annotated[
    list[str] | None, typer.Argument(parser=name_or_id, metavar="ENV", help="Names of environments.")
]
Destination = Annotated[
    str | None,
    typer.Option(
        parser=name_or_id,
        metavar="NAME",
        help="End this destination's throttle (a long Retry-After), and probe it at once if its circuit is open. "
        f"The only one today is `{DEFAULT_DESTINATION}`.",
    ),
]


def resume(environments: Environments = None, *, destination: Destination = None, as_json: Json = False) -> None:
    """Resume the deliveries of paused environments, or of a throttled destination.

    Waiting events are delivered in order. An environment that is not paused, or a destination that is healthy, is not
    changed. A destination that still limits the rate is throttled again by its first answer.

    Exit codes: 0 done, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay resume production
      relay resume --destination default
    """  # noqa: D301 - \b keeps typer from joining the lines
    if not environments and destination is None:
        raise typer.BadParameter("name an environment, or a destination with --destination", param_hint="ENV")
    if destination not in {None, DEFAULT_DESTINATION}:
        raise typer.BadParameter(f"there is only the destination {DEFAULT_DESTINATION!r}", param_hint="--destination")
    with open_queue() as queue:
        if destination is not None:
            _lift(queue, destination, as_json=as_json)
        if environments:
            _resume(queue, environments, as_json=as_json)


def _resume(queue: QueueConnection, environments: list[str], *, as_json: bool) -> None:
    paused = pausing.resume(queue.client, queue.keys, queue.destination, environments)
    for name, since in zip(environments, paused, strict=True):
        if as_json:
            typer.echo(json.dumps({"environment": name, "paused_since": None if since is None else moment(since)}))
            continue
        typer.echo(
            f"{name} was not paused" if since is None else f"{name} is resumed; it was paused at {moment(since)}"
        )


def _lift(queue: QueueConnection, name: str, *, as_json: bool) -> None:
    lifted = health.lift(Shard(client=queue.client, keys=queue.keys), name)
    until = None if lifted is None else moment(max(lifted.until, lifted.throttled_until))
    if as_json:
        state = HealthState.HEALTHY if lifted is None else lifted.reason
        typer.echo(json.dumps({"destination": name, "health": state, "until": until}))
        return
    typer.echo(
        f"{name} was healthy" if lifted is None else f"{name} is resumed; it was {lifted.reason} until {until}"
    )
