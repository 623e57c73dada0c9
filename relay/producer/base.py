"""The interface of all producers, and what its implementations share.

`Producer` (Redis), `GatewayProducer` (HTTP) and the dry run of `relay report` implement it. `AsyncProducer` has the
same methods for asyncio, without `report_stream` and `receipts`.

- Outcomes are in the order of the events: an event's id, or the `InvalidEvent` that says why it is refused.
- A method for one event raises its `InvalidEvent`. A method for many returns it in the event's place, and enqueues
  the others.
- `QueueFull` and `QueueUnavailable` are always raised. Their `enqueued` has the ids of events that are enqueued and
  not returned yet.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from relay.errors import InvalidEvent, QueueFull, QueueUnavailable
from relay.events.event import DeploymentEvent
from relay.producer.streaming import in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from relay.queue.receipts import Receipt


#: An event, or one in the shape of the API's JSON body, with `id`, `source` and `time` beside `image`.
Given = DeploymentEvent | Mapping[str, Any]

#: The id of an event that is enqueued, or why the event can never be delivered.
Outcome = str | InvalidEvent

_Item = TypeVar("_Item")


class BaseProducer(ABC):
    """Reports deployments; a context manager that closes its connections."""

    #: Maximum events that are sent together.
    chunk_size: ClassVar[int]

    def report(
        self,
        image_url: str,
        *,
        environment: str | None = None,
        name: str | None = None,
        platform: str | None = None,
        id: str | None = None,  # noqa: A002 - the contract's name
        source: str | None = None,
        time: datetime | str | None = None,
        receipt: bool = False,
    ) -> str:
        """Enqueue one event and return its id: the one given, or a new one.

        `image_url` names the image by digest. `platform` is "os/arch[/variant]". `time` is when the deployment
        happened; leave it out if that is unknown, and never give the time of sending. With `receipt` the event's
        outcome can be read later by its id: `receipts`, or `GET /events/{id}` of the gateway.
        """
        event = DeploymentEvent.of(
            image_url, environment=environment, name=name, platform=platform, id=id, source=source, time=time
        )
        return self.report_event(event, receipt=receipt)

    def report_event(self, event: DeploymentEvent, *, receipt: bool = False) -> str:
        """Enqueue one event and return its id: its own, or a new one."""
        [outcome] = self._sender(receipts=receipt)([with_id(event) if receipt else event])
        return id_or_raise(outcome)

    def report_many(self, events: Iterable[Given], *, receipts: bool = False) -> list[Outcome]:
        """Enqueue events, `chunk_size` to a round trip, and return their outcomes.

        An event may be given as a mapping in the shape of the API's JSON body, with `id`, `source` and `time` beside
        `image`. With `receipts` each event that has an id of its own gets a receipt.
        """
        send = self._sender(receipts=receipts)
        outcomes: list[Outcome] = []
        with adding_enqueued(outcomes):
            for chunk in batched(events, self.chunk_size):
                outcomes += send(chunk)
        return outcomes

    def report_stream(
        self,
        events: Iterable[Given],
        *,
        receipts: bool = False,
        on_error: Callable[[], object] | None = None,
    ) -> Iterator[Outcome]:
        """Enqueue any number of events in bounded memory, and yield their outcomes.

        Lazy: `events` is read, in this thread, as outcomes are asked for. A chunk is enqueued once it is full, or a
        fraction of a second (`streaming.LINGER_SECONDS`) after its first event was read, even if `events` pauses: a
        thread that lives as long as the iterator sends it then.

        The error of a chunk is raised when `events` gives its next event or ends; `on_error` is called before that,
        in the other thread. If `events` raises, the events before are enqueued and their outcomes yielded first.
        """
        return in_chunks(events, self._sender(receipts=receipts), size=self.chunk_size, on_error=on_error)

    @abstractmethod
    def receipts(self, ids: Sequence[str], *, within_seconds: float = math.inf) -> Iterable[Receipt | None]:
        """Return the receipt of each event, None where there is none (any more); may be lazy.

        Raise `QueueFull` and `QueueUnavailable`, through a gateway after `within_seconds` at the latest.
        """

    @abstractmethod
    def _sender(self, *, receipts: bool) -> Callable[[list[Given]], list[Outcome]]:
        """Return the function that sends the chunks of one report and returns their outcomes."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections. Reporting again opens new ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parsed(given: Given) -> DeploymentEvent | InvalidEvent:
    """Return the event, parsed if it is given as a mapping, or why it is invalid."""
    if isinstance(given, DeploymentEvent):
        return given
    try:
        return DeploymentEvent.from_body(given)
    except InvalidEvent as error:
        return error


def oversize(size: int, max_event_bytes: int) -> InvalidEvent:
    """Return the refusal of a body of that many bytes."""
    return InvalidEvent("", f"the event is {size} bytes, and queue.max_event_bytes is {max_event_bytes}")


def send_valid(chunk: Sequence[Given], send: Callable[[list[DeploymentEvent]], Iterable[Outcome]]) -> list[Outcome]:
    """Send the valid events of a chunk; return the outcome of each item in its place."""
    items = list(map(parsed, chunk))
    outcomes = iter(send([item for item in items if isinstance(item, DeploymentEvent)]))
    return [item if isinstance(item, InvalidEvent) else next(outcomes) for item in items]


def id_or_raise(outcome: Outcome) -> str:
    """Return the id of an event that was reported alone, or raise its `InvalidEvent`."""
    if isinstance(outcome, InvalidEvent):
        raise outcome
    return outcome


def ids_of(outcomes: Iterable[Outcome | None]) -> tuple[str, ...]:
    """Return the ids of the events that are enqueued."""
    return tuple(outcome for outcome in outcomes if isinstance(outcome, str))


@contextmanager
def adding_enqueued(outcomes: Sequence[Outcome | None]) -> Iterator[None]:
    """Put the ids of `outcomes` before `enqueued` of the error that ends the report."""
    try:
        yield
    except (QueueFull, QueueUnavailable) as error:
        error.enqueued = (*ids_of(outcomes), *error.enqueued)
        raise


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Split items into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def new_id() -> str:
    """Return an id that no other event has."""
    return os.urandom(16).hex()


def with_id(event: DeploymentEvent) -> DeploymentEvent:
    """Return the event with its id, or with a new one."""
    return event if event.id else event.model_copy(update={"id": new_id()})
