"""Counters of a shard: totals by outcome, written by the scripts that move entries.

`added + redriven = delivered + duplicate + stale + superseded + dead + waiting` at every moment: the script that
removes an entry from its stream counts it, and `waiting` is the streams' lengths. A dead letter that is redriven and
dead-lettered again counts twice in `dead`, as it does in `redriven`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.queue import pausing, scripts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from relay.queue.keys import Keys

_COUNTERS = scripts.load("counters")
_ENVIRONMENTS = scripts.load("environments")

#: Environments that one script reads. Redis is blocked meanwhile.
_ENVIRONMENTS_A_SCRIPT = 500

#: Scripts of one round trip: Redis runs the next while the client parses a reply.
_SCRIPTS_A_ROUND_TRIP = 20


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of a shard at one moment, in events; `retries` in attempts.

    `added` excludes redriven events. `dead` counts every dead-lettering, `dead_waiting` the dead letters of now.
    `ignored` counts reports that described no deployment and were never added.
    """

    added: int
    redriven: int
    waiting: int
    accepted: int
    delivered: int
    duplicate: int
    stale: int
    superseded: int
    dead: int
    dropped: int
    dead_waiting: int
    retries: int
    ignored: int
    dead_by_reason: dict[str, int] = field(default_factory=dict)
    latency: dict[int, int] = field(default_factory=dict)

    @property
    def unaccounted(self) -> int:
        """Events without a recorded outcome; anything but 0 is a defect."""
        ended = self.delivered + self.duplicate + self.stale + self.superseded + self.dead
        return self.added + self.redriven - ended - self.waiting

    @property
    def dead_unaccounted(self) -> int:
        """Dead letters that left without a redrive or a drop; not 0 if another program deleted or added some."""
        return self.dead - self.redriven - self.dropped - self.dead_waiting


class EnvironmentCounts(NamedTuple):
    """Counters of one environment, as environments.lua returns them; a tuple, because there may be ten thousand.

    Times are in milliseconds. `oldest` is when its first waiting entry was accepted, None also if it was not read.
    `delivery_count` is how often in a row a run died with one of its events in hand. `paused_since` is when an
    operator paused its deliveries, None if they are not paused.
    """

    environment: str
    waiting: int
    retrying: int
    oldest: int | None
    delivered: int
    duplicate: int
    stale: int
    superseded: int
    dead: int
    delivery_count: int = 0
    paused_since: int | None = None


def read_environments(
    client: Redis, keys: Keys, destination: str, *, oldest_of: int | None = None
) -> list[EnvironmentCounts]:
    """Return the counters of each of the `environment_names`, in their order. Changes nothing.

    Reading `oldest` takes half of the time. With `oldest_of`, it is read for the paused environments, and for so many
    of each of three kinds: those with the most waiting, those with retries, and those scheduled first.
    """
    names = environment_names(client, keys, destination)
    paused = pausing.paused(client, keys, destination)
    found = _read_some(client, keys, destination, names, with_oldest=oldest_of is None)
    if oldest_of is not None:
        first: Any = client.zrange(keys.schedule(destination), 0, oldest_of - 1) if oldest_of else []
        some = {*_most_waiting(found, oldest_of), *paused, *(name.decode() for name in first)}.intersection(names)
        again = _read_some(client, keys, destination, list(some), with_oldest=True)
        found = list({each.environment: each for each in (*found, *again)}.values())
    return [
        each._replace(paused_since=paused[each.environment]) if each.environment in paused else each for each in found
    ]


def environment_names(client: Redis, keys: Keys, destination: str) -> list[str]:
    """Return the sorted names of the environments that got an event and are not forgotten, or are paused."""
    pipeline = client.pipeline(transaction=False)
    pipeline.zrange(keys.environments(destination), 0, -1)
    pipeline.hkeys(keys.paused(destination))
    known, paused = pipeline.execute()
    return sorted(name.decode() for name in {*known, *paused})


def _most_waiting(found: Iterable[EnvironmentCounts], number: int) -> Iterator[str]:
    waiting = sorted((each for each in found if each.waiting), key=lambda each: -each.waiting)
    retrying = [each for each in waiting if each.retrying]
    yield from (each.environment for each in (*waiting[:number], *retrying[:number]))


def _read_some(
    client: Redis, keys: Keys, destination: str, names: Sequence[str], *, with_oldest: bool
) -> list[EnvironmentCounts]:
    """Read some. Keys are concatenated: `of_outbox` for ten thousand environments costs more than the reading."""
    nameless = keys.of_outbox(destination, "")
    prefixes = (nameless.counts, nameless.outbox, nameless.due, nameless.run)
    calls = [
        scripts.Call(
            _ENVIRONMENTS,
            [prefix + name for name in names[start : start + _ENVIRONMENTS_A_SCRIPT] for prefix in prefixes],
            (int(with_oldest),),
        )
        for start in range(0, len(names), _ENVIRONMENTS_A_SCRIPT)
    ]
    replies = chain.from_iterable(
        scripts.run_all(client, calls[start : start + _SCRIPTS_A_ROUND_TRIP])
        for start in range(0, len(calls), _SCRIPTS_A_ROUND_TRIP)
    )
    return [EnvironmentCounts(name, *known) for name, known in zip(names, chain.from_iterable(replies), strict=True)]


def read_counters(client: Redis, keys: Keys) -> Counters:
    """Return the counters, read atomically."""
    call = scripts.Call(_COUNTERS, (keys.counts, keys.latency, keys.inbox, keys.dead), ())
    counts, latency, inbox, dead_waiting = scripts.run(client, call)
    return counters_of(totals_of(counts), latency, inbox=inbox, dead_waiting=dead_waiting)


def totals_of(flat: Sequence[bytes]) -> dict[str, int]:
    """Parse a hash of counters as a script returns it."""
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def counters_of(totals: Mapping[str, int], latency: Sequence[bytes], *, inbox: int, dead_waiting: int) -> Counters:
    """Return the counters of a shard, from its totals, its latency hash and the lengths of two streams."""
    reasons = {name.removeprefix("dead:"): value for name, value in totals.items() if name.startswith("dead:")}
    return Counters(
        added=totals.get("taken", 0) + inbox - totals.get("redriven", 0),
        redriven=totals.get("redriven", 0),
        waiting=inbox + totals.get("outbox", 0),
        accepted=sum(totals.get(name, 0) for name in ("new", "changed", "reasserted")),
        delivered=totals.get("delivered", 0),
        duplicate=totals.get("duplicate", 0),
        stale=totals.get("stale", 0),
        superseded=totals.get("superseded", 0),
        dead=totals.get("dead", 0),
        dropped=totals.get("dropped", 0),
        dead_waiting=dead_waiting,
        retries=totals.get("retries", 0),
        ignored=totals.get("ignored", 0),
        dead_by_reason=reasons,
        latency={int(number): int(value) for number, value in zip(latency[::2], latency[1::2], strict=True)},
    )


async def note_ignored(client: AsyncRedis, keys: Keys, number: int) -> None:
    """Count reports that describe no deployment."""
    await client.hincrby(keys.counts, "ignored", number)


async def note_skipped(client: AsyncRedis, keys: Keys, skipped: Mapping[str, int]) -> None:
    """Count observations of Kubernetes pods that were not reported, by reason."""
    pipeline = client.pipeline(transaction=False)
    for reason, number in skipped.items():
        pipeline.hincrby(keys.counts, f"skipped:{reason}", number)
    await pipeline.execute()
