"""`relay report --wait`: polls receipts until the events' outcomes are known."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import typer

from relay.errors import QueueFull, QueueUnavailable
from relay.queue.receipts import BY_ID, Status
from relay.queue.receipts import WAITING as _WAITS

if TYPE_CHECKING:
    from relay.producer.base import BaseProducer
    from relay.queue.receipts import Receipt

#: Maximum pending events: at that point no more are sent until some have ended.
WINDOW = 1_000

#: Interval of the polls, in seconds: the first, and the longest.
POLL_SECONDS = (0.02, 0.5)

#: Minimum time for a poll, in seconds, when the time-out is nearly over.
SHORTEST_POLL_SECONDS = 1.0

#: Outcomes that are no `Status`: of an event that has not ended in time, and of one without a receipt.
WAITING, UNKNOWN = "still waiting", "unknown"

MEANINGS = {
    Status.DELIVERED: "delivered",
    Status.DUPLICATE: "duplicate: the relay knew this already, there was nothing to deliver",
    Status.STALE: "stale: something newer was reported meanwhile, this was not delivered",
    Status.SUPERSEDED: "superseded: something newer was reported meanwhile, this was not delivered",
    WAITING: "still waiting at the time-out; the relay goes on delivering it",
    UNKNOWN: "no receipt: the event is in a spool, ended long ago, or the queue was flushed",
}


def meaning(outcome: str, receipt: Receipt | None) -> str:
    """Return an outcome as a sentence for the user, with the receipt's details."""
    if outcome == Status.SUPERSEDED and receipt and receipt.reason == BY_ID:
        return (
            f"superseded: this id was reported before, and {receipt.detail} was accepted since, so this was not "
            "delivered; to deploy it again, report it with another --id"
        )
    if outcome == Status.DUPLICATE and receipt and receipt.reason:
        known = "which is not delivered yet" if receipt.detail == _WAITS else "which was delivered"
        return f"duplicate: a duplicate of {receipt.reason}, {known}; there was nothing more to deliver"
    return MEANINGS[outcome]


class PendingReceipts:
    """Events whose outcome is waited for, and counts of the outcomes that are known."""

    def __init__(self, producer: BaseProducer, timeout_seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        #: Why the last poll failed; "" if it did not.
        self.unreachable = ""
        #: Receipt of the event that ended last.
        self.last: Receipt | None = None
        self._producer = producer
        self._timeout_seconds = timeout_seconds
        self._has_timed_out = False
        #: Labels of the reports, by the event's id.
        self._labels: dict[str, list[str]] = {}

    def add(self, event_id: str, label: str = "") -> None:
        """Wait for this event too; the label precedes the message about a dead letter."""
        if self._has_timed_out:
            self.counts[WAITING] += 1
        else:
            self._labels.setdefault(event_id, []).append(label)

    @property
    def are_full(self) -> bool:
        """Whether `WINDOW` events are pending."""
        return len(self._labels) >= WINDOW

    def wait(self, at_most: int = 0) -> None:
        """Poll until at most that many events are pending; after the time-out, wait for no event any more."""
        give_up_at = time.monotonic() + self._timeout_seconds
        pause, longest = POLL_SECONDS
        while len(self._labels) > at_most:
            self._poll(max(give_up_at - time.monotonic(), SHORTEST_POLL_SECONDS))
            left = give_up_at - time.monotonic()
            if len(self._labels) <= at_most:
                return
            if left <= 0:
                self.counts[WAITING] += sum(map(len, self._labels.values()))
                self._labels.clear()
                self._has_timed_out = True
                return
            time.sleep(min(pause, left))
            pause = min(longest, pause * 1.5)

    def _poll(self, within_seconds: float) -> None:
        ids = list(self._labels)
        try:
            for event_id, receipt in zip(
                ids, self._producer.receipts(ids, within_seconds=within_seconds), strict=True
            ):
                if receipt is None or receipt.is_final:
                    self._end(event_id, receipt)
        except (QueueFull, QueueUnavailable) as error:  # may pass before the time-out
            self.unreachable = str(error)
        else:
            self.unreachable = ""

    def _end(self, event_id: str, receipt: Receipt | None) -> None:
        labels = self._labels.pop(event_id)
        self.counts[UNKNOWN if receipt is None else receipt.status] += len(labels)
        self.last = receipt
        if receipt is not None and receipt.status is Status.DEAD:
            for label in labels:
                typer.echo(f"{label}dead: {': '.join(filter(None, (receipt.reason, receipt.detail)))}", err=True)
