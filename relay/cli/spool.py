"""`relay spool`: shows and sends the events that are on disk because Redis was unavailable."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from relay.cli import EX_REFUSED, EX_TEMPFAIL
from relay.cli.options import filled
from relay.errors import ConfigurationError, QueueFull, QueueUnavailable
from relay.producer.queue_producer import Producer
from relay.producer.spool import Spool
from relay.settings import Settings

spool = typer.Typer(
    name="spool",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""Show and send the events that `relay report --spool DIR` keeps on disk while Redis is unavailable.

    \b
    Examples:
      relay spool status --spool /var/spool/relay
      relay spool flush
    """,  # \b keeps typer from joining the lines
)

_Directory = Annotated[
    str | None,
    typer.Option("--spool", parser=filled, metavar="DIR", help="The spool. Default: the setting spool.directory."),
]


@spool.command()
def status(
    *, directory: _Directory = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show how many events wait, since when, and how much room is left. Reads the disk only.

    Exit codes: 0 done, 2 usage, or the directory cannot be used.
    """
    opened = _open(directory)
    found = opened.status()
    age = None if found.oldest is None else max(0.0, time.time() - found.oldest / 1000)
    if as_json:
        document = {
            "directory": str(opened.directory),
            "events": found.events,
            "oldest_seconds": age,
            "bytes": found.bytes,
            "max_bytes": opened.max_bytes,
            "damaged": found.damaged,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    since = "" if age is None else f", the first for {age:.0f} s"
    typer.echo(f"{found.events} events wait in {opened.directory}{since}")
    typer.echo(f"{found.bytes} of {opened.max_bytes} bytes are used")
    if found.damaged:
        typer.echo(f"{found.damaged} damaged lines, in its segments or in {opened.directory / 'damaged'}")


@spool.command()
def flush(*, directory: _Directory = None) -> None:
    """Send the events of the spool, oldest first, and print how many.

    Damaged lines are skipped, and kept in the spool's file `damaged`: inspect it, then remove it.

    Exit codes: 0 the spool is empty, 1 the same, but lines were damaged, 2 usage, or the directory cannot be used,
    69 Redis not reachable, 75 the queue is full or another process is sending (try again).
    """
    opened = _open(directory)
    with Producer(spool=opened.directory) as producer:
        try:
            sent = producer.flush_spool()
        except (QueueFull, QueueUnavailable):
            typer.echo(f"{opened.status().events} events wait in {opened.directory}", err=True)
            raise
    typer.echo(f"{sent.events} events sent")
    if not opened.is_empty():
        typer.echo("another process is sending the rest", err=True)
        sys.exit(EX_TEMPFAIL)
    if sent.damaged:
        typer.echo(f"{sent.damaged} damaged lines are kept in {opened.directory / 'damaged'}", err=True)
        sys.exit(EX_REFUSED)


def _open(given: str | None) -> Spool:
    settings = Settings.load()
    named = given or settings.spool.directory
    if not named:
        raise ConfigurationError(
            "no spool is named: give --spool DIR, or set spool.directory (RELAY_SPOOL__DIRECTORY)"
        )
    directory = Path(named)
    if not directory.is_dir():
        raise ConfigurationError(f"there is no directory {directory}")
    return Spool(directory, max_bytes=settings.spool.max_bytes, patience_seconds=settings.redis.timeout)
