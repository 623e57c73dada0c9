"""Idempotency keys: the same for all attempts of one event, and for no other event."""

from __future__ import annotations

from itertools import combinations

import pytest

from relay.destinations.deployment_api import header_text
from relay.queue.outbox import OutboxEntry, Trials
from workers.delivery.idempotency import IdempotencyKeys

ENTRY = OutboxEntry(
    entry_id="5-0",
    body=b"{}",
    event_id="1750000000000-0",
    instance="docker.io/library/nginx linux/amd64 ",
    digest="sha256:a",
    time="",
    newest_time="",
    enqueued_at_ms=5,
)


def key(entry: OutboxEntry = ENTRY, environment: str = "production", dataset: str = "d1") -> str:
    return IdempotencyKeys(dataset).of(environment, entry)


def test_whatever_tells_two_events_apart_tells_their_keys_apart() -> None:
    keys = [
        key(),
        key(dataset="d2"),
        key(environment="staging"),
        key(ENTRY._replace(event_id="1750000000000-1")),
        key(ENTRY._replace(instance="docker.io/library/nginx linux/amd64 sidecar")),
        key(ENTRY._replace(digest="sha256:b")),
        key(ENTRY._replace(arrival="5-1")),
    ]
    assert all(one != other for one, other in combinations(keys, 2))


def test_no_attempt_of_an_event_has_another_key() -> None:
    again = ENTRY._replace(
        entry_id="9-9", trials=Trials(3, 4), deferred=True, time="7", enqueued_at_ms=9, has_receipt=True
    )
    assert key(again) == key()


@pytest.mark.parametrize(
    ("event_id", "begins"),
    [("job-7", "job-7."), ("j" * 128, "j" * 64 + "."), ("zürich", "event."), ("a.b c", "a.b c.")],
)
def test_a_key_begins_with_the_id_as_far_as_a_header_carries_it(event_id: str, begins: str) -> None:
    made = key(ENTRY._replace(event_id=event_id))
    assert made.startswith(begins)
    assert len(made) == len(begins) + 32
    assert header_text(made) == made
