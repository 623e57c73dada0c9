"""Find the entry that kills its worker: deliver outboxes whose last run died, one entry at a time over all of them.

The in-flight marker names each entry before it is sent. A worker that dies meanwhile adds to the entry's delivery
count, and an entry that reaches the limit becomes a dead letter. One at a time over all outboxes: of two in flight,
the death that one brings would count against both.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from relay import clock
from relay.errors import LeaseLost
from relay.queue import leases
from relay.queue.dead_letters import Reason
from relay.queue.outbox import DeadEntry
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from workers.delivery.attempts import Attempts
    from workers.delivery.health import DestinationHealth
    from workers.delivery.outboxes import LeasedOutbox, LeasedOutboxes
    from workers.delivery.runtime import DeliveryRuntime

#: Entries of one outbox that are claimed at once.
CLAIM_ENTRIES = 50

#: How long one wait for an answer, or for the rate limit, lasts at most.
WAIT_SECONDS = 0.05
TICK_SECONDS = 0.001


def search(
    runtime: DeliveryRuntime, health: DestinationHealth, outboxes: LeasedOutboxes, attempts: Attempts, deadline: float
) -> None:
    """Deliver until no entry is left, the deadline, or the destination lets nothing be sent."""
    while outboxes.held and health.stopped_by is None and clock.uptime() < deadline and not is_stopping():
        outboxes.claim(CLAIM_ENTRIES)
        outboxes.commit()  # superseded entries: a crash must not forget what replaced them
        if outboxes.is_empty:
            return
        one = next((each for each in outboxes if each.may_send), None)
        if one is None:
            time.sleep(TICK_SECONDS)
        else:
            outboxes.rotate(outboxes.held.index(one) + 1)
            _deliver_one(runtime, health, outboxes, attempts, one)
            outboxes.commit()
        outboxes.renew()


def _deliver_one(
    runtime: DeliveryRuntime,
    health: DestinationHealth,
    outboxes: LeasedOutboxes,
    attempts: Attempts,
    one: LeasedOutbox,
) -> None:
    """Mark the next entry of an outbox as in flight, send it, and wait for its answer."""
    entry = one.batch.send_next(least_tried=health.is_probing)
    if entry.enqueued_at_ms < attempts.oldest_allowed_ms():
        attempts.expire(one, entry)
        return
    if health.room(0) <= 0 or not health.admit(1, 1):
        one.batch.put_back(entry)
        time.sleep(min(WAIT_SECONDS, max(health.pause_seconds, TICK_SECONDS)))
        return
    keys, token = one.lease
    try:
        deliveries = leases.handle(runtime.client, keys.lease, keys.run, token, entry.entry_id)
    except LeaseLost:
        outboxes.lose(one)
        return
    if deliveries >= leases.MAX_DEATHS:
        detail = f"{deliveries} workers died when they delivered it"
        attempts.bury(one, DeadEntry(entry, Reason.WORKER_CRASH, detail))
    elif outboxes.outlasts_a_request(one, now := clock.uptime()):
        attempts.send(one, entry, now)
        while attempts.in_flight:
            attempts.wait(WAIT_SECONDS)
    else:  # Redis took too long: the lease is renewed first
        one.batch.put_back(entry)
