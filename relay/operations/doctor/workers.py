"""Check of the workers: whether they are alive, and whether work progresses.

A heartbeat comes from a worker's poller, in its main process, but runs are in other processes. So a worker may give
heartbeats and process nothing. Reliable is the work itself. It is stuck if something has been due for longer than the
relay takes to repair the loss of any wake-up or run, no run holds a lease, and nothing moved between two readings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from relay.operations.finding import Finding, fault, ok
from relay.operations.status import duration
from relay.queue import bounded, pausing
from relay.queue.counters import Counters, read_counters
from relay.queue.health import HealthState
from relay.queue.health import read as read_health
from relay.queue.shard import Shard
from relay.queue.status import alive_workers
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from relay.queue.keys import Keys
    from relay.settings import WorkerSettings

#: Seconds between the two readings.
BETWEEN_READINGS_SECONDS = 2.0

#: Due environments whose leases are read.
MAX_DUE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkReading:
    """What waits at one moment, and whether a run processes it. Times are Redis milliseconds."""

    now: int
    #: Worker → its last heartbeat, of live workers, and of those that are gone but left an entry.
    alive: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    #: Id of the inbox's first entry.
    inbox_head: str | None = None
    #: Environment → since when it is due.
    due: dict[str, int] = field(default_factory=dict)
    #: Whether intake, or delivery of a due environment, holds a lease.
    is_running: bool = False
    #: Changes with each outcome.
    progress: tuple[int, ...] = ()

    @property
    def oldest_due(self) -> int | None:
        """Since when the oldest work is due."""
        inbox = [int(self.inbox_head.partition("-")[0])] if self.inbox_head else []
        return min([*inbox, *self.due.values()], default=None)


def repair_seconds(worker: WorkerSettings, api_timeout_seconds: float) -> float:
    """Return how long work may wait while the relay repairs a loss: a lease, a run, two sweeps."""
    return worker.lease + worker.budget + api_timeout_seconds + 2 * worker.sweep


def check_workers(
    client: Redis, keys: Keys, destination: str, repair_seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Finding]:
    """Check for live workers; if work has been due for too long, read again after a pause."""
    first = read_work(client, keys, destination)
    yield decide_presence(first)
    if not first.alive or not is_overdue(first, repair_seconds):
        return
    sleep(BETWEEN_READINGS_SECONDS)
    yield decide_work(first, read_work(client, keys, destination), repair_seconds)


def read_work(client: Redis, keys: Keys, destination: str) -> WorkReading:
    """Read what waits and what runs; changes nothing."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.zrange(keys.workers, 0, -1, withscores=True)
    pipeline.exists(keys.intake_lease)
    (seconds, microseconds), scores, intake_lease = pipeline.execute()
    now = seconds * 1000 + microseconds // 1000
    is_healthy = read_health(Shard(client=client, keys=keys), destination).state(now) is HealthState.HEALTHY
    due = _read_due(client, keys, destination, now) if is_healthy else {}
    heartbeats = {name.decode(): int(score) for name, score in scores}
    alive = alive_workers(client, keys, heartbeats)
    leases = [keys.of_outbox(destination, name).lease for name in due]
    return WorkReading(
        now=now,
        alive=alive,
        gone={name: at for name, at in heartbeats.items() if name not in alive},
        inbox_head=bounded.first_id(client, keys.inbox),
        due=due,
        is_running=bool(intake_lease) or (bool(leases) and bool(client.exists(*leases))),
        progress=_progress(read_counters(client, keys)),
    )


def _read_due(client: Redis, keys: Keys, destination: str, now: int) -> dict[str, int]:
    """Return the due environments that are not paused, and since when each is due."""
    paused = pausing.paused(client, keys, destination)
    reply = client.zrange(
        keys.schedule(destination), "-inf", now, byscore=True, offset=0, num=MAX_DUE, withscores=True
    )
    found = {name.decode(): int(score) for name, score in cast("list[tuple[bytes, float]]", reply)}
    return {name: since for name, since in found.items() if name not in paused}


def _progress(counters: Counters) -> tuple[int, ...]:
    outcomes = (counters.delivered, counters.duplicate, counters.stale, counters.superseded, counters.dead)
    return (*outcomes, counters.accepted, counters.retries)


def decide_presence(reading: WorkReading) -> Finding:
    """Return whether workers are alive."""
    if reading.alive:
        return ok("workers", f"{len(reading.alive)} alive: {some_of(sorted(reading.alive))}")
    last = max(reading.gone, key=lambda name: reading.gone[name], default=None)
    trace = f"; the last was {last}, {duration(reading.now - reading.gone[last])} ago" if last else ""
    return fault(
        "workers",
        f"no worker is alive: nothing is processed or delivered{trace}",
        "start one: `relay worker`; if one runs, check its log, and that it has the same RELAY_REDIS_URL and "
        "queue.namespace",
    )


def is_overdue(reading: WorkReading, repair_seconds: float) -> bool:
    """Return whether work has been due for longer than the relay takes to repair a loss."""
    return reading.oldest_due is not None and reading.now - reading.oldest_due > repair_seconds * 1000


def decide_work(first: WorkReading, second: WorkReading, repair_seconds: float) -> Finding:
    """Return whether work progressed between two readings, of which the first found overdue work."""
    moved = first.progress != second.progress or first.inbox_head != second.inbox_head
    if moved or first.is_running or second.is_running or not is_overdue(second, repair_seconds):
        return ok("workers.work", "the workers make progress, though some work waits long")
    since = duration(second.now - (second.oldest_due or second.now))
    place = "the inbox" if second.inbox_head else some_of(sorted(second.due))
    s = "s" if len(second.alive) == 1 else ""
    return fault(
        "workers.work",
        f"{some_of(sorted(second.alive))} give{s} heartbeats but consume{s} nothing: {place} has waited for {since}, "
        "and no run has started",
        "restart the workers; before, check their logs and whether their processes hang (`ps` shows T for stopped)",
    )
