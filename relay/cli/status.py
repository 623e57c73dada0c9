"""`relay status`: what waits, what became of the rest, and what holds deliveries up."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from redis.exceptions import RedisError

from relay.connection import connect, without_password
from relay.errors import QueueUnavailable
from relay.keys import DEFAULT_ENDPOINT, Keys
from relay.settings import Settings
from relay.store.counts import read_environments, read_ledger
from relay.store.endpoint import MEANING, standing_hold

if TYPE_CHECKING:
    from redis import Redis


#: Characters of a line where no terminal sets them: enough to fold no column.
_PIPED_WIDTH = 400


def status(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what waits and what became of the rest, for each environment.

    \b
    Examples:
      relay status
      relay status --json | jq .ledger.waiting
    """  # noqa: D301 - \b keeps typer from joining the lines
    settings = Settings.load()
    with connect(settings.redis) as client:
        try:
            seen = _look(client, Keys(settings.queue.namespace))
        except RedisError as error:
            where = without_password(settings.redis.url)
            raise QueueUnavailable(f"Redis at {where} did not answer: {error}") from error
    if as_json:
        typer.echo(json.dumps(seen, indent=2))
    else:
        _show(seen)


def _look(client: Redis, keys: Keys) -> dict[str, Any]:
    seconds, microseconds = client.time()
    now = seconds * 1000 + microseconds // 1000
    ledger = read_ledger(client, keys)
    hold = standing_hold(client, keys, DEFAULT_ENDPOINT)
    held = hold is not None and (hold.until > now or hold.openings > 0)
    return {
        "ledger": {
            **{k: v for k, v in asdict(ledger).items() if k != "latency"},
            "unaccounted": ledger.unaccounted,
            "dead_unaccounted": ledger.dead_unaccounted,
        },
        "held": hold.reason if hold and held else None,
        "environments": [
            {
                **{k: v for k, v in asdict(part).items() if k not in {"oldest", "paused_since"}},
                "oldest_seconds": None if part.oldest is None else max(0, now - part.oldest) / 1000,
                "held": None if part.paused_since is None else "paused",
            }
            for part in read_environments(client, keys, DEFAULT_ENDPOINT)
        ],
    }


def _show(seen: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - not for --json
    from rich.table import Table  # noqa: PLC0415 - the same

    columns = ["waiting", "oldest_seconds", "retrying", "delivered", "duplicate", "stale", "dead"]
    columns += [name for name in ("superseded", "held") if any(part[name] for part in seen["environments"])]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("environment", overflow="fold")
    for column in columns:
        table.add_column(column.replace("_seconds", ""), justify="right", no_wrap=True)
    for part in seen["environments"]:
        table.add_row(part["environment"], *(_cell(column, part[column]) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)
    ledger = seen["ledger"]
    names = ["added", "waiting", "delivered", "duplicate", "stale", "superseded", "dead", "redriven", "unaccounted"]
    console.print(", ".join(f"{name} {ledger[name]:,}" for name in names), highlight=False, soft_wrap=True)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(ledger["dead_by_reason"].items()))
    if reasons:
        console.print(f"dead letters by reason: {reasons}", highlight=False, soft_wrap=True)
        fates = ", ".join(f"{ledger[name]:,} {name}" for name in ("redriven", "dropped"))
        console.print(f"{ledger['dead_waiting']:,} of them wait, {fates}", highlight=False, soft_wrap=True)
    if seen["held"]:
        console.print(MEANING.get(seen["held"], seen["held"]), style="yellow", soft_wrap=True)


def _cell(column: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.0f} s" if column == "oldest_seconds" else f"{value:,}"
