"""Redis clients from settings: every operation has a time-out, and replies are bytes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from relay import addresses
from relay.connections.failover import WrongServer, follow_role, follow_role_async
from relay.errors import ConfigurationError, QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio.connection import AbstractConnection
    from redis.connection import AbstractConnection as SyncConnection

    from relay.settings import RedisSettings

#: Retries on a lost connection. Every command of the relay may be applied twice: scripts find their entry gone, and
#: reports have an id.
RETRIES = 3

#: Bounds of the pause before a retry, in seconds.
RETRY_PAUSE_SECONDS = (0.02, 0.5)

#: Maximum connections of an asyncio client.
CONNECTIONS = 16

#: Name of the connections in `CLIENT LIST`.
CLIENT_NAME = "relay"

Client = TypeVar("Client", redis.Redis, redis.asyncio.Redis)


def connect(settings: RedisSettings, *, retries: int = RETRIES) -> redis.Redis:
    """Return a client that connects at its first command; its pool must not be used across a fork."""
    return client_of(redis.Redis, settings, options(settings, _Retry(_backoff(), retries)))


def connect_async(settings: RedisSettings, *, connections: int = CONNECTIONS) -> redis.asyncio.Redis:
    """Return an asyncio client; like `connect`. Commands wait for a free connection, unlike in redis-py's own pool.

    A client with `connections=1` keeps its connection, which saves the pool's work for each command.
    """
    own = options(settings, _AsyncRetry(_backoff(), RETRIES))
    client_of(redis.asyncio.Redis, settings, own)  # raises for wrong options
    url, of_url = address(settings)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url, **own, **of_url, max_connections=connections, timeout=settings.timeout
    )
    of_ours = type(pool.connection_class.__name__, (_AsyncNamed, pool.connection_class), {})
    pool.connection_class = follow_role_async(of_ours)
    if HIREDIS_AVAILABLE:  # not in a bare install
        pool.connection_class = _packing_in_c(pool.connection_class)
    client = redis.asyncio.Redis(connection_pool=pool, single_connection_client=connections == 1)
    client.auto_close_connection_pool = True
    return client


def client_of(kind: type[Client], settings: RedisSettings, own: Mapping[str, Any]) -> Client:
    """Return a client of redis-py, or raise `ConfigurationError` without its message, which may repeat a password.

    The settings check the URL and its option names. redis-py checks the values when it creates a connection, so one
    is created here without connecting.
    """
    url, of_url = address(settings)
    try:
        client = kind.from_url(url, **own, **of_url)
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        if isinstance(client, redis.Redis):
            client.connection_pool.connection_class = follow_role(named(client.connection_pool.connection_class))
    except (AttributeError, TypeError, ValueError, redis.RedisError):
        raise ConfigurationError(
            "redis.url (RELAY_REDIS_URL): has an option that is unknown or malformed: check the part after ?"
        ) from None
    return client


def address(settings: RedisSettings) -> addresses.ForRedis:
    """Return the URL without its options, and the options with those of TLS; check that the TLS files can be read."""
    try:
        found = addresses.for_redis(settings.url, settings)
        addresses.check_files(settings.url, settings, "redis")
    except ValueError as error:  # settings that were not validated
        raise ConfigurationError(f"redis.url (RELAY_REDIS_URL): {error}") from None
    return found


class _Retry(Retry):
    """Retries at one level only: redis-py retries a command, and within each attempt the connecting too.

    With both, a Redis that accepts connections and never answers would cost 16 time-outs instead of 4. Each
    connection has its own copy, with one caller at a time.
    """

    _within = False

    def call_with_retry(self, do: Any, fail: Any, *args: Any, **kwargs: Any) -> Any:
        """Call as redis-py does, but without retries within a retried call."""
        if self._within:
            return Retry(NoBackoff(), 0).call_with_retry(do, fail, *args, **kwargs)
        self._within = True
        try:
            return super().call_with_retry(do, fail, *args, **kwargs)
        except WrongServer:
            if self._retries:
                raise
            return do()  # the connection is closed, so this makes a new one
        finally:
            self._within = False


class _AsyncRetry(AsyncRetry):
    """`_Retry`, for asyncio."""

    _within = False

    async def call_with_retry(self, do: Any, fail: Any, *args: Any, **kwargs: Any) -> Any:
        """Call as redis-py does, but without retries within a retried call."""
        if self._within:
            return await AsyncRetry(NoBackoff(), 0).call_with_retry(do, fail, *args, **kwargs)
        self._within = True
        try:
            return await super().call_with_retry(do, fail, *args, **kwargs)
        finally:
            self._within = False


class _Named:
    """Names connections if Redis permits it; redis-py's `client_name` fails where CLIENT is renamed or forbidden."""

    our_name = CLIENT_NAME

    def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Authenticate and select the database as redis-py does, then set the name."""
        super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]  # redis-py's, beside which this is mixed in
        with contextlib.suppress(redis.ResponseError):
            self.send_command("CLIENT", "SETNAME", self.our_name, check_health=False)  # type: ignore[attr-defined]  # the same
            self.read_response()  # type: ignore[attr-defined]  # the same


class _AsyncNamed:
    """`_Named`, for asyncio."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Authenticate and select the database as redis-py does, then set the name."""
        await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]  # redis-py's
        with contextlib.suppress(redis.ResponseError):
            await self.send_command("CLIENT", "SETNAME", CLIENT_NAME, check_health=False)  # type: ignore[attr-defined]  # the same
            await self.read_response()  # type: ignore[attr-defined]  # the same


def named(kind: type[SyncConnection], name: str = CLIENT_NAME) -> type[SyncConnection]:
    """Return the connection class with a name for `CLIENT LIST`."""
    return type(kind.__name__, (_Named, kind), {"our_name": name})


class _PackingInC:
    """Packs commands as redis-py's synchronous connections do.

    Its asyncio connections copy the packed command for each argument, of which a report of many has thousands.
    """

    _packer = HiredisRespSerializer()

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack one command."""
        packed: list[bytes] = self._packer.pack(*args)
        return packed


def _packing_in_c(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    return type(kind.__name__, (_PackingInC, kind), {})


def options(settings: RedisSettings, retry: Any) -> dict[str, Any]:
    """Return the options of every client; `retry` is redis-py's, synchronous or not."""
    return {
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.connect_timeout,
        **({} if settings.url.startswith("unix://") else {"socket_keepalive": True}),
        "health_check_interval": 15,
        "retry": retry,
        # Replies have the same form in every release of redis-py, and HELLO, which proxies may not know, is not sent.
        "protocol": 2,
    }


def _backoff() -> ExponentialWithJitterBackoff:
    base, cap = RETRY_PAUSE_SECONDS
    return ExponentialWithJitterBackoff(base=base, cap=cap)


def unavailable(url: str, error: Exception, what: str = "did not answer") -> QueueUnavailable:
    """Return `QueueUnavailable` for an error of Redis, without passwords: the failed command may have been AUTH."""
    from relay.redaction import redact_password, redact_url  # noqa: PLC0415 - for errors only: producers start often

    do = about_certificate(error, "redis.ca_file (RELAY_REDIS__CA_FILE)")
    said = f"Redis at {redact_url(url)} {what}: {redact_password(str(error), url)}"
    return QueueUnavailable(f"{said}; {do}" if do else said)


def about_certificate(error: Exception, setting: str) -> str:
    """Return what to do about a refused certificate; "" for other errors."""
    said = str(error)
    if "WRONG_VERSION_NUMBER" in said:
        return "that port has no TLS: set the port with TLS, or write redis:// (amqp://)"
    if "CERTIFICATE_VERIFY_FAILED" not in said:
        return ""
    if "ostname mismatch" in said or "IP address mismatch" in said:
        return "its certificate is for another name: use a name of the certificate in the URL, or reissue it"
    if "expired" in said:
        return "its certificate has expired: renew it, or set this machine's clock"
    return f"its certificate is from an unknown authority: name the file with that authority in {setting}"
