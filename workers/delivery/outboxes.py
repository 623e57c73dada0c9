"""The outboxes of one run: their leases, their claimed entries, and what the run asks Redis about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay import clock
from relay.logs import get_logger
from relay.queue import epoch, leases, outbox, scripts
from relay.queue.health import Health
from relay.queue.outbox import ClaimRequest, CommitRequest, OutboxLease, Outcomes
from relay.queue.schedule import longest_pause_seconds
from workers.delivery.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relay.queue.leases import Lease
    from workers.delivery.health import DestinationHealth
    from workers.delivery.report import DeliveryReport
    from workers.delivery.runtime import DeliveryRuntime

#: Claimed entries of all outboxes together, in full batches: with many outboxes each gets a smaller part.
WINDOW_BATCHES = 8

#: An outbox that had no more entries is asked again after this long, while other work goes on.
CLAIM_AGAIN_SECONDS = 0.025

#: Outcomes are committed when there are so many, or the oldest has waited so long, or nothing is in flight. A crash
#: repeats the uncommitted ones.
COMMIT_ENTRIES = 250
COMMIT_SECONDS = 0.025

_log = get_logger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class LeasedOutbox:
    """One outbox under a lease; times are by relay/clock.py.

    `claimed_empty_at` is when the last claim found fewer entries than wanted, `opened_at` when the batch got its
    first.
    """

    lease: OutboxLease
    batch: Batch
    renewed_at: float
    claimed_empty_at: float = 0.0
    opened_at: float | None = None
    is_paused: bool = False
    is_lost: bool = False

    @property
    def environment(self) -> str:
        """The outbox's environment."""
        return self.lease.keys.environment

    @property
    def may_send(self) -> bool:
        """Whether an entry is ready and the environment not paused."""
        return self.batch.ready > 0 and not self.is_paused


def acquire(runtime: DeliveryRuntime, environments: Sequence[str]) -> list[tuple[LeasedOutbox, Lease]]:
    """Acquire the leases that no other run holds, in one round trip."""
    worker, delivery = runtime.settings.worker, runtime.settings.delivery
    asked_at = clock.uptime()
    wanted = [
        OutboxLease(runtime.keys.of_outbox(runtime.settings.destination, name), leases.new_token())
        for name in dict.fromkeys(environments)
    ]
    calls = [
        leases.acquire_call(
            keys.wakeup,
            keys.lease,
            keys.run,
            token,
            worker.lease,
            counts=runtime.keys.counts,
            outbox=(keys.cursor, runtime.keys.dataset),
            gap_ms=epoch.longest_gap_ms(delivery.max_age),
        )
        for keys, token in wanted
    ]
    acquired = []
    for asked, reply in zip(wanted, scripts.run_all(runtime.client, calls), strict=True):
        lease = leases.acquired(reply)
        if lease is not None:
            batch = Batch(lease.cursor, latest_only=delivery.history == "latest")
            acquired.append((LeasedOutbox(lease=asked, batch=batch, renewed_at=asked_at), lease))
    return acquired


class LeasedOutboxes:
    """The outboxes that a run still holds. Claims, commits, renews and releases many in a round trip."""

    def __init__(
        self,
        runtime: DeliveryRuntime,
        health: DestinationHealth,
        report: DeliveryReport,
        acquired: Sequence[tuple[LeasedOutbox, Lease]],
    ) -> None:
        self.held = [one for one, _ in acquired]
        #: The ages of events count from here on, in Redis milliseconds: its clock was stepped then.
        self.steady_since = max(lease.steady_since for _, lease in acquired)
        self._shard = runtime.shard
        self._settings = runtime.settings
        self._health = health
        self._report = report
        worker = runtime.settings.worker
        #: So often that a lease outlasts the next request, however little longer it is than one.
        self._renew_seconds = min(worker.lease / 4, (worker.lease - runtime.settings.api.timeout) / 2)
        #: How long after its renewal a lease still outlasts a request.
        self._spare_seconds = worker.lease - runtime.settings.api.timeout
        self._clock_offset_ms: float | None = None
        self._uncommitted_since: float | None = None
        #: Commits whose reply is not known, with the cursor of the run that comes after them and after nothing later.
        self._committing: list[tuple[LeasedOutbox, Outcomes, str]] = []

    def __iter__(self) -> Iterator[LeasedOutbox]:
        return iter(self.held)

    @property
    def now_ms(self) -> float:
        """The time by Redis's clock: behind it by a reply's way, and never ahead."""
        return clock.uptime() * 1000 + (self._clock_offset_ms or 0.0)

    @property
    def is_empty(self) -> bool:
        """Whether no entry is claimed and uncommitted."""
        return all(not one.batch.size for one in self.held)

    @property
    def has_uncommitted(self) -> bool:
        """Whether any outcome waits for a commit."""
        return self._uncommitted_since is not None

    def outlasts_a_request(self, one: LeasedOutbox, now: float) -> bool:
        """Return whether an outbox's lease certainly lasts until a request sent now has ended."""
        return now - one.renewed_at <= self._spare_seconds

    def claim(self, limit: int) -> None:
        """Fill the batches that have room, except those whose last claim found no more a moment ago."""
        now = clock.uptime()
        limit = max(1, min(limit, WINDOW_BATCHES * limit // max(1, len(self.held))))
        self._claim(
            [
                (one, limit - one.batch.size)
                for one in self.held
                if one.batch.size <= limit // 2 and now - one.claimed_empty_at >= CLAIM_AGAIN_SECONDS
            ]
        )

    def renew(self) -> None:
        """Renew the leases that no claim or commit renewed in time."""
        now = clock.uptime()
        self._claim([(one, 0) for one in self.held if now - one.renewed_at > self._renew_seconds])

    def _claim(self, wanted: Sequence[tuple[LeasedOutbox, int]]) -> None:
        if not wanted:
            return
        asked_at = clock.uptime()
        delivery = self._settings.delivery
        claims = outbox.claim(
            self._shard,
            [ClaimRequest(one.lease, one.batch.read_cursor, number) for one, number in wanted],
            lease_seconds=self._settings.worker.lease,
            longest_pause_seconds=longest_pause_seconds(delivery.backoff_max, self._settings.worker.lease),
            latest_only=delivery.history == "latest",
            max_event_bytes=self._settings.queue.max_event_bytes,
        )
        for (one, number), claimed in zip(wanted, claims, strict=True):
            if claimed is None:
                self.lose(one)
                continue
            one.batch.add(claimed)
            one.is_paused = claimed.is_paused
            one.renewed_at = asked_at
            if number:
                one.claimed_empty_at = 0.0 if claimed.has_more else asked_at
            if one.batch.size and one.opened_at is None:
                one.opened_at = asked_at
            if one.batch.uncommitted:  # superseded entries need no answer
                self.note_outcomes(asked_at)
            self._note_clock(claimed.now_ms)
            self._health.learn(claimed.health, claimed.now_ms)
        self._release_paused()

    def _note_clock(self, now_ms: int) -> None:
        """Note Redis's time. If its clock was stepped, the leases are renewed before anything more is sent.

        They expire by that clock: after a step ahead another run may have acquired them.
        """
        offset_ms = now_ms - clock.uptime() * 1000
        before, self._clock_offset_ms = self._clock_offset_ms, offset_ms
        stepped_ms = 0.0 if before is None else offset_ms - before
        if abs(stepped_ms) <= self._renew_seconds * 1000:
            return
        _log.warning(
            "Redis's clock was stepped by %+.0f s; leases are renewed before more is sent", stepped_ms / 1000
        )
        for one in self.held:
            one.renewed_at = -math.inf
        if abs(stepped_ms) > epoch.longest_gap_ms(self._settings.delivery.max_age):
            self.steady_since = now_ms

    def note_outcomes(self, now: float) -> None:
        """Note that outcomes wait for a commit."""
        if self._uncommitted_since is None:
            self._uncommitted_since = now

    def commit_if_worthwhile(self, *, in_flight: int) -> bool:
        """Commit outcomes, unless more will come soon; return whether they were committed."""
        if self._uncommitted_since is None:
            return False
        number = sum(len(one.batch.uncommitted.delivered) for one in self.held)
        waited = clock.uptime() - self._uncommitted_since
        if in_flight and number < COMMIT_ENTRIES and waited < COMMIT_SECONDS:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """Commit all outcomes, in as many steps as the bounds of one commit need."""
        self._commit()
        while any(one.batch.uncommitted for one in self.held):
            self._commit()
        self._uncommitted_since = None
        self._release_paused()

    def _commit(self) -> None:
        """Commit outcomes of each outbox. Those whose reply a lost connection swallowed are committed again."""
        asked_at = clock.uptime()
        self._committing += [
            (one, one.batch.begin_commit(), one.batch.cursor) for one in self.held if one.batch.uncommitted
        ]
        observation = self._health.report_call()
        if not self._committing:
            if observation:
                self._health.learn(Health.decode(scripts.run(self._shard.client, observation)), self.now_ms)
            return
        replies, observed = outbox.commit(
            self._shard,
            [CommitRequest(one.lease, outcomes, cursor) for one, outcomes, cursor in self._committing],
            now_ms=round(self.now_ms),
            lease_seconds=self._settings.worker.lease,
            receipt_seconds=self._settings.queue.receipt_for,
            also=observation,
        )
        committing, self._committing = self._committing, []
        if observation:
            self._health.learn(Health.decode(observed), self.now_ms)
        for (one, outcomes, _), committed in zip(committing, replies, strict=True):
            if committed.is_recorded:
                one.batch.committed(outcomes)
                one.renewed_at = asked_at
                one.is_paused = committed.is_paused
            else:
                self.lose(one)

    def wait_for_more(self, seconds: float) -> bool:
        """Wait a moment for new entries before the release; return whether any came."""
        if not seconds or not self.held:
            return False
        for one in self.held:
            one.claimed_empty_at = 0.0
            one.opened_at = None
        return outbox.wait(
            self._shard.client, {one.lease.keys.outbox: one.batch.read_cursor for one in self.held}, seconds
        )

    def lose(self, one: LeasedOutbox) -> None:
        """Forget an outbox that another run has acquired."""
        if one in self.held:
            self.held.remove(one)
            one.is_lost = True
            self._report.leases_lost += 1

    def rotate(self, number: int) -> None:
        """Move the first outboxes to the end: the others send first the next time."""
        self.held = self.held[number:] + self.held[:number]

    def _release_paused(self) -> None:
        """Release the outboxes of paused environments that have nothing in flight or uncommitted any more."""
        paused = [one for one in self.held if one.is_paused and not one.batch.in_flight and not one.batch.uncommitted]
        if paused:
            self.release(paused)

    def release(self, released: Sequence[LeasedOutbox]) -> None:
        """Release outboxes; note those that need another run now."""
        replies = outbox.release(
            self._shard,
            [(one.lease, one.batch.cursor, one.batch.retried) for one in released],
            wakeup_seconds=self._settings.worker.sweep,
            is_healthy=self._health.stopped_by is None,
        )
        for one, reply in zip(released, replies, strict=True):
            if reply.has_more:
                self._report.to_deliver.append(one.environment)
        self.held = [one for one in self.held if one not in released]
