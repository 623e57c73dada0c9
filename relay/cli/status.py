"""`relay status`: what is wrong, what waits where, what became of the rest; how API, workers and Redis are."""

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
from relay.cli.queue_client import open_shard
from relay.errors import ConfigurationError
from relay.operations.diagnosis import Level, describe, diagnose, duration
from relay.queue import overview
from relay.queue.dead_letters import moment
from relay.queue.health import HealthState
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.cli.queue_client import Shard
    from relay.queue.counters import EnvironmentCounts
    from relay.queue.overview import Overview

#: Environments that are shown unless all are asked for.
SHOWN = 20

#: Environments whose oldest event's age is looked up unless all are asked for (`counts.read_environments`).
OLDEST_OF = 1000

#: How far apart `--watch` looks unless told.
PACE_SECONDS = 2.0

_NUMBERS = ("waiting", "retrying", "delivered", "duplicate", "stale", "superseded", "dead")
_COLUMNS = ("environment", "waiting", "oldest", *_NUMBERS[1:], "held")

#: Columns that are left out where no environment has anything in them.
_RARE = frozenset({"superseded", "held"})

#: How rich draws a line, by how bad it is.
_STYLES: dict[Level | None, str] = {Level.BAD: "bold red", Level.WARN: "yellow", Level.NOTE: "dim"}


def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help=f"Look again, every {PACE_SECONDS:g} s; Ctrl-C ends it.")
    ] = False,
    interval: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Another pace for --watch.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", "-a", help=f"Show all environments, not {SHOWN}.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is wrong, what waits where, and what became of the rest. Changes nothing.

    The first line names the likeliest cause if something is wrong, and what to do. Of the environments come first
    those that are paused, then those with the most waiting. With --json all of it is one object.

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
    with open_shard() as shard:
        if watch:
            _watch(shard, PACE_SECONDS if interval is None else interval, show_all=show_all)
        elif as_json:
            typer.echo(to_json(as_json_object(_look(shard, whole=True)), indent=2))
        else:
            _show(_look(shard, whole=show_all), show_all=show_all)


def _look(shard: Shard, *, whole: bool) -> Overview:
    """Look; `whole` for the age of each environment's oldest event."""
    oldest_of = None if whole else OLDEST_OF
    return overview.read(shard.client, shard.keys, DEFAULT_DESTINATION, shard.settings.queue, oldest_of=oldest_of)


def as_json_object(seen: Overview) -> dict[str, Any]:
    """Give all that was seen."""
    counters, health = seen.counters, seen.health
    state = health.state(seen.now)
    held = None if state is HealthState.HEALTHY else state
    return {
        "at": moment(seen.now),
        "findings": [asdict(finding) for finding in diagnose(seen)],
        "counters": {
            **{k: v for k, v in asdict(counters).items() if k != "latency"},
            "unaccounted": counters.unaccounted,
            "dead_unaccounted": counters.dead_unaccounted,
        },
        "held": held,
        "destination": {
            "held": held,
            "held_for_seconds": max(0, health.until - seen.now) / 1000,
            "throttled_for_seconds": max(0, health.throttled_until - seen.now) / 1000,
            "probe_under_way": health.probe_until > seen.now,
            "openings": health.openings,
            "failures_in_a_row": health.failures,
            "window": health.window or None,
            "words": describe(health, seen.now),
        },
        "inbox": {"waiting": seen.inbox, "oldest_seconds": _age(seen, seen.inbox_oldest)},
        "workers": [{"name": name, "seen": moment(at)} for name, at in sorted(seen.workers.items())],
        "redis": {
            "memory_bytes": seen.memory.used,
            "maxmemory_bytes": seen.memory.most or None,
            "used": round(seen.memory.part, 4) if seen.memory.most else None,
        },
        "environments": [
            {
                **{k: v for k, v in each._asdict().items() if k not in {"oldest", "paused_since"}},
                "oldest_seconds": _age(seen, each.oldest),
                "held": None if each.paused_since is None else "paused",
                "paused_since": None if each.paused_since is None else moment(each.paused_since),
            }
            for each in seen.environments
        ],
    }


def _age(seen: Overview, since: int | None) -> float | None:
    return None if since is None else max(0, seen.now - since) / 1000


def _watch(shard: Shard, seconds: float, *, show_all: bool) -> None:
    """Draw it again and again until Ctrl-C, which is how one ends it: with 0."""
    from rich.live import Live  # noqa: PLC0415 - rich is for drawing only
    from rich.text import Text  # noqa: PLC0415 - the same

    def drawn() -> Text:
        lines = _lines(_look(shard, whole=show_all), show_all=show_all)
        return Text("\n").join(Text(text, style=_STYLES.get(level, "")) for level, text in lines)

    try:
        with Live(drawn(), auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(drawn(), refresh=True)
    except KeyboardInterrupt:
        return


def _show(seen: Overview, *, show_all: bool) -> None:
    colours: dict[Level | None, str] = {Level.BAD: "red", Level.WARN: "yellow"}
    for level, lines in groupby(_lines(seen, show_all=show_all), key=itemgetter(0)):
        text = "\n".join(text for _, text in lines)
        typer.secho(text, fg=colours.get(level), bold=level is Level.BAD, dim=level is Level.NOTE)


def _lines(seen: Overview, *, show_all: bool) -> Iterator[tuple[Level | None, str]]:
    """Yield what is shown, from what is wrong to the counters, each line with how bad it is."""
    for finding in diagnose(seen):
        yield finding.level, printable(str(finding))
    yield None, f"API: {describe(seen.health, seen.now)}"
    yield None, _machinery(seen)
    shown = sorted(seen.environments, key=_urgency)[: None if show_all else SHOWN]
    for line in _table([_row(seen, each) for each in shown]):
        yield None, line
    hidden = len(seen.environments) - len(shown)
    if hidden:
        yield Level.NOTE, f"{hidden:,} more environments: --all shows them"
    for line in _sums(seen):
        yield None, line


def _machinery(seen: Overview) -> str:
    names = ", ".join(sorted(seen.workers)[:3]) + (", …" if len(seen.workers) > 3 else "")  # noqa: PLR2004 - names
    workers = f"{len(seen.workers)} alive ({names})" if seen.workers else "none alive"
    used = seen.memory.used / 1_048_576
    memory = f"{used:,.0f} MiB"
    if seen.memory.most:
        memory += f", {seen.memory.part:.0%} of its maxmemory"
    age = _age(seen, seen.inbox_oldest)
    inbox = f"{seen.inbox:,} waiting" + ("" if age is None else f", the oldest for {duration(age * 1000)}")
    return printable(f"workers: {workers}; inbox: {inbox}; Redis: {memory}")


def _table(rows: list[dict[str, str]]) -> Iterator[str]:
    """Align the columns, those aside that are rare and say nothing here."""
    if not rows:
        return
    columns = [name for name in _COLUMNS if name not in _RARE or any(row[name] not in {"", "0"} for row in rows)]
    header = {name: name for name in columns}
    widths = {name: max(len(row[name]) for row in (header, *rows)) for name in columns}
    for row in (header, *rows):
        cells = (
            row[name].ljust(widths[name]) if name == columns[0] else row[name].rjust(widths[name]) for name in columns
        )
        yield "  ".join(cells).rstrip()


def _urgency(each: EnvironmentCounts) -> tuple[bool, int, int, str]:
    return each.paused_since is None, -each.waiting, -each.dead, each.environment


def _row(seen: Overview, each: EnvironmentCounts) -> dict[str, str]:
    age = _age(seen, each.oldest)
    return {
        "environment": printable(each.environment),
        **{name: f"{getattr(each, name):,}" for name in _NUMBERS},
        "oldest": "" if age is None else duration(age * 1000),
        "held": "" if each.paused_since is None else "paused",
    }


def _sums(seen: Overview) -> Iterator[str]:
    counters = asdict(seen.counters) | {"unaccounted": seen.counters.unaccounted}
    names = ["added", "waiting", "delivered", "duplicate", "stale", "superseded", "dead", "redriven", "unaccounted"]
    yield ", ".join(f"{name} {counters[name]:,}" for name in names)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counters["dead_by_reason"].items()))
    if reasons:
        yield f"dead letters by reason: {reasons}"
        fates = ", ".join(f"{counters[name]:,} {name}" for name in ("redriven", "dropped"))
        yield f"{counters['dead_waiting']:,} of them wait, {fates}"
