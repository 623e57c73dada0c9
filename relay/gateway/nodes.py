"""Cache of the node map that a cluster's watcher publishes (relay/queue/nodes.py), for admission reviews.

A review costs no round trip for it: the first review starts a task that checks for a new version every
`REFRESH_SECONDS`. While Redis is unavailable, the last map stays in use.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError, RedisError

from relay.queue.nodes import NodeMap, read_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from relay.events.platform import Platform
    from relay.queue.keys import Keys

#: Maximum age of the map.
REFRESH_SECONDS = 3.0

#: How long the first reviews wait for the first reply.
FIRST_SECONDS = 0.05

_log = logging.getLogger("relay.gateway")


class NodePlatforms:
    """The published platforms of one cluster's nodes."""

    def __init__(self, client: Redis, keys: Keys, cluster: str) -> None:
        self._client = client
        self._keys = keys
        self._cluster = cluster
        self._map = NodeMap()
        self._has_reply = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        #: Whether a wait for the first reply timed out: later reviews do not wait.
        self._is_late = False
        self._is_closed = False

    async def close(self) -> None:
        """Stop the task, and end the waits for it."""
        self._is_closed = True
        self._has_reply.set()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def wait(self, seconds: float | None = None) -> bool:
        """Return whether Redis has replied, with a map or without one; wait for the first reply up to `seconds`.

        The default is `FIRST_SECONDS`, or no wait once one of these has timed out.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        if not self._has_reply.is_set() and (seconds is not None or not self._is_late):
            try:
                async with asyncio.timeout(FIRST_SECONDS if seconds is None else seconds):
                    await self._has_reply.wait()
            except TimeoutError:
                self._is_late = True
        return self._has_reply.is_set() and not self._is_closed

    @property
    def known(self) -> Mapping[str, Platform] | None:
        """The platforms by node as last read, None if no map is current."""
        return self._map.platforms if self._map.is_alive else None

    async def _refresh(self) -> None:
        while True:
            try:
                self._map = await read_nodes(self._client, self._keys, self._cluster, self._map)
                self._has_reply.set()
            except NoPermissionError:  # a user of an older ACL file: treated as no map
                if not self._has_reply.is_set():
                    _log.warning(
                        "the platforms of the cluster's nodes may not be read, so those of pods are guessed: "
                        "give the gateway's Redis user the rights in docs/redis-acl.md"
                    )
                self._has_reply.set()
            except (RedisError, OSError, TimeoutError):
                pass  # the last map stays in use
            await asyncio.sleep(REFRESH_SECONDS)
