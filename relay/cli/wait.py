"""What became of what was reported? Waits until it is known, for a bounded number of events at a time."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import typer

from relay.errors import QueueFull, QueueUnavailable
from relay.queue.receipts import BY_ID, Status
from relay.queue.receipts import WAITING as _WAITS

if TYPE_CHECKING:
    from relay.cli.backends import Way
    from relay.queue.receipts import Receipt

#: Events that are waited for at once. When as many are on their way, no more are sent until some have arrived.
WINDOW = 1_000

#: How often to look, in seconds: at first, and at most.
LOOK_SECONDS = (0.02, 0.5)

#: How long a look may take at least, however little time is left.
SHORTEST_LOOK_SECONDS = 1.0

#: What is counted of those whose end is not known.
WAITING, UNKNOWN = "still waiting", "unknown"

#: What a fate means to who reported.
MEANINGS = {
    Status.DELIVERED: "delivered",
    Status.DUPLICATE: "duplicate: the relay knew this already, there was nothing to deliver",
    Status.STALE: "stale: something newer was reported meanwhile, this was not delivered",
    Status.SUPERSEDED: "superseded: something newer was reported meanwhile, this was not delivered",
    WAITING: "still waiting when the time was over; the relay goes on",
    UNKNOWN: "there is no receipt: the event waits in a spool, ended long ago, or the queue was flushed",
}


def meaning(outcome: str, receipt: Receipt | None) -> str:
    """Return what an outcome means to who reported, as exactly as the receipt has it."""
    if outcome == Status.SUPERSEDED and receipt and receipt.reason == BY_ID:
        return (
            f"superseded: this id was reported before, and {receipt.detail} was accepted since, so this was not "
            "delivered; to deploy it again, report it with another --id"
        )
    if outcome == Status.DUPLICATE and receipt and receipt.reason:
        known = "which is not delivered yet" if receipt.detail == _WAITS else "which was delivered"
        return f"duplicate: a duplicate of {receipt.reason}, {known}; there was nothing more to deliver"
    return MEANINGS[outcome]


class Fates:
    """The events that are waited for, and what became of those whose end is known."""

    def __init__(self, way: Way, timeout_seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        #: Why the last look failed; "" if it did not.
        self.unreachable = ""
        self._way = way
        self._timeout_seconds = timeout_seconds
        #: The receipt of the event whose end was known last.
        self.last: Receipt | None = None
        self._is_over = False
        self._pending: dict[str, list[str]] = {}

    def follow(self, event_id: str, label: str = "") -> None:
        """Wait for this event too, from the next `wait` on; a label names it should it die."""
        if self._is_over:
            self.counts[WAITING] += 1
        else:
            self._pending.setdefault(event_id, []).append(label)

    @property
    def are_many(self) -> bool:
        """Whether as many are on their way as may be."""
        return len(self._pending) >= WINDOW

    def wait(self, at_most: int = 0) -> None:
        """Wait until no more than that many are on their way, or the time is over; then for no more of them."""
        give_up_at = time.monotonic() + self._timeout_seconds
        pause, longest = LOOK_SECONDS
        while len(self._pending) > at_most:
            self._look(max(give_up_at - time.monotonic(), SHORTEST_LOOK_SECONDS))
            left = give_up_at - time.monotonic()
            if len(self._pending) <= at_most:
                break
            if left <= 0:
                self._give_up()
                break
            time.sleep(min(pause, left))
            pause = min(longest, pause * 1.5)

    def _look(self, within_seconds: float) -> None:
        ids = list(self._pending)
        try:
            for event_id, receipt in zip(ids, self._way.receipts(ids, within_seconds=within_seconds), strict=True):
                if receipt is None or receipt.is_final:
                    self._end(event_id, receipt)
        except (QueueFull, QueueUnavailable) as error:  # it may come back while there is time
            self.unreachable = str(error)
        else:
            self.unreachable = ""

    def _end(self, event_id: str, receipt: Receipt | None) -> None:
        labels = self._pending.pop(event_id)
        self.counts[UNKNOWN if receipt is None else receipt.status] += len(labels)
        self.last = receipt
        if receipt is not None and receipt.status is Status.DEAD:
            for label in labels:
                typer.echo(f"{label}dead: {': '.join(filter(None, (receipt.reason, receipt.detail)))}", err=True)

    def _give_up(self) -> None:
        self.counts[WAITING] += sum(map(len, self._pending.values()))
        self._pending.clear()
        self._is_over = True
