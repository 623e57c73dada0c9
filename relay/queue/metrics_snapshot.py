"""What the metrics tell of: one look at the whole shard, which changes nothing.

What is counted is read in one step, so it adds up in each snapshot. Of the environments only so many are read by name
as are wanted; the others are one sum, which is taken from the totals, so the work does not grow with them. Only where
more environments than that have something waiting, those that do are looked at before, a page at a time, to learn
which have the most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from relay.queue import attempts, scripts
from relay.queue.attempts import Attempts
from relay.queue.counters import Counters, counters_of, totals_of
from relay.queue.health import Health, HealthState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from redis import Redis

    from relay.queue.keys import Keys

#: Outboxes that one step looks at; Redis does nothing else meanwhile.
PAGE = 500

#: What stands for the environments that are not read by name. One of this name never is.
ELSEWHERE = "other"

_SNAPSHOT = scripts.load("snapshot")
_HEADS = scripts.load("heads")


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many events wait, and since when the first of them does, in Redis milliseconds; None if none does."""

    events: int = 0
    oldest: int | None = None


NOTHING = Waiting()


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationState:
    """A destination: its state; its window, 0 if nobody set one; its holds so far.

    `retry_after_ms` is the last pause that the API asked for, None if it never did.
    """

    held: HealthState = HealthState.HEALTHY
    window: int = 0
    held_ms: dict[str, int] = field(default_factory=dict)
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is known of the Redis server. `memory_used` is a part of its `maxmemory`, None where there is none."""

    version: str = ""
    appendonly: str = "unknown"
    appendfsync: str = "unknown"
    maxmemory_policy: str = "unknown"
    memory_used: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything at one moment. Times are Redis milliseconds, None for never."""

    counters: Counters
    #: Environment → events delivered, of those with the most; and of all others together.
    delivered: dict[str, int] = field(default_factory=dict)
    delivered_elsewhere: int = 0
    inbox: Waiting = NOTHING
    dead: Waiting = NOTHING
    #: Environment → what waits in its outbox, of those with the most waiting; and of all others together.
    outboxes: dict[str, Waiting] = field(default_factory=dict)
    outboxes_elsewhere: Waiting = NOTHING
    attempts: Attempts = field(default_factory=Attempts)
    latency_seconds: float = 0.0
    newest_added: int | None = None
    newest_accepted: int | None = None
    newest_delivered: int | None = None
    last_success: int | None = None
    #: Destination → how it is.
    destinations: dict[str, DestinationState] = field(default_factory=dict)
    paused: int = 0
    #: Worker → its last sign of life.
    workers: dict[str, int] = field(default_factory=dict)
    leases_taken_over: int = 0
    #: Why → wakeups.
    wakeups: dict[str, int] = field(default_factory=dict)
    #: Why there was no room → events refused.
    refused: dict[str, int] = field(default_factory=dict)
    #: Why → what was seen of Kubernetes' pods and not reported.
    skipped: dict[str, int] = field(default_factory=dict)
    #: What came of it → readings of the API's token that were not what was known.
    token_reloads: dict[str, int] = field(default_factory=dict)
    resets: int = 0
    #: Events whose `time` was ahead of Redis's clock.
    clocks_ahead: int = 0
    server: Server = field(default_factory=Server)


def read(client: Redis, keys: Keys, destination: str, *, environments: int) -> Snapshot:
    """Take a snapshot, with so many environments by name at most. A Redis that is away raises `RedisError`."""
    names, rest_oldest = _most_waiting(client, keys, destination, environments)
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
    delivered = dict([item for item in delivered.items() if item[0] != ELSEWHERE][:environments])
    waiting = {name: _waiting(head) for name, head in zip(names, heads, strict=True)}
    waits_elsewhere = max(0, totals.get("outbox", 0) - sum(each.events for each in waiting.values()))
    return Snapshot(
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
        wakeups=_named(totals, "wakeup:"),
        refused=_named(totals, "refused:"),
        skipped=_named(totals, "skipped:"),
        token_reloads=_named(totals, "token:"),
        resets=totals.get("resets", 0),
        clocks_ahead=totals.get("clock_ahead", 0),
        server=read_server(client),
    )


def read_server(client: Redis) -> Server:
    """Read what the server tells of itself; a user who may not ask is told nothing."""
    pipeline = client.pipeline(transaction=False)
    for section in ("server", "persistence", "memory"):
        pipeline.info(section)
    pipeline.config_get("appendfsync")
    about, persistence, memory, config = (
        {} if isinstance(reply, ResponseError) else reply for reply in pipeline.execute(raise_on_error=False)
    )
    most = int(memory.get("maxmemory", 0))
    used = int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0))
    return Server(
        version=str(about.get("redis_version", "")),
        appendonly={1: "yes", 0: "no"}.get(persistence.get("aof_enabled"), "unknown"),
        appendfsync=_text(config.get("appendfsync", "unknown")),
        maxmemory_policy=_text(memory.get("maxmemory_policy", "unknown")),
        memory_used=used / most if most else None,
    )


def _most_waiting(client: Redis, keys: Keys, destination: str, most: int) -> tuple[list[str], int | None]:
    """Return the environments to read by name, and since when the first event of all others waits.

    Those that have the most waiting; if there are fewer than are wanted, those with the most deliveries beside them.
    """
    pipeline = client.pipeline(transaction=False)
    pipeline.zrange(keys.schedule(destination), 0, -1)
    pipeline.zrevrange(keys.environments(destination), 0, most)
    scheduled, usual = (
        [name.decode() for name in reply if name != ELSEWHERE.encode()] for reply in pipeline.execute()
    )
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
    """Return the time in a stream's id; None in that of a stream that never had an entry."""
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
        held=health.state(now),
        window=int(known.get("window", 0)),
        held_ms={
            name.removeprefix("held_ms:"): int(value) for name, value in known.items() if name.startswith("held_ms:")
        },
        retry_after_ms=int(known["asked_ms"]) if "asked_ms" in known else None,
    )


def _named(totals: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
