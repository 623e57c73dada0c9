"""The inbox's scripts: what producers append, what intake accepts, and what is left when it lets go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from outboxes import (
    BELL_MS,
    KEYS,
    LEASE_MS,
    LONG_SECONDS,
    PRODUCTION,
    SCHEDULE,
    TOKEN,
    X,
    Y,
    counted,
    everything,
    lease_inbox,
    now_ms,
    put,
    totals,
)
from redis.exceptions import ResponseError

from relay.queue import inbox, scripts
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis


# accept.lua


class Item(NamedTuple):
    """An inbox entry and its decision."""

    inbox_id: str
    decision: str = "new"
    body: str = "{}"
    event_id: str = "e"
    time: str = ""
    digest: str = "sha256:a"
    repeats: str = ""


class Change(NamedTuple):
    """An instance with the state that its entries were judged on, and the one after them."""

    instance: str
    expected: str
    state: str
    items: Sequence[Item]


def accept(
    client: Redis,
    changes: dict[str, Sequence[Change]] | None = None,
    *,
    unreadable: Sequence[tuple[str, str]] = (),
    token: str = TOKEN,
) -> list[Any]:
    script_keys = [KEYS.intake_lease, KEYS.inbox, KEYS.dead, KEYS.counts, SCHEDULE, KEYS.receipts]
    script_keys += [KEYS.environments(DEFAULT_DESTINATION), KEYS.internal, KEYS.dataset]
    args: list[Any] = [token, LEASE_MS, BELL_MS, 0, 0, 0, len(unreadable)]
    for inbox_id, detail in unreadable:
        args += [inbox_id, "invalid", detail]
    for environment, instances in (changes or {}).items():
        keys = KEYS.of_outbox(DEFAULT_DESTINATION, environment)
        script_keys += [keys.accepted, keys.outbox, keys.counts, keys.lease, keys.wakeup]
        args += [environment, len(instances)]
        args += [change.instance for change in instances]
        args += [change.expected for change in instances]
        for change in instances:
            args += [change.state, len(change.items)]
            for item in change.items:
                args += [item.inbox_id, item.decision]
                if item.decision in {"new", "changed", "reasserted"}:
                    args += [item.body, item.event_id, "ci", item.time, "", item.digest, "", item.repeats]
    reply = scripts.run(client, scripts.Call(scripts.load("accept"), script_keys, args))
    return [part.decode() if isinstance(part, bytes) else part for part in reply]


def test_accepted_event_moves_to_its_outbox_in_one_step(client: Redis) -> None:
    lease_inbox(client)
    (one,) = put(client, {})

    reply = accept(
        client, {"production": [Change(X, "", "state", [Item(one, body="body", event_id="e1", time="5")])]}
    )

    assert reply == [1, 0, 1, "production"]
    assert client.xlen(KEYS.inbox) == 0
    ((_, fields),) = client.xrange(PRODUCTION.outbox)
    assert fields == {
        b"event": b"body",
        b"id": b"e1",
        b"source": b"ci",
        b"time": b"5",
        b"digest": b"sha256:a",
        b"instance": b"x",
        b"arrived": one.partition("-")[0].encode(),
    }
    assert client.hgetall(PRODUCTION.accepted) == {b"x": b"state"}
    assert totals(client) == {"taken": 1, "new": 1, "outbox": 1}
    assert totals(client, PRODUCTION.counts) == {"new": 1, "outbox": 1}
    assert client.zscore(SCHEDULE, "production") <= now_ms(client)


def test_accept_without_the_lease_does_nothing(client: Redis) -> None:
    (one,) = put(client, {})
    change = {"production": [Change(X, "", "state", [Item(one)])]}
    before = everything(client)
    assert accept(client, change) == [0]
    assert everything(client) == before

    lease_inbox(client, "successor")
    before = everything(client)
    assert accept(client, change, unreadable=[(one, "")]) == [0]
    assert everything(client) == before


def test_accept_renews_the_lease(client: Redis) -> None:
    client.set(KEYS.intake_lease, "token", px=LEASE_MS // 3)
    accept(client)

    assert client.pttl(KEYS.intake_lease) > LEASE_MS // 2


def test_accept_applied_twice_does_nothing_more(client: Redis) -> None:
    lease_inbox(client)
    client.hset(PRODUCTION.accepted, Y, "as it was")
    one, two, bad = put(client, {}, {}, {"event": "{"})
    changes = {
        "production": [
            Change(X, "", "state", [Item(one)]),
            Change(Y, "as it was", "as it was", [Item(two, "duplicate")]),
        ]
    }
    assert accept(client, changes, unreadable=[(bad, "no JSON")])[:3] == [1, 0, 3]
    before = everything(client)

    assert accept(client, changes, unreadable=[(bad, "no JSON")]) == [1, 1, 0]
    assert everything(client) == before


def test_instance_whose_state_changed_meanwhile_is_passed_over_whole(client: Redis) -> None:
    lease_inbox(client)
    client.hset(PRODUCTION.accepted, X, "given back")
    one, two, three = put(client, {}, {}, {})
    changes = {
        "production": [
            Change(X, "judged", "state", [Item(one, "changed"), Item(two, "duplicate")]),
            Change(Y, "", "other state", [Item(three)]),
        ]
    }

    assert accept(client, changes) == [1, 2, 1, "production"]
    assert [entry.entry_id for entry in inbox.head(client, KEYS, 10)] == [one, two]
    assert client.hgetall(PRODUCTION.accepted) == {b"x": b"given back", b"y": b"other state"}
    assert client.xlen(PRODUCTION.outbox) == 1
    assert totals(client) == {"taken": 1, "new": 1, "outbox": 1}


def test_state_that_is_gone_meanwhile_passes_the_instance_over(client: Redis) -> None:
    lease_inbox(client)
    (one,) = put(client, {})

    assert accept(client, {"production": [Change(X, "judged", "state", [Item(one, "changed")])]}) == [1, 1, 0]
    assert client.xlen(KEYS.inbox) == 1


def test_environment_is_rung_for_once(client: Redis) -> None:
    lease_inbox(client)
    one, two, three, four = put(client, {}, {}, {}, {})

    def accepted(inbox_id: str, expected: str) -> list[Any]:
        return accept(client, {"production": [Change(X, expected, inbox_id, [Item(inbox_id, "changed")])]})[3:]

    assert accepted(one, "") == ["production"]
    assert 0 < client.pttl(PRODUCTION.wakeup) <= BELL_MS
    assert accepted(two, one) == []

    client.set(PRODUCTION.lease, "drain")
    client.delete(PRODUCTION.wakeup)
    assert accepted(three, two) == []

    client.delete(PRODUCTION.lease)
    assert accepted(four, three) == ["production"]


def test_what_is_no_news_rings_for_nobody_and_is_only_counted(client: Redis) -> None:
    lease_inbox(client)
    client.hset(PRODUCTION.accepted, X, "state")
    one, two, three = put(client, {}, {}, {})
    items = [Item(one, "duplicate"), Item(two, "stale"), Item(three, "duplicate")]

    assert accept(client, {"production": [Change(X, "state", "seen again", items)]}) == [1, 0, 3]
    assert client.hget(PRODUCTION.accepted, X) == b"seen again"
    assert totals(client) == {"taken": 3, "duplicate": 2, "stale": 1}
    assert totals(client, PRODUCTION.counts) == {"duplicate": 2, "stale": 1}
    assert client.exists(PRODUCTION.outbox, SCHEDULE, PRODUCTION.wakeup) == 0


def test_environment_is_never_scheduled_later_than_it_was(client: Redis) -> None:
    lease_inbox(client)
    client.zadd(SCHEDULE, {"production": 5, "staging": now_ms(client) + 600_000})
    one, two = put(client, {}, {})
    accept(
        client,
        {"production": [Change(X, "", "s", [Item(one)])], "staging": [Change(X, "", "s", [Item(two)])]},
    )

    assert client.zscore(SCHEDULE, "production") == 5
    assert client.zscore(SCHEDULE, "staging") <= now_ms(client)


def test_dead_letter_keeps_the_raw_bytes(client: Redis) -> None:
    lease_inbox(client)
    fields = {b"event": b'{"image":\xff\x00', b"id": b"\xfe", b"\xfd": b"\r\n"}
    (one,) = put(client, fields)

    assert accept(client, unreadable=[(one, "it is not UTF-8")]) == [1, 0, 1]
    ((_, dead),) = client.xrange(KEYS.dead)
    assert dead == fields | {
        b"reason": b"invalid",
        b"detail": b"it is not UTF-8",
        b"entry": one.encode(),
    }
    assert totals(client) == {"taken": 1, "dead": 1, "dead:invalid": 1}
    assert client.xlen(KEYS.inbox) == 0


@pytest.mark.parametrize("fields", [100, 10_000])
def test_entry_with_many_fields_becomes_a_dead_letter_with_its_first(client: Redis, fields: int) -> None:
    lease_inbox(client)
    (one,) = put(client, {f"f{number}": number for number in range(fields)})

    assert accept(client, unreadable=[(one, "no field `event`")]) == [1, 0, 1]
    ((_, dead),) = client.xrange(KEYS.dead)
    assert list(dead) == [f"f{number}".encode() for number in range(32)] + [b"reason", b"detail", b"entry"]


@pytest.mark.parametrize("instances", [1, 5000])
def test_largest_batch_is_accepted_whole(client: Redis, instances: int) -> None:
    lease_inbox(client)
    ids = put(client, *[{}] * 5000)
    each = 5000 // instances
    changes = [
        Change(f"i{n}", "", "state", [Item(inbox_id) for inbox_id in ids[n * each : (n + 1) * each]])
        for n in range(instances)
    ]

    assert accept(client, {"production": changes})[:3] == [1, 0, 5000]
    assert client.xlen(KEYS.inbox) == 0
    assert client.xlen(PRODUCTION.outbox) == 5000
    assert client.hlen(PRODUCTION.accepted) == instances


def test_many_environments_are_accepted_together(client: Redis) -> None:
    lease_inbox(client)
    ids = put(client, *[{}] * 500)
    names = [f"env-{number}" for number in range(500)]
    changes = {name: [Change(X, "", "s", [Item(one)])] for name, one in zip(names, ids, strict=True)}

    assert accept(client, changes) == [1, 0, 500, *names]
    assert client.zcard(SCHEDULE) == 500


def test_intake_goes_on_when_memory_is_full(client: Redis) -> None:
    lease_inbox(client)
    one, bad = put(client, {}, {"event": "{"})
    client.script_load(scripts.load("accept").text)
    client.config_set("maxmemory", 1)
    try:
        reply = accept(client, {"staging": [Change(X, "", "s", [Item(one)])]}, unreadable=[(bad, "no JSON")])
    finally:
        client.config_set("maxmemory", 0)

    assert reply == [1, 0, 2, "staging"]


# append.lua


def append(client: Redis, entries: Sequence[dict[str, str]], max_backlog: int) -> list[str]:
    added = scripts.run(client, inbox.append_call(KEYS, entries, max_backlog))
    return [entry.entry_id for entry in inbox.head(client, KEYS, 1000)][-added:]


def test_call_that_is_applied_twice_adds_once(client: Redis) -> None:
    """A client tries again when the answer was lost; even a full queue must not make it an error then."""
    call = inbox.append_call(KEYS, [{"event": "1"}, {"event": "2"}], 2)

    assert [scripts.run(client, call), scripts.run(client, call)] == [2, 2]
    assert client.xlen(KEYS.inbox) == 2
    assert 0 < client.pttl(call.keys[2]) <= inbox.MARK_MILLISECONDS


def test_events_are_appended_as_they_are_in_their_order(client: Redis) -> None:
    entries = [{"event": "{}", "id": "1", "source": "ci"}, {"event": b"7:\xff\x00\r\n", "id": "é:", "source": ""}]
    ids = append(client, entries, 10)

    found = inbox.head(client, KEYS, 10)
    assert [entry.entry_id for entry in found] == ids
    assert [entry.fields for entry in found] == [
        {b"event": b"{}", b"id": b"1", b"source": b"ci"},
        {b"event": b"7:\xff\x00\r\n", b"id": "é:".encode(), b"source": b""},
    ]
    assert found[0].arrived == pytest.approx(now_ms(client), abs=1000)


@pytest.mark.parametrize(("in_inbox", "in_outboxes"), [(3, 0), (0, 3), (1, 2), (5, 5)])
def test_full_queue_takes_all_or_none(client: Redis, in_inbox: int, in_outboxes: int) -> None:
    put(client, *[{}] * in_inbox)
    client.hset(KEYS.counts, "outbox", in_outboxes)
    before = everything(client)
    del before[KEYS.counts.encode()]

    with pytest.raises(ResponseError, match=f"^QUEUEFULL {in_inbox + in_outboxes} events wait$"):
        append(client, [{"event": "1"}, {"event": "2"}], 3)
    assert counted(client) == {"outbox": in_outboxes, "refused:queue_full": 2}
    client_sees = everything(client)
    del client_sees[KEYS.counts.encode()]
    assert client_sees == before

    assert len(append(client, [{"event": "1"}, {"event": "2"}], in_inbox + in_outboxes + 1)) == 2


def test_nothing_of_a_chunk_is_appended_when_memory_is_full(client: Redis) -> None:
    put(client, {})
    before = client.xlen(KEYS.inbox)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="MEMORYFULL"):
            append(client, [{"event": "1"}, {"event": "2"}], 10)
    finally:
        client.config_set("maxmemory", 0)

    assert client.xlen(KEYS.inbox) == before


# release_inbox.lua


def test_released_inbox_tells_what_waits(client: Redis) -> None:
    lease_inbox(client)
    assert inbox.release(client, KEYS, TOKEN, BELL_MS / 1000) == 0
    assert client.exists(KEYS.intake_lease, KEYS.intake_wakeup) == 0

    put(client, {}, {})
    lease_inbox(client)
    assert inbox.release(client, KEYS, TOKEN, BELL_MS / 1000) == 2
    assert client.exists(KEYS.intake_lease) == 0
    assert 0 < client.pttl(KEYS.intake_wakeup) <= BELL_MS


def test_inbox_is_not_released_by_who_lost_its_lease(client: Redis) -> None:
    put(client, {})
    lease_inbox(client, "successor")
    before = everything(client)

    assert inbox.release(client, KEYS, TOKEN, BELL_MS / 1000) == -1
    assert everything(client) == before


# Waiting


def test_wait_for_the_inbox_ends_at_an_entry_or_in_time(client: Redis) -> None:
    assert inbox.wait(client, KEYS, "0-0", 0.001) is None
    one, two = put(client, {}, {})

    assert inbox.wait(client, KEYS, "0-0", LONG_SECONDS) == one
    assert inbox.wait(client, KEYS, one, LONG_SECONDS) == two
    assert inbox.wait(client, KEYS, two, 0.001) is None


# What is counted beside the counters


def test_every_environment_that_got_an_event_is_in_the_index(client: Redis) -> None:
    index = KEYS.environments(DEFAULT_DESTINATION)
    client.zadd(index, {"production": 7})
    lease_inbox(client)
    one, two, three = put(client, {}, {}, {})
    accept(
        client,
        {
            "production": [Change(X, "", "state", [Item(one)])],
            "staging": [Change(X, "", "", [Item(two, "duplicate")])],
            "passed over": [Change(X, "not as judged", "", [Item(three)])],
        },
    )

    assert client.zrange(index, 0, -1, withscores=True) == [(b"staging", 0.0), (b"production", 7.0)]


def test_newest_that_was_accepted_is_noted(client: Redis) -> None:
    lease_inbox(client)
    one, two, three = (client.xadd(KEYS.inbox, {"event": "{}"}, id=f"{at}-0").decode() for at in (5, 7, 9))
    changes = [
        Change(X, "", "s", [Item(one)]),
        Change(Y, "", "s", [Item(two)]),
        Change("z", "", "", [Item(three, "stale")]),
    ]
    accept(client, {"production": changes})
    assert counted(client)["newest:accepted"] == 7

    for at, newest in ((100, 100), (50, 100)):
        client.delete(KEYS.inbox)  # so that ids may go back, as a clock may
        entry = client.xadd(KEYS.inbox, {"event": "{}"}, id=f"{at}-0").decode()
        accept(client, {f"env-{at}": [Change(X, "", "s", [Item(entry)])]})
        assert counted(client)["newest:accepted"] == newest


def test_bells_that_intake_calls_for_are_counted(client: Redis) -> None:
    lease_inbox(client)
    one, two, three = put(client, {}, {}, {})
    change = {name: [Change(X, "", "s", [Item(entry)])] for name, entry in (("a", one), ("b", two))}
    assert accept(client, change)[3:] == ["a", "b"]
    assert counted(client)["wakeup:work"] == 2

    assert inbox.release(client, KEYS, TOKEN, BELL_MS / 1000) == 1
    assert counted(client)["wakeup:work"] == 3

    lease_inbox(client)
    client.xdel(KEYS.inbox, three)
    assert inbox.release(client, KEYS, TOKEN, BELL_MS / 1000) == 0
    assert counted(client)["wakeup:work"] == 3


def test_refused_for_want_of_memory_is_counted_as_long_as_redis_writes(client: Redis) -> None:
    put(client, {})
    client.config_set("maxmemory", 1 << 30)
    try:
        call = inbox.append_call(KEYS, [{"event": "1"}, {"event": "2"}], 10, 0.000001)
        with pytest.raises(ResponseError, match="MEMORYFULL"):
            scripts.run(client, call)
        assert counted(client) == {"refused:memory": 2}

        client.config_set("maxmemory", 1)
        with pytest.raises(ResponseError, match="MEMORYFULL"):
            scripts.run(client, call)
        assert counted(client) == {"refused:memory": 2}, "full: nothing can be written"
    finally:
        client.config_set("maxmemory", 0)
