"""Check of the broker: it accepts messages, and the workers that answer there give heartbeats in Redis.

Celery's workers answer a ping through the broker, from the part that receives messages; the poller's heartbeat is in
Redis. A worker with only one of the two is half alive, or configured for another broker or Redis. A ping leaves
nothing behind. Without kombu (a bare install) a Redis broker gets a PING, and nothing more is checked.
"""

from __future__ import annotations

from contextlib import closing
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from relay.connections.clients import about_certificate, connect
from relay.operations.finding import Finding, fault, note, ok, warning
from relay.redaction import redact_url
from relay.settings import REDIS_SCHEMES
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from relay.settings import Settings

#: Seconds to wait for the next answer to a ping; the second value applies if a worker with a heartbeat is missing.
PING_SECONDS = (1.0, 4.0)

#: Queues of the wake-ups.
WAKEUP_QUEUES = ("relay.intake", "relay.deliver")

#: Values of `sep` that a sender may have set, between a queue's name and a priority. The first is Celery's documented
#: one.
SEPARATORS = (":", "-", "_", ".", "|", "/")


class BrokerReading(NamedTuple):
    """Workers that answered, and messages in the queues; a queue that does not exist yet is left out."""

    answered: frozenset[str]
    waiting: dict[str, int]
    #: Messages in lists of Redis that no worker reads.
    unread: Mapping[str, int] = MappingProxyType({})


def check_broker(settings: Settings, alive: Callable[[], frozenset[str]]) -> Iterator[Finding]:
    """Ping the workers, and compare with the heartbeats in Redis; `alive` is called several times."""
    where = redact_url(settings.broker_url)
    try:
        import kombu  # noqa: F401, PLC0415 - an extra
    except ImportError:
        yield _check_without_kombu(settings, where)
        return
    try:
        reading = read_broker(settings, alive)
    except Exception as error:  # noqa: BLE001 - each of kombu's transports raises its own exceptions
        yield fault(
            "broker",
            f"the broker at {where} is not reachable: {type(error).__name__}: {error}",
            about_certificate(error, "broker.ca_file (RELAY_BROKER__CA_FILE)")
            or "check that it runs and RELAY_BROKER_URL names it; until then each worker works in one process",
        )
        return
    wakeups = sum(reading.waiting.get(name, 0) for name in WAKEUP_QUEUES)
    yield ok("broker", f"the broker at {where} accepts messages; {wakeups:,} wake-ups wait")
    if reading.unread:
        yield warning(
            "broker.unread",
            f"{sum(reading.unread.values()):,} messages are in {some_of(sorted(reading.unread))}, which no worker "
            "reads: their sender has another `sep` in its broker_transport_options",
            "remove `sep` from the sender's options, or leave priorities out; move those messages with LMOVE",
        )
    yield from decide_workers(reading.answered, alive(), where)


def _check_without_kombu(settings: Settings, where: str) -> Finding:
    if not settings.broker.url:
        return ok("broker", "the broker is the queue's Redis")
    if not settings.broker.url.startswith(REDIS_SCHEMES):
        return note("broker", f"the broker at {where} was not checked: that needs the extra `workers`")
    files = {name: getattr(settings.broker, name) for name in ("ca_file", "cert_file", "key_file", "allow_insecure")}
    redis = settings.redis.model_copy(update={"url": settings.broker.url, **files})
    try:
        with connect(redis, retries=0) as client:
            client.ping()
    except RedisError as error:
        return fault(
            "broker",
            f"the broker at {where} is not reachable: {error}",
            about_certificate(error, "broker.ca_file (RELAY_BROKER__CA_FILE)")
            or "check that it runs and RELAY_BROKER_URL names it",
        )
    return ok("broker", f"the broker at {where} answers")


def read_broker(settings: Settings, alive: Callable[[], frozenset[str]]) -> BrokerReading:
    """Ping all workers through the broker, and count the messages in its queues. Raise what the transport raises."""
    from kombu.connection import Connection  # noqa: PLC0415 - an extra
    from kombu.pidbox import Mailbox  # noqa: PLC0415 - the same

    seconds = settings.redis.timeout
    options = {"socket_timeout": seconds, "socket_connect_timeout": settings.redis.connect_timeout, "max_retries": 1}
    settings.check_broker_files()
    where = settings.broker_address
    with Connection(  # type: ignore[no-untyped-call]  # kombu types little
        where.url, ssl=where.ssl, connect_timeout=seconds, transport_options=options
    ) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0.2, timeout=seconds)
        waiting = {name: size for name in WAKEUP_QUEUES if (size := _size(connection, name)) is not None}
        unread = _unread(connection, settings.broker.report_queue)
        mailbox: Any = Mailbox("celery", type="fanout", accept=["json"], serializer="json")  # type: ignore[no-untyped-call]  # the same
        mailbox = mailbox(connection)
        answered: set[str] = set()
        for ping_seconds in PING_SECONDS:
            for answer in mailbox.multi_call("ping", timeout=ping_seconds) or []:
                answered |= set(answer)
            if alive() <= answered:
                break
        return BrokerReading(frozenset(answered), waiting, unread)


def _unread(connection: Any, queue: str) -> dict[str, int]:
    """Return the priority lists that hold messages under another separator than kombu's own, which workers read."""
    if connection.transport.driver_type != "redis":
        return {}
    names = [f"{queue}{separator}{priority}" for separator in SEPARATORS for priority in range(1, 10)]
    try:
        with connection.channel() as channel:
            lengths = [channel.client.llen(name) for name in names]
    except connection.channel_errors:  # the user may not read these
        return {}
    return {name: length for name, length in zip(names, lengths, strict=True) if length}


def _size(connection: Any, queue: str) -> int | None:
    """Return a queue's length without creating it. A refusal closes an AMQP channel, so each gets its own."""
    with closing(connection.channel()) as channel:
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors:
            return None


def decide_workers(answered: frozenset[str], alive: frozenset[str], where: str) -> Iterator[Finding]:
    """Yield which workers are half alive: those that answer without a heartbeat, and the reverse."""
    if silent := answered - alive:
        s = "s" if len(silent) == 1 else ""
        yield fault(
            "workers.poller",
            f"{some_of(sorted(silent))} answer{s} at the broker but give{s} no heartbeat in Redis: the poller "
            "hangs, or polls another Redis or namespace, so new events are not noticed",
            "compare that worker's RELAY_REDIS_URL and queue.namespace with these; else check its log and restart it",
        )
    unanswered = alive - answered
    if unanswered and unanswered == alive:
        yield fault(
            "workers.broker",
            f"{some_of(sorted(unanswered))} give{'s' if len(unanswered) == 1 else ''} heartbeats in Redis, and no "
            f"worker answers at the broker {where}",
            "compare the workers' RELAY_BROKER_URL with this one; a worker that receives no messages exits after a "
            "minute, to be restarted",
        )
    elif unanswered:
        yield warning(
            "workers.broker",
            f"{some_of(sorted(unanswered))} did not answer at the broker {where}; others do",
            "check that worker's log and its RELAY_BROKER_URL; a very busy one may only be late",
        )
    if answered and not silent and not unanswered:
        yield ok("workers.poller", f"{len(answered)} answer at the broker, and their pollers give heartbeats")
