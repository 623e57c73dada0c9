"""The node map that a cluster's watcher publishes (relay/queue/nodes.py), kept at hand for reviews.

No review costs a round trip for it: the first one starts a task that looks every `REFRESH_SECONDS` whether there is
another version. While Redis is away, what was read last holds.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError, RedisError

from relay.queue.nodes import NodeMap, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from relay.events.platform import Platform
    from relay.queue.keys import Keys

#: How old what is known may be.
REFRESH_SECONDS = 3.0

#: How long the first reviews wait for the first answer.
FIRST_SECONDS = 0.05

_log = logging.getLogger("relay.gateway")


class Nodes:
    """The platforms of one cluster's nodes, as far as they are published."""

    def __init__(self, client: Redis, keys: Keys, cluster: str) -> None:
        self._client = client
        self._keys = keys
        self._cluster = cluster
        self._map = NodeMap()
        self._is_answered = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        #: Whether a review waited for the first answer in vain: the next ones do not.
        self._is_late = False
        self._is_closed = False

    async def close(self) -> None:
        """End the task, and the waits for it."""
        self._is_closed = True
        self._is_answered.set()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def wait(self, seconds: float = FIRST_SECONDS) -> bool:
        """Return whether Redis ever said if there is a map; wait for that, briefly only while no wait was in vain."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_on())
        if not self._is_answered.is_set() and (seconds > FIRST_SECONDS or not self._is_late):
            try:
                async with asyncio.timeout(seconds):
                    await self._is_answered.wait()
            except TimeoutError:
                self._is_late = True
        return self._is_answered.is_set() and not self._is_closed

    @property
    def known(self) -> Mapping[str, Platform] | None:
        """The platforms by node as they were read last, None if no map lived."""
        return self._map.platforms if self._map.is_alive else None

    async def _read_on(self) -> None:
        while True:
            try:
                self._map = await read(self._client, self._keys, self._cluster, self._map)
                self._is_answered.set()
            except NoPermissionError:  # a user of an older ACL file: then it is as if there were no map
                if not self._is_answered.is_set():
                    _log.warning(
                        "the platforms of the cluster's nodes may not be read, so those of pods are guessed: "
                        "give the gateway's Redis user the rights in docs/redis-acl.md"
                    )
                self._is_answered.set()
            except (RedisError, OSError, TimeoutError):
                pass  # what was read last holds
            await asyncio.sleep(REFRESH_SECONDS)
