"""Scripts in general: taught again, run together, and at work when Redis has no memory left."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from outboxes import (
    KEYS,
    LONG_SECONDS,
    LONGEST_PAUSE_SECONDS,
    PAUSED,
    PRODUCTION,
    RECORDED,
    SCHEDULE,
    TOKEN,
    X,
    Y,
    acquire,
    claimed,
    claimed_retries,
    commit,
    dead,
    defer,
    fill,
    put,
    release,
    release_inbox,
    supersede,
    throttle,
    totals,
    tried_again,
)
from redis.exceptions import OutOfMemoryError, ResponseError

from relay.queue import health, inbox, leases, outbox, schedule, scripts
from relay.queue.health import Admission, Health, HealthState
from relay.queue.leases import Lease
from relay.queue.outbox import BEGINNING, DeferredEntry, after
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


# Running them


def test_script_that_redis_forgot_is_taught_again(client: Redis) -> None:
    calls = [inbox.append_call(KEYS, [{"event": str(number)}], 10) for number in range(3)]
    client.script_flush()
    assert len(scripts.run_all(client, calls)) == 3

    client.script_flush()
    assert scripts.run(client, inbox.append_call(KEYS, [{"event": "4"}], 10)) == 1
    assert client.xlen(KEYS.inbox) == 4


def test_error_of_one_of_many_is_raised(client: Redis) -> None:
    calls = [inbox.append_call(KEYS, [{"event": "1"}], limit) for limit in (10, 1, 10)]

    with pytest.raises(ResponseError, match="QUEUEFULL"):
        scripts.run_all(client, calls)
    assert scripts.run_all(client, []) == []


# At maxmemory


@contextmanager
def full(client: Redis) -> Iterator[None]:
    """Let there be no memory left, after all scripts have been taught."""
    for script in scripts.DECLARED.values():
        client.script_load(script.text)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            client.set("anything", "more")
        yield
    finally:
        client.config_set("maxmemory", 0)


def test_delivery_goes_on_when_memory_is_full(client: Redis) -> None:
    fill(client, "a", "b", "c", "d", "e", "e")
    with full(client):
        assert acquire(client) == Lease("", 0)
        one, two, three, four, five, six = claimed(client).fresh
        assert leases.handle(client, PRODUCTION.lease, PRODUCTION.run, TOKEN, one.entry_id) == 0
        recorded = commit(
            client,
            delivered=[one],
            superseded=[supersede(two)],
            dead=[dead(three)],
            deferred=[DeferredEntry(tried_again(four), 0.0), DeferredEntry(tried_again(five), LONG_SECONDS, (six,))],
            latency={1: 1},
        )
        assert recorded == RECORDED
        assert claimed_retries(client) == [tried_again(four)._replace(deferred=True)]
        assert release(client, cursor=after(six.entry_id), unsent=["d"]).has_more

    assert totals(client) == {
        "taken": 6,
        "new": 6,
        "outbox": 3,
        "delivered": 1,
        "superseded": 1,
        "dead": 1,
        "dead:refused": 1,
        "retries": 2,
    }
    assert client.zscore(SCHEDULE, "production") is not None


def test_retry_alone_is_recorded_when_memory_is_full(client: Redis) -> None:
    """It deletes nothing; the lease's renewal is what Redis lets a script begin with."""
    acquire(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    with full(client):
        defer(client, entry)

    assert claimed_retries(client) == [tried_again(entry)._replace(deferred=True)]


def test_retry_alone_is_recorded_when_memory_is_full_and_the_lease_ran_out(client: Redis) -> None:
    acquire(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    client.delete(PRODUCTION.lease)
    with full(client):
        defer(client, entry)

    assert totals(client)["retries"] == 1


def test_fresh_entry_is_parked_behind_its_instance_when_memory_is_full(client: Redis) -> None:
    acquire(client)
    fill(client, X)
    defer(client, claimed(client).fresh[0], seconds=LONG_SECONDS)
    _, three = fill(client, X, Y)
    with full(client):
        assert [entry.entry_id for entry in claimed(client).fresh] == [three]

    assert client.zcard(PRODUCTION.deferred) == 2


def test_death_of_a_drain_is_counted_when_memory_is_full(client: Redis) -> None:
    fill(client, X)
    with full(client):
        for deaths in range(3):
            assert acquire(client, f"run {deaths}") == Lease("", deaths)
            assert leases.handle(client, PRODUCTION.lease, PRODUCTION.run, f"run {deaths}", "5-0") == deaths
            client.delete(PRODUCTION.lease)


def test_paused_environment_is_let_go_of_when_memory_is_full(client: Redis) -> None:
    acquire(client)
    fill(client, X)
    client.hset(PAUSED, "production", 1)
    with full(client):
        assert claimed(client).is_paused
        assert not release(client).has_more

    assert client.zscore(SCHEDULE, "production") == float("inf")


def test_health_is_kept_when_memory_is_full(client: Redis) -> None:
    shard = Shard(client=client, keys=KEYS)

    def admit(token: str) -> Admission:
        return health.admit(
            shard, DEFAULT_DESTINATION, token=token, wanted=9, rate_limit=0.01, burst=5, probe_seconds=9
        )

    def open_circuit(token: str) -> int:
        opened = partial(
            Health.opened, state=HealthState.UNAVAILABLE, token=token, first_seconds=0, longest_seconds=0
        )
        return health.change(shard, DEFAULT_DESTINATION, opened).after.openings

    call = health.observe_call(
        shard, DEFAULT_DESTINATION, successes=1, failures=2, window_change=-1, max_window=32, shrink_gap_seconds=9
    )
    with full(client):
        assert Health.decode(scripts.run(client, call)) == Health(failures=2, successes=1, window=16)
        assert open_circuit("first") == 1
        assert admit("prober") == Admission(1, 0.0, probes=True)
        assert open_circuit("prober") == 2
        health.change(shard, DEFAULT_DESTINATION, lambda health, _: health.closed())
        assert admit("another").granted == 4
        assert throttle(client, 50) == health.read(shard, DEFAULT_DESTINATION)
        assert (
            schedule.read_waiting(
                Shard(client=client, keys=KEYS),
                DEFAULT_DESTINATION,
                count=5,
                longest_pause_seconds=LONGEST_PAUSE_SECONDS,
            ).due
            == []
        )


def test_inbox_is_let_go_of_when_memory_is_full(client: Redis) -> None:
    put(client, {})
    with full(client):
        call = leases.acquire_call(
            KEYS.intake_wakeup, KEYS.intake_lease, KEYS.intake_run, TOKEN, 15.0, counts=KEYS.counts
        )
        assert leases.acquired(scripts.run(client, call)) == Lease("", 0)
        assert release_inbox(client) == 1

    assert client.exists(KEYS.intake_wakeup) == 1


# Waiting


@pytest.mark.parametrize("cursor", [BEGINNING, "(0-1"])
def test_wait_for_outboxes_ends_at_a_fresh_entry_of_any(client: Redis, cursor: str) -> None:
    positions = {KEYS.of_outbox(DEFAULT_DESTINATION, "staging").outbox: BEGINNING, PRODUCTION.outbox: cursor}
    assert not outbox.wait(client, positions, 0.001)
    (one,) = fill(client, X)

    assert outbox.wait(client, positions, LONG_SECONDS)
    assert not outbox.wait(client, positions | {PRODUCTION.outbox: after(one)}, 0.001)
