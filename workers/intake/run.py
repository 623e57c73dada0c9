"""A run of intake: read a batch of the inbox, decide on its events, commit the decisions; again until it is empty.

The lease decides which run may do this. The outcome of each entry is recorded by one script, together with its
removal from the inbox, so a run that dies leaves its entries there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.errors import LeaseLost
from relay.logs import LineLimit, get_logger
from relay.queue import clock_ahead, inbox, intake
from relay.queue.dead_letters import Reason
from relay.queue.leases import MAX_DEATHS
from relay.queue.shard import Shard
from workers.intake.decide import Decided, Rules, decide_in_order
from workers.intake.deduplication import Clock
from workers.intake.read import Parsed, Rejected, parse_all, too_large, without_forged_fields
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from relay.queue.clock_ahead import ClockAhead
    from relay.queue.inbox import InboxEntry
    from relay.queue.intake import InboxLease
    from workers.runtime import Runtime

#: Bytes of a batch that intake aims at, entries that it reads at first, and by how much more at most the next time.
BATCH_BYTES = 8_388_608
FIRST_COUNT = 50
COUNT_GROWTH = 4

#: The pause between two tries to release the inbox while Redis is away.
RELEASE_PAUSE_SECONDS = 0.1

_log = get_logger(__name__)
_ahead_lines = LineLimit()


@dataclass(slots=True)
class IntakeReport:
    """What one run of intake did. `to_deliver` are environments whose outboxes need a run of delivery."""

    taken: int = 0
    more: bool = False
    lease_lost: bool = False
    to_deliver: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.taken} taken{', more wait' if self.more else ''}{', lease lost' if self.lease_lost else ''}"


def run_intake(runtime: Runtime) -> IntakeReport | None:
    """Take in events until the inbox is empty or the time budget is used up; None if another run holds the inbox.

    While more events wait, wake-ups are sent for the environments of the batch before. Those of the last batch are
    left to the caller, which can deliver them at once.
    """
    settings = runtime.settings
    shard = Shard(client=runtime.client, keys=runtime.keys)
    durations = intake.Durations(
        lease=settings.worker.lease,
        wakeup=settings.worker.sweep,
        waiting_receipt=settings.delivery.max_age,
        receipt=settings.queue.receipt_for,
    )
    lease = intake.acquire(shard, durations)
    if lease is None:
        return None
    report = IntakeReport()
    try:
        if lease.unfinished:
            _run_one_at_a_time(runtime, lease, report)
        else:
            _run_in_batches(runtime, lease, report)
    except LeaseLost:
        report.lease_lost = True
        return report
    except RedisError as error:
        _log.warning("Redis failed a run of intake, which now only releases the inbox: %s", error)
    report.more = _release(lease)
    return report


def _run_in_batches(runtime: Runtime, lease: InboxLease, report: IntakeReport) -> None:
    settings, shard = runtime.settings, lease.shard
    count = min(FIRST_COUNT, settings.intake.batch_size)
    most_bytes = inbox.most_bytes(settings.queue.max_event_bytes)
    deadline = time.monotonic() + settings.worker.budget
    while time.monotonic() < deadline and not is_stopping():
        entries = inbox.head(shard.client, shard.keys, count, most_bytes=most_bytes)
        if not entries:
            if report.to_deliver or not inbox.wait(shard.client, shard.keys, "0-0", settings.worker.stay):
                return
            continue
        if entries[0].oversize:
            report.taken += _dead_letter(lease, [too_large(entries[0], settings.queue.max_event_bytes)])
            continue
        count = next_count(entries, count, settings.intake.batch_size)
        runtime.wakeups.wake_delivery(report.to_deliver)
        taken, report.to_deliver = take_in(runtime, lease, entries)
        report.taken += taken


def _run_one_at_a_time(runtime: Runtime, lease: InboxLease, report: IntakeReport) -> None:
    """Take in one entry at a time, after a run died, and dead-letter the one that runs die of.

    Each entry is noted before it is parsed, so that the next run knows which one this run died with.
    """
    settings, shard = runtime.settings, lease.shard
    most_bytes = inbox.most_bytes(settings.queue.max_event_bytes)
    deadline = time.monotonic() + settings.worker.budget
    while time.monotonic() < deadline and not is_stopping():
        entries = inbox.head(shard.client, shard.keys, 1, most_bytes=most_bytes, is_careful=True)
        if not entries:
            if report.to_deliver or not inbox.wait(shard.client, shard.keys, "0-0", settings.worker.stay):
                return
            continue
        entry = entries[0]
        if entry.oversize:
            report.taken += _dead_letter(lease, [too_large(entry, settings.queue.max_event_bytes)])
            continue
        runtime.wakeups.wake_delivery(report.to_deliver)
        deaths = intake.mark_in_flight(lease, entry.entry_id)
        if deaths >= MAX_DEATHS:
            (entry,) = without_forged_fields(shard, entries)
            detail = f"{deaths} workers died when they took it in"
            report.taken += _dead_letter(lease, [Rejected(entry, detail, Reason.WORKER_CRASH)])
            report.to_deliver = []
            continue
        taken, report.to_deliver = take_in(runtime, lease, entries)
        report.taken += taken


def next_count(entries: list[InboxEntry], count: int, most: int) -> int:
    """Return how many entries to read next, so that a batch stays near `BATCH_BYTES` whatever producers add."""
    size = sum(entry.size for entry in entries)
    fitting = max(1, BATCH_BYTES * len(entries) // max(1, size))
    return min(most, fitting, count * COUNT_GROWTH)


def take_in(runtime: Runtime, lease: InboxLease, entries: list[InboxEntry]) -> tuple[int, list[str]]:
    """Take in one batch; return how many entries left the inbox, and the environments that need a wake-up."""
    shard, settings = lease.shard, runtime.settings
    entries = without_forged_fields(shard, entries)
    parsed, rejected = parse_all(entries, runtime.defaults, settings.queue.max_event_bytes)
    decided = _decide(runtime, shard, parsed)
    taken = _dead_letter(lease, rejected) if rejected else 0
    committed = intake.commit(
        lease, settings.destination, {environment: each.instances for environment, each in decided.items()}
    )
    _note(runtime, shard, decided)
    if _log.isEnabledFor(logging.DEBUG):
        _log_decisions(decided, {event.entry_id: event.event_id for event in parsed})
    return taken + committed.entries, committed.to_deliver


def _decide(runtime: Runtime, shard: Shard, parsed: list[Parsed]) -> dict[str, Decided]:
    """Read the states of the events' instances, and decide on each environment's events in order."""
    if not parsed:
        return {}
    by_environment: dict[str, list[Parsed]] = {}
    for event in parsed:
        by_environment.setdefault(event.environment, []).append(event)
    names = {
        environment: list(dict.fromkeys(event.instance for event in events))
        for environment, events in by_environment.items()
    }
    now, states = intake.read_states(shard, runtime.settings.destination, names)
    delivery = runtime.settings.delivery
    rules = Rules(
        Clock(now, delivery.max_clock_skew * 1000), delivery.reassert_after * 1000, delivery.forget_after * 1000
    )
    return {
        environment: decide_in_order(events, states[environment], rules)
        for environment, events in by_environment.items()
    }


def _dead_letter(lease: InboxLease, rejected: list[Rejected]) -> int:
    """Make dead letters of entries; return how many left the inbox."""
    taken = intake.dead_letter(lease, [(each.entry, each.reason, each.detail) for each in rejected])
    for each in rejected:
        _log.debug("taken in", event_id=each.entry.entry_id, decision=each.reason, because=each.detail)
    return taken


def _note(runtime: Runtime, shard: Shard, decided: dict[str, Decided]) -> None:
    """Note what the decisions show of sources: instances that two of them change in turns, and clocks ahead.

    Both are only displayed, so a Redis that refuses them, such as at maxmemory, must not stop intake.
    """
    changes = [change for each in decided.values() for change in each.changes]
    if changes:
        with contextlib.suppress(RedisError):
            runtime.changes.note(shard.client, shard.keys, runtime.settings.destination, changes)
    ahead = [each for found in decided.values() for each in found.ahead]
    if ahead:
        with contextlib.suppress(RedisError):
            worst = max(ahead, key=lambda each: each.ahead_ms)
            clock_ahead.note(shard.client, shard.keys, len(ahead), worst)
        _log_ahead(ahead)


def _log_ahead(ahead: list[ClockAhead]) -> None:
    latest = max(ahead, key=lambda each: each.ahead_ms)
    if number := _ahead_lines.add(len(ahead)):
        _log.warning(
            "the time of %d events was ahead of Redis's clock by more than delivery.max_clock_skew, and counts as "
            "that of their arrival; correct the clock of the source",
            number,
            source=latest.source,
            environment=latest.environment,
            ahead_seconds=latest.ahead_ms // 1000,
        )


def _log_decisions(decided: dict[str, Decided], event_ids: dict[str, str]) -> None:
    for each in decided.values():
        for instance in each.instances:
            for entry in instance.entries:
                _log.debug("taken in", event_id=event_ids[entry.entry_id], decision=entry.decision)


def _release(lease: InboxLease) -> bool:
    """Release the inbox; return whether more waits. While Redis is away, try for as long as a lease lasts.

    Otherwise the inbox would wait for its lease to expire once Redis is back.
    """
    give_up_at = time.monotonic() + lease.durations.lease
    while True:
        try:
            return intake.release(lease) > 0
        except RedisError:
            if time.monotonic() > give_up_at or is_stopping():
                raise
            time.sleep(RELEASE_PAUSE_SECONDS)
