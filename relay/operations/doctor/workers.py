"""Are there workers, and do they do anything?

A heartbeat is given by a worker's poller, in its main process; the drains run in others. So a worker may beat while
nothing is done. What tells the truth is the work: something has been due for longer than the relay takes to repair
the loss of any wakeup or drain, nobody holds a lease, and between two looks nothing moved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from relay.operations.diagnosis import duration
from relay.operations.doctor.result import Result, fault, ok
from relay.queue import bounded
from relay.queue.health import Health, HealthState
from relay.settings import DEFAULT_DESTINATION
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from relay.queue.keys import Keys
    from relay.settings import WorkerSettings

#: Seconds between the two looks.
AGAIN_SECONDS = 2.0

#: Environments that are due of which it is looked whether somebody is at them.
DUE = 500

#: Counters that move when something is done; others are of wakeups and refusals.
_WORK = ("taken", "delivered", "duplicate", "stale", "superseded", "dead", "retries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is to do at one moment, and who is at it. Times are Redis milliseconds."""

    now: int
    #: Worker → its last sign of life, of those that live; and of those that do not any more, but left theirs.
    alive: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    #: The first entry of the inbox.
    inbox_head: bytes | None = None
    #: Environment → since when it is due.
    due: dict[str, int] = field(default_factory=dict)
    #: Whether any of these has a drain.
    at_work: bool = False
    work: tuple[int, ...] = ()

    @property
    def oldest_due(self) -> int | None:
        """Since when the first work waits."""
        inbox = [int(self.inbox_head.partition(b"-")[0])] if self.inbox_head else []
        return min([*inbox, *self.due.values()], default=None)


def patience_seconds(worker: WorkerSettings, api_timeout_seconds: float) -> float:
    """Return how long work may lie while the relay repairs what was lost: a lease, a drain, two sweeps."""
    return worker.lease + worker.budget + api_timeout_seconds + 2 * worker.sweep


def examine(
    client: Redis, keys: Keys, worker: WorkerSettings, api_timeout_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Result]:  # fmt: skip
    """Look, and where something has waited too long look again."""
    first = look(client, keys)
    yield judge_presence(first)
    patience = patience_seconds(worker, api_timeout_seconds)
    if not first.alive or not is_overdue(first, patience):
        return
    sleep(AGAIN_SECONDS)
    yield judge_work(first, look(client, keys), patience)


def look(client: Redis, keys: Keys) -> Look:
    """Look once; changes nothing."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.zrange(keys.workers, 0, -1, withscores=True)
    pipeline.xlen(keys.inbox)
    pipeline.exists(keys.intake_lease)
    pipeline.hmget(keys.counts, list(_WORK))
    pipeline.hmget(keys.destination(DEFAULT_DESTINATION), ["until", "openings"])
    pipeline.hkeys(keys.paused(DEFAULT_DESTINATION))
    (seconds, microseconds), beats, inbox, intake, counts, (until, openings), paused = pipeline.execute()
    now = seconds * 1000 + microseconds // 1000
    head = bounded.first_id(client, keys.inbox) if inbox else None
    is_held = Health(until=int(until or 0), openings=int(openings or 0)).state(now) is not HealthState.HEALTHY
    due = {} if is_held else _due(client, keys, now, set(paused))
    seen = {name.decode(): int(score) for name, score in beats}
    alive = client.mget([keys.worker(name) for name in seen]) if seen else []
    living = {name for name, beat in zip(seen, alive, strict=True) if beat is not None}
    return Look(
        now=now,
        alive={name: at for name, at in seen.items() if name in living},
        gone={name: at for name, at in seen.items() if name not in living},
        inbox_head=head.encode() if head else None,
        due=due,
        at_work=bool(intake) or _anybody_at(client, keys, due),
        work=tuple(int(count or 0) for count in counts),
    )


def _due(client: Redis, keys: Keys, now: int, paused: set[bytes]) -> dict[str, int]:
    key = keys.schedule(DEFAULT_DESTINATION)
    reply = client.zrange(key, "-inf", now, byscore=True, offset=0, num=DUE, withscores=True)
    found = cast("list[tuple[bytes, float]]", reply)
    return {name.decode(): int(score) for name, score in found if name not in paused}


def _anybody_at(client: Redis, keys: Keys, due: dict[str, int]) -> bool:
    leases = [keys.of_outbox(DEFAULT_DESTINATION, name).lease for name in due]
    return bool(leases) and bool(client.exists(*leases))


def judge_presence(seen: Look) -> Result:
    """Say whether there are workers."""
    if seen.alive:
        return ok("workers", f"{len(seen.alive)} alive: {some_of(sorted(seen.alive))}")
    last = max(seen.gone, key=lambda name: seen.gone[name], default=None)
    trace = f"; the last was {last}, {duration(seen.now - seen.gone[last])} ago" if last else ""
    return fault(
        "workers",
        f"no worker is alive: nothing is taken in or delivered{trace}",
        "start one: `relay worker`; if one runs, see its log, and whether it has the same RELAY_REDIS_URL and "
        "queue.namespace",
    )


def is_overdue(seen: Look, patience_seconds: float) -> bool:
    """Tell whether something is due for longer than the relay takes to mend itself."""
    return seen.oldest_due is not None and seen.now - seen.oldest_due > patience_seconds * 1000


def judge_work(first: Look, second: Look, patience_seconds: float) -> Result:
    """Say whether anything moved between two looks, of which the first found something overdue."""
    moved = first.work != second.work or first.inbox_head != second.inbox_head
    if moved or first.at_work or second.at_work or not is_overdue(second, patience_seconds):
        return ok("workers.work", "the workers are at it, though some of it waits long")
    since = duration(second.now - (second.oldest_due or second.now))
    place = "the inbox" if second.inbox_head else some_of(sorted(second.due))
    return fault(
        "workers.work",
        f"{some_of(sorted(second.alive))} give{'s' if len(second.alive) == 1 else ''} signs of life but consume"
        f"{'s' if len(second.alive) == 1 else ''} nothing: {place} waits for {since}, and nobody is at it",
        "restart the workers; before, see their logs and whether their processes hang (`ps` shows T for stopped)",
    )
