"""The inventory: what runs where, in one environment or across all of them."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.queue import inventory
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis import Redis

    from relay.console.queue_client import QueueClient
    from relay.console.status_cache import StatusCache
    from relay.queue.inventory import Running
    from relay.queue.keys import Keys

#: Instances of one page; a step of a scan more may come.
ROWS = 200

#: How long one page is looked for; then it shows what was found, and where to go on.
LOOK_SECONDS = 2.0

_LONGEST_SEARCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whose instances: of the environment of that name or those with it in theirs; from which environment on."""

    environment: str = ""
    wanted: str = ""
    begin: str = ""
    after: int = 0

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        """Read a query; what cannot be read is passed over."""
        after = query.get("after", "")
        return cls(
            environment=query.get("environment", "").strip()[:_LONGEST_SEARCH],
            wanted=query.get("q", "").strip()[:_LONGEST_SEARCH],
            begin=query.get("begin", "")[:_LONGEST_SEARCH],
            after=int(after) if after.isascii() and after.isdecimal() and len(after) <= 20 else 0,  # noqa: PLR2004 - 64 bits
        )

    @property
    def query(self) -> dict[str, str]:
        """The form's fields that say something."""
        fields = {"environment": self.environment, "q": self.wanted}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """A page. `begin` and `after` are where the next one begins, None after the last."""

    running: list[Running]
    environments: int
    begin: str | None = None
    after: int = 0


async def see(queue: QueueClient, status: StatusCache, asked: Asked) -> Stock:
    """Look for a page; raises `QueueUnavailable`."""
    sample = await status.latest()
    names = meant((each.environment for each in sample.seen.environments), asked.environment)
    left = names[bisect_left(names, asked.begin) :]
    after = asked.after if left and left[0] == asked.begin else 0
    stock = await queue.ask(lambda client, keys: look(client, keys, left, wanted=asked.wanted, after=after))
    return Stock(running=stock.running, environments=len(names), begin=stock.begin, after=stock.after)


def meant(names: Iterable[str], environment: str) -> list[str]:
    """Return the environment of this name, else those with it in their names, in order."""
    some = sorted(names)
    if environment in some:
        return [environment]
    return [name for name in some if environment.casefold() in name.casefold()]


def look(
    client: Redis, keys: Keys, names: Sequence[str], *,
    wanted: str = "", after: int = 0, limit: int = ROWS, seconds: float = LOOK_SECONDS,
) -> Stock:  # fmt: skip
    """Go through environments until there is a page of what is wanted, or no time left."""
    found: list[Running] = []
    started = time.monotonic()
    for place, name in enumerate(names):
        rest = after
        while True:
            page = inventory.read(
                client, keys, DEFAULT_DESTINATION, name, wanted=wanted, after=rest, limit=limit - len(found)
            )
            found += page.running
            rest = page.after
            is_full = len(found) >= limit or time.monotonic() - started > seconds
            if is_full or not rest:
                break
        after = 0
        if is_full:
            following = name if rest else next(iter(names[place + 1 : place + 2]), None)
            return Stock(running=found, environments=len(names), begin=following, after=rest)
    return Stock(running=found, environments=len(names))
