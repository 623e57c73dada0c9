"""A shard of the queue: the Redis client it is reached by, and its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from relay.queue.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard; the functions of this package take it first."""

    client: Redis
    keys: Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncShard:
    """The same for asyncio."""

    client: AsyncRedis
    keys: Keys
