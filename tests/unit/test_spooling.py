"""Chunks go to Redis, behind the events of the spool, or nowhere with an error that says why."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from relay.errors import QueueUnavailable, SpoolUnavailable
from relay.producer.spool import SEGMENT_BYTES, Spool
from relay.producer.spooling import SEGMENT_MARK_MILLISECONDS, SpoolingSender

if TYPE_CHECKING:
    from pathlib import Path

#: One to a segment.
BIG = "x" * SEGMENT_BYTES


class Queue:
    """Adds entries, or raises the next of `answers`."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.calls: list[tuple[str, int | None]] = []
        self.answers: list[Exception | None] = []

    def enqueue(self, entries: list[dict[str, Any]], *, call: str, mark_milliseconds: int | None = None) -> None:
        self.calls.append((call, mark_milliseconds))
        if self.answers and (answer := self.answers.pop(0)):
            raise answer
        self.taken += [fields["id"] for fields in entries]


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", max_bytes=10 * SEGMENT_BYTES, patience_seconds=30)


def report(spooling: SpoolingSender, *ids: str) -> None:
    """Report events, a chunk each."""
    send = spooling.sender()
    for each in ids:
        send([{"event": "{}", "id": each}])


def fill(spool: Spool, *ids: str) -> None:
    for each in ids:
        spool.append([{"event": BIG, "id": each}])


def test_a_producer_starts_without_what_it_may_never_need() -> None:
    code = "import sys; from relay import Producer; Producer('redis://127.0.0.1:1/0'); print(*sys.modules)"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "relay.producer" in imported
    assert not imported & {"relay.producer.spool", "relay.producer.spooling", "relay.redaction"}


def test_redis_is_tried_again_with_the_same_call(queue: Queue, spool: Spool) -> None:
    queue.answers = [QueueUnavailable("a connection that was dead")]
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=30)
    report(sender, "1")
    assert queue.taken == ["1"]
    assert sender.spooled == 0
    (first, second) = queue.calls
    assert first == second


def test_what_was_tried_is_tried_again_under_its_name_and_is_marked_for_longer(queue: Queue, spool: Spool) -> None:
    queue.answers = [QueueUnavailable("away")] * 2
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=30)
    report(sender, "1")
    sender.flush()
    (call, mark), _, later = queue.calls
    assert mark is None
    assert later == (call, SEGMENT_MARK_MILLISECONDS)
    assert queue.taken == ["1"]


def test_when_time_is_up_the_new_event_goes_behind_what_still_waits(queue: Queue, spool: Spool) -> None:
    fill(spool, "1", "2", "3")
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=0)
    report(sender, "new")
    assert "new" not in queue.taken
    assert sender.spooled == 1
    sender.flush()
    assert queue.taken == ["1", "2", "3", "new"]


def test_new_event_follows_at_once_when_there_was_time_for_all(queue: Queue, spool: Spool) -> None:
    fill(spool, "1", "2", "3")
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=30)
    report(sender, "new")
    assert queue.taken == ["1", "2", "3", "new"]
    assert spool.is_empty()


def test_what_was_sent_before_redis_went_away_is_not_sent_again(queue: Queue, spool: Spool) -> None:
    fill(spool, "1", "2", "3")
    queue.answers = [None, QueueUnavailable("away"), QueueUnavailable("away")]
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=30)
    report(sender, "new")
    assert queue.taken == ["1"]
    sender.flush()
    assert queue.taken == ["1", "2", "3", "new"]


def test_a_spool_that_cannot_be_read_is_not_passed_by(queue: Queue, spool: Spool, tmp_path: Path) -> None:
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=30)
    spool.directory.rename(tmp_path / "elsewhere")
    spool.directory.write_text("")
    with pytest.raises(SpoolUnavailable) as refused:
        report(sender, "new")
    assert str(refused.value).count("cannot be used") == 1
    assert queue.taken == [], "what may wait in it must not be overtaken"


def test_the_reason_for_spooling_is_logged_when_it_begins(
    queue: Queue, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    sender = SpoolingSender(spool, queue.enqueue, patience_seconds=30)
    queue.answers = [QueueUnavailable("Redis is on holiday")] * 6
    for each in "123":
        report(sender, each)
    assert sender.spooled == 3
    assert caplog.text.count("Redis is on holiday") == 1
    report(sender, "4")
    queue.answers = [QueueUnavailable("Redis is on holiday")] * 2
    report(sender, "5")
    assert caplog.text.count("Redis is on holiday") == 2
