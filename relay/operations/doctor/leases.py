"""Is there a lease, a wakeup or a mark left that keeps work from being done?

A lease and a wakeup expire by themselves, so one that does not was not written by the relay: a restored dump, a
PERSIST, a hand. It would keep each drain away for ever. The mark of a run does not expire: a drain that dies leaves
it, and the next one finds it within seconds; one that lies long while something waits says that no next one came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from redis.exceptions import ResponseError

from relay.operations.diagnosis import duration
from relay.operations.doctor.result import Result, fault, ok, warning
from relay.queue.redrive import LEASE_SECONDS as REDRIVE_SECONDS
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.keys import Keys
    from relay.settings import WorkerSettings

#: Outboxes that are looked at, those that are due first; and of one round trip.
MOST, PAGE = 10_000, 500

#: What the rest of a lease or wakeup may be beyond what it is given: the workers' settings may be others than ours.
SLACK_SECONDS = 600.0

#: PTTL's answers for a key that does not expire, and for one that is not there.
_NEVER, _NONE = -1, -2


class Place(NamedTuple):
    """A drain's keys, and what it is called. A redrive has no wakeup and no run."""

    name: str
    lease: str
    wakeup: str = ""
    run: str = ""


class Left(NamedTuple):
    """What lies there, in milliseconds; `waits` tells whether the drain has something to do.

    `run_idle` is since somebody touched the mark of the run, None if there is none or Redis does not tell.
    """

    place: Place
    lease_rest: int
    wakeup_rest: int = _NONE
    run_idle: int | None = None
    waits: bool = False


def examine(client: Redis, keys: Keys, worker: WorkerSettings, patience_seconds: float) -> Iterator[Result]:
    """Look at the inbox's drain, the redrive's, and those of all outboxes with something in them."""
    found = list(judge(read(client, keys), worker, patience_seconds))
    yield from found or [ok("leases", "no lease, wakeup or mark is left over")]


def read(client: Redis, keys: Keys) -> list[Left]:
    """Read what lies there; changes nothing."""
    inbox = Place("the inbox", keys.intake_lease, keys.intake_wakeup, keys.intake_run)
    result = _read(client, [inbox], waiting=bool(client.xlen(keys.inbox)))
    result += _read(client, [Place("the redrive", keys.redrive_lease)], waiting=False)
    names = cast("list[bytes]", client.zrange(keys.schedule(DEFAULT_DESTINATION), 0, MOST - 1))
    outboxes = [keys.of_outbox(DEFAULT_DESTINATION, name.decode()) for name in names]
    places = [Place(each.environment, each.lease, each.wakeup, each.run) for each in outboxes]
    for start in range(0, len(places), PAGE):
        result += _read(client, places[start : start + PAGE], waiting=True)
    return result


def _read(client: Redis, places: Sequence[Place], *, waiting: bool) -> list[Left]:
    pipeline = client.pipeline(transaction=False)
    for place in places:
        pipeline.pttl(place.lease)
        pipeline.pttl(place.wakeup or place.lease)
        pipeline.object("IDLETIME", place.run or place.lease)
    replies = iter(pipeline.execute(raise_on_error=False))
    result = []
    for place in places:
        lease, wakeup, idle = next(replies), next(replies), next(replies)
        known = None if idle is None or isinstance(idle, ResponseError) or not place.run else int(idle) * 1000
        result.append(Left(place, lease, wakeup if place.wakeup else _NONE, known, waiting))
    return result


def judge(left: Sequence[Left], worker: WorkerSettings, patience_seconds: float) -> Iterator[Result]:
    """Say what keeps work away."""
    for each in left:
        given = worker.lease if each.place.run else REDRIVE_SECONDS
        if _is_stuck(each.lease_rest, given):
            yield _stuck(f"the lease of {each.place.name}", each.lease_rest, "no drain can begin", each.place.lease)
        if _is_stuck(each.wakeup_rest, worker.sweep):
            yield _stuck(f"the wakeup of {each.place.name}", each.wakeup_rest, "nobody is called", each.place.wakeup)
        idle = each.run_idle
        if idle is not None and idle > patience_seconds * 1000 and each.lease_rest == _NONE and each.waits:
            yield warning(
                "leases",
                f"a drain of {each.place.name} died {duration(idle)} ago, or more, and no other took its place",
                "see whether workers are alive and consume; the next drain takes over by itself",
            )


def _is_stuck(rest: int, given_seconds: float) -> bool:
    return rest == _NEVER or rest > (given_seconds + SLACK_SECONDS) * 1000


def _stuck(what: str, rest: int, so: str, key: str) -> Result:
    lasts = "never expires" if rest == _NEVER else f"lasts {duration(rest)} more"
    return fault(
        "leases",
        f"{what} is left over and {lasts}: {so}",
        f"stop the workers, then redis-cli del '{key}'; find out who wrote it, as the relay's expire in seconds",
    )
