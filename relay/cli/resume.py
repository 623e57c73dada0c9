"""`relay resume`: release what `relay pause` held."""

from __future__ import annotations

import json

import typer

from relay.cli.options import Json  # noqa: TC001 - typer reads it
from relay.cli.pause import Environments  # noqa: TC001 - typer reads it
from relay.cli.shard import open_shard
from relay.keys import DEFAULT_ENDPOINT
from relay.store import pausing
from relay.store.dead import moment


def resume(environments: Environments, *, as_json: Json = False) -> None:
    """Release paused environments' deliveries; what queued meanwhile is delivered in order.

    An environment that is not paused is left as it is.

    Exit codes: 0 done, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay resume production
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_shard() as (client, keys, _):
        held = pausing.resume(client, keys, DEFAULT_ENDPOINT, environments)
    for name, since in zip(environments, held, strict=True):
        if as_json:
            typer.echo(json.dumps({"environment": name, "paused_since": None if since is None else moment(since)}))
            continue
        typer.echo(
            f"{name} was not paused" if since is None else f"{name} is resumed; it was paused at {moment(since)}"
        )
