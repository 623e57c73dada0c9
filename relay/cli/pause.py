"""`relay pause`: pauses the deliveries of environments."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from relay.cli.options import Json, name_or_id
from relay.cli.queue_client import open_queue
from relay.queue import pausing
from relay.queue.dead_letters import moment

Environments = Annotated[list[str], typer.Argument(parser=name_or_id, metavar="ENV", help="Names of environments.")]


def pause(environments: Environments, *, as_json: Json = False) -> None:
    """Pause environments' deliveries until they are resumed; their events stay in the queue.

    Requests in flight are finished. An environment that is already paused stays paused.

    Exit codes: 0 done, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay pause production
      relay pause staging-1 staging-2
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_queue() as (client, keys, settings):
        paused = pausing.pause(client, keys, settings.destination, environments)
    for name, (newly, since) in zip(environments, paused, strict=True):
        if as_json:
            typer.echo(json.dumps({"environment": name, "newly": newly, "paused_since": moment(since)}))
            continue
        typer.echo(f"{name} is paused" if newly else f"{name} was already paused, since {moment(since)}")
