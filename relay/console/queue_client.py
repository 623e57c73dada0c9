"""Redis as the console asks it: off the event loop, few at once, and never longer than a page may take."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from relay.connections.clients import client_of, options, unavailable, without_secrets
from relay.errors import QueueUnavailable
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.settings import Settings

Reply = TypeVar("Reply")

#: Questions that are asked at once; the others wait. Operators are few.
AT_ONCE = 4

#: How long a question may take with its waiting; then its page says that Redis is away.
DEADLINE_SECONDS = 5.0

#: How long one command may take: two of them fit into a question, so that a connection that died is made anew.
COMMAND_SECONDS = 2.0


class QueueClient:
    """The shard's Redis and keys. What is asked gets the client and the keys first."""

    def __init__(self, settings: Settings) -> None:
        self.where = without_secrets(settings.redis.url)
        self._keys = Keys(settings.queue.namespace)
        own = options(settings.redis, Retry(NoBackoff(), 1))
        own["socket_timeout"] = min(settings.redis.timeout, COMMAND_SECONDS)
        own["socket_connect_timeout"] = min(settings.redis.connect_timeout, COMMAND_SECONDS)
        self._url = settings.redis.url
        self._client = client_of(redis.Redis, settings.redis, own)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="console")

    async def ask(self, question: Callable[[redis.Redis, Keys], Reply]) -> Reply:
        """Ask in a thread, or raise `QueueUnavailable` in time; a thread that hangs ends with its time-outs."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await loop.run_in_executor(self._threads, question, self._client, self._keys)
        except TimeoutError as error:
            raise QueueUnavailable(f"Redis at {self.where} did not answer within {DEADLINE_SECONDS:g} s") from error
        except RedisError as error:
            raise unavailable(self._url, error) from error

    async def close(self) -> None:
        """Close the connections, which wakes who waits at one, and let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()  # of one that was connecting meanwhile
