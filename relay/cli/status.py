"""`relay status`: findings, destination, workers, environments and counters."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_json

from relay.cli.dead_letters import printable
from relay.cli.options import Json  # noqa: TC001 - typer reads it
from relay.cli.queue_client import open_queue
from relay.errors import ConfigurationError
from relay.operations.diagnosis import diagnose
from relay.operations.finding import Severity
from relay.operations.status import describe, duration
from relay.queue.dead_letters import moment
from relay.queue.status import Status, read_status
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.cli.queue_client import QueueConnection
    from relay.queue.counters import EnvironmentCounts

#: Environments that are shown without --all.
SHOWN = 20

#: Environments whose oldest event's age is read without --all (`counters.read_environments`).
OLDEST_OF = 1000

#: Default interval of `--watch`.
INTERVAL_SECONDS = 2.0

_NUMBERS = ("waiting", "retrying", "delivered", "duplicate", "stale", "superseded", "dead")
_COLUMNS = ("environment", "waiting", "oldest", *_NUMBERS[1:], "state")

#: Columns that are left out if they are empty or 0 in every row.
_OPTIONAL = frozenset({"superseded", "state"})

#: rich's styles by severity.
_STYLES: dict[Severity | None, str] = {
    Severity.FAULT: "bold red",
    Severity.WARNING: "yellow",
    Severity.NOTE: "dim",
}


def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help=f"Refresh every {INTERVAL_SECONDS:g} s; Ctrl-C ends it.")
    ] = False,
    interval: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Another interval for --watch.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", "-a", help=f"Show all environments, not {SHOWN}.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is wrong, what waits where, and the counters. Changes nothing.

    If something is wrong, the first line names the most likely cause and what to do. Paused environments come first,
    then those with the most waiting events. --json prints one object with everything.

    Exit codes: 0 done, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay status
      relay status --watch
      relay status --watch --interval 0.5
      relay status --json | jq -r '.findings[].what'
      relay status --json | jq .counters.waiting
    """  # noqa: D301 - \b keeps typer from joining the lines
    if interval is not None and not watch:
        raise typer.BadParameter("only with --watch", param_hint="--interval")
    if watch and (as_json or not sys.stdout.isatty()):
        raise ConfigurationError("--watch needs a terminal to draw on; leave it out where the output is piped")
    with open_queue() as queue:
        if watch:
            _watch(queue, INTERVAL_SECONDS if interval is None else interval, show_all=show_all)
        elif as_json:
            typer.echo(to_json(as_json_object(_read(queue, show_all=True)), indent=2))
        else:
            _show(_read(queue, show_all=show_all), show_all=show_all)


def _read(queue: QueueConnection, *, show_all: bool) -> Status:
    oldest_of = None if show_all else OLDEST_OF
    return read_status(queue.client, queue.keys, queue.destination, queue.settings.queue, oldest_of=oldest_of)


def as_json_object(status: Status) -> dict[str, Any]:
    """Return the whole status as a JSON object."""
    counters, health, server = status.counters, status.health, status.server
    return {
        "at": moment(status.now),
        "findings": [asdict(finding) for finding in diagnose(status)],
        "counters": {
            **{name: value for name, value in asdict(counters).items() if name != "latency"},
            "unaccounted": counters.unaccounted,
            "dead_unaccounted": counters.dead_unaccounted,
        },
        "destination": {
            "name": status.destination,
            "health": health.state(status.now),
            "retry_in_seconds": max(0, health.until - status.now) / 1000,
            "throttled_for_seconds": max(0, health.throttled_until - status.now) / 1000,
            "is_probe_in_flight": health.probe_until > status.now,
            "circuit_openings": health.openings,
            "failures_in_a_row": health.failures,
            "concurrency_limit": health.window or None,
            "summary": describe(health, status.now),
        },
        "inbox": {"waiting": status.inbox, "oldest_seconds": _age(status, status.inbox_oldest)},
        "workers": [{"name": name, "last_seen_at": moment(at)} for name, at in sorted(status.workers.items())],
        "redis": {
            "version": server.version,
            "memory_bytes": server.memory_used,
            "maxmemory_bytes": server.maxmemory or None,
            "memory_used_ratio": None if server.memory_used_ratio is None else round(server.memory_used_ratio, 4),
        },
        "environments": [
            {
                **{name: value for name, value in each._asdict().items() if name not in {"oldest", "paused_since"}},
                "oldest_seconds": _age(status, each.oldest),
                "paused_since": None if each.paused_since is None else moment(each.paused_since),
            }
            for each in status.environments
        ],
    }


def _age(status: Status, since: int | None) -> float | None:
    return None if since is None else max(0, status.now - since) / 1000


def _watch(queue: QueueConnection, seconds: float, *, show_all: bool) -> None:
    """Draw the status repeatedly until Ctrl-C, which is the normal end: exit code 0."""
    from rich.live import Live  # noqa: PLC0415 - rich is for drawing only
    from rich.text import Text  # noqa: PLC0415 - the same

    def drawn() -> Text:
        lines = _lines(_read(queue, show_all=show_all), show_all=show_all)
        return Text("\n").join(Text(text, style=_STYLES.get(severity, "")) for severity, text in lines)

    try:
        with Live(drawn(), auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(drawn(), refresh=True)
    except KeyboardInterrupt:
        return


def _show(status: Status, *, show_all: bool) -> None:
    colours: dict[Severity | None, str] = {Severity.FAULT: "red", Severity.WARNING: "yellow"}
    for severity, lines in groupby(_lines(status, show_all=show_all), key=itemgetter(0)):
        text = "\n".join(text for _, text in lines)
        is_fault, is_note = severity is Severity.FAULT, severity is Severity.NOTE
        typer.secho(text, fg=colours.get(severity), bold=is_fault, dim=is_note)


def _lines(status: Status, *, show_all: bool) -> Iterator[tuple[Severity | None, str]]:
    """Yield all lines with their severity: findings, destination, workers, environments, counters."""
    for finding in diagnose(status):
        yield finding.severity, printable(str(finding))
    yield None, f"destination {status.destination}: {describe(status.health, status.now)}"
    yield None, _machinery(status)
    shown = sorted(status.environments, key=_order)[: None if show_all else SHOWN]
    for line in _table([_row(status, each) for each in shown]):
        yield None, line
    hidden = len(status.environments) - len(shown)
    if hidden:
        yield Severity.NOTE, f"{hidden:,} more environments: --all shows them"
    for line in _totals(status):
        yield None, line


def _machinery(status: Status) -> str:
    names = sorted(status.workers)
    workers = f"{len(names)} alive ({some_of(names)})" if names else "none alive"
    server = status.server
    memory = "unknown" if server.memory_used is None else f"{server.memory_used / 1_048_576:,.0f} MiB"
    if server.memory_used_ratio is not None:
        memory += f", {server.memory_used_ratio:.0%} of its maxmemory"
    age = _age(status, status.inbox_oldest)
    inbox = f"{status.inbox:,} waiting" + ("" if age is None else f", the oldest for {duration(age * 1000)}")
    return printable(f"workers: {workers}; inbox: {inbox}; Redis: {memory}")


def _table(rows: list[dict[str, str]]) -> Iterator[str]:
    """Yield aligned lines, without the optional columns that are empty."""
    if not rows:
        return
    columns = [name for name in _COLUMNS if name not in _OPTIONAL or any(row[name] not in {"", "0"} for row in rows)]
    header = {name: name for name in columns}
    widths = {name: max(len(row[name]) for row in (header, *rows)) for name in columns}
    for row in (header, *rows):
        cells = (
            row[name].ljust(widths[name]) if name == columns[0] else row[name].rjust(widths[name]) for name in columns
        )
        yield "  ".join(cells).rstrip()


def _order(each: EnvironmentCounts) -> tuple[bool, int, int, str]:
    return each.paused_since is None, -each.waiting, -each.dead, each.environment


def _row(status: Status, each: EnvironmentCounts) -> dict[str, str]:
    age = _age(status, each.oldest)
    return {
        "environment": printable(each.environment),
        **{name: f"{getattr(each, name):,}" for name in _NUMBERS},
        "oldest": "" if age is None else duration(age * 1000),
        "state": "" if each.paused_since is None else "paused",
    }


def _totals(status: Status) -> Iterator[str]:
    counters = asdict(status.counters) | {"unaccounted": status.counters.unaccounted}
    names = ["added", "waiting", "delivered", "duplicate", "stale", "superseded", "dead", "redriven", "unaccounted"]
    yield ", ".join(f"{name} {counters[name]:,}" for name in names)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counters["dead_by_reason"].items()))
    if reasons:
        yield f"dead letters by reason: {reasons}"
        outcomes = {"waiting": "dead_waiting", "redriven": "redriven", "dropped": "dropped"}
        yield ", ".join(f"{counters[key]:,} {name}" for name, key in outcomes.items())
