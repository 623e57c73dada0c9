"""The claimed entries of one outbox, in the order of each instance.

Of an instance's entries one is ready or in flight; the later ones are *blocked* until its outcome is committed.
Committed, not answered: if the next one were sent before, a crash in between would repeat the older after the newer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

from relay.queue import latency
from relay.queue.outbox import (
    BEGINNING,
    COMMIT_DEAD,
    COMMIT_ENTRIES,
    Claimed,
    DeadEntry,
    DeferredEntry,
    OutboxEntry,
    Outcomes,
    Superseded,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


class Batch:
    """A window of one outbox: what may be sent, what is in flight, and the outcomes that are not committed yet."""

    def __init__(self, cursor: str, *, latest_only: bool = False) -> None:
        self.read_cursor = cursor or BEGINNING
        self.uncommitted = Outcomes()
        self.in_flight = 0
        self._ready: deque[OutboxEntry] = deque()
        #: Fresh entries, oldest first; those that were deferred before are not among them.
        self._fresh: dict[str, OutboxEntry] = {}
        #: Instance with a fresh entry that is ready, in flight or uncommitted → its later entries, in order.
        self._blocked: dict[str, deque[OutboxEntry]] = {}
        #: Instances with a claimed retry.
        self._retried: set[str] = set()
        self._latest_only = latest_only

    @property
    def size(self) -> int:
        """Entries that are claimed and not committed."""
        return len(self._fresh) + len(self._retried)

    @property
    def ready(self) -> int:
        """Entries that may be sent now."""
        return len(self._ready)

    @property
    def cursor(self) -> str:
        """Where the next run must begin: at the oldest fresh entry, if there is any."""
        return next(iter(self._fresh), self.read_cursor)

    @property
    def retried(self) -> list[str]:
        """Instances whose retry is claimed and not committed."""
        return list(self._retried)

    def add(self, claimed: Claimed) -> None:
        """Add entries. A retry that is claimed again, because it took longer than a lease, is there already."""
        for entry, superseded in claimed.retries:
            if entry.instance not in self._retried:
                self._retried.add(entry.instance)
                self._ready.append(entry)
                self.uncommitted.superseded.extend(superseded)
        for entry in claimed.fresh:
            self._fresh[entry.entry_id] = entry
            if entry.instance in self._blocked:
                self._block(entry)
            else:
                self._blocked[entry.instance] = deque()
                self._ready.append(entry)
        if claimed.cursor is not None:
            self.read_cursor = claimed.cursor

    def send_next(self, *, least_tried: bool = False) -> OutboxEntry:
        """Return the entry to send now; it counts as in flight until its outcome is noted.

        With `least_tried` it is the one with the fewest answers: an entry that failed before is no good probe.
        """
        self.in_flight += 1
        if least_tried:
            entry = min(self._ready, key=lambda ready: ready.trials.answers)
            self._ready.remove(entry)
        else:
            entry = self._ready.popleft()
        return self._latest(entry) if self._latest_only and not entry.deferred else entry

    def put_back(self, entry: OutboxEntry) -> None:
        """Take back an entry that was not sent after all: it is the next."""
        self.in_flight -= 1
        self._ready.appendleft(entry)

    def deliver(self, entry: OutboxEntry, latency_ms: float) -> None:
        """Note a delivery, and how long after its event was enqueued."""
        self.in_flight -= 1
        outcomes = self.uncommitted
        outcomes.delivered.append(entry)
        bucket = latency.bucket(latency_ms)
        outcomes.latency[bucket] = outcomes.latency.get(bucket, 0) + 1
        outcomes.latency_ms += max(0.0, latency_ms)

    def bury(self, dead: DeadEntry) -> None:
        """Note a dead letter."""
        self.in_flight -= 1
        self.uncommitted.dead.append(dead)

    def defer(self, entry: OutboxEntry, pause_seconds: float) -> None:
        """Note a retry; its instance's later entries stay blocked."""
        self.in_flight -= 1
        self.uncommitted.deferred.append(DeferredEntry(entry, pause_seconds))

    def begin_commit(self) -> Outcomes:
        """Return the outcomes to commit now, at most as many as one commit records; the others are the next.

        `cursor` then no longer counts their entries. The entries that a deferred one blocks by now are deferred with
        it. All superseded entries are among the first: the ones that replaced them may not be committed before.
        """
        outcomes, rest = self.uncommitted, Outcomes()
        outcomes.delivered, rest.delivered = _split(outcomes.delivered, COMMIT_ENTRIES)
        outcomes.deferred, rest.deferred = _split(outcomes.deferred, COMMIT_ENTRIES)
        outcomes.dead, rest.dead = _split(outcomes.dead, COMMIT_DEAD)
        self.uncommitted = rest
        outcomes.deferred = [
            deferred._replace(blocked=tuple(self._blocked.get(deferred.entry.instance, ())))
            for deferred in outcomes.deferred
        ]
        for entry_id in outcomes.entry_ids():
            self._fresh.pop(entry_id, None)
        return outcomes

    def committed(self, outcomes: Outcomes) -> None:
        """Unblock the next entry of each instance that is done; forget the deferred ones."""
        self._unblock(outcomes.delivered)
        self._unblock(dead.entry for dead in outcomes.dead)
        for deferred in outcomes.deferred:
            self._retried.discard(deferred.entry.instance)
            self._blocked.pop(deferred.entry.instance, None)

    def _unblock(self, done: Iterable[OutboxEntry]) -> None:
        for entry in done:
            if entry.deferred:
                self._retried.discard(entry.instance)
                continue
            blocked = self._blocked[entry.instance]
            if blocked:
                self._ready.append(blocked.popleft())
            else:
                del self._blocked[entry.instance]

    def _block(self, entry: OutboxEntry) -> None:
        blocked = self._blocked[entry.instance]
        if self._latest_only and blocked:
            self._supersede(blocked.pop())
        blocked.append(entry)

    def _latest(self, entry: OutboxEntry) -> OutboxEntry:
        """Return the entry that replaces an unsent one: the one that it blocks, if there is any."""
        blocked = self._blocked[entry.instance]
        if not blocked:
            return entry
        self._supersede(entry)
        return blocked.popleft()

    def _supersede(self, entry: OutboxEntry) -> None:
        self.uncommitted.superseded.append(
            Superseded(entry.entry_id, entry.instance, deferred=False, receipt=entry.receipt)
        )


def _split(values: list[T], number: int) -> tuple[list[T], list[T]]:
    return values[:number], values[number:]
