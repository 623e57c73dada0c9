"""A stream is sent in chunks, in order and without waiting for a source that pauses; source or sending may fail."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from relay.producer.streaming import PAUSE_SECONDS, in_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 10

#: Maximum wait for another thread.
PATIENCE_SECONDS = 30


class Receiver:
    """Receives chunks; a test can wait for an item."""

    def __init__(self, *, refuses: int | None = None) -> None:
        self.chunks: list[list[int]] = []
        self._refuses = refuses
        self._arrived = threading.Condition()

    def send(self, chunk: list[int]) -> list[str]:
        if self._refuses in chunk:
            raise ConnectionError("refused")
        with self._arrived:
            self.chunks.append(chunk)
            self._arrived.notify_all()
        return [str(item) for item in chunk]

    @property
    def items(self) -> list[int]:
        return [item for chunk in self.chunks for item in chunk]

    def has(self, item: int) -> bool:
        with self._arrived:
            return self._arrived.wait_for(lambda: item in self.items, PATIENCE_SECONDS)


def streams() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stream"]


def test_a_source_that_does_not_pause_is_sent_in_full_chunks() -> None:
    receiver = Receiver()
    assert list(in_chunks(range(25), receiver.send, size=SIZE)) == [str(each) for each in range(25)]
    assert [len(chunk) for chunk in receiver.chunks] == [10, 10, 5]
    assert not streams()


def test_items_are_sent_while_the_source_pauses() -> None:
    """A generator waits until each item has arrived: with chunks cut by number alone it would wait without end."""
    receiver = Receiver()
    waits = []

    def pausing() -> Iterator[int]:
        for item in range(3):
            begun = time.monotonic()
            yield item
            assert receiver.has(item)
            waits.append(time.monotonic() - begun)

    assert list(in_chunks(pausing(), receiver.send, size=SIZE)) == ["0", "1", "2"]
    assert receiver.chunks == [[0], [1], [2]]
    assert min(waits) >= PAUSE_SECONDS / 2, "items that arrive at once are sent together"


def test_an_item_waits_for_a_bounded_time_though_the_source_never_pauses_for_long() -> None:
    receiver = Receiver()
    sent_after = []

    def trickling() -> Iterator[int]:
        begun = time.monotonic()
        item = 0
        while not receiver.items and time.monotonic() - begun < PATIENCE_SECONDS:
            yield item
            item += 1
            time.sleep(PAUSE_SECONDS / 10)
        sent_after.append(time.monotonic() - begun)

    list(in_chunks(trickling(), receiver.send, size=1_000_000))
    assert sent_after[0] < PATIENCE_SECONDS


def test_order_is_kept_where_both_threads_send() -> None:
    receiver = Receiver()

    def now_and_then() -> Iterator[int]:
        for item in range(95):
            yield item
            if item % 31 == 30:
                assert receiver.has(item)

    assert list(in_chunks(now_and_then(), receiver.send, size=SIZE)) == [str(each) for each in range(95)]
    assert receiver.items == list(range(95))
    assert max(map(len, receiver.chunks)) == SIZE


def test_a_source_is_read_in_the_callers_thread() -> None:
    threads = set()

    def source() -> Iterator[int]:
        for item in range(25):
            threads.add(threading.current_thread())
            yield item

    assert len(list(in_chunks(source(), Receiver().send, size=SIZE))) == 25
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_items_before_an_error_of_the_source_are_sent_and_returned_first(error: type[BaseException]) -> None:
    receiver = Receiver()

    def failing() -> Iterator[int]:
        yield from range(13)
        raise error

    returned = []
    with pytest.raises(error):
        returned.extend(in_chunks(failing(), receiver.send, size=SIZE))
    outcomes = in_chunks(failing(), receiver.send, size=SIZE)
    assert len(list(islice(outcomes, 13))) == 13
    with pytest.raises(error):
        next(outcomes)
    assert receiver.items == [*range(13), *range(13)]
    assert not streams()


def test_a_chunk_that_is_refused_ends_the_stream_and_nothing_overtakes_it() -> None:
    receiver = Receiver(refuses=15)
    outcomes = in_chunks(range(100), receiver.send, size=SIZE)
    assert list(islice(outcomes, SIZE)) == [str(each) for each in range(10)]
    with pytest.raises(ConnectionError):
        next(outcomes)
    assert receiver.items == list(range(10))


def test_a_refusal_while_the_source_pauses_is_announced_and_raised_when_it_goes_on() -> None:
    receiver = Receiver(refuses=1)
    announced = threading.Event()

    def pausing() -> Iterator[int]:
        yield 1
        assert announced.wait(PATIENCE_SECONDS)
        yield 2

    with pytest.raises(ConnectionError):
        list(in_chunks(pausing(), receiver.send, size=SIZE, on_error=announced.set))
    assert receiver.items == []
    assert not streams()


def test_a_stream_that_is_left_ends_its_thread() -> None:
    receiver = Receiver()
    outcomes = in_chunks(iter(range(100)), receiver.send, size=SIZE)
    assert next(outcomes) == "0"
    outcomes.close()  # type: ignore[attr-defined]
    assert not streams()
    assert receiver.items == list(range(10))
