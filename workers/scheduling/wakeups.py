"""Wake-ups sent through Celery: messages that say where there is work and carry no event.

A lost or duplicated wake-up is harmless. While one is under way no other is sent for the same run
(relay/queue/leases.py). The poller repeats a lost one after `worker.sweep`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery import Celery

INTAKE = "relay.intake"
DELIVER = "relay.deliver"
REPORT = "relay.report"
FORGET = "relay.forget"

#: Maximum environments that one wake-up names.
ENVIRONMENTS_PER_WAKEUP = 100

#: Age at which a wake-up expires, in seconds. Celery compares the workers' clocks, so this is far above any clock
#: skew; a wake-up that is answered late finds nothing to do.
EXPIRES_SECONDS = 86_400.0

#: Approximate maximum of delivery wake-ups on the broker. At that point the workers are saturated. Each sweep repeats
#: wake-ups that wait for long, so without a bound the queue would grow with every sweep.
MAX_QUEUED = 300

#: Minimum time between two counts of the queued wake-ups, in seconds.
COUNT_SECONDS = 1.0

#: Pause after the broker refused a wake-up, in seconds; twice as long as the failure took if that is more, for a
#: broker that hangs.
REFUSED_SECONDS = 1.0

_log = logging.getLogger(__name__)


def messages_of(environments: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the environments in parts that one wake-up can name."""
    for start in range(0, len(environments), ENVIRONMENTS_PER_WAKEUP):
        yield environments[start : start + ENVIRONMENTS_PER_WAKEUP]


class CeleryWakeups:
    """Sends wake-ups through Celery. Never raises, and blocks no longer than one failure of the broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._pause_until = 0.0
        self._queued = 0
        self._count_at = 0.0

    def wake_intake(self) -> None:
        """Ask for a run of intake; the sweep repeats a wake-up that the broker refuses."""
        self.send(INTAKE)

    def wake_delivery(self, environments: Sequence[str]) -> None:
        """Ask for runs of delivery; the sweep repeats a wake-up that the broker refuses."""
        for some in messages_of(environments):
            self.send(DELIVER, some)

    def send(self, task: str, environments: Sequence[str] = ()) -> bool:
        """Send one wake-up; return whether the broker accepted it. One that is surplus there counts as accepted."""
        started = time.monotonic()
        if started < self._pause_until:
            return False
        try:
            if task == DELIVER and self._count_queued() >= MAX_QUEUED:
                return True
            self._app.send_task(
                task,
                args=tuple(environments),
                argsrepr=some_of(environments),
                kwargsrepr="",
                retry=False,
                expires=EXPIRES_SECONDS,
                ignore_result=True,
            )
        except Exception as error:  # noqa: BLE001 - each broker's library raises errors of its own
            failed = time.monotonic()
            self._pause_until = failed + max(REFUSED_SECONDS, 2 * (failed - started))
            _log.warning("the broker accepted no wake-up for %s: %s", task, error)
            return False
        return True

    def _count_queued(self) -> int:
        """Return how many delivery wake-ups are queued, counted at most `COUNT_SECONDS` ago."""
        now = time.monotonic()
        if now >= self._count_at:
            with self._app.pool.acquire(block=True) as connection, connection.channel() as channel:
                try:
                    self._queued = channel.queue_declare(DELIVER, passive=True).message_count
                except connection.channel_errors:  # there is no such queue: an empty list does not exist in Redis
                    self._queued = 0
            self._count_at = now + COUNT_SECONDS
        return self._queued
