"""A check that the worker receives messages: a probe that it sends to itself through the broker.

A link can go silent without closing, and then no error is raised. So the poller sends probes to a queue of this
worker alone. Celery's consumer receives each on the way that a wake-up takes, except for the pool. If the broker
accepts probes and none is received, the worker exits, so that its supervisor starts another.

The queue holds at most one probe and expires by itself, so a worker that is gone leaves nothing behind.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kombu.entity import Exchange, Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery, Task

PROBE = "relay.probe"

#: Maximum time between two probes, in seconds.
INTERVAL_SECONDS = 5.0

#: Minimum number of probes before the broker counts as silent: some may be lost with a connection.
MIN_PROBES = 4

_log = logging.getLogger(__name__)


class ProbeTimer:
    """When to send the next probe, and since when none was received. Times are monotonic seconds."""

    def __init__(self, silent_after_seconds: float) -> None:
        self.interval_seconds = min(INTERVAL_SECONDS, silent_after_seconds / MIN_PROBES)
        self._silent_after_seconds = silent_after_seconds
        self._unanswered_since: float | None = None
        self._next_at = 0.0
        #: Whether a result is known: a probe was received, or the broker refused one.
        self.is_settled = False

    def is_due(self, now: float) -> bool:
        """Return whether to send a probe now."""
        return now >= self._next_at

    def sent(self, now: float) -> None:
        """Record that the broker accepted a probe."""
        self._next_at = now + self.interval_seconds
        if self._unanswered_since is None:
            self._unanswered_since = now

    def refused(self, now: float) -> None:
        """Record that the broker refused a probe: nothing can be received, and the silence is explained."""
        self._next_at = now + MIN_PROBES * self.interval_seconds  # a broker that hangs costs a time-out each time
        self._unanswered_since = None
        self.is_settled = True

    def received(self) -> None:
        """Record that a probe was received."""
        self._unanswered_since = None
        self.is_settled = True

    def is_silent(self, now: float) -> bool:
        """Return whether the broker accepted probes and none was received for too long."""
        return self._unanswered_since is not None and now - self._unanswered_since > self._silent_after_seconds


class BrokerProbe:
    """The probe of one worker. The consumer's thread calls `received`, the poller's thread all else."""

    def __init__(self, app: Celery, worker: str) -> None:
        settings = app.relay_settings
        self._app = app
        # A worker whose processes are all busy receives no message, which may last as long as a run.
        longest_run = settings.worker.budget + settings.api.timeout
        self.silent_after_seconds = max(settings.worker.deaf_after, 2 * longest_run)
        self._timer = ProbeTimer(self.silent_after_seconds)
        # The exchange without a name needs no binding, which would remain after the worker.
        name = f"{worker}.probe"
        expires = 2 * self.silent_after_seconds
        self.queue = Queue(name, Exchange(""), name, no_ack=True, expires=expires)  # type: ignore[no-untyped-call]

    @property
    def is_settled(self) -> bool:
        """Return whether this worker received a probe, or knows that the broker refuses them."""
        return self._timer.is_settled

    def is_silent(self) -> bool:
        """Send a probe if it is time; return whether accepted probes were not received for too long."""
        now = time.monotonic()
        if self._timer.is_due(now):
            if self._send():
                self._timer.sent(now)
            else:
                self._timer.refused(time.monotonic())
        return self._timer.is_silent(now)

    def received(self) -> None:
        """Record that the consumer received a probe."""
        self._timer.received()

    def _send(self) -> bool:
        try:
            with self._app.producer_or_acquire() as producer:
                self.queue(producer.channel).purge()  # type: ignore[no-untyped-call]
                self._app.send_task(PROBE, queue=self.queue, producer=producer, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001 - each broker's library raises errors of its own
            _log.debug("the broker accepted no probe: %s", error)
            return False
        return True


def probe(_: Task) -> None:
    """Do nothing: `strategy` receives the message, and no process of the pool runs it."""


def strategy(_task: Task, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return the function that receives a probe, as Celery's `Task.Strategy` wants it."""

    def on_message(_message: Any, _body: Any, ack: Any, *_: Any, **__: Any) -> None:
        app.relay_probe.received()
        ack(_log, consumer.connection_errors)

    return on_message
