"""Leases, in-flight markers after a crash, what a release leaves, and wake-ups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from outboxes import (
    BELL_MS,
    KEYS,
    LEASE_MS,
    LONG_SECONDS,
    PAUSED,
    PRODUCTION,
    SCHEDULE,
    TOKEN,
    X,
    Y,
    acquire,
    claimed,
    claimed_retries,
    commit,
    counted,
    defer,
    everything,
    fill,
    ids_of,
    lease_outbox,
    now_ms,
    release,
    release_inbox,
)

from relay.errors import LeaseLost
from relay.queue import leases, scripts
from relay.queue.leases import Lease, Why
from relay.queue.outbox import after
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from redis import Redis

    from relay.queue.keys import OutboxKeys


# acquire.lua


def test_lease_is_held_by_one_drain_at_a_time(client: Redis) -> None:
    assert acquire(client, "one") == Lease("", 0)
    assert acquire(client, "other") is None
    assert client.get(PRODUCTION.lease) == b"one"
    assert 0 < client.pttl(PRODUCTION.lease) <= LEASE_MS

    release(client, token="one")
    assert acquire(client, "other") == Lease("", 0)


def test_lease_taken_twice_by_the_same_drain_is_its_own(client: Redis) -> None:
    """A client tries again when the answer was lost: that is no death."""
    assert acquire(client, "one") == Lease("", 0)
    assert acquire(client, "one") == Lease("", 0)


def test_lease_comes_with_the_cursor(client: Redis) -> None:
    client.set(PRODUCTION.cursor, "(5-0")

    assert acquire(client, "one") == Lease("(5-0", 0)


def test_bell_is_answered_even_by_a_drain_that_finds_another_at_work(client: Redis) -> None:
    acquire(client, "one")
    client.set(PRODUCTION.wakeup, "1")

    assert acquire(client, "other") is None
    assert client.exists(PRODUCTION.wakeup) == 0


def test_inbox_is_leased_without_a_cursor(client: Redis) -> None:
    call = leases.acquire_call(
        KEYS.intake_wakeup, KEYS.intake_lease, KEYS.intake_run, "one", 15.0, counts=KEYS.counts
    )

    assert leases.acquired(scripts.run(client, call)) == Lease("", 0)
    assert client.hgetall(KEYS.intake_run) == {b"token": b"one"}


# The mark of a run


def die(client: Redis, token: str) -> None:
    """Let the lease of a run expire that was not released."""
    assert client.get(PRODUCTION.lease) == token.encode()
    client.delete(PRODUCTION.lease)


def handle(client: Redis, entry_id: str, token: str = TOKEN) -> int:
    return leases.handle(client, PRODUCTION.lease, PRODUCTION.run, token, entry_id)


def test_runs_that_did_not_let_go_are_counted_until_one_does(client: Redis) -> None:
    fill(client, X)
    for number, token in enumerate(["one", "two", "three"]):
        assert acquire(client, token) == Lease("", number)
        assert acquire(client, token) == Lease("", number), "told twice"
        die(client, token)
    assert acquire(client, "four") == Lease("", 3)

    release(client, token="four")

    assert acquire(client, "five") == Lease("-", 0)


def test_who_finds_another_at_work_counts_no_death(client: Redis) -> None:
    acquire(client, "one")
    for _ in range(3):
        assert acquire(client, "other") is None
    release(client, token="one")

    assert acquire(client, "other") == Lease("", 0)


def test_deaths_are_counted_against_the_entry_that_was_alone_in_hand(client: Redis) -> None:
    fill(client, X)
    for deaths, token in enumerate(["one", "two", "three", "four"]):
        acquire(client, token)
        assert handle(client, "5-0", token) == deaths
        assert handle(client, "5-0", token) == deaths, "told twice"
        die(client, token)


def test_death_with_many_in_hand_is_counted_against_none(client: Redis) -> None:
    fill(client, X)
    acquire(client, "one")
    die(client, "one")
    acquire(client, "two")

    assert handle(client, "5-0", "two") == 0
    die(client, "two")
    acquire(client, "three")
    assert handle(client, "5-0", "three") == 1


def test_entry_that_follows_begins_with_no_deaths(client: Redis) -> None:
    fill(client, X, Y)
    for token in ("one", "two"):
        acquire(client, token)
        handle(client, "5-0", token)
        die(client, token)
    acquire(client, "three")
    assert handle(client, "5-0", "three") == 2

    assert handle(client, "6-0", "three") == 0
    die(client, "three")
    acquire(client, "four")
    assert handle(client, "6-0", "four") == 1


def test_entry_is_handled_only_by_who_has_the_lease(client: Redis) -> None:
    acquire(client, "one")
    die(client, "one")
    assert handle(client, "5-0", "one") == 0, "no other run acquired it, so it is still held"

    acquire(client, "two")
    before = everything(client)
    with pytest.raises(LeaseLost):
        handle(client, "5-0", "one")
    assert everything(client) == before


def test_released_inbox_leaves_no_mark(client: Redis) -> None:
    call = leases.acquire_call(
        KEYS.intake_wakeup, KEYS.intake_lease, KEYS.intake_run, TOKEN, 15.0, counts=KEYS.counts
    )
    scripts.run(client, call)
    release_inbox(client)

    assert client.exists(KEYS.intake_run, KEYS.intake_lease) == 0


# release_outbox.lua


def test_released_outbox_with_fresh_entries_has_more(client: Redis) -> None:
    lease_outbox(client)
    one, _ = fill(client, X, Y)

    assert release(client, cursor=after(one)).has_more
    assert client.exists(PRODUCTION.lease) == 0
    assert client.get(PRODUCTION.cursor) == after(one).encode()
    assert client.zscore(SCHEDULE, "production") <= now_ms(client)


def test_released_outbox_with_more_to_do_counts_as_rung_for(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    release(client)

    assert 0 < client.pttl(PRODUCTION.wakeup) <= BELL_MS
    assert leases.to_wake(client, KEYS.counts, [(PRODUCTION.lease, PRODUCTION.wakeup)], 5.0, Why.DUE) == []


def test_released_outbox_with_nothing_to_do_is_not_rung_for(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    release(client, is_healthy=False)
    assert client.exists(PRODUCTION.wakeup) == 0

    lease_outbox(client)
    client.delete(PRODUCTION.outbox)
    release(client)
    assert client.exists(PRODUCTION.wakeup) == 0


def test_released_outbox_that_is_empty_leaves_nothing_behind(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    client.zadd(SCHEDULE, {"production": 1, "staging": 2})
    (entry,) = claimed(client).fresh
    defer(client, entry)
    commit(client, delivered=claimed_retries(client), cursor="(9-9")

    assert not release(client, cursor="(9-9").has_more
    assert client.exists(*vars_of(PRODUCTION, "outbox", "deferred", "due", "attempts", "cursor", "lease", "run")) == 0
    assert client.zrange(SCHEDULE, 0, -1) == [b"staging"]


def vars_of(keys: OutboxKeys, *names: str) -> list[str]:
    return [getattr(keys, name) for name in names]


def test_outbox_is_not_released_by_who_lost_its_lease(client: Redis) -> None:
    fill(client, X)
    acquire(client)
    client.delete(PRODUCTION.lease)
    acquire(client, "successor")
    before = everything(client)
    assert release(client).is_lost
    assert everything(client) == before

    client.delete(PRODUCTION.lease)
    before = everything(client)
    assert release(client).is_lost, "the successor's mark stands"
    assert everything(client) == before


def test_outbox_is_released_after_the_lease_ran_out_while_nobody_took_over(client: Redis) -> None:
    fill(client, X)
    acquire(client)
    client.delete(PRODUCTION.lease)

    assert release(client).has_more
    assert client.exists(PRODUCTION.run) == 0
    assert acquire(client, "other") == Lease("-", 0), "it was released"


def test_outbox_released_twice_is_released_once(client: Redis) -> None:
    """A client tries again when the answer was lost; a wake-up that was sent meanwhile must not be lost."""
    fill(client, X)
    acquire(client)
    release(client)
    before = everything(client)

    assert release(client).is_lost
    assert everything(client) == before


def test_released_outbox_of_a_held_destination_is_scheduled_as_ever_and_not_rung_for(client: Redis) -> None:
    """The poller looks at no schedule of a held destination."""
    lease_outbox(client)
    fill(client, X)

    assert not release(client, is_healthy=False).has_more
    assert client.zscore(SCHEDULE, "production") <= now_ms(client)
    assert client.exists(PRODUCTION.wakeup, PRODUCTION.lease) == 0


@pytest.mark.parametrize("held", [False, True])
def test_released_outbox_whose_retries_wait_is_looked_at_when_the_first_is_due(client: Redis, held: bool) -> None:  # noqa: FBT001
    lease_outbox(client)
    _, two = fill(client, X, Y)
    first, second = claimed(client).fresh
    defer(client, first, seconds=LONG_SECONDS)
    defer(client, second, seconds=2 * LONG_SECONDS)
    due = client.zscore(PRODUCTION.due, X)

    assert not release(client, cursor=after(two), is_healthy=not held).has_more
    assert client.zscore(SCHEDULE, "production") == due
    assert client.get(PRODUCTION.cursor) == after(two).encode()
    assert client.exists(PRODUCTION.wakeup) == 0


def test_released_outbox_of_a_paused_environment_is_looked_at_only_when_it_is_resumed(client: Redis) -> None:
    acquire(client)
    fill(client, X, X, Y)
    defer(client, claimed(client, wanted=1).fresh[0])
    (retry,) = claimed_retries(client)
    client.hset(PAUSED, "production", 1)

    assert not release(client, cursor="5-0", unsent=[retry.instance]).has_more

    assert client.zscore(SCHEDULE, "production") == float("inf")
    assert client.exists(PRODUCTION.wakeup, PRODUCTION.lease, PRODUCTION.run) == 0
    assert client.get(PRODUCTION.cursor) == b"5-0"
    assert client.zscore(PRODUCTION.due, X) <= now_ms(client), "the retry is due at once then"


def test_paused_environment_whose_outbox_is_empty_leaves_nothing_behind(client: Redis) -> None:
    acquire(client)
    client.hset(PAUSED, "production", 1)
    client.zadd(SCHEDULE, {"production": 1})

    assert not release(client).has_more
    assert client.zscore(SCHEDULE, "production") is None


def test_retry_that_was_taken_and_not_sent_is_due_again(client: Redis) -> None:
    lease_outbox(client)
    (one,) = fill(client, X)
    defer(client, claimed(client).fresh[0])
    claimed(client)
    assert client.zscore(PRODUCTION.due, X) > now_ms(client)

    assert release(client, cursor=after(one), unsent=[X, "settled meanwhile"]).has_more
    assert client.zscore(PRODUCTION.due, X) <= now_ms(client)
    assert client.zcard(PRODUCTION.due) == 1


@pytest.mark.parametrize("also_deferred", [False, True])
def test_entry_before_the_cursor_that_nobody_has_is_found_again(client: Redis, also_deferred: bool) -> None:  # noqa: FBT001
    lease_outbox(client)
    if also_deferred:
        fill(client, X)
        defer(client, claimed(client).fresh[0], seconds=LONG_SECONDS)
    (lost,) = fill(client, Y)
    client.set(PRODUCTION.cursor, after(lost))

    assert release(client, cursor=after(lost)).has_more
    assert client.exists(PRODUCTION.cursor) == 0

    lease_outbox(client)
    assert ids_of(claimed(client).fresh) == [lost]


# wake.lua


def test_rings_coalesce(client: Redis) -> None:
    staging = KEYS.of_outbox(DEFAULT_DESTINATION, "staging")
    runs = [(PRODUCTION.lease, PRODUCTION.wakeup), (staging.lease, staging.wakeup)]

    assert leases.to_wake(client, KEYS.counts, runs, 5.0, Why.DUE) == [0, 1]
    assert leases.to_wake(client, KEYS.counts, runs, 5.0, Why.DUE) == []
    assert 0 < client.pttl(PRODUCTION.wakeup) <= 5000

    client.delete(PRODUCTION.wakeup, staging.wakeup)
    client.set(PRODUCTION.lease, "run")
    assert leases.to_wake(client, KEYS.counts, runs, 5.0, Why.DUE) == [1]
    assert leases.to_wake(client, KEYS.counts, [], 5.0, Why.DUE) == []


def test_many_drains_are_rung_for_in_one_call(client: Redis) -> None:
    runs = [(f"{KEYS.prefix}lease:{number}", f"{KEYS.prefix}wakeup:{number}") for number in range(5000)]

    assert leases.to_wake(client, KEYS.counts, runs, 5.0, Why.DUE) == list(range(5000))


def test_lease_and_bell_from_before_the_clock_was_set_back_end_soon(client: Redis) -> None:
    for key in (PRODUCTION.lease, PRODUCTION.wakeup):
        client.set(key, "of a run that died", px=365 * 86_400_000)
    assert leases.to_wake(client, KEYS.counts, [(PRODUCTION.lease, PRODUCTION.wakeup)], 5.0, Why.DUE) == []
    assert 0 < client.pttl(PRODUCTION.lease) <= 5000
    assert 0 < client.pttl(PRODUCTION.wakeup) <= 5000

    client.set(PRODUCTION.lease, "of a run that died", px=365 * 86_400_000)
    assert acquire(client, "other") is None
    assert 0 < client.pttl(PRODUCTION.lease) <= LEASE_MS


# What is counted


def test_takeover_is_counted_once_for_each_drain_that_did_not_let_go(client: Redis) -> None:
    fill(client, X)
    acquire(client, "one")
    acquire(client, "one")
    assert acquire(client, "kept out") is None
    assert "taken_over" not in counted(client)

    client.delete(PRODUCTION.lease)
    acquire(client, "two")
    acquire(client, "two")
    assert counted(client)["taken_over"] == 1

    release(client, token="two")
    acquire(client, "three")
    assert counted(client)["taken_over"] == 1, "a released lease was not taken over"


def test_bells_are_counted_by_why_and_only_those_that_are_rung(client: Redis) -> None:
    outboxes = [PRODUCTION, KEYS.of_outbox(DEFAULT_DESTINATION, "staging")]
    runs = [(keys.lease, keys.wakeup) for keys in outboxes]
    leases.to_wake(client, KEYS.counts, runs, 5.0, Why.DUE)
    leases.to_wake(client, KEYS.counts, runs, 5.0, Why.DUE)
    leases.to_wake(client, KEYS.counts, [(KEYS.intake_lease, KEYS.intake_wakeup)], 5.0, Why.WORK)
    assert counted(client) == {"wakeup:due": 2, "wakeup:work": 1}

    lease_outbox(client)
    fill(client, X)
    assert release(client).has_more
    assert counted(client)["wakeup:work"] == 2
