"""Forgetting of instances: only those not seen for long, without waiting events, and never over an intake run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from outboxes import everything
from runs import TOKEN, counters_of, report, run_once, running

from relay.queue import counters, epoch, forgetting, pausing, scripts
from relay.queue.keys import Keys
from relay.queue.state import Accepted
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers import forgetting as forget
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

KEYS = Keys()
OUTBOX = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
INDEX = KEYS.environments(DEFAULT_DESTINATION)
OLD, NOW = 1_000, 2_000


def remember(client: Redis, instance: str, seen: int, digest: str = "sha256:a") -> str:
    state = Accepted(digest, None, seen, seen, (f"id-{seen}",)).encode()
    client.hset(OUTBOX.accepted, instance, state)
    client.hset(OUTBOX.delivered, instance, f"{digest}\n\n{seen}")
    return state


def known(client: Redis) -> tuple[set[bytes], set[bytes]]:
    return set(client.hkeys(OUTBOX.accepted)), set(client.hkeys(OUTBOX.delivered))


def walk(client: Redis, seen_before: int) -> int:
    cursor, forgotten = 0, 0
    while True:
        cursor, count = forgetting.forget_page(client, OUTBOX, cursor, seen_before)
        forgotten += count
        if not cursor:
            return forgotten


def test_only_what_is_old_is_forgotten_and_its_delivery_with_it(client: Redis) -> None:
    remember(client, "old", OLD)
    remember(client, "new", NOW)
    assert walk(client, NOW) == 1
    assert known(client) == ({b"new"}, {b"new"})
    assert walk(client, NOW) == 0


def test_an_instance_with_an_event_waiting_is_not_forgotten(client: Redis) -> None:
    remember(client, "waits", OLD)
    remember(client, "old", OLD)
    client.xadd(OUTBOX.outbox, {"event": "{}", "instance": "waits"})
    assert walk(client, NOW) == 1
    assert known(client)[0] == {b"waits"}


def test_with_more_waiting_than_is_read_nothing_is_forgotten(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MAX_WAITING", 2)
    remember(client, "old", OLD)
    for _ in range(3):
        client.xadd(OUTBOX.outbox, {"event": "{}", "instance": "other"})
    assert walk(client, NOW) == 0
    client.xtrim(OUTBOX.outbox, maxlen=2, approximate=False)
    assert walk(client, NOW) == 1


def test_a_few_large_events_that_wait_are_not_read_either(client: Redis) -> None:
    """Redis would do nothing else meanwhile: 60 MB take it half a second."""
    remember(client, "old", OLD)
    large = "x" * 65_536
    for _ in range(forgetting.MAX_WAITING_BYTES // len(large) + 1):
        client.xadd(OUTBOX.outbox, {"event": large, "instance": "other"})
    assert walk(client, NOW) == 0
    client.xtrim(OUTBOX.outbox, maxlen=1, approximate=False)
    assert walk(client, NOW) == 1


def test_an_intake_in_between_keeps_the_instance(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is read, then an intake takes an event of the instance in, then the script runs."""
    remember(client, "old", OLD)
    run = scripts.run

    def intake_comes_first(client: Redis, call: scripts.Call) -> object:
        remember(client, "old", NOW, "sha256:b")
        return run(client, call)

    monkeypatch.setattr(forgetting.scripts, "run", intake_comes_first)
    assert walk(client, NOW) == 0
    assert known(client) == ({b"old"}, {b"old"})


def test_thousands_are_walked_in_pages(client: Redis) -> None:
    for number in range(3 * forgetting.PAGE):
        remember(client, f"{number}", OLD if number % 2 else NOW)
    assert walk(client, NOW) == 3 * forgetting.PAGE // 2
    assert len(known(client)[0]) == 3 * forgetting.PAGE // 2


def test_environments_are_walked_in_pages_and_no_key_space_is_scanned(client: Redis) -> None:
    names = {f"env-{n}" for n in range(1000)} | {"*[x]", "a b"}
    client.zadd(INDEX, dict.fromkeys(names, 0))
    client.config_resetstat()
    found: set[str] = set()
    page, pages = 0, 0
    while True:
        page, some = forgetting.read_environments(client, KEYS, DEFAULT_DESTINATION, page)
        assert some == sorted(some)
        found.update(some)
        pages += 1
        if not page:
            break
    assert found == names
    assert pages > 5
    assert "cmdstat_scan" not in client.info("commandstats")


# Environments


def count(client: Redis, seen: int = OLD) -> None:
    """Count a delivery in the environment, as commit_intake.lua, commit_delivery.lua and release_outbox.lua do."""
    client.zincrby(INDEX, 1, "production")
    client.hset(OUTBOX.counts, mapping={"delivered": 1, "outbox": 0, "seen": seen})


def forget_environment(client: Redis) -> bool:
    return forgetting.forget_environment(client, KEYS, OUTBOX, NOW)


def test_an_environment_of_which_nothing_is_left_goes_with_all_its_keys(client: Redis) -> None:
    count(client)
    client.zadd(INDEX, {"staging": 1})
    client.set(OUTBOX.cursor, "-")
    client.hset(OUTBOX.run, "token", "of a run that died")
    client.hset(OUTBOX.delivered, "an instance", "that was forgotten")
    assert forget_environment(client)
    assert client.keys() == [INDEX.encode()]
    assert client.zrange(INDEX, 0, -1) == [b"staging"]
    assert not forget_environment(client)
    assert client.keys() == [INDEX.encode()]


@pytest.mark.parametrize(
    "something",
    [
        pytest.param(lambda client: client.hset(OUTBOX.accepted, "a", "state"), id="an instance"),
        pytest.param(lambda client: client.xadd(OUTBOX.outbox, {"event": "{}"}), id="an event on its way"),
        pytest.param(lambda client: client.zadd(OUTBOX.deferred, {"a": 0}), id="a deferred entry"),
        pytest.param(lambda client: client.set(OUTBOX.lease, "token"), id="a run"),
        pytest.param(lambda client: client.set(OUTBOX.wakeup, "1"), id="a wakeup"),
        pytest.param(
            lambda client: client.zadd(KEYS.schedule(DEFAULT_DESTINATION), {"production": 1}), id="a schedule"
        ),
        pytest.param(lambda client: pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"]), id="a pause"),
        pytest.param(lambda client: client.hset(OUTBOX.counts, "outbox", 1), id="a total to be put right"),
        pytest.param(lambda client: client.hset(OUTBOX.counts, "seen", NOW), id="something that happened lately"),
    ],
)
def test_an_environment_stays_with_anything_of_it(client: Redis, something: Callable[[Redis], object]) -> None:
    count(client)
    something(client)
    before = everything(client)
    assert not forget_environment(client)
    assert everything(client) == before


def test_the_time_of_an_environment_that_an_older_version_counted_begins_at_the_first_look(client: Redis) -> None:
    count(client)
    client.hdel(OUTBOX.counts, "seen")
    client.config_set("maxmemory", 1)
    try:
        assert not forget_environment(client)
    finally:
        client.config_set("maxmemory", 0)
    assert not forget_environment(client)
    looked_at = int(client.hget(OUTBOX.counts, "seen") or 0)
    assert abs(forgetting.now_ms(client) - looked_at) < 60_000
    assert forgetting.forget_environment(client, KEYS, OUTBOX, looked_at + 1)


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    with running(redis_server, api) as made:
        yield made


def known_environments(client: Redis) -> list[str]:
    return [each.environment for each in counters.read_environments(client, KEYS, DEFAULT_DESTINATION)]


def test_a_walk_forgets_environments_without_instances_and_the_ledger_adds_up(
    client: Redis, runtime: Runtime, api: Sandbox
) -> None:
    """What becomes a dead letter gives its state back, so that of these nothing but the counts is left."""
    api.faults = [{"kind": "status", "status": 422, "count": 2}]
    for name in ("pr-1", "pr-2"):
        report(client, "a", name)
    run_intake(runtime)
    run_once(runtime, "pr-1", "pr-2")
    report(client, "a")
    run_intake(runtime)
    run_once(runtime)
    client.hset(KEYS.of_outbox(DEFAULT_DESTINATION, "pr-1").counts, "seen", OLD)
    before = counters_of(client)
    assert known_environments(client) == ["pr-1", "pr-2", "production"]

    assert forget.walk(runtime).summary == "instances forgotten: 0, environments: 1"
    assert known_environments(client) == ["pr-2", "production"]
    assert not list(client.scan_iter("*pr-1"))
    assert counters_of(client) == before
    assert (before.unaccounted, before.dead) == (0, 2)

    report(client, "b", "pr-1")
    run_intake(runtime)
    assert known_environments(client) == ["pr-1", "pr-2", "production"]


def test_what_is_taken_in_and_what_empties_an_outbox_keeps_an_environment(client: Redis, runtime: Runtime) -> None:
    def age() -> int:
        return forgetting.now_ms(client) - int(client.hget(OUTBOX.counts, "seen") or 0)

    report(client, "a")
    run_intake(runtime)
    assert age() < 60_000
    client.hset(OUTBOX.counts, "seen", OLD)
    run_once(runtime)
    assert age() < 60_000, "it was delivered long after"
    client.hset(OUTBOX.counts, "seen", OLD)
    run_once(runtime)
    assert age() > 60_000, "a wakeup for nothing is nothing"
    report(client, "a")
    run_intake(runtime)
    assert age() < 60_000, "a duplicate"


def test_a_late_bell_brings_nothing_of_a_forgotten_environment_back(client: Redis, runtime: Runtime) -> None:
    count(client)
    assert forget_environment(client)
    run_once(runtime)
    assert not list(client.scan_iter("*production"))
    assert known_environments(client) == []


def test_one_walk_at_a_time(client: Redis) -> None:
    assert forgetting.claim(client, KEYS, 60)
    assert not forgetting.claim(client, KEYS, 60)
    forgetting.unclaim(client, KEYS)
    assert forgetting.claim(client, KEYS, 60)
    assert 0 < client.pttl(KEYS.forgetting) <= 60_000


def test_a_beat_tells_the_data_set_and_a_flushed_one_is_counted_once(client: Redis) -> None:
    first = epoch.beat(client, KEYS, "one", keep_seconds=10)
    assert epoch.beat(client, KEYS, "two", keep_seconds=10) == first
    assert epoch.beat(client, KEYS, "one", keep_seconds=10, known=first) == first
    assert client.hget(KEYS.counts, "resets") is None
    assert 0 < client.pttl(KEYS.worker("one")) <= 10_000
    client.flushall()
    second = epoch.beat(client, KEYS, "one", keep_seconds=10, known=first)
    assert second != first
    assert epoch.beat(client, KEYS, "two", keep_seconds=10, known=first) == second
    assert epoch.beat(client, KEYS, "one", keep_seconds=10, known=second) == second
    assert client.hget(KEYS.counts, "resets") == b"1"


def test_a_worker_gives_its_sign_of_life_at_maxmemory(client: Redis) -> None:
    client.config_set("maxmemory", 1)
    try:
        assert epoch.beat(client, KEYS, "one", keep_seconds=10)
        assert client.exists(KEYS.worker("one"))
    finally:
        client.config_set("maxmemory", 0)


def test_workers_that_give_no_more_signs_of_life_are_forgotten_by_the_others(client: Redis) -> None:
    epoch.beat(client, KEYS, "gone", keep_seconds=10)
    client.zincrby(KEYS.workers, -10_001, "gone")
    epoch.beat(client, KEYS, "one", keep_seconds=10)
    epoch.beat(client, KEYS, "two", keep_seconds=10)
    assert set(client.zrange(KEYS.workers, 0, -1)) == {b"one", b"two"}


# Walks that do not come to the end


def walk_to_the_end(runtime: Runtime, client: Redis) -> int:
    """Walk again and again, each time for one step; return how many walks it took."""
    for walks in range(1, 2000):
        said = forget.walk(runtime).summary
        if not said.endswith("more to look at"):
            assert client.get(KEYS.forget_position) is None
            return walks
    pytest.fail("the walks make no progress")


def test_walks_whose_budget_is_over_at_once_come_to_the_end_all_the_same(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "is_stopping", lambda: True)
    for number in range(2 * forgetting.PAGE):
        remember(client, f"{number}", OLD)
    names = [f"env-{n}" for n in range(300)]
    client.zadd(INDEX, dict.fromkeys([*names, "production"], 0))
    for name in names:
        client.hset(KEYS.of_outbox(DEFAULT_DESTINATION, name).counts, mapping={"seen": OLD, "outbox": 0})
    with running(redis_server, api) as runtime:
        assert walk_to_the_end(runtime, client) > 100
        while client.zcard(INDEX) > 1:  # Redis shrinks the set meanwhile, and some environments change their page
            before = client.zcard(INDEX)
            walk_to_the_end(runtime, client)
            assert client.zcard(INDEX) < before
    assert known(client) == (set(), set())
    assert client.zrange(INDEX, 0, -1) == [b"production"], "it has no count of when it was seen"


def test_walk_goes_on_where_the_last_one_ended_even_if_that_environment_is_gone(
    client: Redis, runtime: Runtime
) -> None:
    remember(client, "old", OLD)
    client.zadd(INDEX, {"production": 0, "zebra": 0})
    forgetting.write_position(client, KEYS, forgetting.Position(0, "prod gone", 17))
    assert forgetting.read_position(client, KEYS) == (0, "prod gone", 17)
    assert forget.walk(runtime).summary.startswith("instances forgotten: 1")
    assert forgetting.read_position(client, KEYS) == forgetting.START


# Clocks


def step(client: Redis, seconds: float) -> None:
    """Have the last sign of life lie so far in the past, as a clock that steps forward does; negative for back."""
    client.hincrby(KEYS.dataset, "beat_at", -round(seconds * 1000))


def beat(client: Redis, runtime: Runtime) -> None:
    delivery = runtime.settings.delivery
    epoch.beat(
        client, KEYS, "one", keep_seconds=10, expire_after=delivery.max_age, forget_after=delivery.forget_after
    )


@pytest.mark.parametrize("direction", [1, -1])
def test_clock_that_steps_makes_nothing_forgotten_before_it_ran_on_for_long(
    client: Redis, runtime: Runtime, direction: int
) -> None:
    forget_after = runtime.settings.delivery.forget_after
    remember(client, "old", OLD)
    client.zadd(INDEX, {"production": 0})
    beat(client, runtime)
    step(client, direction * 0.7 * forget_after)
    assert forget.walk(runtime).summary.startswith("nothing forgotten: within"), "before it was noted"
    beat(client, runtime)
    assert forget.walk(runtime).summary.startswith("nothing forgotten")
    beat(client, runtime)
    assert known(client)[0] == {b"old"}

    client.hincrby(KEYS.dataset, "steady:forget", -round(1000 * forget_after) - 1000)
    assert forget.walk(runtime).summary.startswith("instances forgotten: 1")


def test_pause_of_all_workers_that_is_short_for_it_changes_nothing(client: Redis, runtime: Runtime) -> None:
    remember(client, "old", OLD)
    client.zadd(INDEX, {"production": 0})
    beat(client, runtime)
    step(client, 0.3 * runtime.settings.delivery.forget_after)
    beat(client, runtime)
    assert forget.walk(runtime).summary.startswith("instances forgotten: 1")
