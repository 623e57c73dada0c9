"""Scrapes: read a snapshot from Redis and return its metrics."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.metrics.exposition import Limits, exposition
from relay.queue.keys import Keys
from relay.queue.metrics_snapshot import read_snapshot

if TYPE_CHECKING:
    from relay.settings import Settings

#: Time-out of one request to Redis; with one retry, within the 10 s that Prometheus waits for a scrape.
REDIS_SECONDS = 3.0

log = logging.getLogger("relay.metrics")


class Exporter:
    """The exporter of a process. Thread-safe: scrapes wait for each other, so Redis is read once at a time."""

    def __init__(self, settings: Settings) -> None:
        redis = settings.redis.model_copy(update={"timeout": min(settings.redis.timeout, REDIS_SECONDS)})
        self._client = connect(redis, retries=1)
        self._keys = Keys(settings.queue.namespace)
        self._destination = settings.destination
        self._environments = settings.metrics.environments
        self._limits = Limits(settings.queue.max_backlog, settings.delivery.max_in_flight)
        self._lock = threading.Lock()

    def scrape(self) -> bytes:
        """Return all metrics in Prometheus's text format; `relay_up 0` if Redis does not answer, as exporters do."""
        with self._lock:
            started = time.monotonic()
            snapshot = None
            try:
                snapshot = read_snapshot(self._client, self._keys, self._destination, environments=self._environments)
            except RedisError as error:
                log.warning("Redis did not answer a scrape: %s", error)
            return exposition(snapshot, limits=self._limits, seconds=time.monotonic() - started)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
