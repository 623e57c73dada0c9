"""An inbox and the outbox of one environment for tests of scripts: filled, leased, claimed from, committed."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from rig import wait_for

from relay.queue import health, intake, leases, outbox, scripts
from relay.queue.health import Health
from relay.queue.intake import Durations, InboxLease
from relay.queue.keys import Keys, OutboxKeys
from relay.queue.outbox import (
    BEGINNING,
    Claimed,
    ClaimRequest,
    CommitRequest,
    Committed,
    DeadEntry,
    DeferredEntry,
    OutboxEntry,
    OutboxLease,
    Outcomes,
    Released,
    Superseded,
    Trials,
)
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from relay.queue.leases import Lease

KEYS = Keys()
PRODUCTION = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
SCHEDULE = KEYS.schedule(DEFAULT_DESTINATION)
DESTINATION = KEYS.destination(DEFAULT_DESTINATION)
PAUSED = KEYS.paused(DEFAULT_DESTINATION)
TOKEN = "token"
#: The longest pause of a retry, as the scripts are told it.
LONGEST_PAUSE_SECONDS = 900.0
LEASE_MS = 15_000
RECEIPT_SECONDS = 900.0
BELL_MS = 5_000
X, Y = "x", "y"

#: The counters that are beside the counters.
BESIDE = re.compile(
    r"attempt:|duration|latency_ms|clock_ahead|newest:|delivered_at|wakeup:|taken_over|refused:|skipped:|token:|seen"
)

#: Longer than any test; nothing here waits for a time to pass.
LONG_SECONDS = 600.0

#: Replies of `commit`.
RECORDED = Committed(is_recorded=True, is_paused=False)
RECORDED_AND_PAUSED = Committed(is_recorded=True, is_paused=True)
NOT_RECORDED = Committed(is_recorded=False, is_paused=False)


def now_ms(client: Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def next_millisecond(client: Redis) -> None:
    """Wait for it: a resync that is asked for in the millisecond of a delivery repeats nothing."""
    now = now_ms(client)
    wait_for(lambda: now_ms(client) > now)


def everything(client: Redis) -> dict[bytes, Any]:
    """Return all that lies in Redis."""
    return {key: client.dump(key) for key in client.scan_iter()}


def totals(client: Redis, key: str = KEYS.counts) -> dict[str, int]:
    """Return the counters's counters."""
    return {name: value for name, value in counted(client, key).items() if not BESIDE.match(name)}


def counted(client: Redis, key: str = KEYS.counts) -> dict[str, int]:
    """Return the counters's counters, and what is counted beside them for the metrics alone."""
    return {name.decode(): int(value) for name, value in client.hgetall(key).items()}


# The inbox


DURATIONS = Durations(
    lease=LEASE_MS / 1000, wakeup=BELL_MS / 1000, waiting_receipt=RECEIPT_SECONDS, receipt=RECEIPT_SECONDS
)


def inbox_lease(client: Redis, token: str = TOKEN) -> InboxLease:
    """Return what a run of intake with this token believes to hold."""
    return InboxLease(shard=Shard(client=client, keys=KEYS), token=token, durations=DURATIONS, unfinished=0)


def lease_inbox(client: Redis, token: str = TOKEN) -> InboxLease:
    client.set(KEYS.intake_lease, token, px=LEASE_MS)
    return inbox_lease(client, token)


def release_inbox(client: Redis, token: str = TOKEN) -> int:
    return intake.release(inbox_lease(client, token))


def put(client: Redis, *fields: dict[Any, Any]) -> list[str]:
    """Add entries to the inbox, one without fields of its own for each number."""
    return [client.xadd(KEYS.inbox, each or {"event": "{}"}).decode() for each in fields]


# The outbox


def fill(client: Redis, *instances: str, keys: OutboxKeys = PRODUCTION) -> list[str]:
    """Add accepted events to an outbox, their digests and ids numbered."""
    ids = []
    for number, instance in enumerate(instances):
        fields = {
            "event": f"body {number}",
            "id": f"e{number}",
            "source": "",
            "time": "",
            "digest": f"sha256:{number}",
            "instance": instance,
            "arrived": 5,
        }
        ids.append(client.xadd(keys.outbox, fields).decode())
    for key in (KEYS.counts, keys.counts):
        client.hincrby(key, "new", len(instances))
        client.hincrby(key, "outbox", len(instances))
    client.hincrby(KEYS.counts, "taken", len(instances))
    return ids


def lease_outbox(client: Redis, token: str = TOKEN) -> None:
    client.set(PRODUCTION.lease, token, px=LEASE_MS)


def acquire(client: Redis, token: str = TOKEN) -> Lease | None:
    call = leases.acquire_call(
        PRODUCTION.wakeup,
        PRODUCTION.lease,
        PRODUCTION.run,
        token,
        LEASE_MS / 1000,
        counts=KEYS.counts,
        outbox=(PRODUCTION.cursor, KEYS.dataset),
    )
    lease = leases.acquired(scripts.run(client, call))
    return lease and lease._replace(dataset="")


def claim(
    client: Redis,
    *,
    cursor: str = BEGINNING,
    wanted: int = 100,
    token: str = TOKEN,
    latest_only: bool = False,
    max_event_bytes: int = 65_536,
) -> Claimed | None:
    (claimed,) = outbox.claim(
        Shard(client=client, keys=KEYS),
        [ClaimRequest(OutboxLease(PRODUCTION, token), cursor, wanted)],
        lease_seconds=LEASE_MS / 1000,
        longest_pause_seconds=LONGEST_PAUSE_SECONDS,
        latest_only=latest_only,
        max_event_bytes=max_event_bytes,
    )
    return claimed


def claimed(client: Redis, **arguments: Any) -> Claimed:
    found = claim(client, **arguments)
    assert found is not None
    return found


def all_fresh(client: Redis) -> list[OutboxEntry]:
    """Claim fresh entries until none is left."""
    found: list[OutboxEntry] = []
    cursor: str | None = BEGINNING
    while cursor:
        more = claimed(client, cursor=cursor, wanted=outbox.CLAIM_ENTRIES)
        found += more.fresh
        cursor = more.cursor
    return found


def claimed_retries(client: Redis) -> list[OutboxEntry]:
    """Claim the retries that are due and supersede nothing."""
    retries = claimed(client).retries
    assert not any(superseded for _, superseded in retries)
    return [entry for entry, _ in retries]


def ids_of(entries: Sequence[OutboxEntry]) -> list[str]:
    return [entry.entry_id for entry in entries]


def commit(client: Redis, *, token: str = TOKEN, cursor: str = BEGINNING, **outcomes: Any) -> Committed:
    (committed,), _ = outbox.commit(
        Shard(client=client, keys=KEYS),
        [CommitRequest(OutboxLease(PRODUCTION, token), Outcomes(**outcomes), cursor)],
        now_ms=now_ms(client),
        lease_seconds=LEASE_MS / 1000,
        receipt_seconds=RECEIPT_SECONDS,
    )
    return committed


def tried_again(entry: OutboxEntry) -> OutboxEntry:
    """Return an entry with one attempt more."""
    trials = entry.trials
    more = Trials(trials.attempts + 1, trials.answers + 1, trials.first or 7, trials.forbidden, trials.successes)
    return entry._replace(trials=more)


def defer(client: Redis, entry: OutboxEntry, *blocked: OutboxEntry, seconds: float = 0.0) -> None:
    """Record a retry of an entry."""
    assert commit(client, deferred=[DeferredEntry(tried_again(entry), seconds, blocked)]) == RECORDED


def supersede(entry: OutboxEntry) -> Superseded:
    return Superseded(entry.entry_id, entry.instance, entry.deferred, entry.receipt)


def dead(entry: OutboxEntry) -> DeadEntry:
    return DeadEntry(entry, "refused", "HTTP 400: no", 400)


def release(
    client: Redis,
    *,
    cursor: str = BEGINNING,
    is_healthy: bool = True,
    unsent: Sequence[str] = (),
    token: str = TOKEN,
) -> Released:
    (released,) = outbox.release(
        Shard(client=client, keys=KEYS),
        [(OutboxLease(PRODUCTION, token), cursor, unsent)],
        wakeup_seconds=BELL_MS / 1000,
        is_healthy=is_healthy,
    )
    return released


def throttle(client: Redis, seconds: float) -> Health:
    """Have the default destination ask for a pause."""
    shard = Shard(client=client, keys=KEYS)
    return health.change(shard, DEFAULT_DESTINATION, partial(Health.throttled, seconds=seconds)).after


def read_health(client: Redis) -> Health:
    return health.read(Shard(client=client, keys=KEYS), DEFAULT_DESTINATION)
