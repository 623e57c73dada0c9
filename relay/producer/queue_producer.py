"""`Producer` and `AsyncProducer`: enqueue an event in one round trip to Redis."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from redis.exceptions import RedisError, ResponseError

from relay.connections.clients import connect, connect_async, unavailable
from relay.errors import ConfigurationError, InvalidEvent, QueueFull, QueueUnavailable, RelayError
from relay.events.event import DeploymentEvent
from relay.producer.base import (
    BaseProducer,
    Outcome,
    adding_enqueued,
    batched,
    id_or_raise,
    new_id,
    oversize,
    parsed,
    with_id,
)
from relay.queue import inbox, receipts, scripts
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike

    from relay.producer.base import Given
    from relay.producer.spooling import Sent, SpoolingSender
    from relay.queue.receipts import Receipt
    from relay.queue.scripts import Call

#: Maximum events in one round trip.
CHUNK = 500


class _Chunk(NamedTuple):
    """Inbox entries that are enqueued all or none, and the outcomes of the events if they are."""

    entries: list[dict[str, Any]]
    outcomes: list[Outcome]


class _Waiting(NamedTuple):
    """A chunk to be sent, and the future of the caller that waits for it; done already if that was cancelled."""

    chunk: _Chunk
    enqueued: asyncio.Future[None]

    def end(self, error: Exception | None) -> None:
        """Resume the caller, with a copy of the error: an error raised twice would get a wrong traceback."""
        if self.enqueued.done():
            return
        if error is None:
            self.enqueued.set_result(None)
        elif isinstance(error, RelayError):
            own = copy(error)
            own.__cause__ = error.__cause__
            self.enqueued.set_exception(own)
        else:
            self.enqueued.set_exception(error)


class _Redis:
    """Settings in, calls out, and Redis's errors as the relay's: for both producers."""

    def __init__(self, redis_url: str | None, settings: Settings | None) -> None:
        settings = settings or Settings.load()
        if redis_url is not None:
            redis = settings.redis.model_copy(update={"url": redis_url})
            settings = settings.model_copy(update={"redis": redis})
        self._settings = settings
        self._keys = Keys(settings.queue.namespace)

    def _chunk(self, events: Iterable[Given], *, receipts: bool) -> _Chunk:
        """Return the entries of the events, without those that are invalid or too large.

        An event without an id gets a new one; with `receipts` an event that had one asks for its receipt.
        """
        chunk = _Chunk([], [])
        max_bytes = self._settings.queue.max_event_bytes
        for given in events:
            event = parsed(given)
            if isinstance(event, InvalidEvent):
                chunk.outcomes.append(event)
                continue
            fields = inbox.fields_of(event)
            if len(fields["event"]) > max_bytes:
                chunk.outcomes.append(oversize(len(fields["event"]), max_bytes))
                continue
            if "id" not in fields:
                fields["id"] = new_id()
            elif receipts:
                fields["receipt"] = "1"
            chunk.entries.append(fields)
            chunk.outcomes.append(fields["id"])
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
            refusal: QueueFull | QueueUnavailable = QueueFull(f"the queue is full ({because}); try again later")
        else:
            refusal = unavailable(self._settings.redis.url, error, "did not take it")
        refusal.__cause__ = error
        return refusal


class Producer(_Redis, BaseProducer):
    """Reports deployments to Redis. Thread-safe; connects at the first report and again when it must.

        with Producer("redis://127.0.0.1:6379/0") as producer:
            producer.report("ghcr.io/acme/api@sha256:…", environment="production")

    Raises `InvalidEvent` for an event that can never be delivered, `QueueFull` when `queue.max_backlog` events wait
    or Redis is past `queue.memory_watermark`, and `QueueUnavailable` when Redis did not answer within its time-outs.
    After the last, the event may be enqueued or not: report it again with the same `id`, and it counts once.

    With a `spool`, a directory (default: the setting `spool.directory`), events are stored on disk while Redis is
    unavailable: `report` then returns once they are there, and `spooled` counts them. They are sent before the events
    of the next report, or by `flush_spool`. `SpoolUnavailable`, a `QueueUnavailable`, is raised if the spool does not
    take them either. `QueueFull` is raised as without a spool. See docs/spool.md.
    """

    chunk_size = CHUNK

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        spool: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(redis_url, settings)
        directory = spool or self._settings.spool.directory
        self._spooling = self._open_spool(directory) if directory else None
        # With a spool the spooling sender retries.
        self._client = connect(self._settings.redis, retries=0) if directory else connect(self._settings.redis)

    def receipts(self, ids: Sequence[str], *, within_seconds: float = math.inf) -> list[Receipt | None]:  # noqa: ARG002 - Redis has time-outs
        """Return the receipts of events that asked for one; None where there is none (any more)."""
        try:
            return receipts.read_many(self._client, self._keys, ids)
        except RedisError as error:
            raise unavailable(self._settings.redis.url, error) from error

    @property
    def spooled(self) -> int:
        """Events reported here that went to the spool because Redis was unavailable."""
        return self._spooling.spooled if self._spooling else 0

    def flush_spool(self) -> Sent:
        """Send the events of the spool and return how many; 0 if another process is sending.

        Raises `QueueFull` and `QueueUnavailable` as reports do; events sent before stay sent.
        """
        if self._spooling is None:
            raise ConfigurationError("there is no spool: set spool.directory (RELAY_SPOOL__DIRECTORY)")
        return self._spooling.flush()

    def _sender(self, *, receipts: bool) -> Callable[[list[Given]], list[Outcome]]:
        send_entries = self._enqueue if self._spooling is None else self._spooling.sender()

        def send(events: list[Given]) -> list[Outcome]:
            chunk = self._chunk(events, receipts=receipts)
            if chunk.entries:
                send_entries(chunk.entries)
            return chunk.outcomes

        return send

    def _enqueue(
        self, entries: Iterable[Mapping[str, Any]], *, call: str = "", mark_milliseconds: int | None = None
    ) -> None:
        try:
            scripts.run(self._client, self._call(entries, call=call, mark_milliseconds=mark_milliseconds))
        except RedisError as error:
            raise self._refusal(error) from error

    def _open_spool(self, directory: str | PathLike[str]) -> SpoolingSender:
        from relay.producer.spool import Spool  # noqa: PLC0415 - most producers have no spool
        from relay.producer.spooling import SpoolingSender  # noqa: PLC0415 - the same

        patience = self._settings.redis.timeout
        spool = Spool(Path(directory), max_bytes=self._settings.spool.max_bytes, patience_seconds=patience)
        return SpoolingSender(spool, self._enqueue, patience_seconds=patience)

    def close(self) -> None:
        """Close the connections. Reporting again opens new ones."""
        self._client.close()


class AsyncProducer(_Redis):
    """`Producer` for asyncio: the same promises, errors and arguments. Belongs to one event loop.

    Concurrent reports share round trips: events reported during one are sent together by the next. With
    `deadline_seconds` a round trip that takes longer, its retries included, raises `QueueUnavailable`.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        deadline_seconds: float | None = None,
    ) -> None:
        super().__init__(redis_url, settings)
        self._client = connect_async(self._settings.redis, connections=1)  # one round trip at a time
        self._deadline_seconds = deadline_seconds
        self._waiting: deque[_Waiting] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def report(self, image_url: str, *, receipt: bool = False, **fields: Any) -> str:
        """Enqueue one event and return its id; takes the arguments of `Producer.report`."""
        return await self.report_event(DeploymentEvent.of(image_url, **fields), receipt=receipt)

    async def report_event(self, event: DeploymentEvent, *, receipt: bool = False) -> str:
        """Enqueue one event and return its id: its own, or a new one."""
        [outcome] = await self._send([with_id(event) if receipt else event], receipts=receipt)
        return id_or_raise(outcome)

    async def report_many(self, events: Iterable[Given], *, receipts: bool = False) -> list[Outcome]:
        """Enqueue events in their order and return their outcomes, as `Producer.report_many` does."""
        outcomes: list[Outcome] = []
        with adding_enqueued(outcomes):
            for chunk in batched(events, CHUNK):
                outcomes += await self._send(chunk, receipts=receipts)
        return outcomes

    async def _send(self, events: Iterable[Given], *, receipts: bool) -> list[Outcome]:
        """Enqueue a chunk; whether Redis has it is unknown if the caller is cancelled meanwhile."""
        chunk = self._chunk(events, receipts=receipts)
        if chunk.entries:
            enqueued: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Waiting(chunk, enqueued))
            if self._sending is None:
                self._sending = asyncio.create_task(self._send_waiting())
            await enqueued
        return chunk.outcomes

    async def _send_waiting(self) -> None:
        """Send the waiting chunks in groups, one round trip at a time."""
        group: list[_Waiting] = []
        try:
            while self._waiting:
                group = self._next_group()
                error = await self._send_group(group)
                for each in group:
                    each.end(error)
        finally:  # if this task is cancelled, no caller may wait for ever
            for each in (*group, *self._waiting):
                each.end(QueueUnavailable("reporting ended early"))
            self._waiting.clear()
            self._sending = None

    async def _send_group(self, group: list[_Waiting]) -> Exception | None:
        """Send chunks in one round trip; return the error that all of their callers get."""
        call = self._call(entry for each in group for entry in each.chunk.entries)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await scripts.run_async(self._client, call)
        except RedisError as error:
            return self._refusal(error)
        except TimeoutError as error:
            late = QueueUnavailable("Redis did not answer before the deadline")
            late.__cause__ = error
            return late
        except Exception as error:  # noqa: BLE001 - raised in each caller
            return error
        return None

    def _next_group(self) -> list[_Waiting]:
        """Remove and return the first waiting chunk, and those behind it up to `CHUNK` events in all."""
        group = [self._waiting.popleft()]
        size = len(group[0].chunk.entries)
        while self._waiting and size + len(self._waiting[0].chunk.entries) <= CHUNK:
            group.append(self._waiting.popleft())
            size += len(group[-1].chunk.entries)
        return group

    async def close(self) -> None:
        """Send the waiting chunks, and close the connections. Reporting again opens new ones."""
        if self._sending is not None:
            await self._sending
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
