"""How the relay is: one look at all that an operator asks about, which changes nothing.

A bounded number of commands, whatever waits: a few for the shard, and one script for each few hundred environments.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import NoPermissionError, ResponseError

from relay.connections.failover import WrongServer
from relay.queue import bounded, contested, counters, dead_letters, probe
from relay.queue import health as destination
from relay.queue.clock_ahead import ClockAhead
from relay.queue.outbox import Trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from relay.queue.contested import Contested
    from relay.queue.counters import Counters, EnvironmentCounts
    from relay.queue.dead_letters import DeadLetter
    from relay.queue.health import Health
    from relay.queue.keys import Keys
    from relay.settings import QueueSettings

#: Environments with retries of which it is looked up what is retried: those behind the longest. And how many of each
#: one's retries are looked at: the last to come, for pauses grow with the attempts.
RETRYING, RETRIES = 5, 10


class Memory(NamedTuple):
    """Redis's memory in bytes; `most` is 0 without a `maxmemory`, both are 0 where the user may not ask."""

    used: int = 0
    most: int = 0

    @property
    def part(self) -> float:
        """The part of `maxmemory` that is used."""
        return self.used / self.most if self.most else 0.0


UNKNOWN = Memory()


class Retrying(NamedTuple):
    """An instance whose next event is tried again; `answers` are its attempts so far."""

    environment: str
    instance: str
    answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The relay at one moment. Times are Redis milliseconds."""

    now: int
    counters: Counters
    health: Health
    #: Entries of the inbox, and when the first of them came.
    inbox: int = 0
    inbox_oldest: int | None = None
    #: Whether a drain of the inbox is under way.
    intake_at_work: bool = False
    #: Drains of the inbox in a row that died with an entry in hand.
    inbox_deaths: int = 0
    #: Worker → its last sign of life, of those that live.
    workers: dict[str, int]
    environments: Sequence[EnvironmentCounts] = ()
    #: Of some environments the instance that was tried most often among those that wait for a retry.
    retrying: Sequence[Retrying] = ()
    #: The dead letter that died last.
    newest_dead: DeadLetter | None = None
    #: Instances that two sources change in turns.
    contested: Sequence[Contested] = ()
    memory: Memory = UNKNOWN
    #: Why this Redis takes no writes, in its words; empty where it does, and where the user may not try.
    refusal: str = ""
    #: The last event whose `time` was ahead of Redis's clock, if there was one lately, and how many there were ever.
    clock_ahead: ClockAhead | None = None
    clocks_ahead: int = 0
    max_backlog: int = 1_000_000
    memory_watermark: float = 1.0

    @property
    def paused(self) -> list[EnvironmentCounts]:
        """The environments whose deliveries an operator holds."""
        return [each for each in self.environments if each.paused_since is not None]


def read(
    client: Redis, keys: Keys, destination_name: str, queue: QueueSettings, *, oldest_of: int | None = None
) -> Overview:
    """Look at all of it; a Redis that is away raises `RedisError`. `oldest_of` is `counts.read_environments`'s."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.xlen(keys.inbox)
    pipeline.hget(keys.intake_run, "deaths")
    pipeline.exists(keys.intake_lease)
    pipeline.zrange(keys.workers, 0, -1, withscores=True)
    pipeline.get(keys.clock_ahead)
    pipeline.hget(keys.counts, "clock_ahead")
    (seconds, microseconds), inbox, deaths, lease, beats, ahead, clocks_ahead = pipeline.execute()
    first = bounded.first_id(client, keys.inbox) if inbox else None
    now = seconds * 1000 + microseconds // 1000
    environments = counters.read_environments(client, keys, destination_name, oldest_of=oldest_of)
    return Overview(
        now=now,
        counters=counters.read_counters(client, keys),
        health=destination.read(client, keys, destination_name),
        inbox=inbox,
        inbox_oldest=int(first.partition("-")[0]) if first else None,
        intake_at_work=bool(lease),
        inbox_deaths=int(deaths or 0),
        workers=_living(client, keys, {name.decode(): int(at) for name, at in beats}),
        environments=environments,
        retrying=_retrying(client, keys, destination_name, environments),
        newest_dead=dead_letters.newest_of_all(client, keys),
        contested=contested.read(client, keys, destination_name, now),
        memory=_memory(client),
        refusal=_refusal(client, keys),
        clock_ahead=ClockAhead.decode(ahead.decode()) if ahead else None,
        clocks_ahead=int(clocks_ahead or 0),
        max_backlog=queue.max_backlog,
        memory_watermark=queue.memory_watermark,
    )


def _living(client: Redis, keys: Keys, beats: dict[str, int]) -> dict[str, int]:
    """Leave out those whose heartbeat has expired."""
    names = list(beats)
    alive = client.mget([keys.worker(name) for name in names]) if names else []
    return {name: beats[name] for name, beat in zip(names, alive, strict=True) if beat is not None}


def _retrying(
    client: Redis, keys: Keys, destination_name: str, environments: Sequence[EnvironmentCounts]
) -> list[Retrying]:
    retrying = sorted((each for each in environments if each.retrying), key=lambda each: each.oldest or inf)
    some = [keys.of_outbox(destination_name, each.environment) for each in retrying[:RETRYING]]
    pipeline = client.pipeline(transaction=False)
    for outbox in some:
        pipeline.zrevrange(outbox.due, 0, RETRIES - 1)
    found = [(outbox, due) for outbox, due in zip(some, pipeline.execute(), strict=True) if due]
    for outbox, due in found:
        pipeline.hmget(outbox.attempts, due)
    return [
        max(
            (
                Retrying(outbox.environment, instance.decode(), Trials.decode(trials or b"").answers)
                for instance, trials in zip(due, each, strict=True)
            ),
            key=lambda retrying: retrying.answers,
        )
        for (outbox, due), each in zip(found, pipeline.execute(), strict=True)
    ]


def _memory(client: Redis) -> Memory:
    try:
        said = client.info("memory")
    except ResponseError:  # a user who may not ask is told nothing
        return UNKNOWN
    used = int(said.get("used_memory", 0)) - int(said.get("mem_not_counted_for_evict", 0))
    return Memory(used, int(said.get("maxmemory", 0)))


def _refusal(client: Redis, keys: Keys) -> str:
    try:
        probe.write(client, keys)
    except NoPermissionError:  # a user who only reads may ask for the role
        return "it is a replica" if _is_replica(client) else ""
    except (WrongServer, ResponseError) as error:
        return str(error)
    return ""


def _is_replica(client: Redis) -> bool:
    try:
        return bool(client.info("replication").get("role") == "slave")
    except ResponseError:
        return False
