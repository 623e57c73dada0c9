"""The counters: what became of all events, from the counters that the moving scripts write.

`added + redriven = delivered + duplicate + stale + superseded + dead + waiting` at every moment: an entry is counted
by the script that removes it from its stream, and what is left is the streams' own lengths. `dead` counts deaths, so
a dead letter that was redriven and died again counts twice, as it does on the left.
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

#: Environments that one script reads, and scripts that one round trip runs: Redis reads on while we take its replies.
_ENVIRONMENTS_AT_ONCE = 500
_SCRIPTS_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Counters:
    """One snapshot of the whole shard. All are events, `retries` attempts.

    `added` is what producers added, without what was redriven; `dead` counts all deaths ever, `dead_waiting` the dead
    letters that lie there now; `ignored` are reports of what no deployment is, which were never added.
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
        """Events whose fate nobody recorded; anything but 0 is a defect."""
        ended = self.delivered + self.duplicate + self.stale + self.superseded + self.dead
        return self.added + self.redriven - ended - self.waiting

    @property
    def dead_unaccounted(self) -> int:
        """Dead letters that went without a redrive or a drop; not 0 if somebody else deleted or added some."""
        return self.dead - self.redriven - self.dropped - self.dead_waiting


class EnvironmentCounts(NamedTuple):
    """One environment's part, as environments.lua answers it; a tuple, because there may be ten thousand.

    Times are in milliseconds. `oldest` is when its first waiting entry was accepted, None also if nobody looked;
    `deaths` is how many drains in a row died with one of its events in hand; `paused_since` is when an operator
    paused its deliveries, None if they are not paused.
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
    deaths: int = 0
    paused_since: int | None = None


def read_environments(
    client: Redis, keys: Keys, destination: str, *, oldest_of: int | None = None
) -> list[EnvironmentCounts]:
    """Read what is known of each of the `environment_names`, in their order.

    To look up the `oldest` takes half of the time. With `oldest_of` that many have it of those with the most waiting,
    of those with retries, and of those that it was time to look at first, beside those that are paused. Changes
    nothing, and a script is short: blocks nobody.
    """
    names = environment_names(client, keys, destination)
    paused = pausing.paused(client, keys, destination)
    found = _read_some(client, keys, destination, names, with_oldest=oldest_of is None)
    if oldest_of is not None:
        due: Any = client.zrange(keys.schedule(destination), 0, oldest_of - 1) if oldest_of else []
        some = {*_most_waiting(found, oldest_of), *paused, *(name.decode() for name in due)}.intersection(names)
        again = _read_some(client, keys, destination, list(some), with_oldest=True)
        found = list({each.environment: each for each in (*found, *again)}.values())
    return [
        each._replace(paused_since=paused[each.environment]) if each.environment in paused else each for each in found
    ]


def environment_names(client: Redis, keys: Keys, destination: str) -> list[str]:
    """Return the environments that got an event and are not forgotten, or are paused, in order."""
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
    """Read some. A key ends with its environment: to make all keys of ten thousand costs more than to read these."""
    nameless = keys.of_outbox(destination, "")
    beginnings = (nameless.counts, nameless.outbox, nameless.due, nameless.run)
    calls = [
        scripts.Call(
            _ENVIRONMENTS,
            [beginning + name for name in names[start : start + _ENVIRONMENTS_AT_ONCE] for beginning in beginnings],
            (int(with_oldest),),
        )
        for start in range(0, len(names), _ENVIRONMENTS_AT_ONCE)
    ]
    replies = chain.from_iterable(
        scripts.run_all(client, calls[start : start + _SCRIPTS_AT_ONCE])
        for start in range(0, len(calls), _SCRIPTS_AT_ONCE)
    )
    return [EnvironmentCounts(name, *known) for name, known in zip(names, chain.from_iterable(replies), strict=True)]


def read_counters(client: Redis, keys: Keys) -> Counters:
    """Read the counters in one atomic snapshot."""
    call = scripts.Call(_COUNTERS, (keys.counts, keys.latency, keys.inbox, keys.dead), ())
    counts, latency, inbox, dead_waiting = scripts.run(client, call)
    return counters_of(totals_of(counts), latency, inbox=inbox, dead_waiting=dead_waiting)


def totals_of(flat: Sequence[bytes]) -> dict[str, int]:
    """Read a hash of counters as a script returns it."""
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def counters_of(totals: Mapping[str, int], latency: Sequence[bytes], *, inbox: int, dead_waiting: int) -> Counters:
    """Make the counters of its counters, the latency's hash, and the lengths of two streams."""
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
    """Count reports that were taken and of which nothing is to be delivered."""
    await client.hincrby(keys.counts, "ignored", number)


async def note_skipped(client: AsyncRedis, keys: Keys, skipped: Mapping[str, int]) -> None:
    """Count what of Kubernetes was not reported, by its reason."""
    pipeline = client.pipeline(transaction=False)
    for reason, number in skipped.items():
        pipeline.hincrby(keys.counts, f"skipped:{reason}", number)
    await pipeline.execute()
