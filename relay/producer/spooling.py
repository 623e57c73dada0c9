"""Sends events to Redis, or stores them in the spool while Redis is unavailable.

Events of the spool are sent before the events of a report, so that the events of one caller arrive in order. A report
tries Redis twice, because the first attempt may meet a connection that died while idle. If both fail, its events are
appended to the spool. So a report that finds Redis unavailable takes twice its time-outs at most.

A full queue spools nothing: `QueueFull` is raised, and the spool keeps its events.
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
    from collections.abc import Callable

    from relay.producer.spool import Spool

#: How long Redis remembers the call of a segment, in milliseconds: longer than a producer that was killed while
#: sending stays down. Costs some hundred bytes a segment.
SEGMENT_MARK_MILLISECONDS = 30 * 86_400_000

_log = logging.getLogger(__name__)

Entries = list[dict[str, Any]]


class Enqueue(Protocol):
    """Adds entries to the inbox, all or none, once for each `call`; raises what producers raise."""

    def __call__(self, entries: Entries, *, call: str, mark_milliseconds: int | None = None) -> None:
        """Add them, and have Redis remember the call for that long."""


class Sent(NamedTuple):
    """What `flush` sent."""

    events: int
    #: Lines that were no records: skipped, and kept in the file `damaged`.
    damaged: int


class SpoolingSender:
    """Sends chunks to Redis or to the spool. Thread-safe."""

    def __init__(self, spool: Spool, enqueue: Enqueue, *, patience_seconds: float) -> None:
        """`enqueue` must not retry; a report sends events of the spool for `patience_seconds` at most."""
        self.spool = spool
        #: Events appended to the spool.
        self.spooled = 0
        self._enqueue = enqueue
        self._patience_seconds = patience_seconds
        self._counting = threading.Lock()
        self._is_unavailable = False

    def sender(self) -> Callable[[Entries], None]:
        """Return the function that sends the chunks of one report; it returns once Redis or the disk has a chunk.

        After a failed attempt no other is made for as long as it took: at most half of a long stream's time is spent
        on a Redis that is unavailable.
        """
        next_attempt_at = -math.inf

        def send(entries: Entries) -> None:
            nonlocal next_attempt_at
            started = time.monotonic()
            if started < next_attempt_at and self._append_unless_empty(entries):
                return
            error = self._send(entries)
            if error is not None:
                if not self._is_unavailable:  # logged when it begins, not for each event
                    _log.warning("spooled in %s: %s", self.spool.directory, error)
                now = time.monotonic()
                next_attempt_at = now + (now - started)
            self._is_unavailable = error is not None

        return send

    def flush(self, *, within_seconds: float = math.inf) -> Sent:
        """Send the spool's events, oldest first, until it is empty or time is up; none if another process does."""
        events = damaged = 0
        deadline = time.monotonic() + within_seconds
        with self.spool.sending() as is_ours:
            while is_ours and time.monotonic() < deadline and (first := self.spool.first()):
                segment, content = first
                if content.damaged:
                    _log.warning(
                        "%d damaged lines of %s are skipped, and kept in the file damaged beside it",
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
        """Send entries to Redis, behind those of the spool; return the error if they are spooled because of one."""
        call = ""
        try:
            if not self.spool.is_empty():
                self.flush(within_seconds=self._patience_seconds)
                if self._append_unless_empty(entries):
                    return None
            call = new_call()
            self._try_twice(entries, call)
        except SpoolUnavailable:
            raise
        except QueueUnavailable as error:
            try:
                # With the call, if one was made: Redis may have applied it although no answer came.
                self.spool.append(entries, call=call)
            except SpoolUnavailable as refused:
                raise SpoolUnavailable(f"{error}; and {refused}") from error
            self._count(entries)
            return error
        return None

    def _try_twice(self, entries: Entries, call: str, mark_milliseconds: int | None = None) -> None:
        try:
            self._enqueue(entries, call=call, mark_milliseconds=mark_milliseconds)
        except QueueUnavailable:
            self._enqueue(entries, call=call, mark_milliseconds=mark_milliseconds)

    def _append_unless_empty(self, entries: Entries) -> bool:
        is_appended = self.spool.append_unless_empty(entries)
        if is_appended:
            self._count(entries)
        return is_appended

    def _count(self, entries: Entries) -> None:
        with self._counting:
            self.spooled += len(entries)
