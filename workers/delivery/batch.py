"""What may be sent next of what a drain has in hand of one outbox?

The rule is order for each instance: of its entries one is in flight, the others wait *behind* it until what
became of it is committed. Committed, not answered: were the next one sent before, a crash in between would
repeat the older after the newer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.queue import latency
from relay.queue.outbox import BEGINNING, Death, OutboxEntry, Parking, Settlement, Superseded, Taken

if TYPE_CHECKING:
    from relay.queue.keys import OutboxKeys


class Batch:
    """A window of one outbox. Touches nothing; the drain carries out what it says, and notes its times here."""

    def __init__(self, keys: OutboxKeys, token: str, cursor: str, *, latest_only: bool = False) -> None:
        #: When the lease was last renewed, when the outbox was last found to have no more, and when the batch got
        #: its first entry: by relay/clock.py. Another drain has it once `lost`.
        self.renewed_at = 0.0
        self.found_empty_at = 0.0
        self.opened_at: float | None = None
        self.lost = False
        #: Nothing is sent of a paused environment. One entry at a time after a drain died at this outbox.
        self.paused = False
        self.one_at_a_time = False
        self.keys = keys
        self.token = token
        self.read_cursor = cursor or BEGINNING
        self.settlement = Settlement()
        self.in_flight = 0
        self._ready: deque[OutboxEntry] = deque()
        #: Fresh entries in hand, oldest first; what is deferred already is not among them.
        self._fresh: dict[str, OutboxEntry] = {}
        #: Instance whose fresh entry is in hand → its later entries, in order.
        self._behind: dict[str, deque[OutboxEntry]] = {}
        self._due: set[str] = set()
        self._latest_only = latest_only

    @property
    def in_hand(self) -> int:
        """Entries taken and not settled."""
        return len(self._fresh) + len(self._due)

    @property
    def is_ready(self) -> bool:
        """Tell whether there is something to send.

        One at a time, what became of the last must be settled: the next may kill this process.
        """
        must_wait = self.paused or (self.one_at_a_time and (self.in_flight or self.settlement))
        return bool(self._ready) and not must_wait

    @property
    def ready(self) -> int:
        """How many entries may be sent now, were there room for all."""
        if not self.is_ready:
            return 0
        return 1 if self.one_at_a_time else len(self._ready)

    @property
    def cursor(self) -> str:
        """Where another drain must begin reading: at the oldest fresh entry in hand, if there is any."""
        return next(iter(self._fresh), self.read_cursor)

    @property
    def due_in_hand(self) -> list[str]:
        """Instances whose retry was taken and is not settled."""
        return list(self._due)

    def add(self, taken: Taken) -> None:
        """Take entries in hand. One that was due for longer than a lease is given again, and is in hand already."""
        for entry, superseded in taken.due:
            if entry.instance not in self._due:
                self._due.add(entry.instance)
                self._ready.append(entry)
                earlier = (Superseded(entry_id, entry.instance, deferred=True) for entry_id in superseded)
                self.settlement.superseded.extend(earlier)
        for entry in taken.fresh:
            self._fresh[entry.entry_id] = entry
            if entry.instance in self._behind:
                self._put_behind(entry)
            else:
                self._behind[entry.instance] = deque()
                self._ready.append(entry)
        if taken.cursor is not None:
            self.read_cursor = taken.cursor

    def send_next(self, *, least_tried: bool = False) -> OutboxEntry:
        """Return the entry to send now, which then counts as in flight.

        With `least_tried` it is one that was tried least: what failed before is no good probe of the destination.
        """
        self.in_flight += 1
        if least_tried:
            entry = min(self._ready, key=lambda ready: ready.trials.answers)
            self._ready.remove(entry)
        else:
            entry = self._ready.popleft()
        return self._latest(entry) if self._latest_only and not entry.deferred else entry

    def put_back(self, entry: OutboxEntry) -> None:
        """Take back an entry that was to be sent and was not: it is the next."""
        self.in_flight -= 1
        self._ready.appendleft(entry)

    def count_attempt(self, outcome: str, code: str, seconds: float) -> None:
        """Note an answer, to be counted with what became of its entry."""
        self.settlement.attempts.note(outcome, code, seconds)

    def deliver(self, entry: OutboxEntry, milliseconds: float) -> None:
        """Note a delivery and its latency, to be settled."""
        settlement = self.settlement
        settlement.delivered.append(entry)
        number = latency.bucket(milliseconds)
        settlement.latency[number] = settlement.latency.get(number, 0) + 1
        settlement.latency_ms += max(0.0, milliseconds)

    def bury(self, death: Death) -> None:
        """Note a dead letter, to be settled."""
        self.settlement.dead.append(death)

    def defer(self, entry: OutboxEntry, pause_seconds: float) -> None:
        """Note a retry, to be settled; its instance's later entries stay behind it."""
        self.settlement.deferred.append(Parking(entry, pause_seconds, ()))

    def begin_settling(self) -> Settlement:
        """Return what is to be committed now; `cursor` then no longer counts it.

        What is behind an entry to be deferred by now is deferred with it.
        """
        settlement, self.settlement = self.settlement, Settlement()
        settlement.deferred = [self._with_followers(parking) for parking in settlement.deferred]
        for entry_id in settlement.entry_ids():
            self._fresh.pop(entry_id, None)
        return settlement

    def settled(self, settlement: Settlement) -> None:
        """Let what waits behind the committed entries go; what was deferred is no longer in hand."""
        for entry in settlement.done():
            if entry.deferred:
                self._due.discard(entry.instance)
                continue
            behind = self._behind[entry.instance]
            if behind:
                self._ready.append(behind.popleft())
            else:
                del self._behind[entry.instance]
        for parking in settlement.deferred:
            self._due.discard(parking.entry.instance)
            self._behind.pop(parking.entry.instance, None)

    def _put_behind(self, entry: OutboxEntry) -> None:
        behind = self._behind[entry.instance]
        if self._latest_only and behind:
            self._supersede(behind.pop())
        behind.append(entry)

    def _latest(self, head: OutboxEntry) -> OutboxEntry:
        """Return what replaces an entry that was not sent yet: the one behind it, if there is one."""
        behind = self._behind[head.instance]
        if not behind:
            return head
        self._supersede(head)
        return behind.popleft()

    def _supersede(self, entry: OutboxEntry) -> None:
        self.settlement.superseded.append(Superseded(entry.entry_id, entry.instance, deferred=False))

    def _with_followers(self, parking: Parking) -> Parking:
        return replace(parking, followers=tuple(self._behind.get(parking.entry.instance, ())))
