"""The Celery broker on Redis: kombu's transport, on connections that follow a failover behind one address.

kombu takes `READONLY` for an error of its channel and keeps the connection: a publisher would get it for ever. As an
error of the connection it closes that, and the next publish or read makes a new one (relay/failover.py).
"""

from __future__ import annotations

from typing import Any

from kombu import transport
from kombu.transport import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.failover import WrongServer, follow_refusals, follow_role


class _Follows:
    """Mixed into kombu's channels."""

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's
        """Return what a connection is made with, its class among it; `asynchronous` for those of the event loop.

        The event loop's connections are for BRPOP, which a demoted node refuses, and for what comes with it. The
        others publish, and tell how many messages wait, which a demoted node does not refuse.
        """
        params: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]  # kombu's
        if asynchronous:
            return {**params, "connection_class": follow_refusals(params["connection_class"])}
        once_more = Retry(NoBackoff(), 1, supported_errors=(WrongServer,))
        return {**params, "connection_class": follow_role(params["connection_class"]), "retry": once_more}


class Channel(_Follows, redis.Channel):
    """A channel of one Redis."""


class Transport(redis.Transport):
    """One Redis."""

    Channel = Channel


def follow_failovers() -> None:
    """Have `redis://`, `rediss://` and `redis+socket://` of this process use `Transport`.

    Celery has no setting for the transport of a URL: its scheme decides. `sentinel://` has connections of redis-py's
    own, which leave a demoted node.
    """
    here = f"{__name__}:{Transport.__name__}"
    transport.TRANSPORT_ALIASES.update({"redis": here, "rediss": here})
    transport._transport_cache.pop("redis", None)  # noqa: SLF001 - a transport that was looked up before stays in it
    transport._transport_cache.pop("rediss", None)  # noqa: SLF001 - the same
