"""Check of leases, wake-up marks and in-flight markers that keep work from being done.

Leases and wake-up marks expire. One that does not was not written by the relay, but by a restored dump, PERSIST or a
person, and would block every run for ever. An in-flight marker does not expire: a run that dies leaves it, and the
next run finds it within seconds. An old marker beside waiting work shows that no next run started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from redis.exceptions import ResponseError

from relay.operations.finding import Finding, fault, ok, warning
from relay.operations.status import duration
from relay.queue.redrive import LEASE_SECONDS as REDRIVE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.keys import Keys
    from relay.settings import WorkerSettings

#: Outboxes that are checked, those scheduled first.
MAX_OUTBOXES = 10_000

#: Outboxes of one round trip.
PAGE = 500

#: Tolerated beyond a lease's or wake-up mark's own time-to-live: the workers' settings may differ from these.
SLACK_SECONDS = 600.0

#: PTTL's replies for a key that does not expire, and for a missing key.
_NEVER, _NONE = -1, -2


class RunKeys(NamedTuple):
    """The keys of one kind of run. A redrive has no wake-up mark and no in-flight marker."""

    name: str
    lease: str
    wakeup: str = ""
    marker: str = ""


class RunReading(NamedTuple):
    """Remaining times in milliseconds, and whether work waits.

    `marker_idle` is the time since the marker was last touched, None if there is none or Redis does not report it.
    """

    run: RunKeys
    lease_rest: int
    wakeup_rest: int = _NONE
    marker_idle: int | None = None
    is_work_waiting: bool = False


def check_leases(
    client: Redis, keys: Keys, destination: str, worker: WorkerSettings, repair_seconds: float
) -> Iterator[Finding]:
    """Check the keys of intake, of redriving, and of all outboxes with waiting events."""
    findings = list(decide_leases(read_runs(client, keys, destination), worker, repair_seconds))
    yield from findings or [ok("leases", "no lease, wake-up mark or in-flight marker is left over")]


def read_runs(client: Redis, keys: Keys, destination: str) -> list[RunReading]:
    """Read the keys; changes nothing."""
    intake = RunKeys("the inbox", keys.intake_lease, keys.intake_wakeup, keys.intake_run)
    result = _read(client, [intake], is_work_waiting=bool(client.xlen(keys.inbox)))
    result += _read(client, [RunKeys("the redrive", keys.redrive_lease)], is_work_waiting=False)
    names = cast("list[bytes]", client.zrange(keys.schedule(destination), 0, MAX_OUTBOXES - 1))
    outboxes = [keys.of_outbox(destination, name.decode()) for name in names]
    runs = [RunKeys(each.environment, each.lease, each.wakeup, each.run) for each in outboxes]
    for start in range(0, len(runs), PAGE):
        result += _read(client, runs[start : start + PAGE], is_work_waiting=True)
    return result


def _read(client: Redis, runs: Sequence[RunKeys], *, is_work_waiting: bool) -> list[RunReading]:
    pipeline = client.pipeline(transaction=False)
    for run in runs:
        pipeline.pttl(run.lease)
        pipeline.pttl(run.wakeup or run.lease)
        pipeline.object("IDLETIME", run.marker or run.lease)
    replies = iter(pipeline.execute(raise_on_error=False))
    result = []
    for run in runs:
        lease, wakeup, idle = next(replies), next(replies), next(replies)
        known = None if idle is None or isinstance(idle, ResponseError) or not run.marker else int(idle) * 1000
        result.append(RunReading(run, lease, wakeup if run.wakeup else _NONE, known, is_work_waiting))
    return result


def decide_leases(readings: Sequence[RunReading], worker: WorkerSettings, repair_seconds: float) -> Iterator[Finding]:
    """Yield what keeps work from being done; `repair_seconds` is `workers.repair_seconds`."""
    for each in readings:
        name = each.run.name
        time_to_live = worker.lease if each.run.marker else REDRIVE_SECONDS
        if _is_left_over(each.lease_rest, time_to_live):
            yield _left_over(f"the lease of {name}", each.lease_rest, "no run can start", each.run.lease)
        if _is_left_over(each.wakeup_rest, worker.sweep):
            yield _left_over(f"the wake-up mark of {name}", each.wakeup_rest, "no wake-up is sent", each.run.wakeup)
        idle = each.marker_idle
        is_old = idle is not None and idle > repair_seconds * 1000
        if idle is not None and is_old and each.lease_rest == _NONE and each.is_work_waiting:
            yield warning(
                "leases",
                f"a run of {name} died {duration(idle)} ago or earlier, and no other run has started since",
                "check that workers are alive and consume; the next run takes over automatically",
            )


def _is_left_over(rest: int, time_to_live: float) -> bool:
    return rest == _NEVER or rest > (time_to_live + SLACK_SECONDS) * 1000


def _left_over(what: str, rest: int, consequence: str, key: str) -> Finding:
    lasts = "never expires" if rest == _NEVER else f"lasts {duration(rest)} more"
    return fault(
        "leases",
        f"{what} is left over and {lasts}: {consequence}",
        f"stop the workers, then redis-cli del '{key}'; find out what wrote it: the relay's expire in seconds",
    )
