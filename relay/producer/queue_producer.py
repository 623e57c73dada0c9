"""Reporting a deployment: one round trip to Redis, and the relay owes its delivery from then on."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from redis.exceptions import RedisError, ResponseError

from relay.connections.clients import connect, connect_async, unavailable
from relay.errors import ConfigurationError, InvalidEvent, QueueFull, QueueUnavailable, RelayError
from relay.events.event import DeploymentEvent
from relay.producer.streaming import in_chunks
from relay.queue import inbox, receipts, scripts
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from os import PathLike
    from types import TracebackType

    from relay.producer.spooling import Detour, Sent
    from relay.queue.receipts import Receipt
    from relay.queue.scripts import Call

#: Events that `report_many` and `report_stream` send in one round trip.
CHUNK = 500


class _Chunk(NamedTuple):
    """Events that are enqueued together or not at all, as the inbox's entries."""

    entries: list[dict[str, Any]]
    ids: list[str]


class _Waiting(NamedTuple):
    """A chunk on its way, and who waits for it; nobody any more, if that task was cancelled."""

    chunk: _Chunk
    taken: asyncio.Future[None]

    def end(self, error: Exception | None) -> None:
        """Let who waits go on, or raise an error of its own: raised twice, one would get a wrong traceback."""
        if self.taken.done():
            return
        if error is None:
            self.taken.set_result(None)
        elif isinstance(error, RelayError):
            own = copy(error)
            own.__cause__ = error.__cause__
            self.taken.set_exception(own)
        else:
            self.taken.set_exception(error)


class _Reporter:
    """What both producers share: settings in, calls out, Redis's errors turned into ours."""

    def __init__(self, redis_url: str | None, settings: Settings | None) -> None:
        settings = settings or Settings.load()
        if redis_url is not None:
            redis = settings.redis.model_copy(update={"url": redis_url})
            settings = settings.model_copy(update={"redis": redis})
        self._settings = settings
        self._keys = Keys(settings.queue.namespace)

    def _chunks(
        self, events: Iterable[DeploymentEvent | Mapping[str, Any]], *, receipts: bool = False
    ) -> list[_Chunk]:
        """Check all events before any is sent."""
        checked = [_event(event) for event in events]
        starts = range(0, len(checked), CHUNK)
        return [self._chunk(checked[start : start + CHUNK], receipts=receipts) for start in starts]

    def _chunk(self, events: Iterable[DeploymentEvent], *, receipts: bool = False) -> _Chunk:
        """Check events and give those without an id a new one; with `receipts` those that had one ask for theirs."""
        limit = self._settings.queue.max_event_bytes
        chunk = _Chunk([], [])
        for event in events:
            fields = inbox.fields_of(event)
            size = len(fields["event"])
            if size > limit:
                raise InvalidEvent("", f"the event is {size} bytes, and queue.max_event_bytes is {limit}")
            if "id" not in fields:
                fields["id"] = _new_id()
            elif receipts:
                fields["receipt"] = "1"
            chunk.entries.append(fields)
            chunk.ids.append(fields["id"])
        return chunk

    def _call(
        self, entries: Iterable[Mapping[str, Any]], *, call: str = "", mark_milliseconds: int | None = None
    ) -> Call:
        queue, kept = self._settings.queue, self._settings.delivery.max_age
        return inbox.append_call(
            self._keys,
            entries,
            queue.max_backlog,
            queue.memory_watermark,
            kept,
            call=call,
            mark_milliseconds=mark_milliseconds,
        )

    def _refusal(self, error: RedisError) -> QueueFull | QueueUnavailable:
        because = inbox.full_because(error) if isinstance(error, ResponseError) else None
        if because:
            return QueueFull(f"the queue is full ({because}); try again later")
        return unavailable(self._settings.redis.url, error, "did not take it")


class Producer(_Reporter):
    """Reports deployments. Thread-safe; connects at the first report and again whenever it must.

        with Producer("redis://127.0.0.1:6379/0") as producer:
            producer.report("ghcr.io/acme/api@sha256:…", environment="production")

    Raises `InvalidEvent` for what can never be delivered, `QueueFull` when `queue.max_backlog` events wait or Redis
    is past `queue.memory_watermark`, and `QueueUnavailable` when Redis did not answer within its time-outs; after the
    last, the event may be enqueued or not: report it again with the same `id`, and it counts once.

    With a `spool`, a directory (else that of the setting `spool.directory`), events wait on disk while Redis is away:
    a report then returns once its events are there, and `spooled` counts them. They leave before the next report's,
    or by `flush_spool`. Only when the spool does not take them either, a report raises `SpoolUnavailable`, which is a
    `QueueUnavailable`. `QueueFull` stays what it is. See docs/spool.md.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        spool: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(redis_url, settings)
        directory = spool or self._settings.spool.directory
        self._detour = self._open_spool(directory) if directory else None
        self._client = connect(self._settings.redis, retries=0) if directory else connect(self._settings.redis)

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

        `image_url` names the image by digest; `platform` is "os/arch[/variant]"; `time` is when the deployment
        happened, for those who know (never the moment of sending). With `receipt` what became of the event can be
        asked for by its id: `relay.queue.receipts`, or `GET /events/{id}` of the gateway.
        """
        event = DeploymentEvent.of(
            image_url, environment=environment, name=name, platform=platform, id=id, source=source, time=time
        )
        return self.report_event(event, receipt=receipt)

    def report_event(self, event: DeploymentEvent, *, receipt: bool = False) -> str:
        """Enqueue one event and return its id: its own, or a new one."""
        [ids] = self._send([self._chunk([_with_id(event) if receipt else event], receipts=receipt)])
        return ids[0]

    def report_many(
        self, events: Iterable[DeploymentEvent | Mapping[str, Any]], *, receipts: bool = False
    ) -> list[str]:
        """Enqueue events in their order, `CHUNK` to a round trip, and return their ids.

        An event may be given as a mapping in the shape of the API's JSON body, with `id`, `source` and `time` beside
        `image`. All are checked first: after `InvalidEvent` none is enqueued. After `QueueFull` or
        `QueueUnavailable` the error's `enqueued` has the ids of those that are. With `receipts` there is one of each
        event that has an id of its own.
        """
        ids: list[str] = []
        try:
            for sent in self._send(self._chunks(events, receipts=receipts)):
                ids += sent
        except (QueueFull, QueueUnavailable) as error:
            error.enqueued = tuple(ids)
            raise
        return ids

    def report_stream(
        self,
        events: Iterable[DeploymentEvent],
        *,
        receipts: bool = False,
        on_error: Callable[[], object] | None = None,
    ) -> Iterator[str]:
        """Enqueue any number of events in bounded memory, and yield their ids; `receipts` as of `report_many`.

        Lazy: `events` is read, in this thread, as ids are asked for, so do iterate. A chunk is enqueued once it is
        full, or a fraction of a second (`streaming.LINGER_SECONDS`) after its first event was read, though
        `events` pauses: a thread that lives as long as the iterator sends it then.

        A chunk is enqueued whole or not at all; when one is refused, the ids yielded before are of events that are
        enqueued, and the error is raised when `events` gives its next event or ends. If `events` raises, what it gave
        before is enqueued, and the ids of that are yielded before its error is raised. `on_error` is called in that
        thread when a chunk is refused while `events` pauses.
        """
        send = self._sender()

        def enqueue(events: list[DeploymentEvent]) -> list[str]:
            chunk = self._chunk(events, receipts=receipts)
            send(chunk.entries)
            return chunk.ids

        return in_chunks(events, enqueue, size=CHUNK, on_error=on_error)

    def receipts(self, ids: Sequence[str]) -> list[Receipt | None]:
        """Return what became of events that asked for a receipt; None where nothing is known (any more)."""
        try:
            return receipts.read_many(self._client, self._keys, ids)
        except RedisError as error:
            raise unavailable(self._settings.redis.url, error) from error

    @property
    def spooled(self) -> int:
        """How many of the events reported here went to the spool, because Redis was away."""
        return self._detour.spooled if self._detour else 0

    def flush_spool(self) -> Sent:
        """Send all that waits in the spool, and tell how much that was; nothing if another process is at it.

        Raises `QueueFull` and `QueueUnavailable` as reports do; what was sent before stays sent.
        """
        if self._detour is None:
            raise ConfigurationError("there is no spool: set spool.directory (RELAY_SPOOL__DIRECTORY)")
        return self._detour.flush()

    def _send(self, chunks: Iterable[_Chunk]) -> Iterator[list[str]]:
        """Take chunks, one for each step of this iterator, and give the ids of their events."""
        send = self._sender()
        for chunk in chunks:
            send(chunk.entries)
            yield chunk.ids

    def _sender(self) -> Callable[[list[dict[str, Any]]], None]:
        """Return what sends the chunks of one report."""
        return self._enqueue if self._detour is None else self._detour.sender()

    def _enqueue(
        self, entries: Iterable[Mapping[str, Any]], *, call: str = "", mark_milliseconds: int | None = None
    ) -> None:
        try:
            scripts.run(self._client, self._call(entries, call=call, mark_milliseconds=mark_milliseconds))
        except RedisError as error:
            raise self._refusal(error) from error

    def _open_spool(self, directory: str | PathLike[str]) -> Detour:
        from relay.producer.spool import Spool  # noqa: PLC0415 - the same
        from relay.producer.spooling import Detour  # noqa: PLC0415 - most producers have no spool

        patience = self._settings.redis.timeout
        spool = Spool(Path(directory), max_bytes=self._settings.spool.max_bytes, patience_seconds=patience)
        return Detour(spool, self._enqueue, patience_seconds=patience)

    def close(self) -> None:
        """Close the connections. Reporting again opens new ones."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncProducer(_Reporter):
    """`Producer` for asyncio: the same promises, errors and arguments. Belongs to one event loop.

    Reports made at once share round trips: what is reported while one is under way goes with the next. With
    `deadline_seconds` a round trip that takes longer, its retries included, is `QueueUnavailable`.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        deadline_seconds: float | None = None,
    ) -> None:
        super().__init__(redis_url, settings)
        self._client = connect_async(self._settings.redis, connections=1)  # for there is one round trip at a time
        self._deadline_seconds = deadline_seconds
        self._waiting: deque[_Waiting] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def report(self, image_url: str, *, receipt: bool = False, **fields: Any) -> str:
        """Enqueue one event and return its id; takes what `Producer.report` takes."""
        return await self.report_event(DeploymentEvent.of(image_url, **fields), receipt=receipt)

    async def report_event(self, event: DeploymentEvent, *, receipt: bool = False) -> str:
        """Enqueue one event and return its id: its own, or a new one."""
        chunk = self._chunk([_with_id(event) if receipt else event], receipts=receipt)
        await self._taken(chunk)
        return chunk.ids[0]

    async def report_many(
        self, events: Iterable[DeploymentEvent | Mapping[str, Any]], *, receipts: bool = False
    ) -> list[str]:
        """Enqueue events in their order and return their ids, as `Producer.report_many` does."""
        ids: list[str] = []
        for chunk in self._chunks(events, receipts=receipts):
            try:
                await self._taken(chunk)
            except (QueueFull, QueueUnavailable) as error:
                error.enqueued = tuple(ids)
                raise
            ids += chunk.ids
        return ids

    def _taken(self, chunk: _Chunk) -> asyncio.Future[None]:
        """Have it sent; Redis has it once this is done. Who is cancelled meanwhile does not know whether it does."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(chunk, taken))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_waiting())
        return taken

    async def _send_waiting(self) -> None:
        """Send what waits, as much as fits in one round trip at a time."""
        group: list[_Waiting] = []
        try:
            while self._waiting:
                group = self._next_group()
                error = await self._send_group(group)
                for each in group:
                    each.end(error)
        finally:  # were this task cancelled, nobody must be left waiting
            for each in (*group, *self._waiting):
                each.end(QueueUnavailable("reporting ended early"))
            self._waiting.clear()
            self._sending = None

    async def _send_group(self, group: list[_Waiting]) -> Exception | None:
        """Send these together; return what went wrong, which all of them are to hear."""
        call = self._call(entry for each in group for entry in each.chunk.entries)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await scripts.run_async(self._client, call)
        except RedisError as error:
            return self._caused(self._refusal(error), error)
        except TimeoutError as error:
            return self._caused(QueueUnavailable("Redis did not answer before the deadline"), error)
        except Exception as error:  # noqa: BLE001 - those who reported hear of it
            return error
        return None

    @staticmethod
    def _caused(refusal: RelayError, cause: Exception) -> RelayError:
        refusal.__cause__ = cause
        return refusal

    def _next_group(self) -> list[_Waiting]:
        """Take what goes together: the first that waits, and those behind it up to `CHUNK` events in all."""
        group = [self._waiting.popleft()]
        size = len(group[0].chunk.entries)
        while self._waiting and size + len(self._waiting[0].chunk.entries) <= CHUNK:
            group.append(self._waiting.popleft())
            size += len(group[-1].chunk.entries)
        return group

    async def close(self) -> None:
        """Send what waits, and close the connections. Reporting again opens new ones."""
        if self._sending is not None:
            await self._sending
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _new_id() -> str:
    """Return an id that nobody else gives an event."""
    return os.urandom(16).hex()


def _with_id(event: DeploymentEvent) -> DeploymentEvent:
    return event if event.id else event.model_copy(update={"id": _new_id()})


def _event(given: DeploymentEvent | Mapping[str, Any]) -> DeploymentEvent:
    return given if isinstance(given, DeploymentEvent) else DeploymentEvent.from_body(given)
