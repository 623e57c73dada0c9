"""A delivery run: claim, send, commit, renew, release, until nothing is left, the deadline, or a failing destination.

One run serves many outboxes at once, each under its own lease, through one transport. An entry is sent only while its
outbox's lease outlasts the request and the destination's health permits it. A crash anywhere leaves the entries in
their outbox: at most those in flight or uncommitted are sent again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay import clock
from workers.delivery import crash_search
from workers.delivery.attempts import Attempts
from workers.delivery.health import DestinationHealth
from workers.delivery.outboxes import CLAIM_AGAIN_SECONDS, COMMIT_SECONDS, LeasedOutboxes, acquire
from workers.delivery.recovery import recover
from workers.delivery.report import DeliveryReport
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.delivery.outboxes import LeasedOutbox
    from workers.delivery.runtime import DeliveryRuntime

#: How long the loop sleeps when entries are ready and none is in flight; and at most, for the rate limit.
TICK_SECONDS = 0.001
LONGEST_TICK_SECONDS = 0.05


def run_delivery(runtime: DeliveryRuntime, environments: Sequence[str]) -> DeliveryReport | None:
    """Deliver these environments' outboxes; return None if other runs hold all of them.

    Outboxes whose last run died are delivered alone, by a crash search; the others are then released to another run.
    """
    started = clock.uptime()
    runtime.reload_token()
    acquired = acquire(runtime, environments)
    if not acquired:
        return None
    report = DeliveryReport([one.environment for one, _ in acquired])
    health = DestinationHealth(runtime)
    outboxes = LeasedOutboxes(runtime, health, report, acquired)
    attempts = Attempts(runtime, health, outboxes, report, acquired[0][1].dataset)
    deadline = started + runtime.settings.worker.budget
    has_died = [one for one, lease in acquired if lease.unfinished]
    try:
        if has_died:
            outboxes.release([one for one in outboxes if one not in has_died])
            runtime.wakeups.wake_delivery(report.to_deliver)
            report.to_deliver = []
            crash_search.search(runtime, health, outboxes, attempts, deadline)
        else:
            _deliver(runtime, health, outboxes, attempts, deadline)
        outboxes.release(outboxes.held)
    except RedisError as error:
        recover(error, health, outboxes, attempts)
    finally:
        runtime.transport.abandon()
    if health.stopped_by is not None:
        report.health = f"{health.stopped_by} ({health.because})" if health.because else health.stopped_by
    report.seconds = clock.uptime() - started
    return report


def _deliver(
    runtime: DeliveryRuntime, health: DestinationHealth, outboxes: LeasedOutboxes, attempts: Attempts, deadline: float
) -> None:
    settings = runtime.settings
    while outboxes.held:
        may_send = health.stopped_by is None and clock.uptime() < deadline and not is_stopping()
        if may_send:
            outboxes.claim(settings.delivery.batch_size)
            _send(runtime, health, outboxes, attempts)
        # After sending: the answers that come meanwhile are committed together with these.
        if outboxes.commit_if_worthwhile(in_flight=attempts.in_flight) and may_send:
            _send(runtime, health, outboxes, attempts)
        if may_send and not attempts.in_flight and outboxes.is_empty:
            if outboxes.wait_for_more(settings.worker.stay):
                continue
            return
        if not may_send and not attempts.in_flight:
            return
        if attempts.in_flight:
            attempts.wait(COMMIT_SECONDS if outboxes.has_uncommitted else CLAIM_AGAIN_SECONDS)
        else:  # entries wait for their linger, a renewal or the rate limit
            time.sleep(min(max(TICK_SECONDS, health.pause_seconds), LONGEST_TICK_SECONDS))
        outboxes.renew()


def _send(runtime: DeliveryRuntime, health: DestinationHealth, outboxes: LeasedOutboxes, attempts: Attempts) -> None:
    """Send as much as may be in flight, one entry of each outbox in turn."""
    room = health.room(attempts.in_flight)
    if room <= 0:
        return
    now = clock.uptime()
    delivery = runtime.settings.delivery
    ready = [one for one in outboxes if one.may_send and not _lingers(one, now, delivery.linger, delivery.batch_size)]
    if not ready:
        return
    if health.is_probing:
        runtime.random.shuffle(ready)  # the next probe must not be of the same environment each time
    admitted = health.admit(sum(one.batch.ready for one in ready), room)
    outboxes.rotate(min(admitted, len(ready)))
    oldest_allowed_ms = attempts.oldest_allowed_ms()
    turn = deque(ready)
    while admitted > 0 and turn:
        one = turn.popleft()
        now = clock.uptime()
        if not outboxes.outlasts_a_request(one, now):  # asked only now: being admitted may have taken its time
            continue
        entry = one.batch.send_next(least_tried=health.is_probing)
        if entry.enqueued_at_ms < oldest_allowed_ms:
            attempts.expire(one, entry)
        else:
            attempts.send(one, entry, now)
            admitted -= 1
        if one.batch.ready:
            turn.append(one)
    attempts.flush()


def _lingers(one: LeasedOutbox, now: float, linger: float, batch_size: int) -> bool:
    """Return whether a batch is still held open to gather more."""
    if not linger or one.batch.size >= batch_size or one.opened_at is None:
        return False
    return now - one.opened_at < linger
