"""Sends a stream of items in chunks that do not wait for a source that pauses.

A source may pause: a pipe between two lines, a generator between two pages. It is read in the caller's thread, where
its code expects to run. While it pauses, a thread that lives as long as the stream sends the items read before.
Chunks are sent one at a time and in the order of the items.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Maximum wait of an item for others to be sent with it, in seconds: while more arrive, and after the last one.
LINGER_SECONDS, PAUSE_SECONDS = 0.5, 0.05

_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")


def in_chunks(
    source: Iterable[_Item],
    send: Callable[[list[_Item]], Iterable[_Outcome]],
    *,
    size: int,
    on_error: Callable[[], object] | None = None,
) -> Iterator[_Outcome]:
    """Send items in chunks of `size` at most, and yield their outcomes in order.

    A chunk is sent once it is full, `PAUSE_SECONDS` after its last item, `LINGER_SECONDS` after its first, or when
    the source ends. If the source raises, the items before are sent and their outcomes yielded first. An error of
    `send` ends the sending, and is raised when the source gives its next item or ends. `on_error` is then called in
    the other thread; it may interrupt the wait for the next item.

    Lazy: the source is read as outcomes are asked for. At most `size` items and their outcomes are in memory.
    """
    stream = _Stream(send, size, on_error)
    items, add, outcomes = iter(source), stream.add, stream.outcomes
    failure: BaseException | None = None
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                failure = error
                break
            add(item)
            while outcomes:
                yield outcomes.popleft()
        stream.end()
        yield from outcomes
        if failure is not None:
            raise failure
    finally:
        stream.stop()


class _Stream(Generic[_Item, _Outcome]):
    """The chunk that is being filled, and the thread that sends it if the source pauses."""

    def __init__(
        self,
        send: Callable[[list[_Item]], Iterable[_Outcome]],
        size: int,
        on_error: Callable[[], object] | None,
    ) -> None:
        self.outcomes: deque[_Outcome] = deque()
        self._send = send
        self._size = size
        self._on_error = on_error
        self._pending: deque[_Item] = deque()
        #: When the first pending item was read, on the monotonic clock.
        self._begun = 0.0
        self._error: BaseException | None = None
        self._sending = threading.Lock()
        self._has_begun = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, item: _Item) -> None:
        """Add an item, and send the chunk if it is full."""
        if self._error is not None:
            raise self._error
        pending = self._pending
        if pending:
            pending.append(item)
        else:
            self._begun = time.monotonic()
            pending.append(item)
            self._has_begun.set()  # after the item is added, because the thread reads it
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_pauses, name="stream", daemon=True)
                self._thread.start()
        if len(pending) >= self._size:
            self._send_pending()
            self._raise_error()

    def end(self) -> None:
        """Send the rest."""
        self._send_pending()
        self._raise_error()

    def stop(self) -> None:
        """End the thread after the chunk that it may be sending."""
        self._stopped.set()
        self._has_begun.set()
        if self._thread is not None:
            self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _send_pending(self) -> None:
        with self._sending:
            if self._error is not None:
                return
            chunk = [self._pending.popleft() for _ in range(min(len(self._pending), self._size))]
            if chunk:
                try:
                    self.outcomes.extend(self._send(chunk))
                except BaseException as error:  # noqa: BLE001 - raised in the thread that reads the source
                    self._error = error

    def _send_pauses(self) -> None:
        """Send each chunk whose wait is over before it is full."""
        while self._has_begun.wait() and not self._stopped.is_set():
            self._has_begun.clear()
            while self._pending and not self._stopped.is_set():
                before = self._begun, len(self._pending)
                if self._stopped.wait(PAUSE_SECONDS):
                    return
                has_more = before != (self._begun, len(self._pending))
                if has_more and time.monotonic() - self._begun < LINGER_SECONDS:
                    continue
                self._send_pending()
                if self._error is not None:
                    if self._on_error is not None:
                        self._on_error()
                    return
