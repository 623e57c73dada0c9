"""The inventory page: running instances of one environment, or across all of them."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.queue import inventory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis import Redis

    from relay.console.queue_client import QueueClient
    from relay.console.status_cache import StatusCache
    from relay.queue.inventory import Running
    from relay.queue.keys import Keys

#: Instances of one page; up to one step of a scan more.
ROWS = 200

#: Maximum time that one page is searched for; then it shows what was found, and a link to continue.
SEARCH_SECONDS = 2.0

#: Maximum characters of a search, and digits of a scan's cursor (64 bits).
_LONGEST_SEARCH, _CURSOR_DIGITS = 1024, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The instances to show, and the environment and the cursor in it to continue from."""

    environment: str = ""
    text: str = ""
    begin: str = ""
    after: int = 0

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Search:
        """Parse a query; unreadable values are ignored."""
        after = query.get("after", "")
        is_cursor = after.isascii() and after.isdecimal() and len(after) <= _CURSOR_DIGITS
        return cls(
            environment=query.get("environment", "").strip()[:_LONGEST_SEARCH],
            text=query.get("q", "").strip()[:_LONGEST_SEARCH],
            begin=query.get("begin", "")[:_LONGEST_SEARCH],
            after=int(after) if is_cursor else 0,
        )

    @property
    def query(self) -> dict[str, str]:
        """The form's fields that are set."""
        fields = {"environment": self.environment, "q": self.text}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page. `begin` and `after` are where the next one begins, None after the last."""

    running: list[Running]
    environments: int
    begin: str | None = None
    after: int = 0


async def read_page(queue: QueueClient, status: StatusCache, search: Search) -> Page:
    """Return a page; raise `QueueUnavailable`."""
    latest = (await status.latest()).status
    names = matching((each.environment for each in latest.environments), search.environment)
    rest = names[bisect_left(names, search.begin) :]
    after = search.after if rest and rest[0] == search.begin else 0
    page = await queue.ask(
        lambda client, keys: scan(client, keys, latest.destination, rest, text=search.text, after=after)
    )
    return replace(page, environments=len(names))


def matching(names: Iterable[str], environment: str) -> list[str]:
    """Return the environment of this name, else those with the text in their names, in order."""
    known = sorted(names)
    if environment in known:
        return [environment]
    return [name for name in known if environment.casefold() in name.casefold()]


def scan(
    client: Redis, keys: Keys, destination: str, names: Sequence[str], *, text: str, after: int
) -> Page:  # fmt: skip
    """Scan environments until a page is full or the time is over."""
    found: list[Running] = []
    started = time.monotonic()
    for place, name in enumerate(names):
        cursor = after if place == 0 else 0
        while True:
            room = ROWS - len(found)
            step = inventory.read_page(client, keys, destination, name, text=text, after=cursor, limit=room)
            found += step.running
            cursor = step.after
            is_full = len(found) >= ROWS or time.monotonic() - started > SEARCH_SECONDS
            if is_full or not cursor:
                break
        if is_full:
            following = name if cursor else next(iter(names[place + 1 : place + 2]), None)
            return Page(running=found, environments=len(names), begin=following, after=cursor)
    return Page(running=found, environments=len(names))
