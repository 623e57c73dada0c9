"""How soon a worker hears a broker again that was away.

Celery pauses between its tries to connect, up to half a minute after an outage of minutes, and has no setting for it:
Redis would be back, producers would report, and no bell would be answered.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.worker import consumer

#: The pauses between two tries to connect, in seconds: a connection refused costs neither side anything.
PAUSES = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2}


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery ships no types
    """Celery's, which comes back soon."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect as Celery does, with these pauses."""
        conn.ensure_connection = partial(conn.ensure_connection, **PAUSES)
        return super().ensure_connected(conn)
