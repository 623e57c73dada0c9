"""Celery's consumer, which returns soon to a broker that was away and loses no message that it cannot read.

Celery pauses between its tries to connect, up to half a minute after an outage of minutes, and has no setting for it:
Redis would be back, producers would report, and no wakeup would be answered.

What Celery cannot take for a task it logs and drops, and some of it ends the worker. Such a message becomes a report
that cannot be read, and so a dead letter (workers/scheduling/unreadable.py).
"""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import consumer, state

from workers.scheduling import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

#: The pauses between two tries to connect, in seconds: a connection refused costs neither side anything.
PAUSES = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2}

#: The pause after a broker that took the connection and refused its first command, as a read-only Redis does.
REFUSED_SECONDS = 1.0

#: At most one line of the log in this time tells of messages that cannot be read.
LOG_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery ships no types
    """Celery's, with the two differences above."""

    _take: Callable[[Any], Any]
    _connecting: Any = None
    _logged_at = -LOG_SECONDS
    _unlogged = 0

    def ensure_connected(self, conn: Any) -> Any:
        """Connect as Celery does, with these pauses."""
        self._connecting = conn
        conn.ensure_connection = partial(conn.ensure_connection, **PAUSES)
        return super().ensure_connected(conn)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Close what was connected before the error, and pause: Celery does neither, and connections pile up."""
        super().on_connection_error_before_connected(exc)
        if self._connecting is not None:
            with contextlib.suppress(Exception):  # whatever a connection that failed raises once more
                self._connecting.collapse()
        time.sleep(REFUSED_SECONDS)

    def create_task_handler(self, **given: Any) -> Callable[[Any], Any]:
        """Return what takes a message: Celery's own handler, once it is certain that it can."""
        take = self._take = super().create_task_handler(**given)
        tasks = self.app.tasks
        # kombu counts KeyError among them, which a message can bring about as well.
        lost = tuple(kind for kind in self.connection_errors + self.channel_errors if not issubclass(KeyError, kind))

        def on_task_received(message: Any) -> Any:
            why = unreadable.fault_of(message, tasks)
            if why is not None:
                return self._refuse(message, why)
            try:
                return take(message)
            except lost:
                raise
            except Exception as error:  # noqa: BLE001 - a header of any shape may be at fault; the worker must live
                self._give_back(message)
                return self._refuse(message, f"Celery cannot take the message: {type(error).__name__}: {error}")

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> Any:
        """Take what kombu cannot decode, a compression that it does not know for one."""
        return self._refuse(message, unreadable.fault_of(message, ()) or str(exc))

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> Any:
        """Take a task of ours with a header that Celery cannot read: `eta`, `expires`."""
        return self._refuse(message, f"Celery cannot take the message: {exc}")

    def on_unknown_message(self, _body: Any, message: Any) -> Any:
        """Take what Celery knows for no task."""
        return self._refuse(message, "the message is no task of Celery's")

    def on_unknown_task(self, _body: Any, message: Any, exc: Exception) -> Any:
        """Take a task that is not ours."""
        return self._refuse(message, f"there is no task {exc} here")

    def _refuse(self, message: Any, why: str) -> Any:
        """Have the message reported as one that cannot be read."""
        self._log_refusal(why)
        unreadable.replace(message, why)
        return self._take(message)

    def _log_refusal(self, why: str) -> None:
        now = time.monotonic()
        if now - self._logged_at < LOG_SECONDS:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last line)" if self._unlogged else ""
        _log.warning("a message on the broker becomes a dead letter: %s%s", why, more)
        self._logged_at, self._unlogged = now, 0

    def _give_back(self, message: Any) -> None:
        """Have Celery forget what it reserved for a message before it failed: it keeps a place in the pool."""
        for request in [*state.reserved_requests, *state.scheduled_requests]:
            if request.message is message:
                if request in state.reserved_requests:
                    self.controller._quick_release()  # noqa: SLF001 - as Celery does for a task that was revoked
                state.task_ready(request)
