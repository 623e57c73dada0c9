"""What `relay report FILE` says of a report that ends in the middle."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from relay.cli.reporting import Reporter
from relay.cli.wait import WINDOW, PendingReceipts
from relay.errors import GatewayRefused, InvalidEvent, QueueFull, QueueUnavailable
from relay.producer.base import BaseProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from relay.errors import RelayError
    from relay.events.event import DeploymentEvent
    from relay.producer.base import Given, Outcome
    from relay.queue.receipts import Receipt

#: Events that `Ending` takes together.
CHUNK = 10

IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'a').hexdigest()}"


class Ending(BaseProducer):
    """Enqueues so many chunks without the third event of each, which is invalid, and then fails."""

    chunk_size = CHUNK

    def __init__(self, chunks: int, error: RelayError) -> None:
        self._chunks = chunks
        self._error = error

    def report_stream(self, events: Iterable[DeploymentEvent], **_: Any) -> Iterator[Outcome]:
        for _ in range(self._chunks):
            for place, event in enumerate(list(islice(events, CHUNK))):
                yield InvalidEvent("", "no") if place == 2 else event.id or "new"
        assert list(islice(events, CHUNK))
        raise self._error

    def receipts(self, ids: Sequence[str], *, within_seconds: float = 0) -> Iterable[Receipt | None]:  # noqa: ARG002 - it always fails
        raise self._error

    def close(self) -> None:
        pass

    def _sender(self, *, receipts: bool) -> Callable[[list[Given]], list[Outcome]]:
        raise NotImplementedError


class OneByOne(Ending):
    """Enqueues each event alone."""

    def report_stream(self, events: Iterable[DeploymentEvent], **_: Any) -> Iterator[Outcome]:
        for event in events:
            yield event.id or "new"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of a hundred events; every fourth line, the first among them, is none."""
    lines = ["no json" if number % 4 == 0 else json.dumps({"image": {"url": IMAGE}}) for number in range(132)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    return tmp_path / "events.jsonl"


def said(
    producer: Ending, file: Path, capsys: pytest.CaptureFixture[str], pending: PendingReceipts | None = None
) -> str:
    with pytest.raises(type(producer._error)):
        Reporter(producer=producer, origin=None, pending=pending).report_file(str(file))
    return next(line for line in capsys.readouterr().err.splitlines() if "enqueued before this" in line)


@pytest.mark.parametrize("error", [QueueFull, QueueUnavailable, GatewayRefused])
def test_error_in_the_middle_says_what_is_enqueued_and_where_to_go_on(
    error: type[RelayError], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 21st event, behind two chunks of which each has one that is refused, is on line 28."""
    assert said(Ending(0, error("no more")), file, capsys) == "0 enqueued before this; report again from line 2 on"
    assert said(Ending(2, error("no more")), file, capsys) == "18 enqueued before this; report again from line 28 on"


def test_what_was_taken_of_the_last_chunk_is_not_to_be_reported_again(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = QueueFull("no more")
    full.enqueued = ("a", "b", "c")
    assert said(Ending(2, full), file, capsys) == "21 enqueued before this; report again from line 32 on"


def test_error_while_nothing_is_under_way_says_how_much_is_enqueued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway that takes reports and refuses to tell what became of them."""
    file = tmp_path / "events.jsonl"
    file.write_text(f"{json.dumps({'image': {'url': IMAGE}})}\n" * 2 * WINDOW)
    producer = OneByOne(0, GatewayRefused("no more"))
    assert (
        said(producer, file, capsys, PendingReceipts(producer, 60))
        == f"{WINDOW} enqueued before this; report the rest again"
    )
