"""A destination's health in Redis, and the wake-ups that the poller gives by it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from outboxes import DESTINATION, KEYS, LONG_SECONDS, LONGEST_PAUSE_SECONDS, SCHEDULE, everything, now_ms, put
from rig import wait_for

from relay.queue import health as destination
from relay.queue import schedule, scripts
from relay.queue.health import Admission, Health, HealthState
from relay.queue.schedule import PROBE_ENVIRONMENTS, Waiting
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from redis import Redis

HOUR_MS = 3_600_000
RUN = "run"


def shard(client: Redis) -> Shard:
    return Shard(client=client, keys=KEYS)


def health(client: Redis) -> Health:
    """Read it as a run does that observed nothing."""
    return observe(client)


# change_health.lua


def throttle(client: Redis, seconds: float) -> Health:
    throttled = partial(Health.throttled, seconds=seconds)
    return destination.change(shard(client), DEFAULT_DESTINATION, throttled).after


def open_circuit(client: Redis, token: str = RUN, *, pause: float = 0.0, state: str = "unavailable") -> Health:
    def opened(health: Health, now: int) -> Health:
        return health.opened(now, HealthState(state), token=token, first_seconds=pause, longest_seconds=10 * pause)

    return destination.change(shard(client), DEFAULT_DESTINATION, opened).after


def close_circuit(client: Redis) -> None:
    destination.change(shard(client), DEFAULT_DESTINATION, lambda health, _: health.closed())


def probe(client: Redis, token: str) -> None:
    """Have a run send a probe, as if the pause were over."""
    client.hset(DESTINATION, "until", now_ms(client) - 1)
    assert admit(client, token) == Admission(1, 0.0, probes=True)


def read(client: Redis) -> Health:
    return destination.read(shard(client), DEFAULT_DESTINATION)


def test_transition_is_what_all_read(client: Redis) -> None:
    changed = throttle(client, 3600)
    assert read(client) == changed
    assert changed.until == pytest.approx(now_ms(client) + 60_000, abs=1000)
    assert health(client) == changed._replace(throttled_until=0, asked_ms=0)

    probe(client, "prober")
    assert read(client).prober == "prober"
    again = open_circuit(client, "prober", pause=100)
    assert read(client) == again
    assert again.openings == 2

    close_circuit(client)
    assert read(client) == again.closed()
    assert client.hmget(DESTINATION, ["openings", "circuit", "prober", "throttled_until"]) == [None] * 4


def test_transition_that_changes_nothing_writes_nothing(client: Redis) -> None:
    open_circuit(client, "first", pause=100)
    before = everything(client)
    open_circuit(client, "another", pause=100, state="unauthorized")
    assert everything(client) == before
    assert destination.lift(shard(client), "never used") is None
    assert everything(client) == before


def test_transition_is_decided_again_if_another_worker_changed_the_health_in_between(client: Redis) -> None:
    seen = []

    def opened(health: Health, now: int) -> Health:
        seen.append(health.openings)
        if len(seen) == 1:
            open_circuit(client, "another")
        return health.opened(now, HealthState.UNAVAILABLE, token=RUN, first_seconds=1, longest_seconds=1)

    changed = destination.change(shard(client), DEFAULT_DESTINATION, opened)
    assert seen == [0, 1]
    assert changed.after == changed.before == read(client), "an open circuit is opened again only by its probe"


def test_circuit_that_many_runs_open_at_once_is_opened_once(client: Redis) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda number: open_circuit(client, f"run {number}", pause=50), range(32)))

    assert {health.openings for health in opened} == {1}
    assert unhealthy_ms(client) == {"unavailable": pytest.approx(50_000, abs=1000)}


def test_observation_in_between_neither_hinders_a_transition_nor_is_lost(client: Redis) -> None:
    def throttled(health: Health, now: int) -> Health:
        observe(client, successes=3, failures=2)
        return health.throttled(now, seconds=30)

    destination.change(shard(client), DEFAULT_DESTINATION, throttled)
    assert (read(client).successes, read(client).failures, read(client).reason) == (3, 2, "throttled")


def unhealthy_ms(client: Redis) -> dict[str, int]:
    known = client.hgetall(DESTINATION)
    return {name.decode()[13:]: int(ms) for name, ms in known.items() if name.startswith(b"unhealthy_ms:")}


def test_unhealthy_time_is_counted_by_state_and_no_moment_twice(client: Redis) -> None:
    throttle(client, 40)
    throttle(client, 20)
    assert unhealthy_ms(client) == {"throttled": 40_000}, "within the pause there is"
    assert client.hget(DESTINATION, "asked_ms") == b"20000"

    throttle(client, 60)
    assert unhealthy_ms(client)["throttled"] == pytest.approx(60_000, abs=5000)

    open_circuit(client, pause=250, state="unauthorized")
    both = unhealthy_ms(client)
    assert both["unauthorized"] == pytest.approx(190_000, abs=10_000), "the rest of it"
    assert sum(both.values()) == pytest.approx(250_000, abs=10_000)

    client.hset(DESTINATION, "until", now_ms(client) - HOUR_MS)
    throttle(client, 20)
    assert unhealthy_ms(client)["throttled"] == both["throttled"] + 20_000, "anew after a pause that is over"


def test_lifted_throttle_admits_all_and_gives_its_time_back(client: Redis) -> None:
    throttle(client, 3600)
    lifted = destination.lift(shard(client), DEFAULT_DESTINATION)
    assert lifted is not None
    assert (lifted.reason, lifted.throttled_until - lifted.until) == ("throttled", HOUR_MS - 60_000)
    assert unhealthy_ms(client)["throttled"] < 1000
    assert admit(client, wanted=5) == Admission(5, 0.0, probes=False)
    assert destination.lift(shard(client), DEFAULT_DESTINATION) is None


def test_lifted_circuit_is_probed_at_once(client: Redis) -> None:
    open_circuit(client, pause=50)
    lifted = destination.lift(shard(client), DEFAULT_DESTINATION)
    assert lifted is not None
    assert lifted.reason == "unavailable"
    assert admit(client, "prober") == Admission(1, 0.0, probes=True)


YEAR_MS = 365 * 86_400_000


def test_times_from_before_the_clock_was_set_back_are_over(client: Redis) -> None:
    ahead = now_ms(client) + YEAR_MS
    client.hset(DESTINATION, mapping={"until": ahead, "reason": "throttled", "prober": "x", "probe_until": ahead})
    assert admit(client, wanted=5) == Admission(5, 0.0, probes=False)
    client.hset(DESTINATION, mapping={"openings": 1, "circuit": "unavailable"})
    assert admit(client, wanted=5) == Admission(1, 0.0, probes=True)
    schedule_many(client, 2)
    assert read_waiting(client).due


def test_outbox_whose_time_is_from_before_the_clock_was_set_back_is_due(client: Redis) -> None:
    client.zadd(SCHEDULE, {"lost": now_ms(client) + HOUR_MS, "paused": "inf", "later": now_ms(client) + 60_000})
    before = everything(client)
    assert read_waiting(client).due == ["lost"]
    assert read_waiting(client, count=0).due == []
    assert everything(client) == before


# admit.lua


def admit(
    client: Redis,
    token: str = RUN,
    *,
    wanted: int = 1,
    rate: float = 0.0,
    burst: int = 10,
    probe_seconds: float = LONG_SECONDS,
) -> Admission:
    return destination.admit(
        shard(client),
        DEFAULT_DESTINATION,
        token=token,
        wanted=wanted,
        rate_limit=rate,
        burst=burst,
        probe_seconds=probe_seconds,
    )


def test_destination_in_good_health_takes_all_that_is_wanted(client: Redis) -> None:
    assert admit(client, wanted=500) == Admission(500, 0.0, probes=False)
    assert client.exists(DESTINATION) == 0


def test_nothing_is_admitted_before_the_pause_is_over(client: Redis) -> None:
    throttle(client, 50)
    admission = admit(client, wanted=5, rate=1000)

    assert (admission.granted, admission.probes) == (0, False)
    assert admission.again_seconds == pytest.approx(50, abs=1)
    assert client.hexists(DESTINATION, "full_at") == 0, "what is not sent uses up no rate"


def test_open_circuit_is_not_probed_before_its_pause_is_over(client: Redis) -> None:
    open_circuit(client, pause=100)

    assert admit(client).granted == 0
    assert client.hexists(DESTINATION, "prober") == 0


def test_open_circuit_is_probed_by_one_of_many_with_one_event(client: Redis) -> None:
    open_circuit(client)
    tokens = [f"run {number}" for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        admissions = dict(zip(tokens, pool.map(lambda token: admit(client, token, wanted=32), tokens), strict=True))

    (prober,) = [token for token, admission in admissions.items() if admission.granted]
    assert admissions.pop(prober) == Admission(1, 0.0, probes=True)
    assert {(admission.granted, admission.probes) for admission in admissions.values()} == {(0, False)}
    assert all(LONG_SECONDS - 5 < admission.again_seconds <= LONG_SECONDS for admission in admissions.values())

    assert admit(client, prober, wanted=32) == Admission(1, 0.0, probes=True), "it is told again"


def test_probe_that_takes_too_long_makes_way_for_another(client: Redis) -> None:
    open_circuit(client)
    assert admit(client, "dies", probe_seconds=0.05).probes

    wait_for(lambda: admit(client, "another").granted == 1)
    assert admit(client, "dies").granted == 0, "its time is over"


def test_burst_goes_at_once_and_the_rest_is_spaced(client: Redis) -> None:
    """A POST each 100 s: the time that the test takes plays no part."""
    assert admit(client, wanted=4, rate=0.01, burst=6).granted == 4
    assert admit(client, wanted=4, rate=0.01, burst=6).granted == 2
    nothing = admit(client, wanted=4, rate=0.01, burst=6)
    assert nothing.granted == 0
    assert nothing.again_seconds == pytest.approx(100, abs=2)

    pass_time(client, 100)
    assert admit(client, wanted=4, rate=0.01, burst=6).granted == 1
    assert admit(client, wanted=4, rate=0.01, burst=6).granted == 0

    pass_time(client, 250)
    assert admit(client, wanted=4, rate=0.01, burst=6).granted == 2
    assert admit(client, wanted=4, rate=0.01, burst=6).again_seconds == pytest.approx(50, abs=2)

    pass_time(client, 10_000)
    assert admit(client, wanted=100, rate=0.01, burst=6).granted == 6, "what was not used is not saved up"


def pass_time(client: Redis, seconds: float) -> None:
    """Let so much time pass for the rate limit."""
    full_at = client.hget(DESTINATION, "full_at")
    assert full_at is not None
    client.hset(DESTINATION, "full_at", str(float(full_at) - 1000 * seconds))


def test_run_is_admitted_after_the_time_that_it_was_told(client: Redis) -> None:
    assert admit(client, wanted=3, rate=0.01, burst=3).granted == 3
    again_seconds = admit(client, rate=0.01, burst=3).again_seconds
    pass_time(client, again_seconds)

    assert admit(client, rate=0.01, burst=3).granted == 1


def test_all_runs_together_keep_to_the_rate(client: Redis) -> None:
    """However many ask, and however often, none goes beyond burst + rate x time."""
    rate, burst, started = 400.0, 7, now_ms(client)

    def ask(number: int) -> int:
        return sum(admit(client, f"run {number}", wanted=3, rate=rate, burst=burst).granted for _ in range(60))

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(ask, range(8)))

    most = burst + rate * (now_ms(client) - started + 1) / 1000
    assert burst <= granted <= most


@pytest.mark.parametrize("ahead_ms", [HOUR_MS, 10**12])
def test_clock_that_was_set_back_stops_no_run(client: Redis, ahead_ms: int) -> None:
    client.hset(DESTINATION, "full_at", now_ms(client) + ahead_ms)

    assert admit(client, wanted=100, rate=1, burst=10).granted == 10
    assert admit(client, wanted=1, rate=1, burst=10).granted <= 1


def test_limit_that_was_raised_counts_at_once(client: Redis) -> None:
    assert admit(client, wanted=10, rate=0.001, burst=10).granted == 10
    assert admit(client, wanted=10, rate=0.001, burst=10).granted == 0

    assert admit(client, wanted=10, rate=1000, burst=10).granted > 0


def test_probe_that_the_rate_does_not_allow_is_not_counted_as_one(client: Redis) -> None:
    assert admit(client, rate=0.01, burst=1).granted == 1
    open_circuit(client)

    admission = admit(client, "prober", rate=0.01, burst=1)

    assert (admission.granted, admission.probes) == (0, False)
    assert client.hexists(DESTINATION, "prober") == 0


# observe.lua


def observe(
    client: Redis,
    *,
    successes: int = 0,
    failures: int = 0,
    change: int = 0,
    most: int = 32,
    gap: float = LONG_SECONDS,
) -> Health:
    call = destination.observe_call(
        shard(client),
        DEFAULT_DESTINATION,
        successes=successes,
        failures=failures,
        window_change=change,
        max_window=most,
        shrink_gap_seconds=gap,
    )
    return Health.decode(scripts.run(client, call))


def test_failures_in_a_row_of_all_runs_add_up(client: Redis) -> None:
    assert observe(client, failures=3).failures == 3
    assert observe(client, failures=4).failures == 7
    assert observe(client).failures == 7


def test_success_between_ends_the_row(client: Redis) -> None:
    observe(client, failures=19)
    seen = observe(client, successes=1)
    assert (seen.failures, seen.successes) == (0, 1)

    observe(client, failures=19)
    seen = observe(client, successes=2, failures=4)
    assert (seen.failures, seen.successes) == (4, 3), "those after the last success count"


def test_window_grows_from_what_it_is_up_to_the_largest(client: Redis) -> None:
    client.hset(DESTINATION, "window", 1)

    assert observe(client, change=1).window == 2
    assert observe(client, change=5).window == 7
    assert observe(client, change=500).window == 32


def test_window_that_is_not_set_stays_the_largest(client: Redis) -> None:
    assert observe(client, successes=5).window == 0
    assert observe(client, change=3).window == 32


def test_window_halves_to_no_less_than_one(client: Redis) -> None:
    assert [observe(client, change=-1, gap=0).window for _ in range(7)] == [16, 8, 4, 2, 1, 1, 1]


def test_one_wave_of_failures_shrinks_the_window_once(client: Redis) -> None:
    assert [observe(client, change=-1).window for _ in range(5)] == [16] * 5

    client.hset(DESTINATION, "shrunk", now_ms(client) - 1000 * int(LONG_SECONDS))
    assert [observe(client, change=-1).window for _ in range(5)] == [8] * 5


def test_window_grows_between_two_waves(client: Redis) -> None:
    observe(client, change=-1)

    assert observe(client, change=2).window == 18


def test_clock_that_was_set_back_lets_the_window_shrink(client: Redis) -> None:
    observe(client, change=-1)
    client.hset(DESTINATION, "shrunk", now_ms(client) + HOUR_MS)

    assert observe(client, change=-1).window == 8
    assert int(client.hget(DESTINATION, "shrunk") or 0) <= now_ms(client)


def test_window_is_clamped_when_the_largest_was_set_lower(client: Redis) -> None:
    client.hset(DESTINATION, "window", 32)

    assert observe(client, change=-1, most=8).window == 4
    client.hset(DESTINATION, "window", 32)
    assert observe(client, change=1, most=8).window == 8


def test_look_at_the_health_changes_nothing(client: Redis) -> None:
    client.hset(DESTINATION, mapping={"window": 5, "failures": 3, "successes": 9})
    before = everything(client)

    assert observe(client) == Health(failures=3, successes=9, window=5)
    assert everything(client) == before


# waiting.lua


def read_waiting(client: Redis, *, count: int = 10, skip: int = 0) -> Waiting:
    return schedule.read_waiting(
        Shard(client=client, keys=KEYS),
        DEFAULT_DESTINATION,
        count=count,
        skip=skip,
        longest_pause_seconds=LONGEST_PAUSE_SECONDS,
    )


def schedule_many(client: Redis, number: int) -> set[str]:
    names = [f"env-{n}" for n in range(number)]
    client.zadd(SCHEDULE, dict(zip(names, range(number), strict=True)))
    return set(names)


def test_look_sees_what_waits_and_changes_nothing(client: Redis) -> None:
    assert read_waiting(client) == Waiting(inbox=0, due=[], next_due_seconds=None)

    put(client, {}, {})
    client.zadd(SCHEDULE, {"a": 1, "b": 2, "c": 3, "later": now_ms(client) + 600_000})
    before = everything(client)
    waiting = read_waiting(client, count=2, skip=1)

    assert (waiting.inbox, waiting.due) == (2, ["b", "c"])
    assert waiting.next_due_seconds == pytest.approx(600, abs=1)
    assert everything(client) == before


def test_paused_environment_is_neither_due_nor_next(client: Redis) -> None:
    client.zadd(SCHEDULE, {"paused": "inf"})
    assert read_waiting(client) == Waiting(inbox=0, due=[], next_due_seconds=None)

    client.zadd(SCHEDULE, {"later": now_ms(client) + 600_000, "now": 1})
    waiting = read_waiting(client)
    assert waiting.due == ["now"]
    assert waiting.next_due_seconds == pytest.approx(600, abs=1)


def test_nothing_is_due_before_the_pause_is_over(client: Redis) -> None:
    put(client, {})
    schedule_many(client, 5)
    client.zadd(SCHEDULE, {"soon": now_ms(client) + 1000})
    throttle(client, 50)
    waiting = read_waiting(client)

    assert (waiting.inbox, waiting.due) == (1, []), "the inbox is taken in all the same"
    assert waiting.next_due_seconds == pytest.approx(50, abs=1)


def test_pause_that_is_over_hides_nothing(client: Redis) -> None:
    names = schedule_many(client, 5)
    throttle(client, 0)

    wait_for(lambda: set(read_waiting(client).due) == names)


def test_few_environments_are_called_to_probe_an_open_circuit(client: Redis) -> None:
    names = schedule_many(client, 20)
    open_circuit(client)
    seen = [read_waiting(client).due for _ in range(200)]

    assert {len(due) for due in seen} <= set(range(1, PROBE_ENVIRONMENTS + 1))
    assert len({due[0] for due in seen}) > 1, "one environment's event would be the probe each time"
    assert {name for due in seen for name in due} <= names
    assert read_waiting(client, skip=10).due == [], "no second page of them"


def test_the_only_environment_is_called_to_probe(client: Redis) -> None:
    open_circuit(client)
    assert read_waiting(client).due == []

    schedule_many(client, 1)
    assert read_waiting(client).due == ["env-0"]


def test_no_second_run_is_woken_while_a_probe_is_in_flight(client: Redis) -> None:
    schedule_many(client, 20)
    open_circuit(client)
    assert admit(client, probe_seconds=50).probes
    waiting = read_waiting(client)

    assert waiting.due == []
    assert waiting.next_due_seconds == pytest.approx(50, abs=1)


def test_all_are_called_again_once_the_circuit_is_closed(client: Redis) -> None:
    names = schedule_many(client, 10)
    open_circuit(client)
    assert admit(client).probes
    close_circuit(client)

    assert set(read_waiting(client).due) == names
