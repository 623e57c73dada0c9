"""commit_delivery.lua: outcomes are recorded once, under the lease, and the counters add up."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from outboxes import (
    KEYS,
    LONG_SECONDS,
    NOT_RECORDED,
    PAUSED,
    PRODUCTION,
    RECORDED,
    RECORDED_AND_PAUSED,
    X,
    Y,
    acquire,
    all_fresh,
    claimed,
    claimed_retries,
    commit,
    counted,
    dead,
    defer,
    everything,
    fill,
    ids_of,
    lease_outbox,
    now_ms,
    put,
    release,
    supersede,
    totals,
    tried_again,
)

from relay.queue import counters, scripts
from relay.queue.attempts import Tally
from relay.queue.outbox import (
    NO_TRIALS,
    RESTORE_TRIES,
    DeadEntry,
    DeferredEntry,
    OutboxEntry,
    StateContendedError,
    Superseded,
    Trials,
    after,
)
from relay.queue.state import Accepted, Delivered
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis


def test_delivered_entry_is_deleted_and_is_the_state(client: Redis) -> None:
    lease_outbox(client)
    _, two = fill(client, X, Y)
    first, second = claimed(client).fresh
    delivered = [first._replace(newest_time="7", arrival="5-2"), second]

    assert commit(client, delivered=delivered, latency={3: 1, 5: 1}, cursor=after(two)) == RECORDED

    assert client.exists(PRODUCTION.outbox) == 0 or client.xlen(PRODUCTION.outbox) == 0
    state = {
        name.decode(): Delivered.decode(value.decode())
        for name, value in client.hgetall(PRODUCTION.delivered).items()
    }
    assert {name: value[:2] for name, value in state.items()} == {X: ("sha256:0", 7), Y: ("sha256:1", None)}
    assert state[X].at == pytest.approx(now_ms(client), abs=1000)
    came = {name: value.split(b"\n")[3] for name, value in client.hgetall(PRODUCTION.delivered).items()}
    assert came == {b"x": b"5-2", b"y": b"5"}
    assert client.get(PRODUCTION.cursor) == after(two).encode()
    assert totals(client) == {"taken": 2, "new": 2, "outbox": 0, "delivered": 2}
    assert totals(client, PRODUCTION.counts) == {"new": 2, "outbox": 0, "delivered": 2}
    assert totals(client, KEYS.latency) == {"3": 1, "5": 1}


def four_outcomes(client: Redis) -> dict[str, Any]:
    """Claim four entries and give each another outcome."""
    first, second, third, fourth = claimed(client).fresh
    return {
        "delivered": [first],
        "superseded": [supersede(fourth)],
        "dead": [dead(third)],
        "deferred": [DeferredEntry(tried_again(second), 1.0)],
        "latency": {1: 1},
    }


def test_commit_of_a_run_that_lost_the_lease_to_another_does_nothing(client: Redis) -> None:
    acquire(client)
    fill(client, X, X, Y, "z")
    what = four_outcomes(client)
    client.delete(PRODUCTION.lease)
    acquire(client, "successor")
    before = everything(client)

    assert commit(client, **what) == NOT_RECORDED
    assert everything(client) == before

    client.delete(PRODUCTION.lease)
    before = everything(client)
    assert commit(client, **what) == NOT_RECORDED, "the successor's lease ran out too, and it may have sent them"
    assert everything(client) == before


def test_commit_of_a_run_that_never_had_the_lease_does_nothing(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, X, Y, "z")
    what = four_outcomes(client)
    client.delete(PRODUCTION.lease)
    before = everything(client)

    assert commit(client, **what) == NOT_RECORDED
    assert everything(client) == before


def test_commit_is_recorded_after_the_lease_ran_out_if_no_other_run_acquired_it(client: Redis) -> None:
    acquire(client)
    fill(client, X, X, Y, "z")
    what = four_outcomes(client)
    client.delete(PRODUCTION.lease)

    assert commit(client, **what) == RECORDED
    assert totals(client)["delivered"] == 1
    assert client.get(PRODUCTION.lease) == b"token", "it goes on sending, and no other run may meanwhile"
    assert client.pttl(PRODUCTION.lease) > 0


def test_commit_after_another_run_released_the_outbox_does_nothing(client: Redis) -> None:
    """Another run acquired the outbox, sent its entries and released it: the run's hash is gone."""
    acquire(client)
    fill(client, X, X, Y, "z")
    what = four_outcomes(client)
    client.delete(PRODUCTION.lease)
    acquire(client, "successor")
    release(client, token="successor")
    before = everything(client)

    assert commit(client, **what) == NOT_RECORDED
    assert everything(client) == before


@pytest.mark.parametrize("nothing", [False, True], ids=["", "of nothing that is there"])
def test_commit_says_that_the_environment_is_paused(client: Redis, nothing: bool) -> None:  # noqa: FBT001
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    client.hset(PAUSED, "production", 1)
    if nothing:
        client.xdel(PRODUCTION.outbox, entry.entry_id)

    assert commit(client, delivered=[entry]) == RECORDED_AND_PAUSED
    assert totals(client).get("delivered", 0) == (not nothing), "the answers in flight are recorded all the same"


@pytest.mark.parametrize("with_retry", [False, True], ids=["alone", "with a retry"])
@pytest.mark.parametrize("outcome", ["delivered", "superseded", "dead", "nothing else"])
def test_commit_applied_twice_does_nothing_more(client: Redis, outcome: str, with_retry: bool) -> None:  # noqa: FBT001
    lease_outbox(client)
    fill(client, X, Y, Y, X)
    client.hset(PRODUCTION.accepted, X, Accepted("sha256:0", None, 1, 1, ("e0",)).encode())
    first, second, follower, _ = claimed(client).fresh
    what: dict[str, Any] = {
        "delivered": {"delivered": [first], "latency": {4: 1}},
        "superseded": {"superseded": [supersede(first)]},
        "dead": {"dead": [dead(first)]},
        "nothing else": {},
    }[outcome]
    if with_retry:
        what["deferred"] = [DeferredEntry(tried_again(second), LONG_SECONDS, (follower,))]
    commit(client, **what)
    before = everything(client)
    due = client.zrange(PRODUCTION.due, 0, -1, withscores=True)

    assert commit(client, **what) == RECORDED

    if due:  # a pause that begins anew is harmless
        client.zadd(PRODUCTION.due, dict(due))
    again = everything(client)
    assert {key for key in before.keys() | again.keys() if before.get(key) != again.get(key)} == set()


def test_dead_letter_has_the_event_and_why_and_what_was_tried(client: Redis) -> None:
    lease_outbox(client)
    (one,) = fill(client, X)
    (entry,) = claimed(client).fresh
    trials = Trials(attempts=3, answers=5, first=1_750_000_000_000, forbidden=1, successes=2)

    commit(client, dead=[DeadEntry(entry._replace(trials=trials), "exhausted", "HTTP 503: later", 503)])

    ((_, dead),) = client.xrange(KEYS.dead)
    found = {name.decode(): value.decode() for name, value in dead.items()}
    assert int(found.pop("last")) == pytest.approx(now_ms(client), abs=1000)
    assert found == {
        "event": "body 0",
        "id": "e0",
        "source": "",
        "time": "",
        "digest": "sha256:0",
        "instance": "x",
        "arrived": "5",
        "reason": "exhausted",
        "detail": "HTTP 503: later",
        "status": "503",
        "attempts": "5",
        "first": "1750000000000",
        "destination": "default",
        "environment": "production",
        "entry": one,
    }
    assert totals(client) == {"taken": 1, "new": 1, "outbox": 0, "dead": 1, "dead:exhausted": 1}
    assert totals(client, PRODUCTION.counts) == {"new": 1, "outbox": 0, "dead": 1, "dead:exhausted": 1}


def test_dead_letter_of_an_event_that_was_never_tried_says_so(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    commit(client, dead=[DeadEntry(claimed(client).fresh[0], "expired", "not delivered within 1 s")])

    ((_, dead),) = client.xrange(KEYS.dead)
    assert {name: dead[name] for name in (b"status", b"attempts", b"first", b"last")} == {
        b"status": b"",
        b"attempts": b"0",
        b"first": b"",
        b"last": b"",
    }


def test_dead_letter_without_a_status_has_an_empty_one(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X)
    commit(client, dead=[DeadEntry(claimed(client).fresh[0], "exhausted", "timeout", None)])

    ((_, dead),) = client.xrange(KEYS.dead)
    assert dead[b"status"] == b""


def state_after_dead_letter(
    client: Redis, accepted: Accepted | None, delivered: str | None, event_id: str = "e0"
) -> Accepted | None:
    lease_outbox(client)
    fill(client, X)
    if accepted:
        client.hset(PRODUCTION.accepted, X, accepted.encode())
    if delivered:
        client.hset(PRODUCTION.delivered, X, delivered)
    (entry,) = claimed(client).fresh
    commit(client, dead=[dead(entry._replace(event_id=event_id))])
    value = client.hget(PRODUCTION.accepted, X)
    return Accepted.decode(value.decode()) if value else None


@pytest.mark.parametrize(
    ("accepted", "delivered", "expected"),
    [
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("a", "e0")),
            "sha256:a\n10\n999\n11",
            Accepted("sha256:a", 10, 11, 22, ("a",), confirmed=1),
            id="the last accepted: back to what was delivered",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("a", "e0")),
            "sha256:a\n10\n999\n11-2",
            Accepted("sha256:a", 10, 11, 22, ("a",), sequence=2, confirmed=1),
            id="delivered was the third of a millisecond: it is so again",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("a", "e0")),
            "sha256:a\n\n999\n11",
            Accepted("sha256:a", None, 11, 22, ("a",), confirmed=1),
            id="delivered without a time: back to no known time",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("e0",)),
            "sha256:a\n10\n999\n11",
            Accepted("sha256:a", 10, 11, 22, (), confirmed=1),
            id="the only id known: none is known",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("a", "e0"), resynced=5, confirmed=19),
            "sha256:a\n10\n999\n11",
            Accepted("sha256:a", 10, 11, 22, ("a",), confirmed=19),
            id="restored before: a confirmation since is kept, a resync is not",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("e0", "b"), resynced=5, confirmed=19),
            None,
            Accepted("sha256:b", 20, 21, 22, ("b",), confirmed=19),
            id="not the last accepted: the confirmation is kept",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("a", "e0")),
            None,
            None,
            id="the last accepted, and nothing was delivered: forgotten whole",
        ),
        pytest.param(
            Accepted("sha256:b", None, 21, 22, ("a", "e0", "b")),
            "sha256:a\n10\n999\n11",
            Accepted("sha256:b", None, 21, 22, ("a", "b")),
            id="not the last accepted: its id is forgotten",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("e0", "b")),
            None,
            Accepted("sha256:b", 20, 21, 22, ("b",)),
            id="not the last accepted, and nothing was delivered: its id is forgotten",
        ),
        pytest.param(
            Accepted("sha256:b", 20, 21, 22, ("a", "b")),
            "sha256:a\n10\n999\n11",
            Accepted("sha256:b", 20, 21, 22, ("a", "b")),
            id="accepted too long ago: the state stays",
        ),
        pytest.param(None, "sha256:a\n10\n999\n11", None, id="no state: none comes"),
    ],
)
def test_dead_letter_restores_the_state(
    client: Redis, accepted: Accepted | None, delivered: str | None, expected: Accepted | None
) -> None:
    assert state_after_dead_letter(client, accepted, delivered) == expected


def change_state_before_commits(
    client: Redis, monkeypatch: pytest.MonkeyPatch, states: Iterator[Accepted]
) -> list[Accepted]:
    """Have intake accept an event of X between the reading of its state and each commit; return the states."""
    run_all = scripts.run_all
    changed: list[Accepted] = []

    def run_all_later(redis: Redis, calls: Sequence[scripts.Call]) -> Any:
        state = next(states, None)
        if state:
            client.hset(PRODUCTION.accepted, X, state.encode())
            changed.append(state)
        return run_all(redis, calls)

    monkeypatch.setattr(scripts, "run_all", run_all_later)
    return changed


def test_dead_letter_restores_a_state_that_intake_changed_meanwhile(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_outbox(client)
    fill(client, X, Y)
    client.hset(PRODUCTION.accepted, X, Accepted("sha256:0", 20, 21, 22, ("a", "e0")).encode())
    first, second = claimed(client).fresh
    later = Accepted("sha256:c", 30, 31, 32, ("a", "e0", "later"))
    changed = change_state_before_commits(client, monkeypatch, iter([later]))

    assert commit(client, dead=[dead(first)], delivered=[second]) == RECORDED

    assert changed == [later]
    state = client.hget(PRODUCTION.accepted, X)
    assert state == later._replace(ids=("a", "later")).encode().encode(), "the dead id is gone"
    assert client.xlen(KEYS.dead) == 1
    assert totals(client)["dead"] == totals(client)["delivered"] == 1


def test_nothing_is_recorded_if_intake_changes_the_state_each_time(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_outbox(client)
    fill(client, X, Y)
    client.hset(PRODUCTION.accepted, X, Accepted("sha256:0", 20, 21, 22, ("e0",)).encode())
    first, second = claimed(client).fresh
    states = (Accepted("sha256:c", 30, number, 32, ("e0", "later")) for number in count())
    changed = change_state_before_commits(client, monkeypatch, states)

    with pytest.raises(StateContendedError):
        commit(client, dead=[dead(first)], delivered=[second])

    assert len(changed) == RESTORE_TRIES
    assert client.xlen(PRODUCTION.outbox) == 2
    assert client.exists(KEYS.dead, PRODUCTION.delivered, PRODUCTION.cursor) == 0


@pytest.mark.parametrize("event_id", ["%d+", "a.b", "[x", "é", "1" * 128])
def test_any_id_is_compared_literally(client: Redis, event_id: str) -> None:
    accepted = Accepted("sha256:b", 20, 21, 22, ("keep", event_id, "last"))

    assert state_after_dead_letter(client, accepted, None, event_id) == accepted._replace(ids=("keep", "last"))


@pytest.mark.parametrize("outcome", ["delivered", "dead"])
def test_committed_retry_makes_the_next_of_its_instance_due_and_untried(client: Redis, outcome: str) -> None:
    lease_outbox(client)
    _, two, _ = fill(client, X, X, Y)
    first, second, other = claimed(client).fresh
    defer(client, first, second)
    defer(client, other, seconds=LONG_SECONDS)
    (head,) = claimed_retries(client)

    commit(client, **{outcome: [head if outcome == "delivered" else dead(head)]})

    assert client.zscore(PRODUCTION.due, X) <= now_ms(client)
    (due,) = claimed_retries(client)
    assert (due.entry_id, due.trials) == (two, NO_TRIALS)
    assert client.hkeys(PRODUCTION.attempts) == [Y.encode()]


def test_retries_are_counted(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, Y)
    first, second = claimed(client).fresh
    commit(client, deferred=[DeferredEntry(tried_again(one), 1.0) for one in (first, second)])

    assert totals(client) == {"taken": 2, "new": 2, "outbox": 2, "retries": 2}
    assert totals(client, PRODUCTION.counts) == {"new": 2, "outbox": 2, "retries": 2}


def test_commit_of_thousands_is_recorded_whole(client: Redis) -> None:
    lease_outbox(client)
    fill(client, *[f"i{number}" for number in range(5000)])
    entries = all_fresh(client)

    assert commit(client, delivered=entries, latency={1: 5000}) == RECORDED
    assert client.hlen(PRODUCTION.delivered) == 5000
    assert totals(client)["delivered"] == 5000


def test_thousands_of_blocked_entries_are_deferred(client: Redis) -> None:
    lease_outbox(client)
    fill(client, *[X] * 5000)
    first, *followers = all_fresh(client)
    defer(client, first, *followers)

    assert client.zcard(PRODUCTION.deferred) == 5000


def test_counters_add_up_whatever_the_outcomes(client: Redis) -> None:
    lease_outbox(client)
    put(client, {}, {})
    fill(client, "a", "b", "c", "d", "d", "b", "d")
    one, two, three, four, five, six, seven = claimed(client).fresh
    defer(client, four, five, seven)
    ((latest, superseded),) = claimed(client, latest_only=True).retries
    commit(
        client,
        delivered=[one, six],
        dead=[dead(three)],
        superseded=[supersede(two), *superseded],
        deferred=[DeferredEntry(tried_again(latest), 1.0)],
    )
    totals = counters.read_counters(client, KEYS)

    assert (totals.added, totals.waiting, totals.retries) == (9, 3, 2)
    assert (totals.delivered, totals.dead, totals.superseded) == (2, 1, 3)
    assert totals.dead_by_reason == {"refused": 1}
    assert totals.unaccounted == 0
    (production,) = counters.read_environments(client, KEYS, DEFAULT_DESTINATION)
    assert (production.waiting, production.retrying) == (1, 1)
    assert (production.delivered, production.superseded, production.dead) == (2, 3, 1)


# Superseded


def test_superseded_entry_is_deleted_and_changes_no_state(client: Redis) -> None:
    lease_outbox(client)
    _, two = fill(client, X, X)
    first, second = claimed(client).fresh
    client.hset(PRODUCTION.accepted, X, "as it was")

    assert commit(client, superseded=[supersede(first)], cursor=two) == RECORDED

    assert ids_of(claimed(client).fresh) == [two]
    assert client.exists(PRODUCTION.delivered, KEYS.dead) == 0
    assert client.hget(PRODUCTION.accepted, X) == b"as it was", "it is about the later one"
    assert client.get(PRODUCTION.cursor) == two.encode()
    assert totals(client) == {"taken": 2, "new": 2, "outbox": 1, "superseded": 1}
    assert totals(client, PRODUCTION.counts) == {"new": 2, "outbox": 1, "superseded": 1}
    commit(client, delivered=[second])


def with_one_due(client: Redis) -> tuple[OutboxEntry, list[Superseded]]:
    """Defer three entries of X, and claim the latest with the ones that it supersedes."""
    lease_outbox(client)
    fill(client, X, X, X, Y)
    one, two, three, other = claimed(client).fresh
    commit(client, delivered=[other])
    defer(client, one, two, three)
    ((latest, superseded),) = claimed(client, latest_only=True).retries
    return latest, list(superseded)


def test_superseded_entries_are_deferred_no_more_and_the_latest_stays_claimed(client: Redis) -> None:
    latest, superseded = with_one_due(client)
    taken_until = client.zscore(PRODUCTION.due, X)

    assert commit(client, superseded=superseded) == RECORDED

    assert client.zcard(PRODUCTION.deferred) == 1
    assert client.exists(PRODUCTION.attempts) == 0, "the latest was never tried"
    assert client.zscore(PRODUCTION.due, X) == taken_until
    assert [entry_id.decode() for entry_id, _ in client.xrange(PRODUCTION.outbox)] == [latest.entry_id]


@pytest.mark.parametrize("together", [False, True], ids=["first", "together"])
@pytest.mark.parametrize("outcome", ["delivered", "dead"])
def test_instance_of_which_only_superseded_entries_were_left_is_forgotten(
    client: Redis,
    outcome: str,
    together: bool,  # noqa: FBT001
) -> None:
    latest, superseded = with_one_due(client)
    last = {outcome: [latest if outcome == "delivered" else dead(latest)]}
    if together:
        commit(client, superseded=superseded, **last)
    else:
        commit(client, superseded=superseded)
        commit(client, **last)

    assert client.exists(PRODUCTION.deferred, PRODUCTION.due, PRODUCTION.attempts) == 0
    assert client.xlen(PRODUCTION.outbox) == 0


@pytest.mark.parametrize("together", [False, True], ids=["first", "together"])
def test_latest_that_fails_is_deferred_with_its_own_trials(client: Redis, together: bool) -> None:  # noqa: FBT001
    latest, superseded = with_one_due(client)
    retry = DeferredEntry(tried_again(latest), 0.0)
    if together:
        commit(client, superseded=superseded, deferred=[retry])
    else:
        commit(client, superseded=superseded)
        commit(client, deferred=[retry])

    assert claimed_retries(client) == [tried_again(latest)]
    assert totals(client)["retries"] == 2
    assert client.zcard(PRODUCTION.deferred) == 1


def test_retry_defers_the_entries_that_it_blocks_beside_superseded_ones(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, X, X)
    one, two, three = claimed(client).fresh

    commit(client, superseded=[supersede(two)], deferred=[DeferredEntry(tried_again(one), 0.0, (three,))])

    assert claimed_retries(client) == [tried_again(one)._replace(deferred=True)]
    assert client.zcard(PRODUCTION.deferred) == 2


# What is counted beside the counters


def tally(*attempts: tuple[str, str, float]) -> Tally:
    made = Tally()
    for outcome, code, seconds in attempts:
        made.note(outcome, code, seconds)
    return made


def test_attempts_are_counted_with_the_outcomes_of_their_entries(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, Y)
    one, two = claimed(client).fresh
    attempts = tally(("delivered", "202", 0.004), ("retry", "503", 0.25))

    commit(
        client, delivered=[one], deferred=[DeferredEntry(tried_again(two), 0.0)], attempts=attempts, latency_ms=39.6
    )
    assert counted(client).items() >= {**attempts.counts(), "latency_ms": 40}.items()

    again = DeferredEntry(tried_again(tried_again(two)), 0.0)
    commit(client, deferred=[again], attempts=tally(("retry", "503", 9.0)))
    assert counted(client)["attempt:retry:503"] == 2
    assert counted(client)["duration_us:retry"] == 9_250_000
    assert not counted(client, PRODUCTION.counts).keys() & attempts.counts().keys(), (
        "that is of the whole, not of each"
    )


def test_attempts_are_counted_once_even_if_they_are_recorded_twice(client: Redis) -> None:
    """The answer to the first was lost."""
    lease_outbox(client)
    fill(client, X, Y)
    one, two = claimed(client).fresh
    retry = DeferredEntry(tried_again(two), 0.0)
    for what in (
        {"delivered": [one], "attempts": tally(("delivered", "202", 0.004))},
        {"deferred": [retry], "attempts": tally(("retry", "503", 0.25))},
    ):
        commit(client, **what)
        before = everything(client)
        commit(client, **what)
        assert {key: value for key, value in everything(client).items() if before.get(key) != value} == {}


def test_retry_is_recorded_though_the_entry_committed_with_it_was_deleted_by_an_operator(client: Redis) -> None:
    lease_outbox(client)
    one, _ = fill(client, X, Y)
    first, second = claimed(client).fresh
    client.xdel(PRODUCTION.outbox, one)

    what = {"delivered": [first], "deferred": [DeferredEntry(tried_again(second), 0.0)], "latency": {3: 1}}
    assert commit(client, **what) == RECORDED
    assert commit(client, **what) == RECORDED, "twice is once"

    assert ids_of(claimed_retries(client)) == [second.entry_id]
    assert counted(client)["retries"] == 1
    assert "delivered" not in counted(client)
    assert client.exists(KEYS.latency) == 0


@pytest.mark.parametrize("outcome", ["delivered", "dead", "deferred"])
def test_committed_entry_is_no_longer_marked_as_in_flight(client: Redis, outcome: str) -> None:
    """The next crash counts against another entry."""
    lease_outbox(client)
    fill(client, X)
    (entry,) = claimed(client).fresh
    client.hset(PRODUCTION.run, mapping={"entry": entry.entry_id, "deaths": 1})

    what = {"delivered": entry, "dead": dead(entry), "deferred": DeferredEntry(tried_again(entry), 0.0)}
    commit(client, **{outcome: [what[outcome]]})

    assert client.hmget(PRODUCTION.run, "entry", "deaths") == [None, None]
    client.hset(PRODUCTION.run, mapping={"entry": "7-0", "deaths": 2})
    commit(client)
    assert client.hget(PRODUCTION.run, "deaths") == b"2"


def test_counted_attempts_are_fenced_too(client: Redis) -> None:
    acquire(client, "another")
    fill(client, X)
    entry = OutboxEntry("5-0", b"", "e", X, "sha256:0", "", "", 5)

    assert commit(client, delivered=[entry], attempts=tally(("delivered", "202", 0.1))) == NOT_RECORDED
    assert "attempt:delivered:202" not in counted(client)


def test_deliveries_are_counted_in_the_index_of_environments(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, Y, "z")
    first, second, third = claimed(client).fresh

    commit(client, delivered=[first, second])
    commit(client, dead=[dead(third)])

    index = KEYS.environments(DEFAULT_DESTINATION)
    assert client.zrange(index, 0, -1, withscores=True) == [(b"production", 2.0)]


def test_newest_that_was_delivered_and_the_last_success_are_noted(client: Redis) -> None:
    lease_outbox(client)
    fill(client, X, Y, "z")
    first, second, third = (
        entry._replace(enqueued_at_ms=at) for entry, at in zip(claimed(client).fresh, (7, 9, 8), strict=True)
    )

    commit(client, delivered=[first, second])
    assert counted(client)["newest:delivered"] == 9
    assert counted(client)["delivered_at"] == pytest.approx(now_ms(client), abs=10_000)

    commit(client, delivered=[third])
    assert counted(client)["newest:delivered"] == 9, "an older event does not set it back"
