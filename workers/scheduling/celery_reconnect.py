"""Celery's consumer with two changes: it reconnects soon after an outage, and loses no message that it cannot read.

After an outage of minutes Celery pauses up to half a minute between two attempts to connect, and has no setting for
it: Redis would be back, and no wake-up would be answered.

Celery logs and drops a message that is not a task, and at some the worker exits. Here such a message becomes an
unreadable report, and so a dead letter (workers/scheduling/unreadable.py).
"""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import consumer, state

from relay.logs import LineLimit
from workers.scheduling import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

#: Pauses between two attempts to connect, in seconds. They can be short: a refused connection costs little.
PAUSES = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2}

#: Pause after a broker accepted the connection and refused its first command, in seconds: a read-only Redis does.
REFUSED_SECONDS = 1.0

#: Minimum time between two log lines about unreadable messages, in seconds.
LOG_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery ships no types
    """Celery's consumer with the two changes above."""

    _handle: Callable[[Any], Any]
    _connecting: Any = None
    _refused = LineLimit(LOG_SECONDS)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect like Celery, with these pauses."""
        self._connecting = conn
        conn.ensure_connection = partial(conn.ensure_connection, **PAUSES)
        return super().ensure_connected(conn)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Close the connections made before the error, and pause: without that, connections pile up."""
        super().on_connection_error_before_connected(exc)
        if self._connecting is not None:
            with contextlib.suppress(Exception):  # the connection has failed already
                self._connecting.collapse()
        time.sleep(REFUSED_SECONDS)

    def create_task_handler(self, **given: Any) -> Callable[[Any], Any]:
        """Return a handler of messages: Celery's own, for messages that it can handle."""
        handle = self._handle = super().create_task_handler(**given)
        tasks = self.app.tasks
        # kombu also lists KeyError, which a message can cause too.
        errors = self.connection_errors + self.channel_errors
        connection_errors = tuple(kind for kind in errors if not issubclass(KeyError, kind))

        def on_task_received(message: Any) -> Any:
            why = unreadable.fault_of(message, tasks)
            if why is not None:
                return self._refuse(message, why)
            try:
                return handle(message)
            except connection_errors:
                raise
            except Exception as error:  # noqa: BLE001 - any malformed header may raise; the worker must survive
                self._forget(message)
                return self._refuse(message, f"Celery cannot handle the message: {type(error).__name__}: {error}")

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> Any:
        """Refuse a message that kombu cannot decode, for example for an unknown compression."""
        return self._refuse(message, unreadable.fault_of(message, ()) or str(exc))

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> Any:
        """Refuse a task with a header that Celery cannot read: `eta`, `expires`."""
        return self._refuse(message, f"Celery cannot handle the message: {exc}")

    def on_unknown_message(self, _body: Any, message: Any) -> Any:
        """Refuse a message that is not a task."""
        return self._refuse(message, "the message is no task of Celery's")

    def on_unknown_task(self, _body: Any, message: Any, exc: Exception) -> Any:
        """Refuse a task that the relay does not have."""
        return self._refuse(message, f"there is no task {exc} here")

    def _refuse(self, message: Any, why: str) -> Any:
        """Report the message as unreadable."""
        if number := self._refused.add(1):
            more = f" ({number - 1} more since the last line)" if number > 1 else ""
            _log.warning("a message on the broker becomes a dead letter: %s%s", why, more)
        unreadable.replace(message, why)
        return self._handle(message)

    def _forget(self, message: Any) -> None:
        """Release what Celery reserved for a message before it failed: a place in the pool."""
        for request in [*state.reserved_requests, *state.scheduled_requests]:
            if request.message is message:
                if request in state.reserved_requests:
                    self.controller._quick_release()  # noqa: SLF001 - like Celery for a revoked task
                state.task_ready(request)
