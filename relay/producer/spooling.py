"""Which way do events go when there is a spool? To Redis, unless something waits before them or it is away.

What waits leaves first, so that the events of one caller arrive in the order of its calls. A report tries Redis with
what is next, and a second time, for the first may have met a connection that died while nothing was reported; when
that fails too, its events go behind what waits. So one that finds Redis away takes twice its time-outs at most.

A queue that is full is no reason to spool: its producers are told so, as ever, and what waits goes on waiting.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from relay.errors import QueueUnavailable, SpoolUnavailable
from relay.producer.spool import new_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from relay.producer.spool import Spool

#: How long Redis remembers the call that sends a segment: longer than one is likely to lie between a producer that
#: was killed while it sent it and the next. A mark is some hundred bytes, for a segment.
SEGMENT_MARK_MILLISECONDS = 30 * 86_400_000

_log = logging.getLogger(__name__)

Entries = list[dict[str, Any]]


class Enqueue(Protocol):
    """Adds entries to the inbox, all or none, once for each call; else raises what producers raise."""

    def __call__(self, entries: Entries, *, call: str, mark_milliseconds: int | None = None) -> None:
        """Add them, and remember the call for so long."""


class Sent(NamedTuple):
    """What left the spool."""

    events: int
    #: Lines that were no records, passed over and kept in the file `damaged`.
    damaged: int


class SpoolingSender:
    """Sends what Redis takes, and spools the rest. Thread-safe."""

    def __init__(self, spool: Spool, enqueue: Enqueue, *, patience_seconds: float) -> None:
        """`enqueue` should not retry: that is done here."""
        self.spool = spool
        self._enqueue = enqueue
        #: How long a report goes on sending what waited before it.
        self._patience_seconds = patience_seconds
        self._counting = threading.Lock()
        self._is_away = False
        #: Events that went to the spool.
        self.spooled = 0

    def send(self, chunks: Iterable[tuple[Entries, list[str]]]) -> Iterator[list[str]]:
        """Take the chunks of one report, each with its events' ids, and yield the ids once it is stored."""
        send = self.sender()
        for entries, ids in chunks:
            send(entries)
            yield ids

    def sender(self) -> Callable[[Entries], None]:
        """Return what sends the chunks of one report: it returns once Redis or the disk has a chunk.

        After an attempt that failed, no other is made for as long as it took: of a long stream's time no more than
        half goes into waiting for a Redis that is away.
        """
        rest_until = -math.inf

        def send(entries: Entries) -> None:
            nonlocal rest_until
            begun = time.monotonic()
            if begun >= rest_until or not self._behind(entries):
                away = self._send(entries)
                self._tell(away)
                if away is not None:
                    now = time.monotonic()
                    rest_until = now + (now - begun)

        return send

    def flush(self, *, within_seconds: float = math.inf) -> Sent:
        """Send what waits, the oldest first, until nothing does or time is up; nothing if somebody else is at it."""
        events = damaged = 0
        deadline = time.monotonic() + within_seconds
        with self.spool.sending() as ours:
            while ours and time.monotonic() < deadline and (first := self.spool.first()):
                segment, content = first
                if content.damaged:
                    _log.warning(
                        "%d damaged lines of %s are passed over, and kept in the file damaged beside it",
                        len(content.damaged),
                        segment.path,
                    )
                if content.records:
                    entries = [record.fields for record in content.records]
                    self._try_twice(entries, segment.call, SEGMENT_MARK_MILLISECONDS)
                self.spool.remove(segment, content.damaged)
                events += len(content.records)
                damaged += len(content.damaged)
        return Sent(events, damaged)

    def _send(self, entries: Entries) -> QueueUnavailable | None:
        """Send entries, or say why they are spooled."""
        call = ""
        try:
            if not self.spool.is_empty():
                self.flush(within_seconds=self._patience_seconds)
                if self._behind(entries):
                    return None
            call = new_call()
            self._try_twice(entries, call)
        except SpoolUnavailable:
            raise
        except QueueUnavailable as away:
            self._keep(entries, call, away)
            return away
        return None

    def _try_twice(self, entries: Entries, call: str, mark_milliseconds: int | None = None) -> None:
        try:
            self._enqueue(entries, call=call, mark_milliseconds=mark_milliseconds)
        except QueueUnavailable:
            self._enqueue(entries, call=call, mark_milliseconds=mark_milliseconds)

    def _keep(self, entries: Entries, call: str, away: QueueUnavailable) -> None:
        """Spool entries: with the call, if one was made, for Redis may have taken them and its answer was lost."""
        try:
            self.spool.append(entries, call=call)
        except SpoolUnavailable as error:
            raise SpoolUnavailable(f"{away}; and {error}") from away
        self._count(entries)

    def _behind(self, entries: Entries) -> bool:
        """Spool entries behind what waits; False if nothing does."""
        behind = self.spool.append_behind(entries)
        if behind:
            self._count(entries)
        return behind

    def _tell(self, away: QueueUnavailable | None) -> None:
        """Log why events are spooled: when it begins, not for each of them."""
        if away is not None and not self._is_away:
            _log.warning("spooled in %s: %s", self.spool.directory, away)
        self._is_away = away is not None

    def _count(self, entries: Entries) -> None:
        with self._counting:
            self.spooled += len(entries)
