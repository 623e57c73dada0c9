"""Whether the worker hears the broker: a message to itself, all the way that a wakeup goes but for the pool.

A link can go silent without closing, and then no error tells. So the poller sends echoes to a queue of this worker
alone, and Celery's consumer, which must be alive to do so, notes each that it hears. Where the broker takes our
messages and none is heard, the worker cannot be helped from inside: it leaves, so that its supervisor starts another.

The queue holds one echo at most, and expires by itself: a worker that is gone leaves nothing behind.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kombu.entity import Exchange, Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery, Task

ECHO = "relay.echo"

#: The longest between two echoes, in seconds, and how many there are at least until a worker counts as deaf: some may
#: be lost with the connection that they came by.
INTERVAL_SECONDS = 5.0
ECHOES = 4

_log = logging.getLogger(__name__)


class Hearing:
    """When to send the next echo, and since when none was heard. Times are monotonic seconds."""

    def __init__(self, deaf_after_seconds: float) -> None:
        self.interval_seconds = min(INTERVAL_SECONDS, deaf_after_seconds / ECHOES)
        self._deaf_after_seconds = deaf_after_seconds
        self._unheard_since: float | None = None
        self._next_at = 0.0
        #: Whether anything is known yet: an echo was heard, or the broker took none.
        self.is_settled = False

    def is_due(self, now: float) -> bool:
        """Tell whether to send one now."""
        return now >= self._next_at

    def sent(self, now: float) -> None:
        """Note that the broker took one."""
        self._next_at = now + self.interval_seconds
        if self._unheard_since is None:
            self._unheard_since = now

    def failed(self, now: float) -> None:
        """Note that the broker took none: then nothing can be told of our hearing."""
        self._next_at = now + ECHOES * self.interval_seconds  # a broker that hangs costs the poller a time-out each
        self._unheard_since = None
        self.is_settled = True

    def heard(self) -> None:
        """Note that one was heard."""
        self._unheard_since = None
        self.is_settled = True

    def is_deaf(self, now: float) -> bool:
        """Tell whether what the broker took was not heard for too long."""
        return self._unheard_since is not None and now - self._unheard_since > self._deaf_after_seconds


class Echo:
    """One worker's echo. `heard` is called by the consumer's thread, all else by the poller's."""

    def __init__(self, app: Celery, worker: str) -> None:
        settings = app.relay_settings
        self._app = app
        # A worker whose processes are all at work takes no message, and that may take as long as a drain.
        longest_drain = settings.worker.budget + settings.api.timeout
        self.deaf_after_seconds = max(settings.worker.deaf_after, 2 * longest_drain)
        self._hearing = Hearing(self.deaf_after_seconds)
        # The exchange without a name needs no binding, which would be left behind.
        name = f"{worker}.echo"
        expires = 2 * self.deaf_after_seconds
        self.queue = Queue(name, Exchange(""), name, no_ack=True, expires=expires)  # type: ignore[no-untyped-call]

    @property
    def is_settled(self) -> bool:
        """Tell whether this worker has heard an echo, or knows that the broker takes none."""
        return self._hearing.is_settled

    def is_deaf(self) -> bool:
        """Send an echo if it is time, and tell whether none was heard for too long."""
        now = time.monotonic()
        if self._hearing.is_due(now):
            if self._send():
                self._hearing.sent(now)
            else:
                self._hearing.failed(time.monotonic())
        return self._hearing.is_deaf(now)

    def heard(self) -> None:
        """Note that the consumer got one."""
        self._hearing.heard()

    def _send(self) -> bool:
        try:
            with self._app.producer_or_acquire() as producer:
                self.queue(producer.channel).purge()  # type: ignore[no-untyped-call]
                self._app.send_task(ECHO, queue=self.queue, producer=producer, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001 - whatever the broker's library raises: it is away
            _log.debug("the broker took no echo: %s", error)
            return False
        return True


def echo(_: Task) -> None:
    """Do nothing: what counts is that `hear` is called with the message, and then no pool is."""


def hear(_task: Task, app: Celery, consumer: Any) -> Callable[..., None]:
    """Return what the consumer does with an echo, as Celery's `Task.Strategy` wants it."""

    def on_message(_message: Any, _body: Any, ack: Any, *_: Any, **__: Any) -> None:
        app.relay_echo.heard()
        ack(_log, consumer.connection_errors)

    return on_message
