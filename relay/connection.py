"""Redis clients from settings: with a time-out on everything, and bytes for answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from relay.errors import ConfigurationError

if TYPE_CHECKING:
    from relay.settings import RedisSettings

#: Tries after the first on a lost connection. All that the relay sends may be applied twice: scripts find
#: their entry gone, and reports carry an id.
RETRIES = 3

#: Bounds of the pause between such tries, in seconds.
RETRY_PAUSE_SECONDS = (0.02, 0.5)


def connect(settings: RedisSettings, *, retries: int = RETRIES) -> redis.Redis:
    """Return a client that has not connected yet; its pool belongs to this process alone."""
    try:
        return redis.Redis.from_url(settings.url, **options(settings, Retry(_backoff(), retries)))
    except ValueError as error:
        raise ConfigurationError(f"redis.url (RELAY_REDIS_URL): {error}") from error


def connect_async(settings: RedisSettings) -> redis.asyncio.Redis:
    """Return a client for asyncio; like `connect`."""
    try:
        return redis.asyncio.Redis.from_url(settings.url, **options(settings, AsyncRetry(_backoff(), RETRIES)))
    except ValueError as error:
        raise ConfigurationError(f"redis.url (RELAY_REDIS_URL): {error}") from error


def options(settings: RedisSettings, retry: Any) -> dict[str, Any]:
    """Return what every client of ours is made with; `retry` is redis-py's, synchronous or not."""
    return {
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "retry": retry,
        "client_name": "relay",
    }


def _backoff() -> ExponentialWithJitterBackoff:
    base, cap = RETRY_PAUSE_SECONDS
    return ExponentialWithJitterBackoff(base=base, cap=cap)


def without_password(url: str) -> str:
    """Return a Redis URL as it may be shown: neither the user's part nor the query, where a password may stand."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
