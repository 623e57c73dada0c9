"""`relay status`: what is wrong, what waits where, what became of the rest; how API, workers and Redis are."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli.letters import printable
from relay.cli.options import Json  # noqa: TC001 - typer reads it
from relay.cli.shard import open_shard
from relay.diagnosis import Finding, Level, describe, diagnose, duration
from relay.errors import ConfigurationError
from relay.keys import DEFAULT_ENDPOINT
from relay.store import overview
from relay.store.dead import moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from relay.cli.shard import Shard
    from relay.store.counts import EnvironmentCounts
    from relay.store.overview import Overview

#: Environments that are shown unless all are asked for.
SHOWN = 20

#: Characters of a line where no terminal sets them: enough to fold no column.
_PIPED_WIDTH = 400

_COLUMNS = ("waiting", "oldest", "retrying", "delivered", "duplicate", "stale", "superseded", "dead", "held")

#: Columns that are left out where no environment has anything in them.
_RARE = frozenset({"superseded", "held"})

_STYLES = {Level.BAD: "bold red", Level.WARN: "yellow", Level.NOTE: "dim"}


def status(
    *,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch", "-w", min=0.1, metavar="SECONDS", help="Look again and again, this far apart; Ctrl-C ends it."
        ),
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
      relay status --watch 2
      relay status --json | jq -r '.findings[].what'
      relay status --json | jq .ledger.waiting
    """  # noqa: D301 - \b keeps typer from joining the lines
    if watch is not None and (as_json or not sys.stdout.isatty()):
        raise ConfigurationError("--watch needs a terminal to draw on; leave it out where the output is piped")
    with open_shard() as shard:
        if watch is not None:
            _watch(shard, watch, show_all=show_all)
        elif as_json:
            typer.echo(json.dumps(as_json_object(_look(shard)), indent=2))
        else:
            _show(_look(shard), show_all=show_all)


def _look(shard: Shard) -> Overview:
    return overview.read(shard.client, shard.keys, DEFAULT_ENDPOINT, shard.settings.queue)


def as_json_object(seen: Overview) -> dict[str, Any]:
    """Give all that was seen."""
    ledger, health = seen.ledger, seen.health
    held = health.circuit if health.openings else health.reason if health.until > seen.now else None
    return {
        "at": moment(seen.now),
        "findings": [asdict(finding) for finding in diagnose(seen)],
        "ledger": {
            **{k: v for k, v in asdict(ledger).items() if k != "latency"},
            "unaccounted": ledger.unaccounted,
            "dead_unaccounted": ledger.dead_unaccounted,
        },
        "held": held,
        "endpoint": {
            "held": held,
            "held_for_seconds": max(0, health.until - seen.now) / 1000,
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
                **{k: v for k, v in asdict(each).items() if k not in {"oldest", "paused_since"}},
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
    from rich.console import Group  # noqa: PLC0415 - rich is for terminals only
    from rich.live import Live  # noqa: PLC0415 - the same

    try:
        with Live(Group(*_parts(_look(shard), show_all=show_all)), auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(Group(*_parts(_look(shard), show_all=show_all)), refresh=True)
    except KeyboardInterrupt:
        return


def _show(seen: Overview, *, show_all: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - not for --json

    console: Console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    for part in _parts(seen, show_all=show_all):
        console.print(part, soft_wrap=isinstance(part, str) or not console.is_terminal)


def _parts(seen: Overview, *, show_all: bool) -> Iterator[RenderableType]:
    """Yield what is shown, from what is wrong to the ledger."""
    from rich.text import Text  # noqa: PLC0415 - rich is for commands that draw

    for finding in diagnose(seen):
        yield Text(_line(finding), style=_STYLES[finding.level])
    yield Text(f"API: {describe(seen.health, seen.now)}")
    yield Text(_machinery(seen))
    if seen.environments:
        yield _table(seen, SHOWN if not show_all else len(seen.environments))
    hidden = 0 if show_all else max(0, len(seen.environments) - SHOWN)
    if hidden:
        yield Text(f"{hidden:,} more environments: --all shows them", style="dim")
    for line in _sums(seen):
        yield Text(line)


def _line(finding: Finding) -> str:
    return printable(str(finding))


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


def _table(seen: Overview, most: int) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415 - not for --json

    shown = sorted(seen.environments, key=_urgency)[:most]
    rows = [_row(seen, each) for each in shown]
    columns = [name for name in _COLUMNS if name not in _RARE or any(row[name] not in {"", "0"} for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("environment", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for each, row in zip(shown, rows, strict=True):
        table.add_row(printable(each.environment), *(row[column] for column in columns))
    return table


def _urgency(each: EnvironmentCounts) -> tuple[bool, int, int, str]:
    return each.paused_since is None, -each.waiting, -each.dead, each.environment


def _row(seen: Overview, each: EnvironmentCounts) -> dict[str, str]:
    age = _age(seen, each.oldest)
    numbers = {name: f"{getattr(each, name):,}" for name in _COLUMNS if name not in {"oldest", "held"}}
    held = "" if each.paused_since is None else "paused"
    return {**numbers, "oldest": "" if age is None else f"{age:.0f} s", "held": held}


def _sums(seen: Overview) -> Iterator[str]:
    ledger = asdict(seen.ledger) | {"unaccounted": seen.ledger.unaccounted}
    names = ["added", "waiting", "delivered", "duplicate", "stale", "superseded", "dead", "redriven", "unaccounted"]
    yield ", ".join(f"{name} {ledger[name]:,}" for name in names)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(ledger["dead_by_reason"].items()))
    if reasons:
        yield f"dead letters by reason: {reasons}"
        fates = ", ".join(f"{ledger[name]:,} {name}" for name in ("redriven", "dropped"))
        yield f"{ledger['dead_waiting']:,} of them wait, {fates}"
