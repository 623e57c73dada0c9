"""The console's access to Redis: in threads, a few at once, within a page's deadline."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from relay.connections.clients import client_of, options, unavailable
from relay.errors import QueueUnavailable
from relay.queue.keys import Keys
from relay.redaction import redact_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.settings import Settings

Reply = TypeVar("Reply")

#: Maximum calls at once; further ones wait.
AT_ONCE = 4

#: Maximum time of a call including its wait; then the page reports that Redis is unavailable.
DEADLINE_SECONDS = 5.0

#: Maximum time of one command: two fit into a call, so that a broken connection is replaced in time.
COMMAND_SECONDS = 2.0


class QueueClient:
    """Runs functions of the queue in threads."""

    def __init__(self, settings: Settings) -> None:
        self.where = redact_url(settings.redis.url)
        self._keys = Keys(settings.queue.namespace)
        own = options(settings.redis, Retry(NoBackoff(), 1))
        own["socket_timeout"] = min(settings.redis.timeout, COMMAND_SECONDS)
        own["socket_connect_timeout"] = min(settings.redis.connect_timeout, COMMAND_SECONDS)
        self._url = settings.redis.url
        self._client = client_of(redis.Redis, settings.redis, own)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="console")

    async def ask(self, call: Callable[[redis.Redis, Keys], Reply]) -> Reply:
        """Return the result of a call, or raise `QueueUnavailable` in time; a hung thread ends by its time-outs."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await loop.run_in_executor(self._threads, call, self._client, self._keys)
        except TimeoutError as error:
            raise QueueUnavailable(f"Redis at {self.where} did not answer within {DEADLINE_SECONDS:g} s") from error
        except RedisError as error:
            raise unavailable(self._url, error) from error

    async def close(self) -> None:
        """Close the connections, which ends waits for a reply, and let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()  # a connection that was made meanwhile
