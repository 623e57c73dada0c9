"""Snapshot of a shard: totals, streams, workers, health and Redis. Read by metrics and status. Changes nothing.

All counts are read in one script, so the accounting identity holds in each snapshot. Only a limited number of
environments are read by name. The rest are one sum, taken from the totals, so the work does not grow with their
number. If more environments than that have waiting events, their outboxes are read first, a page at a time, to find
those with the most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relay.queue import attempts, scripts
from relay.queue.attempts import Attempts
from relay.queue.counters import Counters, counters_of, totals_of
from relay.queue.health import Health, HealthState
from relay.queue.redis_server import UNKNOWN, read_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from redis import Redis

    from relay.queue.keys import Keys
    from relay.queue.redis_server import RedisServer

#: Outboxes that one script reads; Redis is blocked meanwhile.
PAGE = 500

#: Stands for the environments that are not read by name. An environment of this name is always among them.
OTHER = "other"

_SNAPSHOT = scripts.load("snapshot")
_HEADS = scripts.load("heads")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Length of a stream, and when its first entry was added (Redis milliseconds); None if it is empty."""

    events: int = 0
    oldest: int | None = None


NOTHING = Waiting()


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationState:
    """Health of a destination, as the metrics show it.

    `concurrency_limit` is 0 for the default. `unhealthy_ms` is the time so far by state. `retry_after_ms` is the last
    `Retry-After`, None if there was none.
    """

    state: HealthState = HealthState.HEALTHY
    concurrency_limit: int = 0
    unhealthy_ms: dict[str, int] = field(default_factory=dict)
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A shard at one moment. Times are Redis milliseconds, None for never."""

    now: int = 0
    counters: Counters
    #: Environment → events delivered, for those with the most; and the sum of all others.
    delivered: dict[str, int] = field(default_factory=dict)
    delivered_elsewhere: int = 0
    inbox: Waiting = NOTHING
    dead: Waiting = NOTHING
    #: Environment → its outbox, for those with the most waiting; and the sum of all others.
    outboxes: dict[str, Waiting] = field(default_factory=dict)
    outboxes_elsewhere: Waiting = NOTHING
    attempts: Attempts = field(default_factory=Attempts)
    latency_seconds: float = 0.0
    newest_added: int | None = None
    newest_accepted: int | None = None
    newest_delivered: int | None = None
    last_success: int | None = None
    destinations: dict[str, DestinationState] = field(default_factory=dict)
    #: Number of paused environments.
    paused: int = 0
    #: Worker → its last heartbeat, also of workers that are gone.
    workers: dict[str, int] = field(default_factory=dict)
    leases_taken_over: int = 0
    #: Reason → wake-ups.
    wakeups: dict[str, int] = field(default_factory=dict)
    #: Reason → events refused for lack of room.
    refused: dict[str, int] = field(default_factory=dict)
    #: Reason → observations of Kubernetes pods that were not reported.
    skipped: dict[str, int] = field(default_factory=dict)
    #: Outcome → reloads of the token that did not give the known one.
    token_reloads: dict[str, int] = field(default_factory=dict)
    resets: int = 0
    #: Events whose `time` was ahead of Redis's clock.
    clocks_ahead: int = 0
    server: RedisServer = UNKNOWN


def read_snapshot(client: Redis, keys: Keys, destination: str, *, environments: int, config: bool = True) -> Snapshot:
    """Take a snapshot with at most `environments` of them by name, and with the server's CONFIG if it is wanted.

    Raise `RedisError` if Redis is not reachable.
    """
    names, rest_oldest = _most_waiting(client, keys, destination, environments) if environments else ([], None)
    outboxes = [keys.of_outbox(destination, name).outbox for name in names]
    script_keys = (
        keys.counts, keys.latency, keys.inbox, keys.dead, keys.environments(destination),
        keys.destination(destination),
        keys.paused(destination), keys.workers, *outboxes,
    )  # fmt: skip
    reply = scripts.run(client, scripts.Call(_SNAPSHOT, script_keys, (environments + 1,)))
    now, counts, latency, last, most_delivered, health, paused, workers, inbox, dead, *heads = reply
    totals = totals_of(counts)
    counters = counters_of(totals, latency, inbox=inbox[0], dead_waiting=dead[0])
    delivered = {name.decode(): int(float(score)) for name, score in _pairs(most_delivered)}
    delivered = dict([item for item in delivered.items() if item[0] != OTHER][:environments])
    waiting = {name: _waiting(head) for name, head in zip(names, heads, strict=True)}
    waits_elsewhere = max(0, totals.get("outbox", 0) - sum(each.events for each in waiting.values()))
    return Snapshot(
        now=now,
        counters=counters,
        delivered=delivered,
        delivered_elsewhere=counters.delivered - sum(delivered.values()),
        inbox=_waiting(inbox),
        dead=_waiting(dead),
        outboxes=waiting,
        outboxes_elsewhere=Waiting(waits_elsewhere, rest_oldest if waits_elsewhere else None),
        attempts=attempts.read(totals),
        latency_seconds=totals.get("latency_ms", 0) / 1000,
        newest_added=_milliseconds(last) if last else None,
        newest_accepted=totals.get("newest:accepted"),
        newest_delivered=totals.get("newest:delivered"),
        last_success=totals.get("delivered_at"),
        destinations={destination: _destination(health, now)},
        paused=paused,
        workers={name.decode(): round(float(score)) for name, score in _pairs(workers)},
        leases_taken_over=totals.get("taken_over", 0),
        wakeups=_with_prefix(totals, "wakeup:"),
        refused=_with_prefix(totals, "refused:"),
        skipped=_with_prefix(totals, "skipped:"),
        token_reloads=_with_prefix(totals, "token:"),
        resets=totals.get("resets", 0),
        clocks_ahead=totals.get("clock_ahead", 0),
        server=read_server(client, config=config),
    )


def _most_waiting(client: Redis, keys: Keys, destination: str, most: int) -> tuple[list[str], int | None]:
    """Return the environments to read by name, and when the first waiting event of all others was added.

    They are those with the most waiting; if these are fewer than `most`, those with the most deliveries follow.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.zrange(keys.schedule(destination), 0, -1)
    pipeline.zrevrange(keys.environments(destination), 0, most)
    scheduled, usual = ([name.decode() for name in reply if name != OTHER.encode()] for reply in pipeline.execute())
    if len(scheduled) <= most:
        return list(dict.fromkeys([*scheduled, *usual]))[:most], None
    heads: dict[str, Waiting] = {}
    for start in range(0, len(scheduled), PAGE):
        names = scheduled[start : start + PAGE]
        outboxes = [keys.of_outbox(destination, name).outbox for name in names]
        reply = scripts.run(client, scripts.Call(_HEADS, outboxes, ()))
        heads.update(zip(names, map(_waiting, zip(reply[::2], reply[1::2], strict=True)), strict=True))
    ranked = sorted(scheduled, key=lambda name: -heads[name].events)
    rest = [oldest for name in ranked[most:] if (oldest := heads[name].oldest) is not None]
    return ranked[:most], min(rest, default=None)


def _waiting(head: Sequence[Any]) -> Waiting:
    events, first = head
    return Waiting(int(events), _milliseconds(first) if first else None)


def _milliseconds(stream_id: bytes) -> int | None:
    """Return the time of a stream id; None for the id of a stream that never had an entry."""
    return int(stream_id.partition(b"-")[0]) or None


def _destination(fields: Sequence[bytes], now: int) -> DestinationState:
    known = {name.decode(): value.decode() for name, value in _pairs(fields)}
    health = Health(
        until=int(known.get("until", 0)),
        reason=known.get("reason", ""),
        openings=int(known.get("openings", 0)),
        circuit=known.get("circuit", ""),
    )
    return DestinationState(
        state=health.state(now),
        concurrency_limit=int(known.get("window", 0)),
        unhealthy_ms={
            name.removeprefix("unhealthy_ms:"): int(value)
            for name, value in known.items()
            if name.startswith("unhealthy_ms:")
        },
        retry_after_ms=int(known["asked_ms"]) if "asked_ms" in known else None,
    )


def _with_prefix(totals: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
