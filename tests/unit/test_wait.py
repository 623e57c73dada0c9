"""Polling receipts is bounded in number and time, and goes on while the queue is unavailable."""

from __future__ import annotations

import json
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from relay.cli.reporting import Reporter
from relay.cli.wait import SHORTEST_POLL_SECONDS, UNKNOWN, WAITING, WINDOW, PendingReceipts
from relay.errors import QueueUnavailable
from relay.producer.base import BaseProducer, send_valid
from relay.queue.receipts import Receipt, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import pytest

    from relay.producer.base import Given, Outcome

IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'a').hexdigest()}"


class InMemory(BaseProducer):
    """Delivers every event by the time of its first poll; the first `away` polls fail."""

    chunk_size = 100

    def __init__(self, away: int = 0, statuses: dict[str, Status | None] | None = None) -> None:
        self.most_pending = 0
        #: `within_seconds` of each poll.
        self.polls: list[float] = []
        self._away = away
        self._statuses = statuses or {}

    def receipts(self, ids: Sequence[str], *, within_seconds: float = 0) -> Iterable[Receipt | None]:
        self.most_pending = max(self.most_pending, len(ids))
        self.polls.append(within_seconds)
        if self._away:
            self._away -= 1
            raise QueueUnavailable("away")
        found = [self._statuses.get(event_id, Status.DELIVERED) for event_id in ids]
        return [None if status is None else Receipt(status=status, at=0) for status in found]

    def close(self) -> None:
        pass

    def _sender(self, *, receipts: bool) -> Callable[[list[Given]], list[Outcome]]:
        assert receipts
        return partial(send_valid, send=lambda events: [event.id or "" for event in events])


def test_at_most_a_window_of_events_is_pending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.jsonl").write_text(f"{json.dumps({'image': {'url': IMAGE}})}\n" * (3 * WINDOW))
    producer = InMemory()
    reporter = Reporter(producer=producer, origin=None, pending=PendingReceipts(producer, 60))
    assert reporter.report_file(str(tmp_path / "events.jsonl")) == 0
    assert producer.most_pending == WINDOW
    assert f"{3 * WINDOW} enqueued, 0 refused, {3 * WINDOW} delivered" in capsys.readouterr().err


def test_polling_goes_on_while_the_queue_is_unavailable() -> None:
    pending = PendingReceipts(InMemory(away=3), 60)
    pending.add("a")
    pending.wait()
    assert (pending.counts, pending.unreachable) == ({Status.DELIVERED: 1}, "")


def test_nothing_is_waited_for_after_the_timeout() -> None:
    producer = InMemory(statuses={"a": Status.QUEUED, "b": None})
    pending = PendingReceipts(producer, 0)
    for event_id in "abc":
        pending.add(event_id)
    pending.wait()
    pending.add("d")
    pending.wait()
    assert pending.counts == {WAITING: 2, UNKNOWN: 1, Status.DELIVERED: 1}


def test_a_poll_is_bounded_by_the_time_left() -> None:
    producer = InMemory(statuses={"a": Status.QUEUED})
    pending = PendingReceipts(producer, 1.5)
    pending.add("a")
    pending.wait()
    assert 1.4 < producer.polls[0] <= 1.5
    assert producer.polls == sorted(producer.polls, reverse=True)
    assert producer.polls[-1] == SHORTEST_POLL_SECONDS


def test_receipts_read_before_a_poll_fails_count() -> None:
    class HalfAway(InMemory):
        def receipts(self, ids: Sequence[str], *, within_seconds: float = 0) -> Iterable[Receipt | None]:
            yield from super().receipts(ids[:1], within_seconds=within_seconds)
            raise QueueUnavailable("away")

    pending = PendingReceipts(HalfAway(), 0)
    for event_id in "ab":
        pending.add(event_id)
    pending.wait()
    assert (pending.counts, pending.unreachable) == ({Status.DELIVERED: 1, WAITING: 1}, "away")


def test_two_lines_with_one_id_count_twice(capsys: pytest.CaptureFixture[str]) -> None:
    pending = PendingReceipts(InMemory(statuses={"a": Status.DEAD}), 60)
    pending.add("a", "line 1: ")
    pending.add("a", "line 2: ")
    pending.wait()
    assert pending.counts == {Status.DEAD: 2}
    assert capsys.readouterr().err.splitlines() == ["line 1: dead: ", "line 2: dead: "]
