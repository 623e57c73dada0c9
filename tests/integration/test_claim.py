"""claim.lua and defer.lua: the entries that a delivery run may send next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from outboxes import (
    DESTINATION,
    LEASE_MS,
    LONG_SECONDS,
    PAUSED,
    PRODUCTION,
    TOKEN,
    X,
    Y,
    acquire,
    all_fresh,
    claim,
    claimed,
    claimed_retries,
    commit,
    defer,
    everything,
    fill,
    ids_of,
    lease_outbox,
    now_ms,
    supersede,
    throttle,
    tried_again,
)

from relay.queue import health, outbox
from relay.queue.outbox import NO_TRIALS, DeferredEntry, OutboxEntry, Retry, Trials, after

if TYPE_CHECKING:
    from redis import Redis


def test_claim_returns_fresh_entries_complete_and_in_order(client: Redis) -> None:
    lease_outbox(client)
    one, two = fill(client, X, Y)
    found = claimed(client)

    assert found.fresh == [
        OutboxEntry(one, b"body 0", "e0", X, "sha256:0", "", "", 5, arrival="5"),
        OutboxEntry(two, b"body 1", "e1", Y, "sha256:1", "", "", 5, arrival="5"),
    ]
    assert (found.retries, found.health, found.is_paused) == ([], health.Health(), False)
    assert found.cursor == after(two)
    assert found.now_ms == pytest.approx(now_ms(client), abs=1000)


@pytest.mark.parametrize(
    ("fields", "came"),
    [
        ({}, "5"),
        ({"sequence": "3"}, "5-3"),
        ({"redriven": "1 4-0"}, "4"),
        ({"redriven": "2 4-7", "sequence": "3"}, "4-7"),
        ({"redriven": "1 4-0 force"}, "5"),
    ],
)
def test_an_entrys_arrival_is_that_of_its_first_enqueueing(client: Redis, fields: dict[str, str], came: str) -> None:
    lease_outbox(client)
    entry = {"event": "{}", "id": "e", "digest": "d", "instance": X, "time": "", "arrived": 5, **fields}
    client.xadd(PRODUCTION.outbox, entry)

    assert [found.arrival for found in claimed(client).fresh] == [came]


def test_claim_begins_at_the_cursor_and_returns_no_more_than_wanted(client: Redis) -> None:
    lease_outbox(client)
    one, two, three = fill(client, X, X, Y)

    first = claimed(client, wanted=1)
    assert (ids_of(first.fresh), first.cursor) == ([one], after(one))
    assert ids_of(claimed(client, cursor=after(one)).fresh) == [two, three]
    assert ids_of(claimed(client, cursor=two).fresh) == [two, three]

    nothing = claimed(client, cursor=after(three))
    assert (nothing.fresh, nothing.cursor) == ([], None)


def test_claim_without_the_lease_returns_nothing_and_changes_nothing(client: Redis) -> None:
    fill(client, X)
    before = everything(client)
    assert claim(client) is None

    lease_outbox(client, "successor")
    before = everything(client)
    assert claim(client) is None
    assert everything(client) == before


def test_claim_renews_a_lease_that_ran_out_if_no_other_run_acquired_it(client: Redis) -> None:
    acquire(client)
    fill(client, X)
    client.delete(PRODUCTION.lease)

    assert len(claimed(client).fresh) == 1
    assert client.get(PRODUCTION.lease) == TOKEN.encode()
    assert 0 < client.pttl(PRODUCTION.lease) <= LEASE_MS


def test_claim_of_nothing_renews_the_lease(client: Redis) -> None:
    fill(client, X)
    client.set(PRODUCTION.lease, "token", px=LEASE_MS // 3)
    found = claimed(client, wanted=0)

    assert (found.fresh, found.retries, found.cursor) == ([], [], None)
    assert client.pttl(PRODUCTION.lease) > LEASE_MS // 2


def test_fresh_entry_whose_instance_waits_for_a_retry_is_deferred_behind_it(client: Redis) -> None:
    lease_outbox(client)
    one, two = fill(client, X, X)
    first, second = claimed(client).fresh
    defer(client, first, second, seconds=LONG_SECONDS)
    three, four = fill(client, X, Y)

    found = claimed(client, cursor=after(two))

    assert ids_of(found.fresh) == [four]
    assert found.cursor == after(four)
    assert client.zcard(PRODUCTION.deferred) == 3
    client.zadd(PRODUCTION.due, {X: 0})
    for expected in (one, two, three):
        (head,) = claimed_retries(client)
        assert head.entry_id == expected
        commit(client, delivered=[head])
    assert client.exists(PRODUCTION.deferred, PRODUCTION.due, PRODUCTION.attempts) == 0


def test_deferred_order_is_that_of_the_stream_however_long_the_ids_are(client: Redis) -> None:
    lease_outbox(client)
    fields = {"event": "", "id": "e", "digest": "d", "instance": X, "time": "", "arrived": 1}
    ids = ["9-9", "9-10", "10-0", "100-0", "18446744073709551615-0", "18446744073709551615-18446744073709551614"]
    for entry_id in ids:
        client.xadd(PRODUCTION.outbox, fields, id=entry_id)
    first, *followers = claimed(client).fresh
    defer(client, first, *reversed(followers))

    for expected in ids:
        (head,) = claimed_retries(client)
        assert head.entry_id == expected
        commit(client, delivered=[head])


def test_instances_that_start_alike_are_deferred_apart(client: Redis) -> None:
    lease_outbox(client)
    names = ["a", "a b", "ab", "a\x0b", "é"]
    ids = fill(client, *names)
    for entry in claimed(client).fresh:
        defer(client, entry)
    due = claimed_retries(client)

    assert {entry.instance: entry.entry_id for entry in due} == dict(zip(names, ids, strict=True))


def test_claimed_retry_is_due_again_after_a_lease(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    defer(client, entry)

    (due,) = claimed_retries(client)
    assert due == tried_again(entry)._replace(deferred=True)
    assert client.zscore(PRODUCTION.due, X) == pytest.approx(now_ms(client) + LEASE_MS, abs=1000)
    assert claimed(client).retries == []


def test_instance_is_not_due_before_its_pause_is_over(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    defer(client, entry, seconds=LONG_SECONDS)

    assert claimed(client).retries == []
    assert client.zscore(PRODUCTION.due, X) == pytest.approx(now_ms(client) + LONG_SECONDS * 1000, abs=1000)


def test_instance_whose_retry_is_from_before_the_clock_was_set_back_is_due(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    defer(client, entry, seconds=3600)
    assert [each.entry.entry_id for each in claimed(client).retries] == [entry.entry_id]


def test_trials_are_kept_from_retry_to_retry(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    for attempts in (1, 2, 3):
        defer(client, entry)
        (entry,) = claimed_retries(client)
        assert entry.trials == Trials(attempts=attempts, answers=attempts, first=7)
        client.zadd(PRODUCTION.due, {X: 0})


def test_no_more_retries_are_claimed_than_wanted(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, Y)
    for entry in claimed(client).fresh:
        defer(client, entry)

    assert len(claimed(client, wanted=1).retries) == 1
    assert len(claimed(client, wanted=5).retries) == 1


def test_one_claim_is_bounded(client: Redis) -> None:
    lease_outbox(client)
    fill(client, *(f"i{number}" for number in range(2 * outbox.CLAIM_ENTRIES)))
    first = claimed(client, wanted=5000)
    assert (len(first.fresh), first.has_more) == (outbox.CLAIM_ENTRIES, True)

    commit(client, deferred=[DeferredEntry(tried_again(entry), 0.0) for entry in first.fresh])
    second = claimed(client, wanted=5000, cursor=first.cursor or "")
    assert (len(second.retries), len(second.fresh)) == (outbox.CLAIM_RETRIES, outbox.CLAIM_ENTRIES)


def test_all_of_an_entrys_trials_are_kept(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    trials = Trials(attempts=2, answers=9, first=1_750_000_000_000, forbidden=1, successes=12_345_678)
    commit(client, deferred=[DeferredEntry(claimed(client).fresh[0]._replace(trials=trials), 0.0)])

    (due,) = claimed_retries(client)
    assert due.trials == trials


def test_nothing_is_claimed_while_the_destination_is_throttled(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, Y)
    defer(client, claimed(client, wanted=1).fresh[0])
    client.hset(DESTINATION, mapping={"openings": 1, "circuit": "unavailable", "window": 1, "failures": 20})
    until = throttle(client, 50).until
    client.pexpire(PRODUCTION.lease, LEASE_MS // 3)

    found = claimed(client)

    assert (found.fresh, found.retries, found.cursor) == ([], [], None)
    assert found.health == health.Health(
        until=until, reason="throttled", openings=1, failures=20, window=1, circuit="unavailable"
    )
    assert found.health.is_waiting(found.now_ms)
    assert client.pttl(PRODUCTION.lease) > LEASE_MS // 2, "the lease is renewed all the same"
    assert client.zscore(PRODUCTION.due, X) <= now_ms(client), "the retry is still due"


def test_throttle_that_is_over_stops_nothing(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    throttle(client, 0)
    client.hset(DESTINATION, "openings", 1)
    found = claimed(client)

    assert (len(found.fresh), found.health.is_waiting(found.now_ms), found.health.openings) == (1, False, 1)


def test_nothing_is_claimed_of_a_paused_environment(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, X, Y)
    defer(client, claimed(client, wanted=1).fresh[0])
    client.hset(PAUSED, "staging", 1)
    client.pexpire(PRODUCTION.lease, LEASE_MS // 3)
    assert not claimed(client, wanted=0).is_paused, "another is paused"

    client.hset(PAUSED, "production", 1)
    deferred = client.zcard(PRODUCTION.deferred)
    found = claimed(client)

    assert (found.fresh, found.retries, found.cursor, found.is_paused) == ([], [], None, True)
    assert client.pttl(PRODUCTION.lease) > LEASE_MS // 2, "the lease is renewed all the same"
    assert client.zscore(PRODUCTION.due, X) <= now_ms(client), "the retry is still due"
    assert client.zcard(PRODUCTION.deferred) == deferred


def test_deferred_entry_that_an_operator_deleted_makes_way_for_the_next(client: Redis) -> None:
    lease_outbox(client)
    one, two = fill(client, X, X)
    first, second = claimed(client).fresh
    defer(client, first, second)
    client.xdel(PRODUCTION.outbox, one)

    (due,) = claimed_retries(client)
    assert (due.entry_id, due.trials) == (two, NO_TRIALS)

    commit(client, delivered=[due])
    assert client.exists(PRODUCTION.deferred, PRODUCTION.due, PRODUCTION.attempts) == 0


def test_instance_whose_deferred_entries_an_operator_deleted_is_forgotten(client: Redis) -> None:
    lease_outbox(client)
    (one,) = fill(client, X)
    defer(client, claimed(client).fresh[0])
    client.xdel(PRODUCTION.outbox, one)
    claimed(client)
    claimed(client)

    assert client.exists(PRODUCTION.deferred, PRODUCTION.due, PRODUCTION.attempts) == 0


# Only the latest of an instance


def deferred_three(client: Redis) -> list[OutboxEntry]:
    """Defer three entries of X, the first of them tried, and return them."""
    lease_outbox(client)
    fill(client, X, X, Y, X)
    one, two, other, three = claimed(client).fresh
    commit(client, delivered=[other])
    defer(client, one, two, three)
    return [entry._replace(deferred=True) for entry in (one, two, three)]


def test_latest_of_an_instance_is_due_untried_and_supersedes_the_others(client: Redis) -> None:
    one, two, three = deferred_three(client)

    found = claimed(client, latest_only=True)

    assert found.retries == [Retry(three, [supersede(one), supersede(two)])]
    assert client.zcard(PRODUCTION.deferred) == 3, "nothing is superseded before the commit"


def test_every_entry_of_an_instance_is_due_in_turn_unless_only_the_latest_counts(client: Redis) -> None:
    one, _, _ = deferred_three(client)

    assert claimed(client).retries == [Retry(tried_again(one), [])]


def test_latest_of_an_instance_that_is_its_only_one_keeps_its_trials(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    defer(client, entry)

    assert claimed(client, latest_only=True).retries == [Retry(tried_again(entry)._replace(deferred=True), [])]


def test_latest_of_an_instance_is_among_the_entries_in_the_stream(client: Redis) -> None:
    one, two, three = deferred_three(client)
    client.xdel(PRODUCTION.outbox, two.entry_id, three.entry_id)

    assert claimed(client, latest_only=True).retries == [Retry(tried_again(one), [])]


def test_fresh_entries_are_all_returned_even_if_only_the_latest_counts(client: Redis) -> None:
    lease_outbox(client)
    ids = fill(client, X, X, X)

    assert ids_of(claimed(client, latest_only=True).fresh) == ids


def test_latest_of_very_many_deferred_entries_is_found_in_steps(client: Redis) -> None:
    lease_outbox(client)
    ids = fill(client, *[X] * 150)
    first, *followers = all_fresh(client)
    defer(client, first, *followers)

    (found,) = claimed(client, latest_only=True).retries
    assert [one.entry_id for one in found.superseded] == ids[: len(found.superseded)]
    assert found.entry.entry_id == ids[len(found.superseded)]
    commit(client, delivered=[found.entry], superseded=list(found.superseded))
    (rest,) = claimed(client, latest_only=True).retries

    assert rest.entry.entry_id == ids[-1]
    assert [one.entry_id for one in rest.superseded] == ids[len(found.superseded) + 1 : -1]
