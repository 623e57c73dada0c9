"""The connection of a command: Redis, keys and settings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from relay.connections.clients import connect, unavailable
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


class Shard(NamedTuple):
    """A shard's Redis and keys, and the settings."""

    client: Redis
    keys: Keys
    settings: Settings


@contextmanager
def open_shard() -> Iterator[Shard]:
    """Connect for the duration of the context; `RedisError`s in it become `QueueUnavailable`."""
    settings = Settings.load()
    with connect(settings.redis) as client:
        try:
            yield Shard(client, Keys(settings.queue.namespace), settings)
        except RedisError as error:
            raise unavailable(settings.redis.url, error) from error
