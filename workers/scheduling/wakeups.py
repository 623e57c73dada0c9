"""Ringing drains: a Celery message that says only where there is work.

Losing or doubling one is harmless. A wakeup that is under way keeps others from being sent (relay/queue/leases.py);
one that got lost is rung again after `worker.sweep` by the poller.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

INTAKE = "relay.intake"
DELIVER = "relay.deliver"
REPORT = "relay.report"
FORGET = "relay.forget"

#: Environments that one wakeup names at most.
ENVIRONMENTS_PER_WAKEUP = 100


#: A wakeup that waited this long is not answered. Celery compares the workers' clocks, so it is far above what these
#: may be off by; a wakeup that is answered late finds that there is nothing to do.
EXPIRES_SECONDS = 86_400.0

#: Wakeups for deliveries that may wait for an answer, about. Where so many do, the workers have enough to do, and
#: would
#: each sweep ring again for what waits longer than a wakeup counts as under way, there were ever more. One that is
#: not
#: rung is like one that got lost.
MOST_WAITING = 300

#: How often they are counted at most.
COUNT_SECONDS = 1.0

#: How long no wakeup is tried after one that the broker did not take, in seconds; or twice as long as that one took
#: to
#: fail, for a broker that hangs.
SILENCE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Deputy(Protocol):
    """Answers the wakeups that the broker does not take."""

    def take_in(self, wakeups: Wakeups) -> None:
        """Drain the inbox soon; return at once."""

    def deliver(self, wakeups: Wakeups, environments: Sequence[str]) -> None:
        """Drain these environments' outboxes soon; return at once."""


class Wakeups:
    """Rings through Celery; never raises, and blocks no longer than one failure of the broker.

    What the broker does not take goes to the deputy; without one it is left to the sweep.
    """

    def __init__(self, app: Celery, deputy: Deputy | None = None) -> None:
        self._app = app
        self._deputy = deputy
        self._silent_until = 0.0
        self._waiting = 0
        self._count_at = 0.0

    def wake_intake(self) -> None:
        """Call for a drain of the inbox."""
        if not self._ring(INTAKE, ()) and self._deputy:
            self._deputy.take_in(self)

    def wake_delivery(self, environments: Sequence[str]) -> None:
        """Call for drains of these environments' outboxes."""
        for start in range(0, len(environments), ENVIRONMENTS_PER_WAKEUP):
            some = environments[start : start + ENVIRONMENTS_PER_WAKEUP]
            if not self._ring(DELIVER, some) and self._deputy:
                self._deputy.deliver(self, some)

    def ring_forget(self) -> bool:
        """Call for a walk over what is remembered; return whether the broker took the call."""
        return self._ring(FORGET, ())

    def _ring(self, task: str, args: Sequence[str | int]) -> bool:
        started = time.monotonic()
        if started < self._silent_until:
            return False
        try:
            if task == DELIVER and self._count() >= MOST_WAITING:
                return True
            self._app.send_task(
                task,
                args=tuple(args),
                argsrepr=some_of(args),
                kwargsrepr="",
                retry=False,
                expires=EXPIRES_SECONDS,
                ignore_result=True,
            )
        except Exception as error:  # noqa: BLE001 - whatever the broker's library raises: it took no wakeup
            failed = time.monotonic()
            self._silent_until = failed + max(SILENCE_SECONDS, 2 * (failed - started))
            _log.warning("the broker took no wakeup for %s: %s", task, error)
            return False
        return True

    def _count(self) -> int:
        """Return how many wakeups for deliveries wait, or did a moment ago."""
        now = time.monotonic()
        if now >= self._count_at:
            with self._app.pool.acquire(block=True) as connection, connection.channel() as channel:
                try:
                    self._waiting = channel.queue_declare(DELIVER, passive=True).message_count
                except connection.channel_errors:  # there is no such queue, and in Redis there is none that is empty
                    self._waiting = 0
            self._count_at = now + COUNT_SECONDS
        return self._waiting
