"""Waiting for what became of events: bounded in number and time, and not put off by a queue that is away."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from relay.cli.reporting import Reporter
from relay.cli.wait import SHORTEST_LOOK_SECONDS, UNKNOWN, WAITING, WINDOW, Fates
from relay.errors import QueueUnavailable
from relay.queue.receipts import Receipt, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pytest

    from relay.events.event import DeploymentEvent

IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'a').hexdigest()}"


class InMemory:
    """A way to a relay in memory, which delivers what waits when it is asked for receipts; at first it is away."""

    done = "enqueued"

    def __init__(self, away: int = 0, fates: dict[str, Status | None] | None = None) -> None:
        self.most_waited_for = 0
        #: How long each look might take.
        self.looks: list[float] = []
        self._away = away
        self._fates = fates or {}

    def send(self, events: Iterable[DeploymentEvent], *, receipts: bool) -> Iterator[str]:
        assert receipts
        for event in events:
            assert event.id
            yield event.id

    def receipts(self, ids: Sequence[str], *, within_seconds: float) -> Iterable[Receipt | None]:
        self.most_waited_for = max(self.most_waited_for, len(ids))
        self.looks.append(within_seconds)
        if self._away:
            self._away -= 1
            raise QueueUnavailable("away")
        found = [self._fates.get(event_id, Status.DELIVERED) for event_id in ids]
        return [None if status is None else Receipt(status=status, at=0) for status in found]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_no_more_are_waited_for_than_the_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However long the stream is."""
    (tmp_path / "events.jsonl").write_text(f"{json.dumps({'image': {'url': IMAGE}})}\n" * (3 * WINDOW))
    way = InMemory()
    reporter = Reporter(way=way, origin=None, fates=Fates(way, 60))
    assert reporter.report_file(str(tmp_path / "events.jsonl")) == 0
    assert way.most_waited_for == WINDOW
    assert f"{3 * WINDOW} enqueued, 0 refused, {3 * WINDOW} delivered" in capsys.readouterr().err


def test_a_queue_that_is_away_for_a_while_is_waited_for() -> None:
    fates = Fates(InMemory(away=3), 60)
    fates.follow("a")
    fates.wait()
    assert (fates.counts, fates.unreachable) == ({Status.DELIVERED: 1}, "")


def test_when_the_time_is_over_nothing_more_is_waited_for() -> None:
    way = InMemory(fates={"a": Status.QUEUED, "b": None})
    fates = Fates(way, 0)
    for event_id in "abc":
        fates.follow(event_id)
    fates.wait()
    fates.follow("d")
    fates.wait()
    assert fates.counts == {WAITING: 2, UNKNOWN: 1, Status.DELIVERED: 1}


def test_a_look_takes_no_longer_than_there_is_time() -> None:
    way = InMemory(fates={"a": Status.QUEUED})
    fates = Fates(way, 1.5)
    fates.follow("a")
    fates.wait()
    assert 1.4 < way.looks[0] <= 1.5
    assert way.looks == sorted(way.looks, reverse=True)
    assert way.looks[-1] == SHORTEST_LOOK_SECONDS


def test_what_a_look_that_fails_has_seen_is_known() -> None:
    class HalfAway(InMemory):
        def receipts(self, ids: Sequence[str], *, within_seconds: float) -> Iterable[Receipt | None]:
            yield from super().receipts(ids[:1], within_seconds=within_seconds)
            raise QueueUnavailable("away")

    fates = Fates(HalfAway(), 0)
    for event_id in "ab":
        fates.follow(event_id)
    fates.wait()
    assert (fates.counts, fates.unreachable) == ({Status.DELIVERED: 1, WAITING: 1}, "away")


def test_two_lines_with_one_id_have_one_fate_and_count_twice(capsys: pytest.CaptureFixture[str]) -> None:
    fates = Fates(InMemory(fates={"a": Status.DEAD}), 60)
    fates.follow("a", "line 1: ")
    fates.follow("a", "line 2: ")
    fates.wait()
    assert fates.counts == {Status.DEAD: 2}
    assert capsys.readouterr().err.splitlines() == ["line 1: dead: ", "line 2: dead: "]
