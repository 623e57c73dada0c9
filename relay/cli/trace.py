"""`relay trace`: the history of one event."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli import EX_REFUSED
from relay.cli.dead_letters import printable
from relay.cli.options import Json, name_or_id
from relay.cli.queue_client import open_queue
from relay.queue.dead_letters import moment
from relay.queue.lookup import MAX_SCANNED, LookupResult, Place, Trace, look_up

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Width of a time.
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
        int, typer.Option(min=1, metavar="N", help="Maximum number of entries to scan of each kind.")
    ] = MAX_SCANNED,
    as_json: Json = False,
) -> None:
    """Show the history of an event: where it waits, when it was delivered, or why it is a dead letter.

    An event that asked for a receipt is found at once, as long as the receipt is kept. Besides, the inbox, the
    outboxes, the dead letters and the ids in each instance's state are scanned. A duplicate or stale event leaves
    only its receipt.

    Exit codes: 0 found, 1 not found, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay trace job-7
      relay trace 1750000000000-0 -e production
      relay trace job-7 --json | jq -r '.timeline[].what'
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_queue() as (client, keys, settings):
        result = look_up(
            client, keys, settings.destination, event_id, environments=environment or None, max_scanned=look_at
        )
    if as_json:
        typer.echo(json.dumps(_as_json(result), indent=2))
    else:
        for at, what in timeline(result):
            when = "" if at is None else moment(at)
            typer.echo(printable(f"{when:<{_TIME_CHARACTERS}}  {what}"))
        typer.echo(_scanned(result), err=True)
    if not result.traces:
        raise typer.Exit(EX_REFUSED)


def timeline(result: LookupResult) -> list[tuple[int | None, str]]:
    """Return the distinct steps in order of time, those without a time first."""
    steps = {step for trace in result.traces for step in _steps(trace)}
    return sorted(steps, key=lambda step: (step[0] is not None, step[0] or 0, step[1]))


def _steps(trace: Trace) -> Iterator[tuple[int | None, str]]:
    what = f"{trace.instance.strip()} in {trace.environment}" if trace.instance else trace.environment
    match trace.place:
        case Place.RECEIPT:
            yield trace.at, f"receipt: {trace.status}{f' ({trace.detail})' if trace.detail else ''}"
        case Place.INBOX:
            yield trace.at, "enqueued; waiting in the inbox"
        case Place.OUTBOX:
            attempts = f"{trace.attempts} attempts so far" if trace.attempts else "not attempted yet"
            yield trace.at, f"accepted for {what}; waiting for delivery, {attempts}"
            if trace.retry_at is not None:
                yield trace.retry_at, "next retry"
        case Place.DEAD:
            why = ": ".join(filter(None, (trace.status, trace.detail)))
            yield trace.at, f"became dead letter {trace.letter}{f' of {what}' if what else ''} ({why})"
        case Place.CURRENT:
            yield trace.at, f"enqueued; the last accepted event of {what}: {trace.digest}"
            if trace.delivered_at is not None:
                yield trace.delivered_at, "delivered"
        case Place.EARLIER:
            yield None, f"accepted for {what}; other events of it were accepted later"


def _scanned(result: LookupResult) -> str:
    parts = ", ".join(f"{name} {each.scanned:,} of {each.total:,}" for name, each in result.scanned.items())
    nothing = "" if result.traces else f"nothing is known of {printable(result.event_id)}; "
    more = "" if result.is_complete else "; --look-at N scans more, --environment narrows the search"
    return f"{nothing}scanned: {parts}{more}"


def _as_json(result: LookupResult) -> dict[str, object]:
    return {
        "id": result.event_id,
        "found": bool(result.traces),
        "timeline": [{"at": None if at is None else moment(at), "what": what} for at, what in timeline(result)],
        "traces": [
            {name: value for name, value in asdict(each).items() if value not in {"", None}} for each in result.traces
        ],
        "scanned": {name: each._asdict() for name, each in result.scanned.items()},
    }
