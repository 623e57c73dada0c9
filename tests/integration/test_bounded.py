"""Entries of any size in the streams: how much of them is read, and their outcomes."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from outboxes import inbox_lease, lease_inbox
from redis import Redis
from runs import KEYS, PRODUCTION, TOKEN, counters_of, dead_letters, delivered_images, report_many, run_once, running

from relay.errors import LeaseLost
from relay.queue import bounded, inbox, intake, lookup, metrics_snapshot, outbox, receipts
from relay.queue import dead_letters as dead
from relay.queue.receipts import Status
from relay.queue.shard import Shard
from relay.queue.status import read_status
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION, QueueSettings
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

#: A size that no reader of an entry may come near to.
LARGE = 24_000_000
MOST_HELD = 15_000_000

#: Entries that are too large, each in its own way.
OVERSIZE: dict[str, dict[str, str]] = {
    "one field": {"event": "x" * LARGE},
    "a field that is not last": {"event": "x" * LARGE, "id": "after"},
    "many fields": {"event": "{}", **{f"field-{n}": "x" * 1_000_000 for n in range(24)}},
    "a name": {"event": "{}", "n" * LARGE: "value"},
    "small fields": {f"f{n}": "v" for n in range(30_000)},
    "empty fields": {"event": "", **{f"f{n}": "" for n in range(2_000)}},
    "just too large": {"event": "x" * (inbox.OVERSIZE_BYTES + 1)},
}


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    with running(redis_server, api) as made:
        yield made


@contextmanager
def little_is_held() -> Iterator[None]:
    """Assert that no more memory was held meanwhile than a few small entries take."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_HELD
    finally:
        tracemalloc.stop()


def add(client: Redis, fields: dict[str, str]) -> str:
    packed: list[Any] = [part for field in fields.items() for part in field]
    return str(client.execute_command("XADD", KEYS.inbox, "*", *packed).decode())


@pytest.mark.parametrize("kind", OVERSIZE)
def test_oversize_entry_is_dead_lettered_cut_and_those_behind_it_arrive(
    runtime: Runtime, client: Redis, api: Sandbox, kind: str
) -> None:
    fields = OVERSIZE[kind]
    size = sum(len(name) + len(value) for name, value in fields.items())
    entry_id = add(client, fields)
    images = report_many(client, 5)

    with little_is_held():
        report = run_intake(runtime)
    run_once(runtime)

    assert report is not None
    assert report.taken == 6
    (letter,) = dead_letters(client)
    assert (letter["reason"], letter["entry"]) == ("invalid", entry_id)
    assert "was not read whole" in letter["detail"]
    assert int(letter["size"]) == size or ("at least" in letter["detail"] and int(letter["size"]) > LARGE / 24)
    name, value = next(iter(fields.items()))
    assert letter[name] == value[: bounded.KEPT_VALUE_BYTES]
    assert sum(len(name) + len(value) for name, value in letter.items()) < 300_000
    assert sorted(delivered_images(api)) == sorted(images)
    totals = counters_of(client)
    assert (totals.added, totals.dead, totals.waiting) == (6, 1, 0)


def test_oversize_entry_is_looked_at_once_and_after_a_death_alone(runtime: Runtime, client: Redis) -> None:
    client.hset(KEYS.intake_run, "token", "of a run that died")
    add(client, OVERSIZE["one field"])
    report_many(client, 2)
    with little_is_held():
        run_intake(runtime)
    assert (client.xlen(KEYS.inbox), client.xlen(KEYS.dead), client.xlen(PRODUCTION.outbox)) == (0, 1, 2)
    assert client.hgetall(KEYS.intake_run) == {}


def test_oversize_entry_that_asked_for_a_receipt_has_one(runtime: Runtime, client: Redis) -> None:
    add(client, {"id": "large", "receipt": "1", **OVERSIZE["one field"]})
    run_intake(runtime)
    found = receipts.read(client, KEYS, "large")
    assert found is not None
    assert (found.status, found.reason) == (Status.DEAD, "invalid")


def test_oversize_entry_is_dead_lettered_under_the_lease_and_once(client: Redis) -> None:
    add(client, OVERSIZE["just too large"])
    rejected = [(inbox.head(client, KEYS, 10)[0], "invalid", "d")]

    with pytest.raises(LeaseLost):
        intake.dead_letter(inbox_lease(client), rejected)
    assert (client.xlen(KEYS.inbox), client.xlen(KEYS.dead)) == (1, 0)
    lease = lease_inbox(client)
    assert (intake.dead_letter(lease, rejected), intake.dead_letter(lease, rejected)) == (1, 0)
    assert (client.xlen(KEYS.inbox), client.xlen(KEYS.dead)) == (0, 1)


def test_event_that_is_larger_than_the_setting_and_not_oversize_is_kept_whole(
    runtime: Runtime, client: Redis
) -> None:
    add(client, {"event": "x" * 500_000, "id": "large"})
    run_intake(runtime)
    (letter,) = dead_letters(client)
    assert (len(letter["event"]), letter["reason"]) == (500_000, "invalid")


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", OVERSIZE)
def test_entry_is_read_in_bounded_memory_over_both_protocols(
    redis_server: EmbeddedRedis, client: Redis, kind: str, protocol: int
) -> None:
    entry_id = add(client, OVERSIZE[kind])
    with Redis.from_url(redis_server.url, protocol=protocol, socket_timeout=10) as other:
        with little_is_held():
            assert bounded.first_id(other, KEYS.inbox) == entry_id
            assert bounded.wait(other, {KEYS.inbox: "0-0", KEYS.dead: "0-0"}, 1) == entry_id
            assert bounded.wait(other, {KEYS.inbox: "$"}, 0.001) is None
            (page,) = bounded.page(other, KEYS.inbox, start="-", count=10)
        assert (page.entry_id, page.is_whole) == (entry_id, False)
        assert other.ping()
        with pytest.raises(Exception, match="WRONGTYPE"):
            other.set("plain", "1") and bounded.first(other, "plain", most_bytes=1, most_fields=1)
        assert other.ping()


def test_ordinary_entries_are_read_whole_in_order(client: Redis) -> None:
    ids = [add(client, {"event": f"{n}", "id": "é", "empty": ""}) for n in range(5)]
    flat = [b"event", b"0", b"id", "é".encode(), b"empty", b""]
    first = bounded.first(client, KEYS.inbox, most_bytes=100, most_fields=3)
    assert first == bounded.BoundedEntry(ids[0], flat, 15)
    assert [entry.entry_id for entry in bounded.page(client, KEYS.inbox, start=f"({ids[0]}", count=3)] == ids[1:4]
    assert [entry.entry_id for entry in inbox.head(client, KEYS, 3)] == ids[:3]
    assert [entry.entry_id for entry in inbox.head(client, KEYS, 3, is_careful=True)] == ids[:1]
    assert bounded.first(client, "absent", most_bytes=100, most_fields=3) is None


def test_backlog_of_large_events_is_read_in_several(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "READ_BYTES", 1_000_000)
    ids = [add(client, {"event": "x" * 60_000}) for _ in range(40)]
    found = [entry.entry_id for entry in inbox.head(client, KEYS, 30)]
    assert 1 <= len(found) < 30
    assert found == ids[: len(found)]


def test_oversize_entry_among_others_ends_what_is_read_before_it(client: Redis) -> None:
    ids = [add(client, {"event": "{}"}), add(client, OVERSIZE["just too large"]), add(client, {"event": "{}"})]
    assert [entry.entry_id for entry in inbox.head(client, KEYS, 30)] == ids[:1]
    client.xdel(KEYS.inbox, ids[0])
    (entry,) = inbox.head(client, KEYS, 30)
    assert entry.oversize is not None


def test_lookups_hold_little_of_oversize_entries(client: Redis) -> None:
    first = add(client, OVERSIZE["one field"])
    add(client, {"event": "{}", "id": "wanted"})
    arrived = int(first.partition("-")[0])
    with little_is_held():
        assert read_status(client, KEYS, DEFAULT_DESTINATION, QueueSettings()).inbox_oldest == arrived
        assert metrics_snapshot.read_snapshot(client, KEYS, DEFAULT_DESTINATION, environments=5).inbox.events == 2
        found = lookup.look_up(client, KEYS, DEFAULT_DESTINATION, "wanted")
    assert [each.place for each in found.traces] == [lookup.Place.INBOX]


def test_page_of_dead_letters_is_bounded_in_bytes_and_large_ones_are_cut(client: Redis) -> None:
    death = {"reason": "invalid", "detail": "too large", "entry": "5-0"}
    large = [client.xadd(KEYS.dead, {"event": "x" * LARGE, "id": "large", **death}).decode() for _ in range(3)]
    small = [client.xadd(KEYS.dead, {"event": "{}", "id": f"{n}", **death}).decode() for n in range(300)]
    with little_is_held():
        pages = list(dead.walk(client, KEYS))
        letter = dead.find(client, KEYS, large[0])
    assert [each.letter_id for page in pages for each in page.letters] == large + small
    assert [len(page.letters) for page in pages[:3]] == [1, 1, 1]
    assert letter is not None
    assert (letter.reason, letter.event_id, len(letter.named[b"event"])) == ("invalid", "large", dead.KEPT_BYTES)
    backwards = [each.letter_id for page in dead.walk(client, KEYS, newest_first=True) for each in page.letters]
    assert backwards == [*reversed(small), *reversed(large)]


def test_events_are_claimed_by_bytes(client: Redis) -> None:
    body = {"event": "x" * 3_000_000, "id": "i", "instance": "x", "digest": "d", "time": "", "arrived": "1"}
    for _ in range(6):
        client.xadd(PRODUCTION.outbox, body)
    client.set(PRODUCTION.lease, "t")
    request = outbox.ClaimRequest(outbox.OutboxLease(PRODUCTION, "t"), "-", 6)
    (found,) = outbox.claim(
        Shard(client=client, keys=KEYS),
        [request],
        lease_seconds=9,
        longest_pause_seconds=60,
        max_event_bytes=3_000_000,
    )
    assert found is not None
    assert len(found.fresh) == 5
    assert found.cursor == outbox.after(found.fresh[-1].entry_id)
