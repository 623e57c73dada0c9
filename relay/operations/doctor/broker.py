"""Does the broker take messages, and do those who answer at it give signs of life in Redis, and the reverse?

Celery's workers answer a ping through the broker, from the part that hears it; the poller's heartbeat lies in Redis.
Who has one and lacks the other is half alive, or set up for two places. The ping leaves nothing behind. Without
kombu (a bare install) a Redis is asked for a sign of life, and no more.
"""

from __future__ import annotations

from contextlib import closing
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from relay.connections.clients import about_certificate, connect, without_secrets
from relay.operations.doctor.result import Result, fault, note, ok, warning
from relay.settings import REDIS_SCHEMES
from relay.text import some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from relay.settings import Settings

#: How long the next answer to a ping is waited for, in seconds: at first, and once more where somebody did not.
PATIENCE_SECONDS = (1.0, 4.0)

#: The queues that wakeups wait in.
BELL_QUEUES = ("relay.intake", "relay.deliver")

#: What senders choose as `sep`, between a queue's name and a priority: Celery's documentation has the first.
SEPARATORS = (":", "-", "_", ".", "|", "/")


class Heard(NamedTuple):
    """Who answered at the broker, and what waits in its queues; a queue that there is not yet is left out."""

    answered: frozenset[str]
    waiting: dict[str, int]
    #: What waits in lists of Redis that no worker reads.
    unread: Mapping[str, int] = MappingProxyType({})


def examine(settings: Settings, beating: Callable[[], frozenset[str]]) -> Iterator[Result]:
    """Ask the broker, and compare with who gives signs of life in Redis; `beating` may be asked again."""
    where = without_secrets(settings.broker_url)
    try:
        import kombu  # noqa: F401, PLC0415 - an extra
    except ImportError:
        yield _without_kombu(settings, where)
        return
    try:
        heard = listen(settings, beating)
    except Exception as error:  # noqa: BLE001 - each transport of kombu's raises its own: whatever it is, it failed
        yield fault(
            "broker",
            f"the broker at {where} is not reachable: {type(error).__name__}: {error}",
            about_certificate(error, "broker.ca_file (RELAY_BROKER__CA_FILE)")
            or "see whether it runs and RELAY_BROKER_URL names it; until then workers work in one process each",
        )
        return
    wakeups = sum(heard.waiting.get(name, 0) for name in BELL_QUEUES)
    yield ok("broker", f"the broker at {where} takes messages; {wakeups:,} wakeups wait")
    if heard.unread:
        yield warning(
            "broker.unread",
            f"{sum(heard.unread.values()):,} messages lie in {some_of(sorted(heard.unread))}, which no worker reads: "
            "their sender has another `sep` in its broker_transport_options",
            "take `sep` out of the sender's options, or leave priorities out; move what lies there with LMOVE",
        )
    yield from judge(heard.answered, beating(), where)


def _without_kombu(settings: Settings, where: str) -> Result:
    if not settings.broker.url:
        return ok("broker", "the broker is the queue's Redis")
    if not settings.broker.url.startswith(REDIS_SCHEMES):
        return note("broker", f"the broker at {where} was not looked at: it takes the extra `workers`")
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
            or "see whether it runs and RELAY_BROKER_URL names it",
        )
    return ok("broker", f"the broker at {where} answers")


def listen(settings: Settings, beating: Callable[[], frozenset[str]]) -> Heard:
    """Ping all workers by the broker, and look at its queues. Raises what the transport raises."""
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
        waiting = {name: size for name in BELL_QUEUES if (size := _size(connection, name)) is not None}
        unread = _unread(connection, settings.broker.report_queue)
        mailbox: Any = Mailbox("celery", type="fanout", accept=["json"], serializer="json")  # type: ignore[no-untyped-call]  # the same
        mailbox = mailbox(connection)
        answered: set[str] = set()
        for patience in PATIENCE_SECONDS:
            for answer in mailbox.multi_call("ping", timeout=patience) or []:
                answered |= set(answer)
            if beating() <= answered:
                break
        return Heard(frozenset(answered), waiting, unread)


def _unread(connection: Any, queue: str) -> dict[str, int]:
    """Return which lists of priorities hold messages under another separator than kombu's own, which workers read."""
    if connection.transport.driver_type != "redis":
        return {}
    names = [f"{queue}{separator}{priority}" for separator in SEPARATORS for priority in range(1, 10)]
    try:
        with connection.channel() as channel:
            lengths = [channel.client.llen(name) for name in names]
    except connection.channel_errors:  # this user may not look there
        return {}
    return {name: length for name, length in zip(names, lengths, strict=True) if length}


def _size(connection: Any, queue: str) -> int | None:
    """Return how many messages wait in a queue, without making it; a refusal closes an AMQP channel, so one each."""
    with closing(connection.channel()) as channel:
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors:
            return None


def judge(answered: frozenset[str], beating: frozenset[str], where: str) -> Iterator[Result]:
    """Say who is half alive."""
    if silent := answered - beating:
        yield fault(
            "workers.scheduling.poller",
            f"{some_of(sorted(silent))} answer{'s' if len(silent) == 1 else ''} at the broker but give"
            f"{'s' if len(silent) == 1 else ''} no sign of life in Redis: the poller is silent, or looks after "
            "another Redis or namespace, so what is added here is not noticed",
            "compare that worker's RELAY_REDIS_URL and queue.namespace with these; else restart it, and see its log",
        )
    deaf = beating - answered
    if deaf and deaf == beating:
        yield fault(
            "workers.scheduling.broker",
            f"{some_of(sorted(deaf))} give{'s' if len(deaf) == 1 else ''} signs of life in Redis, and no worker "
            f"answers at the broker {where}",
            "compare the workers' RELAY_BROKER_URL with this one; a deaf worker leaves by itself after a minute",
        )
    elif deaf:
        yield warning(
            "workers.scheduling.broker",
            f"{some_of(sorted(deaf))} did not answer at the broker {where}; others do",
            "see that worker's log and its RELAY_BROKER_URL; one that is very busy may only be late",
        )
    if answered and not silent and not deaf:
        yield ok(
            "workers.scheduling.poller", f"{len(answered)} answer at the broker, and their pollers give signs of life"
        )
