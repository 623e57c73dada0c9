"""`relay inventory`: what runs where, as far as it was reported."""

from __future__ import annotations

import json
import sys
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli import EX_REFUSED
from relay.cli.dead_letters import printable
from relay.cli.options import Json, name_or_id
from relay.cli.queue_client import open_shard
from relay.queue import counters
from relay.queue import inventory as store
from relay.queue.dead_letters import moment
from relay.queue.forgetting import now_ms
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from relay.cli.queue_client import Shard
    from relay.queue.inventory import Running

#: Rows of one table; a terminal gets one after the other, so that nothing is held until the last row is known.
ROWS = 200

#: How long before an instance is forgotten standard error has it; with a short `delivery.forget_after` half of that.
FORGET_NOTICE_SECONDS = 30 * 86_400.0

#: Characters of a digest that tell it from others, with its algorithm.
_TELLING = len("sha256:") + 12

#: Characters of an RFC 3339 time to the second.
_TO_SECONDS = 19


def inventory(
    environment: Annotated[
        str | None,
        typer.Argument(
            parser=name_or_id, metavar="ENV", help="One environment, by name; else all.", show_default=False
        ),
    ] = None,
    *,
    search: Annotated[
        str, typer.Option("--search", "-s", metavar="TEXT", help="With this in the repository, name or digest.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show what runs where, as far as it was reported: each instance's digest, since when, and whether the API knows.

    A table on a terminal; piped, a line each with tabs between: environment, repository, name, platform, digest,
    since, delivered (yes or no), what the API was told last, when, and when the instance was last seen. With --json a
    line of JSON each. An instance may come twice while others come and go.

    An instance is last seen when it is reported, as a duplicate too; that is noted once an hour. It is forgotten
    delivery.forget_after later; standard error has how many are within a month of that.

    Exit codes: 0 done, 1 nothing was found, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay inventory production
      relay inventory --search ghcr.io/acme/api
      relay inventory --json | jq -r 'select(.delivered | not) | .repository'
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_shard() as shard:
        running = _all(shard, environment, search)
        first = next(running, None)
        if first is None:
            what = f"nothing like {search} was" if search else "nothing was"
            typer.echo(f"{what} reported{f' in {environment}' if environment else ''}", err=True)
            raise typer.Exit(EX_REFUSED)
        soon = _Soon(shard)
        running = map(soon.noted, chain([first], running))
        show = _show_json if as_json else _show_tables if sys.stdout.isatty() else _show_lines
        show(running)
    if soon.count:
        typer.echo(soon.message, err=True)


class _Soon:
    """Counts the instances that are forgotten soon unless they are reported again."""

    def __init__(self, shard: Shard) -> None:
        self.count = 0
        self._forget_after = shard.settings.delivery.forget_after
        self._notice = min(FORGET_NOTICE_SECONDS, self._forget_after / 2)
        self._seen_before = now_ms(shard.client) - round((self._forget_after - self._notice) * 1000)

    def noted(self, running: Running) -> Running:
        """Count an instance, and return it."""
        self.count += not running.was_seen_since(self._seen_before)
        return running

    @property
    def message(self) -> str:
        """Return what to do about them."""
        instances = "1 instance is" if self.count == 1 else f"{self.count:,} instances are"
        return (
            f"{instances} forgotten within {_days(self._notice)}, because delivery.forget_after is "
            f"{_days(self._forget_after)}: report those that still run, or raise delivery.forget_after"
        )


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:.3g} days"


def _all(shard: Shard, environment: str | None, wanted: str) -> Iterator[Running]:
    """Go through the instances, never holding more than a page of them."""
    client, keys, _ = shard
    names = counters.environment_names(client, keys, DEFAULT_DESTINATION) if environment is None else [environment]
    for name in names:
        for page in store.pages(client, keys, DEFAULT_DESTINATION, name, wanted=wanted):
            yield from page


def _show_json(running: Iterable[Running]) -> None:
    for each in running:
        typer.echo(json.dumps(_as_json(each)))


def _as_json(running: Running) -> dict[str, Any]:
    instance, told = running.instance, running.told
    return {
        "environment": instance.environment,
        "repository": instance.repository,
        "name": instance.name or None,
        "platform": instance.platform,
        "digest": running.digest,
        "since": moment(running.since),
        "delivered": running.delivered,
        "told": {"digest": told.digest, "at": moment(told.at)} if told else None,
        "last_seen_at": moment(running.last_seen_at),
        "gone_since": None if running.gone_since is None else moment(running.gone_since),
    }


def _show_lines(running: Iterable[Running]) -> None:
    for each in running:
        instance, told = each.instance, each.told
        columns = [instance.environment, instance.repository, instance.name, instance.platform, each.digest]
        columns += [moment(each.since), "yes" if each.delivered else "no"]
        columns += [told.digest, moment(told.at)] if told else ["", ""]
        columns.append(moment(each.last_seen_at))
        typer.echo("\t".join(map(printable, columns)))


def _show_tables(running: Iterable[Running]) -> None:
    rest = iter(running)
    while rows := list(islice(rest, ROWS)):
        _draw(rows)


def _draw(rows: list[Running]) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich is for terminals only
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("environment", "repository", "name", "platform", "digest", "since", "last seen", "delivered"):
        table.add_column(column, overflow="fold", no_wrap=column in {"digest", "since", "last seen"})
    for each in rows:
        instance = each.instance
        columns = [instance.environment, instance.repository, instance.name, instance.platform]
        columns += [each.digest[:_TELLING], moment(each.since)[:_TO_SECONDS]]
        columns += [moment(each.last_seen_at)[:_TO_SECONDS], _delivered(each)]
        table.add_row(*(Text(printable(text)) for text in columns))
    Console().print(table)


def _delivered(running: Running) -> str:
    if running.delivered:
        return "yes"
    return f"not yet; told {running.told.digest[:_TELLING]}" if running.told else "not yet"
