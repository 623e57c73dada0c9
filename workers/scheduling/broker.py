"""The Celery broker on Redis: kombu's transport, on connections that follow a failover behind one address.

kombu takes `READONLY` for an error of its channel and keeps the connection, so a publisher would get it forever. Here
it is an error of the connection: kombu closes it, and the next command makes a new one
(relay/connections/failover.py).

An item that is not a message of kombu's is replaced by one (workers/scheduling/unreadable.py).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu import transport
from kombu.transport import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.connections.clients import named
from relay.connections.failover import WrongServer, follow_refusals, follow_role
from workers.scheduling import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

#: Priorities with a list of their own, for a sender with the maximum of priority steps.
PRIORITIES = range(1, 10)

#: Name of the connections to the broker in `CLIENT LIST`.
CLIENT_NAME = "relay-celery"


class Channel(redis.Channel):
    """A channel of one Redis."""

    #: The queue whose lists of all priorities are read: other programs send there, with priorities of their own.
    prioritised_queue = ""

    from_transport_options = (*redis.Channel.from_transport_options, "prioritised_queue")  # type: ignore[assignment]

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Wait for a message in each queue's list, and in the lists of the priorities of one queue.

        A sender puts a message with a priority into a list of its own: the queue, `sep` and N, the highest of its
        `priority_steps` up to the priority: 0, 3, 6, 9 unless set, 0 to 9 at most. Wake-ups have no priority.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        keys = []
        for queue in queues:
            keys.append(queue)
            if queue == self.prioritised_queue:
                keys += [f"{queue}{self.sep}{priority}" for priority in PRIORITIES]
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()  # type: ignore[assignment]  # kombu's None is of any type
        self.client.connection.send_command("BRPOP", *keys, timeout or self.brpop_timeout or 0)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's
        """Return the parameters of a connection, with its class; `asynchronous` for those of the event loop.

        The event loop's connections send BRPOP, which a demoted node refuses. The others also count queued messages,
        which a demoted node does not refuse, so they check its role.
        """
        params: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[no-untyped-call]  # kombu's
        kind = named(params["connection_class"], CLIENT_NAME)
        params["protocol"] = 2  # like the queue's clients: without HELLO
        if asynchronous:
            return {**params, "connection_class": follow_refusals(kind)}
        once_more = Retry(NoBackoff(), 1, supported_errors=(WrongServer,))
        return {**params, "connection_class": follow_role(kind), "retry": once_more}

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        """Return a client. That of the event loop, which reads messages with BRPOP, checks each item.

        A popped item is no longer in Redis, and kombu raises an error for an item that is not its own: the message
        would be lost, and with some errors the worker would exit.
        """
        client = super()._create_client(asynchronous)  # type: ignore[no-untyped-call]  # kombu's
        if asynchronous:
            client.parse_response = partial(self._parse, client.parse_response)
        return client

    def _parse(self, parse: Callable[..., Any], connection: Any, command: str, **options: Any) -> Any:
        reply = parse(connection, command, **options)
        if command != "BRPOP" or not reply:
            return reply
        key, item = reply
        why = unreadable.fault_of_item(item, self.decode_body)
        if why is None:
            return reply
        return key, unreadable.replacement(item, key.decode().rsplit(self.sep, 1)[0], why)


class Transport(redis.Transport):
    """One Redis."""

    Channel = Channel


def follow_failovers() -> None:
    """Use `Transport` for `redis://`, `rediss://` and `redis+socket://` in this process.

    Celery has no setting for the transport: the URL's scheme decides. `sentinel://` has connections of redis-py,
    which leave a demoted node themselves.
    """
    here = f"{__name__}:{Transport.__name__}"
    transport.TRANSPORT_ALIASES.update({"redis": here, "rediss": here})
    transport._transport_cache.pop("redis", None)  # noqa: SLF001 - it keeps a transport that was looked up before
    transport._transport_cache.pop("rediss", None)  # noqa: SLF001 - the same
