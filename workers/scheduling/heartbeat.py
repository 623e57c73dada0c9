"""A worker's heartbeat in Redis."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from relay.queue import epoch

if TYPE_CHECKING:
    from relay.queue.shard import Shard
    from relay.settings import Settings

#: Age at which a heartbeat expires, in seconds; its worker then counts as gone.
EXPIRES_SECONDS = 10.0

#: Minimum time between two heartbeats, in seconds.
INTERVAL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Heartbeat:
    """Writes the heartbeat of one worker, and logs a lost data set."""

    def __init__(self, settings: Settings, shard: Shard, worker: str) -> None:
        self._shard = shard
        self._worker = worker
        self._delivery = settings.delivery
        self._dataset = ""
        self._next_at = 0.0

    def beat(self) -> bool:
        """Write the heartbeat if it is time; return whether it was written. Raise `RedisError`."""
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + INTERVAL_SECONDS
        found = epoch.beat(
            self._shard.client,
            self._shard.keys,
            self._worker,
            keep_seconds=EXPIRES_SECONDS,
            known=self._dataset,
            expire_after=self._delivery.max_age,
            forget_after=self._delivery.forget_after,
        )
        if self._dataset not in {"", found}:
            _log.error(epoch.LOST)
        self._dataset = found
        return True
