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


class QueueConnection(NamedTuple):
    """A command's connection to the queue: the client, the keys of the shard, and the settings."""

    client: Redis
    keys: Keys
    settings: Settings

    @property
    def destination(self) -> str:
        """The name of the destination."""
        return self.settings.destination


@contextmanager
def open_queue() -> Iterator[QueueConnection]:
    """Connect for the duration of the context; `RedisError`s in it become `QueueUnavailable`."""
    settings = Settings.load()
    with connect(settings.redis) as client:
        try:
            yield QueueConnection(client, Keys(settings.queue.namespace), settings)
        except RedisError as error:
            raise unavailable(settings.redis.url, error) from error
