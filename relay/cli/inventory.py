"""`relay inventory`: shows which digest of each instance was last reported, and whether it was delivered."""

from __future__ import annotations

import json
import sys
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli import EX_REFUSED
from relay.cli.dead_letters import printable
from relay.cli.options import Json, name_or_id
from relay.cli.queue_client import open_queue
from relay.queue import counters
from relay.queue import inventory as store
from relay.queue.dead_letters import moment
from relay.queue.forgetting import now_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from relay.cli.queue_client import QueueConnection
    from relay.queue.inventory import Running

#: Rows of one table. A terminal gets several tables in turn, so that memory stays bounded.
ROWS = 200

#: Notice before an instance is forgotten, printed on standard error; half of a short `delivery.forget_after`.
FORGET_NOTICE_SECONDS = 30 * 86_400.0

#: Characters of a shortened digest, with its algorithm.
_SHORT_DIGEST = len("sha256:") + 12

#: Characters of an RFC 3339 time to the second.
_TO_SECONDS = 19


def inventory(
    environment: Annotated[
        str | None,
        typer.Argument(
            parser=name_or_id, metavar="ENV", help="Name of an environment; default: all.", show_default=False
        ),
    ] = None,
    *,
    search: Annotated[
        str,
        typer.Option(
            "--search", "-s", metavar="TEXT", help="Only instances with this in the repository, name or digest."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Show each instance's last reported digest, since when it runs, and whether it was delivered.

    A table on a terminal. Piped, one line each with tabs between: environment, repository, name, platform, digest,
    since, delivered (yes or no), last delivered digest, delivered at, last seen at. With --json one line of JSON
    each. An instance may appear twice while others are added or removed.

    An instance is seen when it is reported, also as a duplicate; that is noted once an hour. It is forgotten
    delivery.forget_after later; standard error has the number of those within a month of that.

    Exit codes: 0 done, 1 nothing found, 2 usage, 69 Redis not reachable.

    \b
    Examples:
      relay inventory production
      relay inventory --search ghcr.io/acme/api
      relay inventory --json | jq -r 'select(.delivered | not) | .repository'
    """  # noqa: D301 - \b keeps typer from joining the lines
    with open_queue() as queue:
        running = _all(queue, environment, search)
        first = next(running, None)
        if first is None:
            where = f" in {environment}" if environment else ""
            typer.echo(f"nothing{f' with {search}' if search else ''} was reported{where}", err=True)
            raise typer.Exit(EX_REFUSED)
        expiring = _Expiring(queue)
        running = map(expiring.noted, chain([first], running))
        show = _show_json if as_json else _show_tables if sys.stdout.isatty() else _show_lines
        show(running)
    if expiring.count:
        typer.echo(expiring.message, err=True)


class _Expiring:
    """Counts the instances that are forgotten soon unless they are reported again."""

    def __init__(self, queue: QueueConnection) -> None:
        self.count = 0
        self._forget_after = queue.settings.delivery.forget_after
        self._notice = min(FORGET_NOTICE_SECONDS, self._forget_after / 2)
        self._seen_before = now_ms(queue.client) - round((self._forget_after - self._notice) * 1000)

    def noted(self, running: Running) -> Running:
        """Count an instance, and return it."""
        self.count += not running.was_seen_since(self._seen_before)
        return running

    @property
    def message(self) -> str:
        """The warning about them."""
        instances = "1 instance is" if self.count == 1 else f"{self.count:,} instances are"
        return (
            f"{instances} forgotten within {_days(self._notice)}, because delivery.forget_after is "
            f"{_days(self._forget_after)}: report those that still run, or raise delivery.forget_after"
        )


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:.3g} days"


def _all(queue: QueueConnection, environment: str | None, text: str) -> Iterator[Running]:
    """Yield the instances, with at most a page of them in memory."""
    client, keys, _ = queue
    names = counters.environment_names(client, keys, queue.destination) if environment is None else [environment]
    for name in names:
        for page in store.pages(client, keys, queue.destination, name, text=text):
            yield from page


def _show_json(running: Iterable[Running]) -> None:
    for each in running:
        typer.echo(json.dumps(_as_json(each)))


def _as_json(running: Running) -> dict[str, Any]:
    instance, last = running.instance, running.last_delivered
    return {
        "environment": instance.environment,
        "repository": instance.repository,
        "name": instance.name or None,
        "platform": instance.platform,
        "digest": running.digest,
        "since": moment(running.since),
        "delivered": running.is_delivered,
        "last_delivered": {"digest": last.digest, "delivered_at": moment(last.at)} if last else None,
        "last_seen_at": moment(running.last_seen_at),
        "gone_since": None if running.gone_since is None else moment(running.gone_since),
    }


def _show_lines(running: Iterable[Running]) -> None:
    for each in running:
        instance, last = each.instance, each.last_delivered
        columns = [instance.environment, instance.repository, instance.name, instance.platform, each.digest]
        columns += [moment(each.since), "yes" if each.is_delivered else "no"]
        columns += [last.digest, moment(last.at)] if last else ["", ""]
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
        columns += [each.digest[:_SHORT_DIGEST], moment(each.since)[:_TO_SECONDS]]
        columns += [moment(each.last_seen_at)[:_TO_SECONDS], _delivered(each)]
        table.add_row(*(Text(printable(text)) for text in columns))
    Console().print(table)


def _delivered(running: Running) -> str:
    if running.is_delivered:
        return "yes"
    last = running.last_delivered
    return f"not yet; last {last.digest[:_SHORT_DIGEST]}" if last else "not yet"
