"""The transitions of a destination's health, without Redis."""

from __future__ import annotations

import pytest

from relay.queue.health import MAX_HOLD_MS, UNHEALTHY, Health, HealthState

NOW = 1_700_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
RUN = "run"


def opened(
    health: Health, token: str = RUN, *, first: float = 0.0, longest: float = 0.0, state: str = "unavailable"
) -> Health:
    return health.opened(NOW, HealthState(state), token=token, first_seconds=first, longest_seconds=longest)


def test_health_that_nothing_is_known_of_is_healthy() -> None:
    assert Health().state(NOW) is HealthState.HEALTHY
    assert not Health().is_waiting(NOW)


@pytest.mark.parametrize("state", UNHEALTHY)
def test_open_circuit_stands_for_its_state_until_it_is_closed(state: HealthState) -> None:
    health = opened(Health(), state=state, first=50, longest=100)
    assert (health.state(NOW), health.is_waiting(NOW)) == (state, True)
    assert (health.state(NOW + HOUR_MS), health.is_waiting(NOW + HOUR_MS)) == (state, False), "it is probed"
    assert health.closed().state(NOW + HOUR_MS) is HealthState.HEALTHY


def test_state_of_another_version_counts_as_unavailable() -> None:
    assert Health(openings=1, circuit="of_later").state(NOW) is HealthState.UNAVAILABLE
    assert Health(until=NOW + 1, reason="of_later").state(NOW) is HealthState.UNAVAILABLE


def test_pause_is_only_ever_extended() -> None:
    health = Health().throttled(NOW, seconds=30)
    assert (health.until, health.reason) == (NOW + 30_000, "throttled")
    assert health.throttled(NOW, seconds=1) == health._replace(asked_ms=1000)
    assert health.throttled(NOW, seconds=60).until == NOW + MINUTE_MS

    later = opened(health, first=1, longest=1, state="unauthorized")
    assert (later.until, later.reason, later.circuit) == (health.until, "throttled", "unauthorized")
    longer = opened(health, first=250, longest=250, state="unauthorized")
    assert (longer.until, longer.reason) == (NOW + 250_000, "unauthorized")


def test_throttle_up_to_the_time_between_probes_opens_no_circuit() -> None:
    health = Health(window=8).throttled(NOW, seconds=60)
    assert health == Health(until=NOW + MINUTE_MS, reason="throttled", window=8, asked_ms=MINUTE_MS)
    assert health.state(NOW) is HealthState.THROTTLED
    assert health.state(NOW + MINUTE_MS) is HealthState.HEALTHY


def test_throttle_longer_than_the_time_between_probes_opens_the_circuit() -> None:
    health = Health(window=8, prober="another", probe_until=NOW + 1).throttled(NOW, seconds=3600)
    assert health == Health(
        until=NOW + MINUTE_MS, reason="throttled", openings=1, window=1, circuit="throttled",
        throttled_until=NOW + HOUR_MS, asked_ms=HOUR_MS,
    )  # fmt: skip
    assert health.throttled(NOW, seconds=120).throttled_until == NOW + HOUR_MS, "only ever extended"


@pytest.mark.parametrize(
    ("circuit", "after"),
    [("unavailable", "throttled"), ("unauthorized", "unauthorized"), ("misconfigured", "misconfigured")],
)
def test_throttle_does_not_hide_what_an_operator_must_mend(circuit: str, after: str) -> None:
    health = Health(openings=3, circuit=circuit).throttled(NOW, seconds=3600)
    assert (health.circuit, health.openings) == (after, 3)


@pytest.mark.parametrize(("left_ms", "pause_ms"), [(HOUR_MS, MINUTE_MS), (20_000, 20_000), (-1, 2000)])
def test_failed_probe_of_a_throttle_waits_for_the_next_minute_and_not_beyond_the_throttle(
    left_ms: int, pause_ms: int
) -> None:
    health = Health(openings=5, circuit="throttled", prober=RUN, throttled_until=NOW + left_ms)
    assert opened(health, first=0.5, longest=2, state="throttled").until == NOW + pause_ms


def test_circuit_opens_with_a_pause_and_a_window_of_one() -> None:
    assert opened(Health(window=32), first=50, longest=100, state="misconfigured") == Health(
        until=NOW + 50_000, reason="misconfigured", openings=1, window=1, circuit="misconfigured"
    )


def test_pause_doubles_with_each_probe_that_fails_up_to_the_longest() -> None:
    health, pauses = Health(), []
    for _ in range(41):
        health = opened(health._replace(until=0, prober=RUN), first=1, longest=7)
        pauses.append((health.until - NOW) / 1000)

    assert pauses == [1, 2, 4, *[7] * 38]
    assert health.openings == 41


def test_only_the_run_that_probes_opens_an_open_circuit_again() -> None:
    health = opened(Health(), first=100, longest=1000)
    for token in ("another", RUN):
        assert opened(health, token, first=100, longest=1000, state="unauthorized") == health

    probed = health._replace(prober="prober", probe_until=NOW + 1)
    assert opened(probed, "another", first=100, longest=1000) == probed
    again = opened(probed, "prober", first=100, longest=1000, state="unauthorized")
    assert (again.circuit, again.openings, again.until) == ("unauthorized", 2, NOW + 200_000)
    assert opened(again, "prober", first=100, longest=1000) == again, "a client tries again when the answer was lost"


def test_closed_circuit_leaves_the_window_and_the_next_opening_is_the_first() -> None:
    health = opened(Health(failures=20), first=1, longest=1)._replace(openings=7, prober=RUN, throttled_until=NOW)
    closed = health.closed()
    assert closed == Health(until=NOW + 1000, reason="unavailable", window=1)
    assert opened(closed, first=100, longest=1000).openings == 1


def test_lifted_throttle_is_over() -> None:
    lifted = Health().throttled(NOW - 1000, seconds=3600).lifted(NOW)
    assert lifted == Health(until=NOW, reason="throttled", window=1, asked_ms=HOUR_MS)
    assert lifted.state(NOW) is HealthState.HEALTHY


def test_lifted_circuit_is_probed_at_once() -> None:
    lifted = opened(Health(), first=50, longest=100).lifted(NOW)
    assert (lifted.state(NOW), lifted.is_waiting(NOW)) == (HealthState.UNAVAILABLE, False)


def test_pause_from_before_the_clock_was_set_back_is_over() -> None:
    health = Health(until=NOW + MAX_HOLD_MS + 1, reason="throttled")
    assert not health.is_waiting(NOW)
    assert health.state(NOW) is HealthState.HEALTHY
    assert health.lifted(NOW).until == NOW
