"""The scripts of the inbox: producers append, a run of intake commits and releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    inbox_lease,
    lease_inbox,
    now_ms,
    put,
    release_inbox,
    totals,
)
from redis.exceptions import ResponseError

from relay.errors import LeaseLost
from relay.queue import inbox, intake, scripts
from relay.queue.entries import AcceptedEntry, optional_fields
from relay.queue.intake import Committed, DecidedEntry, DecidedInstance
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis


# commit_intake.lua and dead_letter_inbox.lua


def decided(
    inbox_id: str, decision: str = "new", *, body: str = "{}", event_id: str = "e", time: str = "", instance: str = X
) -> DecidedEntry:
    """Return an inbox entry with its decision."""
    if decision in {"duplicate", "stale"}:
        return DecidedEntry(inbox_id, decision)
    at, _, sequence = inbox_id.partition("-")
    entry = AcceptedEntry(body.encode(), event_id, "ci", time, "sha256:a", instance, int(at), int(sequence))
    return DecidedEntry(inbox_id, decision, entry)


def change(instance: str, expected: str, state: str, *entries: DecidedEntry) -> DecidedInstance:
    """Return an instance with the state that its decisions are based on, and the one after them."""
    return DecidedInstance(instance=instance, expected=expected, state=state, entries=entries)


def commit(client: Redis, changes: dict[str, list[DecidedInstance]], *, token: str = TOKEN) -> Committed:
    return intake.commit(inbox_lease(client, token), DEFAULT_DESTINATION, changes)


def dead_letter(client: Redis, detail: str, *, token: str = TOKEN) -> int:
    """Dead-letter the first entry of the inbox."""
    entry = inbox.head(client, KEYS, 1)[0]
    return intake.dead_letter(inbox_lease(client, token), [(entry, "invalid", detail)])


def test_accepted_event_moves_to_its_outbox_in_one_step(client: Redis) -> None:
    lease_inbox(client)
    (one,) = put(client, {})

    entry = decided(one, body="body", event_id="e1", time="5")
    assert commit(client, {"production": [change(X, "", "state", entry)]}) == Committed(1, ["production"])
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
        b"sequence": one.partition("-")[2].encode(),
    }
    assert client.hgetall(PRODUCTION.accepted) == {b"x": b"state"}
    assert totals(client) == {"taken": 1, "new": 1, "outbox": 1}
    assert totals(client, PRODUCTION.counts) == {"new": 1, "outbox": 1}
    assert client.zscore(SCHEDULE, "production") <= now_ms(client)


def test_rare_fields_of_an_entry_are_added_if_they_are_set(client: Redis) -> None:
    lease_inbox(client)
    (one,) = put(client, {})
    entry = decided(one)
    assert entry.accepted is not None
    rare = optional_fields(newest=7, receipt=True, redriven="1 5-0 force", resync="5-1")
    entry = entry._replace(accepted=entry.accepted._replace(optional=rare))

    commit(client, {"production": [change(X, "", "state", entry)]})
    ((_, fields),) = client.xrange(PRODUCTION.outbox)
    assert list(fields.items())[8:] == [
        (b"receipt", b"1"), (b"newest", b"7"), (b"redriven", b"1 5-0 force"), (b"resync", b"5-1"),
    ]  # fmt: skip


@pytest.mark.parametrize("holder", ["", "successor"])
def test_nothing_is_committed_without_the_lease(client: Redis, holder: str) -> None:
    (one,) = put(client, {})
    if holder:
        lease_inbox(client, holder)
    before = everything(client)

    with pytest.raises(LeaseLost):
        commit(client, {"production": [change(X, "", "state", decided(one))]})
    with pytest.raises(LeaseLost):
        dead_letter(client, "no JSON")
    assert everything(client) == before


def test_an_expired_lease_is_held_on_to_while_no_other_run_acquired_it(client: Redis) -> None:
    (one,) = put(client, {})
    client.hset(KEYS.intake_run, "token", TOKEN)

    assert commit(client, {"production": [change(X, "", "state", decided(one))]}).entries == 1
    assert client.get(KEYS.intake_lease) == TOKEN.encode()


def test_a_commit_renews_the_lease(client: Redis) -> None:
    client.set(KEYS.intake_lease, TOKEN, px=LEASE_MS // 3)
    (one,) = put(client, {})
    commit(client, {"production": [change(X, "", "state", decided(one))]})

    assert client.pttl(KEYS.intake_lease) > LEASE_MS // 2


def test_a_commit_that_is_applied_twice_does_nothing_more(client: Redis) -> None:
    lease_inbox(client)
    client.hset(PRODUCTION.accepted, Y, "as it was")
    bad, one, two = put(client, {"event": "{"}, {}, {})
    (entry,) = inbox.head(client, KEYS, 1)
    changes = {
        "production": [
            change(X, "", "state", decided(one)),
            change(Y, "as it was", "as it was", decided(two, "duplicate")),
        ]
    }
    rejected = [(entry, "invalid", "no JSON")]
    assert (commit(client, changes).entries, intake.dead_letter(inbox_lease(client), rejected)) == (2, 1)
    before = everything(client)

    assert (commit(client, changes).entries, intake.dead_letter(inbox_lease(client), rejected)) == (0, 0)
    assert everything(client) == before
    assert bad == entry.entry_id


@pytest.mark.parametrize("current", ["given back", ""])
def test_an_instance_whose_state_changed_meanwhile_stays_in_the_inbox_whole(client: Redis, current: str) -> None:
    lease_inbox(client)
    if current:
        client.hset(PRODUCTION.accepted, X, current)
    one, two, three = put(client, {}, {}, {})
    changes = {
        "production": [
            change(X, "as decided on", "state", decided(one, "changed"), decided(two, "duplicate")),
            change(Y, "", "other state", decided(three, instance=Y)),
        ]
    }

    assert commit(client, changes) == Committed(1, ["production"])
    assert [entry.entry_id for entry in inbox.head(client, KEYS, 10)] == [one, two]
    states = {b"x": current.encode()} if current else {}
    assert client.hgetall(PRODUCTION.accepted) == states | {b"y": b"other state"}
    assert client.xlen(PRODUCTION.outbox) == 1
    assert totals(client) == {"taken": 1, "new": 1, "outbox": 1}


def test_one_wakeup_is_asked_for_while_it_is_under_way_or_the_outbox_is_held(client: Redis) -> None:
    lease_inbox(client)
    one, two, three, four = put(client, {}, {}, {}, {})

    def committed(inbox_id: str, expected: str) -> list[str]:
        return commit(
            client, {"production": [change(X, expected, inbox_id, decided(inbox_id, "changed"))]}
        ).to_deliver

    assert committed(one, "") == ["production"]
    assert 0 < client.pttl(PRODUCTION.wakeup) <= BELL_MS
    assert committed(two, one) == []

    client.set(PRODUCTION.lease, "delivery")
    client.delete(PRODUCTION.wakeup)
    assert committed(three, two) == []

    client.delete(PRODUCTION.lease)
    assert committed(four, three) == ["production"]


def test_what_is_not_delivered_is_only_counted(client: Redis) -> None:
    lease_inbox(client)
    client.hset(PRODUCTION.accepted, X, "state")
    one, two, three = put(client, {}, {}, {})
    entries = [decided(one, "duplicate"), decided(two, "stale"), decided(three, "duplicate")]

    assert commit(client, {"production": [change(X, "state", "seen again", *entries)]}) == Committed(3, [])
    assert client.hget(PRODUCTION.accepted, X) == b"seen again"
    assert totals(client) == {"taken": 3, "duplicate": 2, "stale": 1}
    assert totals(client, PRODUCTION.counts) == {"duplicate": 2, "stale": 1}
    assert client.exists(PRODUCTION.outbox, SCHEDULE, PRODUCTION.wakeup) == 0


def test_environment_is_never_scheduled_later_than_it_was(client: Redis) -> None:
    lease_inbox(client)
    client.zadd(SCHEDULE, {"production": 5, "staging": now_ms(client) + 600_000})
    one, two = put(client, {}, {})
    commit(client, {"production": [change(X, "", "s", decided(one))], "staging": [change(X, "", "s", decided(two))]})

    assert client.zscore(SCHEDULE, "production") == 5
    assert client.zscore(SCHEDULE, "staging") <= now_ms(client)


def test_dead_letter_keeps_the_raw_bytes(client: Redis) -> None:
    lease_inbox(client)
    fields = {b"event": b'{"image":\xff\x00', b"id": b"\xfe", b"\xfd": b"\r\n"}
    (one,) = put(client, fields)

    assert dead_letter(client, "it is not UTF-8") == 1
    ((_, dead),) = client.xrange(KEYS.dead)
    assert dead == fields | {b"reason": b"invalid", b"detail": b"it is not UTF-8", b"entry": one.encode()}
    assert totals(client) == {"taken": 1, "dead": 1, "dead:invalid": 1}
    assert client.xlen(KEYS.inbox) == 0


def test_entry_with_many_fields_becomes_a_dead_letter_with_its_first(client: Redis) -> None:
    lease_inbox(client)
    put(client, {f"f{number}": number for number in range(100)})

    assert dead_letter(client, "no field `event`") == 1
    ((_, dead),) = client.xrange(KEYS.dead)
    assert list(dead) == [f"f{number}".encode() for number in range(32)] + [b"reason", b"detail", b"entry"]


@pytest.mark.parametrize("instances", [1, 5000])
def test_largest_batch_is_committed_whole_in_bounded_scripts(client: Redis, instances: int) -> None:
    lease_inbox(client)
    ids = put(client, *[{}] * 5000)
    each = 5000 // instances
    changes = [
        change(f"i{n}", "", "state", *(decided(inbox_id) for inbox_id in ids[n * each : (n + 1) * each]))
        for n in range(instances)
    ]
    client.config_resetstat()

    assert commit(client, {"production": changes}) == Committed(5000, ["production"])
    assert client.xlen(KEYS.inbox) == 0
    assert client.xlen(PRODUCTION.outbox) == 5000
    assert client.hlen(PRODUCTION.accepted) == instances
    calls = sum(
        client.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")
    )
    assert calls >= (5000 / intake.COMMIT_ENTRIES if instances > 1 else 1)


def test_many_environments_are_committed_in_one_round_trip(client: Redis) -> None:
    lease_inbox(client)
    ids = put(client, *[{}] * 500)
    names = [f"env-{number}" for number in range(500)]
    changes = {name: [change(X, "", "s", decided(one))] for name, one in zip(names, ids, strict=True)}

    assert commit(client, changes) == Committed(500, names)
    assert client.zcard(SCHEDULE) == 500


def test_intake_goes_on_when_memory_is_full(client: Redis) -> None:
    lease_inbox(client)
    _, one = put(client, {"event": "{"}, {})
    (bad,) = inbox.head(client, KEYS, 1)
    for script in (intake._COMMIT, intake._DEAD_LETTER):
        client.script_load(script.text)
    client.config_set("maxmemory", 1)
    try:
        dead = intake.dead_letter(inbox_lease(client), [(bad, "invalid", "no JSON")])
        committed = commit(client, {"staging": [change(X, "", "s", decided(one))]})
    finally:
        client.config_set("maxmemory", 0)

    assert (dead, committed) == (1, Committed(1, ["staging"]))


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
    assert found[0].place[0] == pytest.approx(now_ms(client), abs=1000)


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
    assert release_inbox(client) == 0
    assert client.exists(KEYS.intake_lease, KEYS.intake_wakeup) == 0

    put(client, {}, {})
    lease_inbox(client)
    assert release_inbox(client) == 2
    assert client.exists(KEYS.intake_lease) == 0
    assert 0 < client.pttl(KEYS.intake_wakeup) <= BELL_MS


def test_inbox_is_not_released_by_who_lost_its_lease(client: Redis) -> None:
    put(client, {})
    lease_inbox(client, "successor")
    before = everything(client)

    assert release_inbox(client) == -1
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
    commit(
        client,
        {
            "production": [change(X, "", "state", decided(one))],
            "staging": [change(X, "", "", decided(two, "duplicate"))],
            "passed over": [change(X, "not as decided on", "", decided(three))],
        },
    )

    assert client.zrange(index, 0, -1, withscores=True) == [(b"staging", 0.0), (b"production", 7.0)]


def test_newest_that_was_accepted_is_noted(client: Redis) -> None:
    lease_inbox(client)
    one, two, three = (client.xadd(KEYS.inbox, {"event": "{}"}, id=f"{at}-0").decode() for at in (5, 7, 9))
    changes = [
        change(X, "", "s", decided(one)),
        change(Y, "", "s", decided(two)),
        change("z", "", "", decided(three, "stale")),
    ]
    commit(client, {"production": changes})
    assert counted(client)["newest:accepted"] == 7

    for at, newest in ((100, 100), (50, 100)):
        client.delete(KEYS.inbox)  # so that ids may go back, as a clock may
        entry = client.xadd(KEYS.inbox, {"event": "{}"}, id=f"{at}-0").decode()
        commit(client, {f"env-{at}": [change(X, "", "s", decided(entry))]})
        assert counted(client)["newest:accepted"] == newest


def test_wakeups_that_intake_asks_for_are_counted(client: Redis) -> None:
    lease_inbox(client)
    one, two, three = put(client, {}, {}, {})
    changes = {name: [change(X, "", "s", decided(entry))] for name, entry in (("a", one), ("b", two))}
    assert commit(client, changes).to_deliver == ["a", "b"]
    assert counted(client)["wakeup:work"] == 2

    assert release_inbox(client) == 1
    assert counted(client)["wakeup:work"] == 3

    lease_inbox(client)
    client.xdel(KEYS.inbox, three)
    assert release_inbox(client) == 0
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
