"""A destination's health on a real Redis: held, open, probed, paced; and what the poller sees of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from outboxes import DESTINATION, KEYS, LONG_SECONDS, LONGEST_PAUSE_SECONDS, SCHEDULE, everything, now_ms, put
from rig import wait_for

from relay.queue import health as destination
from relay.queue import schedule, scripts
from relay.queue.health import Admission, Health, HealthState, Hold
from relay.queue.schedule import PROBERS, Sight
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from redis import Redis

HOUR_MS = 3_600_000
DRAIN = "drain"


def health(client: Redis) -> Health:
    """Read it as a drain that saw nothing does."""
    return observe(client)


# hold.lua


def hold(client: Redis, seconds: float, reason: str = "throttled") -> Hold:
    return destination.hold(client, KEYS, DEFAULT_DESTINATION, seconds=seconds, reason=reason)


def test_hold_is_only_ever_extended(client: Redis) -> None:
    first = hold(client, 30)
    assert first.until == pytest.approx(now_ms(client) + 30_000, abs=1000)

    assert hold(client, 1, "unavailable").until == first.until
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).hold(now_ms(client) - 60_000) == first

    longer = hold(client, 60, "unauthorized")
    assert longer.until > first.until
    assert (
        destination.read(client, KEYS, DEFAULT_DESTINATION).hold(now_ms(client) - 60_000)
        == longer
        == Hold(longer.until, "unauthorized")
    )


def test_destination_that_was_never_held_has_no_hold(client: Redis) -> None:
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).hold(now_ms(client) - 60_000) is None
    assert health(client) == Health()


def held_ms(client: Redis) -> dict[str, int]:
    known = client.hgetall(DESTINATION)
    return {name.decode()[8:]: int(ms) for name, ms in known.items() if name.startswith(b"held_ms:")}


def test_time_held_is_counted_by_reason_and_no_moment_twice(client: Redis) -> None:
    hold(client, 40)
    hold(client, 20)
    assert held_ms(client) == {"throttled": 40_000}, "within the hold that stands"
    assert client.hget(DESTINATION, "asked_ms") == b"20000"

    hold(client, 60)
    assert held_ms(client)["throttled"] == pytest.approx(60_000, abs=5000)

    open_circuit(client, first=250, longest=250, reason="unauthorized")
    both = held_ms(client)
    assert both["unauthorized"] == pytest.approx(190_000, abs=10_000), "the rest of it"
    assert sum(both.values()) == pytest.approx(250_000, abs=10_000)


def test_time_held_begins_anew_after_a_hold_that_is_over(client: Redis) -> None:
    hold(client, 10)
    client.hset(DESTINATION, "until", now_ms(client) - HOUR_MS)
    hold(client, 20)
    assert held_ms(client) == {"throttled": 30_000}


def test_throttle_longer_than_the_time_between_probes_opens_the_circuit(client: Redis) -> None:
    held = hold(client, 3600)
    assert held == Hold(held.until, "throttled", 1, "throttled")
    assert held.until == pytest.approx(now_ms(client) + 60_000, abs=1000)
    seen = destination.read(client, KEYS, DEFAULT_DESTINATION)
    assert seen.throttled_until == pytest.approx(now_ms(client) + HOUR_MS, abs=1000)
    assert (seen.circuit, seen.window, seen.state(now_ms(client))) == ("throttled", 1, "throttled")
    assert hold(client, 120).until >= held.until
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).throttled_until == seen.throttled_until, (
        "only ever extended"
    )


def test_throttle_up_to_the_time_between_probes_is_kept_without_one(client: Redis) -> None:
    assert hold(client, 60) == Hold(destination.read(client, KEYS, DEFAULT_DESTINATION).until, "throttled")
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).throttled_until == 0


def test_probe_of_a_throttle_that_fails_waits_for_the_next_minute_and_not_beyond_the_throttle(client: Redis) -> None:
    hold(client, 3600)
    probe(client, "prober")
    again = open_circuit(client, "prober", first=0.5, longest=2)
    assert again.until == pytest.approx(now_ms(client) + 60_000, abs=1000)

    client.hset(DESTINATION, "throttled_until", now_ms(client) + 20_000)
    probe(client, "prober")
    assert open_circuit(client, "prober", first=0.5, longest=2).until == pytest.approx(
        now_ms(client) + 20_000, abs=1000
    )

    client.hset(DESTINATION, "throttled_until", now_ms(client) - 1)
    probe(client, "prober")
    assert open_circuit(client, "prober", first=0.5, longest=2).until == pytest.approx(
        now_ms(client) + 2_000, abs=1000
    )


@pytest.mark.parametrize("circuit", ["unauthorized", "misconfigured"])
def test_throttle_does_not_hide_what_has_to_be_mended(client: Redis, circuit: str) -> None:
    open_circuit(client, reason=circuit)
    assert hold(client, 3600).circuit == circuit


def test_lifted_throttle_lets_all_go_and_gives_its_time_back(client: Redis) -> None:
    hold(client, 3600)
    lifted = destination.lift(client, KEYS, DEFAULT_DESTINATION)
    assert lifted is not None
    assert (lifted.reason, lifted.throttled_until - lifted.until) == ("throttled", HOUR_MS - 60_000)
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).state(now_ms(client)) is HealthState.HEALTHY
    assert held_ms(client)["throttled"] < 1000
    assert admit(client, DRAIN, wanted=5) == Admission(5, 0.0, probes=False)
    assert destination.lift(client, KEYS, DEFAULT_DESTINATION) is None


def test_lifted_circuit_is_probed_at_once(client: Redis) -> None:
    open_circuit(client, first=50, longest=100)
    lifted = destination.lift(client, KEYS, DEFAULT_DESTINATION)
    assert lifted is not None
    assert lifted.reason == "unavailable"
    assert admit(client, "prober") == Admission(1, 0.0, probes=True)


def test_lifted_hold_of_an_older_version_lets_all_go(client: Redis) -> None:
    client.hset(DESTINATION, mapping={"until": now_ms(client) + HOUR_MS, "reason": "throttled"})
    assert destination.lift(client, KEYS, DEFAULT_DESTINATION) is not None
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).state(now_ms(client)) is HealthState.HEALTHY


YEAR_MS = 365 * 86_400_000


def test_hold_from_before_the_clock_was_set_back_is_over(client: Redis) -> None:
    ahead = now_ms(client) + YEAR_MS
    client.hset(DESTINATION, mapping={"until": ahead, "reason": "throttled", "prober": "x", "probe_until": ahead})
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).state(now_ms(client)) is HealthState.HEALTHY
    assert destination.read(client, KEYS, DEFAULT_DESTINATION).hold(now_ms(client)) is None
    assert admit(client, DRAIN, wanted=5) == Admission(5, 0.0, probes=False)
    client.hset(DESTINATION, mapping={"openings": 1, "circuit": "unavailable"})
    assert admit(client, DRAIN, wanted=5) == Admission(1, 0.0, probes=True)
    schedule_many(client, 2)
    assert look(client).due


def test_outbox_whose_time_is_from_before_the_clock_was_set_back_is_due(client: Redis) -> None:
    client.zadd(SCHEDULE, {"lost": now_ms(client) + HOUR_MS, "paused": "inf", "later": now_ms(client) + 60_000})
    before = everything(client)
    assert look(client).due == ["lost"]
    assert look(client, count=0).due == []
    assert everything(client) == before


# open_circuit.lua


def open_circuit(
    client: Redis, token: str = DRAIN, *, first: float = 0.0, longest: float = 0.0, reason: str = "unavailable"
) -> Hold:
    return destination.open_circuit(
        client, KEYS, DEFAULT_DESTINATION, token=token, first_seconds=first, longest_seconds=longest, reason=reason
    )


def probe(client: Redis, token: str) -> None:
    """Have a drain send a probe, as if the pause were over."""
    client.hset(DESTINATION, "until", now_ms(client) - 1)
    assert admit(client, token) == Admission(1, 0.0, probes=True)


def test_circuit_opens_with_a_pause_and_a_window_of_one(client: Redis) -> None:
    client.hset(DESTINATION, "window", 32)
    opened = open_circuit(client, first=50, longest=100, reason="misconfigured")

    assert opened == Hold(opened.until, "misconfigured", 1)
    assert opened.until == pytest.approx(now_ms(client) + 50_000, abs=1000)
    assert health(client) == Health(
        until=opened.until, reason="misconfigured", openings=1, window=1, circuit="misconfigured"
    )


def test_pause_doubles_with_each_probe_that_fails_up_to_the_longest(client: Redis) -> None:
    pauses = []
    open_circuit(client, first=1000, longest=7000)
    for number in range(40):
        token = f"drain {number}"
        probe(client, token)
        pauses.append((open_circuit(client, token, first=1000, longest=7000).until - now_ms(client)) / 1000)

    assert pauses == pytest.approx([2000, 4000, *[7000] * 38], abs=1)
    assert health(client).openings == 41


def test_only_who_probes_opens_an_open_circuit_again(client: Redis) -> None:
    opened = open_circuit(client, "first", first=100, longest=1000)
    before = everything(client)
    for token in ("another", "first"):
        assert open_circuit(client, token, first=100, longest=1000, reason="unauthorized") == opened
    assert everything(client) == before, "what was still in flight when it opened says nothing new"

    probe(client, "prober")
    standing = health(client)
    assert open_circuit(client, "another", first=100, longest=1000).openings == 1
    assert health(client) == standing

    again = open_circuit(client, "prober", first=100, longest=1000, reason="unauthorized")
    assert (again.reason, again.openings) == ("unauthorized", 2)
    assert health(client).circuit == "unauthorized"


def test_circuit_opened_twice_by_its_prober_is_opened_once(client: Redis) -> None:
    """A client tries again when the answer was lost."""
    open_circuit(client)
    probe(client, "prober")
    again = open_circuit(client, "prober", first=100, longest=100)

    assert open_circuit(client, "prober", first=100, longest=100) == again


def test_longer_hold_that_stands_is_kept_when_the_circuit_opens(client: Redis) -> None:
    longer = hold(client, 50)
    opened = open_circuit(client, first=1, longest=1)

    assert opened == Hold(longer.until, "throttled", 1)
    assert health(client) == Health(longer.until, "throttled", 1, window=1, circuit="unavailable")


def test_success_closes_the_circuit_and_the_next_opening_is_the_first(client: Redis) -> None:
    open_circuit(client)
    probe(client, "prober")
    assert open_circuit(client, "prober").openings == 2

    destination.close_circuit(client, KEYS, DEFAULT_DESTINATION)
    assert (health(client).openings, health(client).circuit, health(client).window) == (0, "", 1)
    assert admit(client, "any", wanted=7) == Admission(7, 0.0, probes=False)
    assert open_circuit(client).openings == 1


# admit.lua


def admit(
    client: Redis,
    token: str = DRAIN,
    *,
    wanted: int = 1,
    rate: float = 0.0,
    burst: int = 10,
    probe_seconds: float = LONG_SECONDS,
) -> Admission:
    return destination.admit(
        client,
        KEYS,
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


def test_nothing_is_admitted_while_the_destination_is_held(client: Redis) -> None:
    hold(client, 50)
    admission = admit(client, wanted=5, rate=1000)

    assert (admission.granted, admission.probes) == (0, False)
    assert admission.again_seconds == pytest.approx(50, abs=1)
    assert client.hexists(DESTINATION, "full_at") == 0, "what is not sent uses up no rate"


def test_open_circuit_that_is_still_held_is_not_probed(client: Redis) -> None:
    open_circuit(client, first=100, longest=100)

    assert admit(client).granted == 0
    assert client.hexists(DESTINATION, "prober") == 0


def test_open_circuit_is_probed_by_one_of_many_with_one_event(client: Redis) -> None:
    open_circuit(client)
    tokens = [f"drain {number}" for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        admissions = dict(zip(tokens, pool.map(lambda token: admit(client, token, wanted=32), tokens), strict=True))

    (prober,) = [token for token, admission in admissions.items() if admission.granted]
    assert admissions.pop(prober) == Admission(1, 0.0, probes=True)
    assert {(admission.granted, admission.probes) for admission in admissions.values()} == {(0, False)}
    assert all(LONG_SECONDS - 5 < admission.again_seconds <= LONG_SECONDS for admission in admissions.values())

    assert admit(client, prober, wanted=32) == Admission(1, 0.0, probes=True), "it is told again"


def test_probe_that_takes_too_long_makes_way_for_another_drains(client: Redis) -> None:
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


def test_after_the_time_that_it_was_told_a_drain_is_admitted(client: Redis) -> None:
    assert admit(client, wanted=3, rate=0.01, burst=3).granted == 3
    again_seconds = admit(client, rate=0.01, burst=3).again_seconds
    pass_time(client, again_seconds)

    assert admit(client, rate=0.01, burst=3).granted == 1


def test_all_drains_together_keep_to_the_rate(client: Redis) -> None:
    """However many ask, and however often, none goes beyond burst + rate x time."""
    rate, burst, started = 400.0, 7, now_ms(client)

    def ask(number: int) -> int:
        return sum(admit(client, f"drain {number}", wanted=3, rate=rate, burst=burst).granted for _ in range(60))

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(ask, range(8)))

    most = burst + rate * (now_ms(client) - started + 1) / 1000
    assert burst <= granted <= most


@pytest.mark.parametrize("ahead_ms", [HOUR_MS, 10**12])
def test_clock_that_was_set_back_stops_nobody(client: Redis, ahead_ms: int) -> None:
    client.hset(DESTINATION, "full_at", now_ms(client) + ahead_ms)

    assert admit(client, wanted=100, rate=1, burst=10).granted == 10
    assert admit(client, wanted=1, rate=1, burst=10).granted <= 1


def test_limit_that_was_raised_counts_at_once(client: Redis) -> None:
    assert admit(client, wanted=10, rate=0.001, burst=10).granted == 10
    assert admit(client, wanted=10, rate=0.001, burst=10).granted == 0

    assert admit(client, wanted=10, rate=1000, burst=10).granted > 0


def test_probe_that_the_rate_does_not_allow_is_nobodys(client: Redis) -> None:
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
        KEYS,
        DEFAULT_DESTINATION,
        successes=successes,
        failures=failures,
        window_change=change,
        max_window=most,
        shrink_gap_seconds=gap,
    )
    return Health.decode(scripts.run(client, call))


def test_failures_in_a_row_of_all_drains_add_up(client: Redis) -> None:
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


def test_window_that_nobody_has_set_stays_the_largest(client: Redis) -> None:
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


# look.lua


def look(client: Redis, *, count: int = 10, skip: int = 0) -> Sight:
    return schedule.look(
        client, KEYS, DEFAULT_DESTINATION, count=count, skip=skip, longest_pause=LONGEST_PAUSE_SECONDS
    )


def schedule_many(client: Redis, number: int) -> set[str]:
    names = [f"env-{n}" for n in range(number)]
    client.zadd(SCHEDULE, dict(zip(names, range(number), strict=True)))
    return set(names)


def test_look_sees_what_waits_and_changes_nothing(client: Redis) -> None:
    assert look(client) == Sight(inbox=0, due=[], next_due_seconds=None)

    put(client, {}, {})
    client.zadd(SCHEDULE, {"a": 1, "b": 2, "c": 3, "later": now_ms(client) + 600_000})
    before = everything(client)
    sight = look(client, count=2, skip=1)

    assert (sight.inbox, sight.due) == (2, ["b", "c"])
    assert sight.next_due_seconds == pytest.approx(600, abs=1)
    assert everything(client) == before


def test_paused_environment_is_neither_due_nor_next(client: Redis) -> None:
    client.zadd(SCHEDULE, {"paused": "inf"})
    assert look(client) == Sight(inbox=0, due=[], next_due_seconds=None)

    client.zadd(SCHEDULE, {"later": now_ms(client) + 600_000, "now": 1})
    sight = look(client)
    assert sight.due == ["now"]
    assert sight.next_due_seconds == pytest.approx(600, abs=1)


def test_nothing_of_a_held_destination_is_due_before_the_holds_end(client: Redis) -> None:
    put(client, {})
    schedule_many(client, 5)
    client.zadd(SCHEDULE, {"soon": now_ms(client) + 1000})
    hold(client, 50)
    sight = look(client)

    assert (sight.inbox, sight.due) == (1, []), "the inbox is taken in all the same"
    assert sight.next_due_seconds == pytest.approx(50, abs=1)


def test_hold_that_is_over_hides_nothing(client: Redis) -> None:
    names = schedule_many(client, 5)
    hold(client, 0)

    wait_for(lambda: set(look(client).due) == names)


def test_few_environments_are_called_to_probe_an_open_circuit(client: Redis) -> None:
    names = schedule_many(client, 20)
    open_circuit(client)
    seen = [look(client).due for _ in range(200)]

    assert {len(due) for due in seen} <= set(range(1, PROBERS + 1))
    assert len({due[0] for due in seen}) > 1, "one environment's event would be the probe each time"
    assert {name for due in seen for name in due} <= names
    assert look(client, skip=10).due == [], "no second page of them"


def test_the_only_environment_is_called_to_probe(client: Redis) -> None:
    open_circuit(client)
    assert look(client).due == []

    schedule_many(client, 1)
    assert look(client).due == ["env-0"]


def test_no_second_drain_is_called_while_a_probe_is_under_way(client: Redis) -> None:
    schedule_many(client, 20)
    open_circuit(client)
    assert admit(client, probe_seconds=50).probes
    sight = look(client)

    assert sight.due == []
    assert sight.next_due_seconds == pytest.approx(50, abs=1)


def test_all_are_called_again_once_the_circuit_is_closed(client: Redis) -> None:
    names = schedule_many(client, 10)
    open_circuit(client)
    assert admit(client).probes
    destination.close_circuit(client, KEYS, DEFAULT_DESTINATION)

    assert set(look(client).due) == names
