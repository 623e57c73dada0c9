"""The status of a shard: one reading of all that an operator asks about. Changes nothing.

The number of commands is bounded: a few for the shard, and one script for each few hundred environments.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import NoPermissionError, ResponseError

from relay.connections.failover import WrongServer
from relay.queue import bounded, contested, counters, dead_letters, probe
from relay.queue.clock_ahead import ClockAhead
from relay.queue.health import read as read_health
from relay.queue.metrics_snapshot import read_snapshot
from relay.queue.outbox import Trials
from relay.queue.redis_server import UNKNOWN
from relay.queue.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from relay.queue.contested import Contested
    from relay.queue.counters import Counters, EnvironmentCounts
    from relay.queue.dead_letters import DeadLetter
    from relay.queue.health import Health
    from relay.queue.keys import Keys
    from relay.queue.metrics_snapshot import Waiting
    from relay.queue.redis_server import RedisServer
    from relay.settings import QueueSettings

#: Environments with retries whose retries are read: those that are late the longest.
MAX_RETRYING = 5

#: Retries that are read of each: the latest due, because the pause grows with the attempts.
MAX_RETRIES = 10


class Retrying(NamedTuple):
    """An instance whose first event waits for its retry, and that event's attempts so far."""

    environment: str
    instance: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A shard and one destination at one moment. Times are Redis milliseconds."""

    destination: str
    now: int
    counters: Counters
    health: Health
    #: Entries of the inbox, and when the first of them was enqueued.
    inbox: int = 0
    inbox_oldest: int | None = None
    is_intake_running: bool = False
    #: How often in a row an intake run died with an entry in hand.
    inbox_delivery_count: int = 0
    #: Live workers → their last heartbeat.
    workers: Mapping[str, int]
    environments: Sequence[EnvironmentCounts] = ()
    #: For some environments, the instance with the most attempts among those that wait for a retry.
    retrying: Sequence[Retrying] = ()
    #: The newest dead letter.
    newest_dead: DeadLetter | None = None
    #: Instances that two sources change in turns.
    contested: Sequence[Contested] = ()
    server: RedisServer = UNKNOWN
    #: The error with which this Redis refuses writes; empty if it accepts them, or the user may not try.
    write_error: str = ""
    #: The last event in 24 h whose `time` was ahead of Redis's clock, and the number of all such events.
    clock_ahead: ClockAhead | None = None
    clocks_ahead: int = 0
    max_backlog: int = 1_000_000
    memory_watermark: float = 1.0

    @property
    def paused(self) -> list[EnvironmentCounts]:
        """Environments whose deliveries an operator paused."""
        return [each for each in self.environments if each.paused_since is not None]


def read_status(
    client: Redis, keys: Keys, destination: str, queue: QueueSettings, *, oldest_of: int | None = None
) -> Status:
    """Read the status. Raise `RedisError` if Redis is not reachable.

    `oldest_of` limits for how many environments the age of the oldest event is read (`counters.read_environments`).
    """
    snapshot = read_snapshot(client, keys, destination, environments=0, config=False)
    pipeline = client.pipeline(transaction=False)
    pipeline.hget(keys.intake_run, "deaths")
    pipeline.exists(keys.intake_lease)
    pipeline.get(keys.clock_ahead)
    delivery_count, lease, ahead = pipeline.execute()
    environments = counters.read_environments(client, keys, destination, oldest_of=oldest_of)
    return Status(
        destination=destination,
        now=snapshot.now,
        counters=snapshot.counters,
        health=read_health(Shard(client=client, keys=keys), destination),
        inbox=snapshot.inbox.events,
        inbox_oldest=_first_enqueued_at(client, keys, snapshot.inbox),
        is_intake_running=bool(lease),
        inbox_delivery_count=int(delivery_count or 0),
        workers=alive_workers(client, keys, snapshot.workers),
        environments=environments,
        retrying=_read_retrying(client, keys, destination, environments),
        newest_dead=dead_letters.find_newest(client, keys),
        contested=contested.read(client, keys, destination, snapshot.now),
        server=snapshot.server,
        write_error=_write_error(client, keys, snapshot.server),
        clock_ahead=ClockAhead.decode(ahead.decode()) if ahead else None,
        clocks_ahead=snapshot.clocks_ahead,
        max_backlog=queue.max_backlog,
        memory_watermark=queue.memory_watermark,
    )


def _first_enqueued_at(client: Redis, keys: Keys, inbox: Waiting) -> int | None:
    """Return when the inbox's first entry was added, also if it is so large that the snapshot does not read it."""
    if inbox.oldest is not None or not inbox.events:
        return inbox.oldest
    first = bounded.first_id(client, keys.inbox)
    return int(first.partition("-")[0]) if first else None


def alive_workers(client: Redis, keys: Keys, heartbeats: Mapping[str, int]) -> dict[str, int]:
    """Return the heartbeats of those workers whose heartbeat has not expired."""
    names = list(heartbeats)
    beats = client.mget([keys.worker(name) for name in names]) if names else []
    return {name: heartbeats[name] for name, beat in zip(names, beats, strict=True) if beat is not None}


def _read_retrying(
    client: Redis, keys: Keys, destination: str, environments: Sequence[EnvironmentCounts]
) -> list[Retrying]:
    latest = sorted((each for each in environments if each.retrying), key=lambda each: each.oldest or inf)
    outboxes = [keys.of_outbox(destination, each.environment) for each in latest[:MAX_RETRYING]]
    pipeline = client.pipeline(transaction=False)
    for outbox in outboxes:
        pipeline.zrevrange(outbox.due, 0, MAX_RETRIES - 1)
    found = [(outbox, instances) for outbox, instances in zip(outboxes, pipeline.execute(), strict=True) if instances]
    for outbox, instances in found:
        pipeline.hmget(outbox.attempts, instances)
    return [
        max(
            (
                Retrying(outbox.environment, instance.decode(), Trials.decode(trials or b"").answers)
                for instance, trials in zip(instances, each, strict=True)
            ),
            key=lambda retrying: retrying.attempts,
        )
        for (outbox, instances), each in zip(found, pipeline.execute(), strict=True)
    ]


def _write_error(client: Redis, keys: Keys, server: RedisServer) -> str:
    try:
        probe.write(client, keys)
    except NoPermissionError:  # the role tells a user who may only read
        return "it is a replica" if server.role == "slave" else ""
    except (WrongServer, ResponseError) as error:
        return str(error)
    return ""
