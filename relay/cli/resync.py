"""`relay resync`: delivers an environment's current state again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli import EX_REFUSED, EX_TEMPFAIL
from relay.cli.options import Json, can_prompt, duration, name_or_id, positive_duration
from relay.cli.progress import counting_bar
from relay.cli.queue_client import open_queue
from relay.errors import ConfigurationError
from relay.queue import inventory
from relay.queue.forgetting import now_ms
from relay.queue.resync import Progress, rehearse, resync_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.cli.queue_client import QueueConnection

#: Pause before retrying while the queue is full.
FULL_PAUSE_SECONDS = 0.5

#: Default of `--wait`, in seconds.
WAIT_SECONDS = 60.0


def resync(
    environment: Annotated[str, typer.Argument(parser=name_or_id, metavar="ENV", help="An environment, by name.")],
    *,
    seen_within: Annotated[
        float | None,
        typer.Option(
            parser=positive_duration,
            metavar="DURATION",
            help="Only instances reported within DURATION, as duplicates too: 90m, 24h, 30d.",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(parser=duration, metavar="DURATION", help="Maximum wait while the queue is full."),
    ] = WAIT_SECONDS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Deliver an environment's current state again: to another destination, or to one that lost data.

    Each instance whose digest was delivered is delivered once more; waiting events are delivered anyway. Reports that
    arrive meanwhile win, so nothing is undone. A resync that was stopped can be run again: the same state is then
    delivered once more.

    Instances that the watcher of a cluster (`relay watch`) has not seen in two successive listings are left out.

    An instance that no longer runs is known until `relay forget` or delivery.forget_after. If everything that runs is
    reported regularly, as by `relay watch`, --seen-within leaves out what no longer runs. The time of the last report
    is kept to the hour, so an instance may be included for up to an hour longer.

    Exit codes: 0 done, 1 environment not known or not confirmed, 2 usage, 69 Redis not reachable, 75 the queue stayed
    full (try again).

    \b
    Examples:
      relay resync production --dry-run
      relay resync production --yes
      relay resync production --seen-within 24h --yes
      relay resync staging --yes --wait 10m
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_queue() as queue:
        total = inventory.count(queue.client, queue.keys, queue.destination, environment)
        if not total:
            typer.echo(f"relay: nothing is known of {environment}; `relay inventory` shows what is", err=True)
            raise typer.Exit(EX_REFUSED)
        if not dry_run:
            _confirm(environment, total, yes=yes)
        done = _walk(queue, environment, total, wait_seconds=wait, seen_within_seconds=seen_within, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"environment": environment, "dry_run": dry_run, **done._asdict()}))
    else:
        typer.echo(_outcome(done, dry_run=dry_run))
    if done.full:
        typer.echo(
            f"relay: {done.full}; {done.scanned:,} of about {total:,} instances were processed. "
            "Run it again later: they are then delivered once more, and nothing is undone",
            err=True,
        )
        raise typer.Exit(EX_TEMPFAIL)


def _confirm(environment: str, total: int, *, yes: bool) -> None:
    if yes:
        return
    if not can_prompt():
        raise ConfigurationError(f"to deliver all of {environment} again without a terminal, give --yes")
    typer.confirm(f"Deliver the {total:,} instances of {environment} again?", abort=True, err=True)


def _walk(
    queue: QueueConnection, environment: str, total: int, *,
    wait_seconds: float, seen_within_seconds: float | None, dry_run: bool,
) -> Progress:  # fmt: skip
    """Resync or rehearse the environment; the result is `full` if it ended because the queue stayed full."""
    client, keys, settings = queue
    seen_since = None if seen_within_seconds is None else now_ms(client) - round(seen_within_seconds * 1000)
    steps: Iterator[Progress] = (
        rehearse(client, keys, queue.destination, environment, seen_since=seen_since)
        if dry_run
        else resync_all(
            client,
            keys,
            queue.destination,
            environment,
            max_backlog=settings.queue.max_backlog,
            memory_watermark=settings.queue.memory_watermark,
            seen_since=seen_since,
        )
    )
    done = Progress()
    give_up_at = None
    with counting_bar(total) as update:
        for done in steps:
            update(done.scanned, f"{done.added:,} again{' (the queue is full, waiting)' if done.full else ''}")
            if not done.full:
                give_up_at = None
                continue
            now = time.monotonic()
            give_up_at = give_up_at or now + wait_seconds
            if now >= give_up_at:
                break
            time.sleep(min(FULL_PAUSE_SECONDS, give_up_at - now))
    return done


def _outcome(done: Progress, *, dry_run: bool) -> str:
    again = f"{done.added} {'would be ' if dry_run else ''}delivered again"
    undelivered = f"{done.undelivered} waiting for their first delivery" if done.undelivered else ""
    not_seen = f"{done.not_seen} left out, not seen within that time" if done.not_seen else ""
    gone = f"{done.gone} left out, gone from their cluster" if done.gone else ""
    return ", ".join(filter(None, (again, undelivered, not_seen, gone)))
