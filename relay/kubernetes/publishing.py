"""Publication of the nodes' platforms for the webhook, at each change and once a minute."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.queue import nodes
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.events.platform import Platform
    from relay.settings import Settings

#: Minimum time between two attempts, also while nodes join or Redis is unavailable.
PAUSE_SECONDS = 5.0

log = logging.getLogger("relay.watch")


class NodePublisher:
    """Writes the node map of one cluster. Failures are logged; reports do not depend on it."""

    def __init__(self, settings: Settings) -> None:
        self._client = connect(settings.redis, retries=0)
        self._keys = Keys(settings.queue.namespace)
        self._settings = settings.kubernetes
        self._published: dict[str, Platform] | None = None
        #: The last attempt, by the monotonic clock.
        self._tried_at = float("-inf")
        self._is_failing = False

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def publish(self, platforms: Mapping[str, Platform], *, at_once: bool = False) -> None:
        """Write the map if it changed or must be refreshed, at most every `PAUSE_SECONDS` unless `at_once`."""
        since = time.monotonic() - self._tried_at
        is_due = since >= nodes.REFRESH_SECONDS or (since >= PAUSE_SECONDS and platforms != self._published)
        if not is_due and not at_once:
            return
        self._tried_at = time.monotonic()
        if len(platforms) > nodes.MAX_NODES:
            self._fail(f"{len(platforms):,} nodes are more than the {nodes.MAX_NODES:,} of a map")
            return
        try:
            nodes.publish(self._client, self._keys, self._settings.cluster_name, platforms)
        except RedisError as error:
            self._fail(f"Redis did not take them ({type(error).__name__})")
        else:
            self._published = dict(platforms)
            self._is_failing = False

    def _fail(self, why: str) -> None:
        self._published = None
        if not self._is_failing:  # one line until it succeeds
            log.warning(
                "the nodes' platforms are not published for the webhook: %s; "
                "for nodes other than linux/amd64 it may report wrong ones (watcher's user: docs/redis-acl.md)",
                why,
            )
        self._is_failing = True
