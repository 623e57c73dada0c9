"""Marks of instances that a cluster's watcher no longer sees: a hash for each environment, instance → since when.

A mark is void once the instance was seen later, by any report; nothing needs to take it away. So only the watcher
writes marks, and `relay resync` and `relay inventory` read them beside `last_seen_at`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from redis import Redis

    from relay.events.event import Instance
    from relay.queue.keys import Keys

#: Instances in one round trip.
STEP = 500


def mark(
    client: Redis, keys: Keys, destination: str, since: Mapping[Instance, int], *, lifetime_seconds: float
) -> None:
    """Mark instances as gone since then, in Redis milliseconds; marks last so long after their environment's last."""
    for some in _steps(since):
        pipeline = client.pipeline(transaction=False)
        for environment, instances in _by_environment(some).items():
            key = keys.of_outbox(destination, environment).gone
            pipeline.hset(key, mapping={each.key: since[each] for each in instances})
            pipeline.pexpire(key, round(lifetime_seconds * 1000))
        pipeline.execute()


def unmark(client: Redis, keys: Keys, destination: str, instances: Iterable[Instance]) -> None:
    """Take marks away; where there is none, nothing changes."""
    for some in _steps(instances):
        pipeline = client.pipeline(transaction=False)
        for environment, each in _by_environment(some).items():
            pipeline.hdel(keys.of_outbox(destination, environment).gone, *(instance.key for instance in each))
        pipeline.execute()


def _steps(instances: Iterable[Instance]) -> Iterator[list[Instance]]:
    rest = iter(instances)
    while some := list(islice(rest, STEP)):
        yield some


def _by_environment(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    found: dict[str, list[Instance]] = {}
    for instance in instances:
        found.setdefault(instance.environment, []).append(instance)
    return found
