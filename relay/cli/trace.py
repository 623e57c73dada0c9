"""`relay trace`: what became of an event."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli import EX_REFUSED
from relay.cli.dead_letters import printable
from relay.cli.options import Json, name_or_id
from relay.cli.queue_client import open_shard
from relay.queue import lookup
from relay.queue.dead_letters import moment
from relay.queue.lookup import LOOK_AT, Place, Sighting, Trace
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Columns that a time takes.
_TIME_CHARACTERS = len("2025-01-31T12:00:00.000+00:00")


def trace(
    event_id: Annotated[
        str,
        typer.Argument(
            parser=name_or_id, metavar="ID", help="The producer's id, or the one that `relay report` printed."
        ),
    ],
    *,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            "--environment", "-e", parser=name_or_id, metavar="ENV", help="Search only this one; may be repeated."
        ),
    ] = None,
    look_at: Annotated[
        int, typer.Option(min=1, metavar="N", help="Look at so many entries of each kind at most.")
    ] = LOOK_AT,
    as_json: Json = False,
) -> None:
    """Tell what became of an event: where it waits, or when it was delivered, or why it died.

    An id that came with a receipt is known at once, for as long as the receipt is kept. Else the inbox, the outboxes,
    the dead letters and the ids that each instance remembers are searched. A duplicate or a stale event leaves no
    trace but its receipt.

    Exit codes: 0 found, 1 not found, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay trace job-7
      relay trace 1750000000000-0 -e production
      relay trace job-7 --json | jq -r '.timeline[].what'
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_shard() as shard:
        found = lookup.trace(
            shard.client, shard.keys, DEFAULT_DESTINATION, event_id, environments=environment or None, look_at=look_at
        )
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        for at, what in timeline(found):
            when = "" if at is None else moment(at)
            typer.echo(printable(f"{when:<{_TIME_CHARACTERS}}  {what}"))
        typer.echo(_looked(found), err=True)
    if not found.sightings:
        raise typer.Exit(EX_REFUSED)


def timeline(found: Trace) -> list[tuple[int | None, str]]:
    """Return what is known, the oldest first, what has no time before it; the same thing once."""
    steps = {step for sighting in found.sightings for step in _steps(sighting)}
    return sorted(steps, key=lambda step: (step[0] is not None, step[0] or 0, step[1]))


def _steps(seen: Sighting) -> Iterator[tuple[int | None, str]]:
    what = f"{seen.instance.strip()} in {seen.environment}" if seen.instance else seen.environment
    match seen.place:
        case Place.RECEIPT:
            yield seen.at, f"{seen.status}{f' ({seen.detail})' if seen.detail else ''}, says its receipt"
        case Place.INBOX:
            yield seen.at, "came to the inbox, and waits there to be taken in"
        case Place.OUTBOX:
            tried = f", tried {seen.attempts} times" if seen.attempts else ", not tried yet"
            yield seen.at, f"was accepted for {what}, and is on its way{tried}"
            if seen.due is not None:
                yield seen.due, "is tried again"
        case Place.DEAD:
            why = ": ".join(filter(None, (seen.status, seen.detail)))
            yield seen.at, f"became dead letter {seen.letter}{f' of {what}' if what else ''} ({why})"
        case Place.CURRENT:
            yield seen.at, f"came, and is what was last accepted for {what}: {seen.digest}"
            if seen.delivered is not None:
                yield seen.delivered, "was delivered"
        case Place.EARLIER:
            yield None, f"was accepted for {what} before others that were accepted since"


def _looked(found: Trace) -> str:
    parts = ", ".join(f"{name} {looked.at:,} of {looked.of:,}" for name, looked in found.looked.items())
    fate = "" if found.sightings else f"nothing is known of {printable(found.event_id)}; "
    more = "" if found.is_complete else "; --look-at goes farther, --environment narrows it down"
    return f"{fate}looked at: {parts}{more}"


def _as_json(found: Trace) -> dict[str, object]:
    return {
        "id": found.event_id,
        "found": bool(found.sightings),
        "timeline": [{"at": None if at is None else moment(at), "what": what} for at, what in timeline(found)],
        "sightings": [
            {name: value for name, value in asdict(each).items() if value not in {"", None}}
            for each in found.sightings
        ],
        "looked_at": {name: looked._asdict() for name, looked in found.looked.items()},
    }
