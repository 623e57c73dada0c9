"""Where do reports go: to Redis, through a gateway, or nowhere (`--dry-run`)?"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, Self

import typer
from pydantic_core import from_json, to_json

from relay.errors import InvalidEvent
from relay.producer.streaming import in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from relay.events.event import DeploymentEvent
    from relay.queue.receipts import Receipt
    from relay.settings import Settings


#: Events that are given to the gateway's client together.
AT_ONCE = 500


class Way(Protocol):
    """Takes events; a context manager that closes its connections."""

    #: What it makes of an event that is in order.
    done: str
    #: Called in another thread when a chunk is refused while the events pause; set before `send`.
    on_error: Callable[[], object] | None

    def send(self, events: Iterable[DeploymentEvent], *, receipts: bool) -> Iterator[str | InvalidEvent]:
        """Enqueue any number of events, and give for each in its turn its id, or why it is not taken.

        Lazy: events are asked for as their outcomes are, and sent in chunks, or soon if they pause. An error while
        they pause is raised when they go on. With `receipts` it can be asked what became of those that have an id.
        Raises `QueueFull` and `QueueUnavailable`; `enqueued` has the ids of events that were taken and not given yet.
        """

    def receipts(self, ids: Sequence[str], *, within_seconds: float) -> Iterable[Receipt | None]:
        """Give what became of each event, None where nothing is known; may be lazy.

        Raises `QueueFull` and `QueueUnavailable`; through a gateway after so many seconds at most.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_way(settings: Settings, *, dry_run: bool) -> Way:
    """Return the way that the settings name; what it needs is imported only now."""
    if dry_run:
        return Nowhere(settings)
    return ThroughGateway(settings) if settings.producer.gateway_url else ToRedis(settings)


class ToRedis:
    """Straight to Redis, or to the spool where the settings name one and Redis is away."""

    done = "enqueued"

    def __init__(self, settings: Settings) -> None:
        self.on_error: Callable[[], object] | None = None
        from relay.producer.queue_producer import Producer  # noqa: PLC0415 - brings redis

        self._producer = Producer(settings=settings)
        self._max_bytes = settings.queue.max_event_bytes

    def send(self, events: Iterable[DeploymentEvent], *, receipts: bool) -> Iterator[str | InvalidEvent]:
        """See `Way`."""
        faults: deque[InvalidEvent | None] = deque()

        def fitting() -> Iterator[DeploymentEvent]:
            for event in events:
                faults.append(_too_large(event, self._max_bytes))
                if faults[-1] is None:
                    yield event

        for event_id in self._producer.report_stream(fitting(), receipts=receipts, on_error=self.on_error):
            while (fault := faults.popleft()) is not None:
                yield fault
            yield event_id
        yield from filter(None, faults)

    def receipts(self, ids: Sequence[str], *, within_seconds: float) -> Iterable[Receipt | None]:  # noqa: ARG002 - Redis has time-outs
        """See `Way`."""
        return self._producer.receipts(ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._producer.spooled:
            spooled = self._producer.spooled
            typer.echo(f"{spooled} spooled; sent by the next report, or by `relay spool flush`", err=True)
        self._producer.close()


class ThroughGateway:
    """Through the gateway, which keeps a receipt of all that have an id, and judges sizes itself."""

    done = "enqueued"

    def __init__(self, settings: Settings) -> None:
        self.on_error: Callable[[], object] | None = None
        from relay.producer.gateway_producer import GatewayProducer  # noqa: PLC0415 - brings requests

        self._producer = GatewayProducer(settings=settings)

    def send(self, events: Iterable[DeploymentEvent], *, receipts: bool) -> Iterator[str | InvalidEvent]:  # noqa: ARG002 - they come unasked
        """See `Way`."""
        return in_chunks(events, self._producer.report_each, size=AT_ONCE, on_error=self.on_error)

    def receipts(self, ids: Sequence[str], *, within_seconds: float) -> Iterable[Receipt | None]:
        """See `Way`."""
        give_up_at = time.monotonic() + within_seconds
        for event_id in ids:
            yield from self._producer.receipts([event_id], within_seconds=give_up_at - time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()


class Nowhere:
    """Prints what would be enqueued, a line of JSON each, and contacts nobody."""

    done = "valid"

    def __init__(self, settings: Settings) -> None:
        self.on_error: Callable[[], object] | None = None
        self._max_bytes = settings.queue.max_event_bytes

    def send(self, events: Iterable[DeploymentEvent], *, receipts: bool) -> Iterator[str | InvalidEvent]:  # noqa: ARG002 - nothing becomes of them
        """See `Way`; the ids are empty, for nothing has them."""
        for event in events:
            outcome = _too_large(event, self._max_bytes) or ""
            if not outcome:
                typer.echo(_shown(event))
            yield outcome

    def receipts(self, ids: Sequence[str], *, within_seconds: float) -> Iterable[Receipt | None]:  # noqa: ARG002 - nobody is asked
        """See `Way`."""
        return [None for _ in ids]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _too_large(event: DeploymentEvent, max_bytes: int) -> InvalidEvent | None:
    size = len(event.body())
    if size <= max_bytes:
        return None
    return InvalidEvent("", f"the event is {size} bytes, and queue.max_event_bytes is {max_bytes}")


def _shown(event: DeploymentEvent) -> str:
    """Write what the queue's entry would be: the body that the API gets, the envelope beside it."""
    return to_json({"event": from_json(event.body()), **event.envelope}).decode()
