"""One run's view of a destination's health, and what it reports to the other runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from runs import DESTINATION, KEYS, TOKEN, let_hold_pass, running

from relay.destinations.outcome import Delivered, Refused, Retry, Unauthorized
from relay.queue import health as destination
from relay.queue import scripts
from relay.queue.health import Health, HealthState
from relay.queue.shard import Shard
from relay.settings import DEFAULT_DESTINATION
from workers.delivery.circuit_breaker import FAILURES
from workers.delivery.health import PROBE_MARGIN_SECONDS, DestinationHealth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from redis import Redis

    from relay.destinations.outcome import Outcome
    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

NOWHERE = "http://127.0.0.1:9"
PUSHBACK = Retry("HTTP 503", 503, is_pushback=True)
FAILED = Retry("HTTP 500", 500)


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis) -> Iterator[Runtime]:
    with running(redis_server, NOWHERE, delivery={"max_in_flight": 8, "retry_after_max": 60}) as made:
        yield made


def tell(view: DestinationHealth, client: Redis) -> Health:
    """Report as a commit does, and learn from the reply."""
    call = view.report_call()
    assert call is not None
    health = Health.decode(scripts.run(client, call))
    view.learn(health, now_ms(client))
    return health


def now_ms(client: Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds * 1000 + microseconds / 1000)


def shard(client: Redis) -> Shard:
    return Shard(client=client, keys=KEYS)


def health(client: Redis) -> Health:
    call = destination.observe_call(
        shard(client),
        DEFAULT_DESTINATION,
        successes=0,
        failures=0,
        window_change=0,
        max_window=8,
        shrink_gap_seconds=1,
    )
    return Health.decode(scripts.run(client, call))


def open_for(client: Redis, runtime: Runtime) -> DestinationHealth:
    """Return the view of a run that knows of an open circuit which may be probed."""
    client.hset(DESTINATION, mapping={"until": 1, "openings": 1, "circuit": "unavailable", "window": 1})
    view = DestinationHealth(runtime)
    view.learn(health(client), now_ms(client))
    return view


# Admitting


def test_requests_within_the_window_are_admitted_without_redis(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    client.config_resetstat()
    assert view.room(in_flight=0) == 8
    assert view.room(in_flight=6) == 2
    assert view.admit(wanted=5, room=8) == 5
    assert view.admit(wanted=50, room=2) == 2

    assert "cmdstat_evalsha" not in client.info("commandstats")
    assert not view.is_probing


def test_shared_window_counts_up_to_the_runs_own(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    view.learn(Health(window=3), now_ms(client))
    assert view.room(in_flight=0) == 3

    view.learn(Health(window=500), now_ms(client))
    assert view.room(in_flight=0) == 8


def test_there_is_no_room_once_nothing_may_be_sent(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    now = now_ms(client)
    view.learn(Health(until=int(now) - 1, reason="throttled"), now)
    assert view.stopped_by is None

    view.learn(Health(until=int(now) + 5000, reason="throttled"), now)
    assert view.stopped_by == "throttled"
    assert view.room(in_flight=0) == 0

    view.learn(Health(), now)
    assert view.stopped_by is not None, "the run ends at it"


def test_one_probe_is_admitted_and_another_run_ends_at_once(runtime: Runtime, client: Redis) -> None:
    prober, other = open_for(client, runtime), open_for(client, runtime)
    assert prober.is_probing
    assert prober.room(in_flight=0) == 1
    assert prober.admit(wanted=30, room=1) == 1
    assert prober.room(in_flight=1) == 0

    assert other.admit(wanted=30, room=1) == 0
    assert other.stopped_by is not None
    assert other.stopped_by == "unavailable"
    probe_until = int(client.hget(DESTINATION, "probe_until") or 0)
    assert 0 < probe_until - now_ms(client) <= 1000 * (runtime.settings.api.timeout + PROBE_MARGIN_SECONDS)


def test_a_rate_limit_stops_no_run(redis_server: EmbeddedRedis, client: Redis) -> None:
    with running(redis_server, NOWHERE, api={"rate_limit": 0.01, "burst": 3}) as limited:
        view = DestinationHealth(limited)
        assert view.admit(wanted=30, room=32) == 3
        assert view.room(in_flight=0) > 0, "whether more may go is asked when there is more"
        assert view.admit(wanted=30, room=32) == 0

        assert view.stopped_by is None
        assert view.room(in_flight=0) == 0
        assert view.pause_seconds == pytest.approx(100, abs=5)


@pytest.mark.parametrize("readable", [True, False])
def test_a_probe_carries_the_token_as_it_is_now(
    redis_server: EmbeddedRedis,
    client: Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    readable: bool,  # noqa: FBT001
) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    with running(redis_server, NOWHERE, api={"token": "", "token_file": path}) as runtime:
        view = open_for(client, runtime)
        if readable:
            path.write_text(TOKEN)
        else:
            path.unlink()
        assert view.admit(wanted=1, room=1) == 1
        if readable:
            assert not runtime.transport.reload_token(), "it was read when the probe was admitted"
        assert ("cannot be read" in caplog.text) == (not readable)
        assert client.hget(runtime.keys.counts, "token:changed") == (b"1" if readable else None)
        assert client.hget(runtime.keys.counts, "token:failed") == (None if readable else b"1")


# Answers


def test_failures_of_all_runs_together_open_the_circuit(runtime: Runtime, client: Redis) -> None:
    view, other = DestinationHealth(runtime), DestinationHealth(runtime)
    for _ in range(FAILURES - 2):
        other.observe(FAILED)
    assert tell(other, client).failures == FAILURES - 2
    view.learn(health(client), now_ms(client))
    view.observe(FAILED)
    assert view.stopped_by is None

    view.observe(FAILED)

    assert view.stopped_by is not None
    assert (view.stopped_by, view.because) == ("unavailable", "HTTP 500")
    assert health(client).openings == 1


def test_a_success_between_keeps_the_circuit_closed(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    view.learn(Health(failures=FAILURES - 1), now_ms(client))
    view.observe(Delivered())
    for _ in range(FAILURES - 1):
        view.observe(FAILED)

    assert view.stopped_by is None
    assert tell(view, client).failures == FAILURES - 1


def test_refusals_say_nothing_of_the_destination(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    for _ in range(3 * FAILURES):
        view.observe(Refused("HTTP 422", 422))

    assert view.stopped_by is None
    assert view.report_call() is None


@pytest.mark.parametrize("own_fault", [False, True])
def test_a_refused_token_opens_the_circuit_at_once_unless_it_is_the_events_own_fault(
    runtime: Runtime,
    client: Redis,
    own_fault: bool,  # noqa: FBT001
) -> None:
    view = DestinationHealth(runtime)
    view.observe(Unauthorized("HTTP 403", 403), own_fault=own_fault)

    assert (view.stopped_by is None) == own_fault
    assert health(client).openings == (0 if own_fault else 1)


def test_a_probe_that_passes_closes_the_circuit_and_the_window_grows_from_one(
    runtime: Runtime, client: Redis
) -> None:
    view = open_for(client, runtime)
    view.admit(wanted=1, room=1)
    view.observe(Delivered())

    assert (view.is_probing, view.stopped_by, view.room(in_flight=0)) == (False, None, 2)
    assert (health(client).openings, health(client).circuit, health(client).window) == (0, "", 1)
    assert tell(view, client).window == 2


def test_deliveries_begin_slowly_whatever_the_window_was_before(runtime: Runtime, client: Redis) -> None:
    view = open_for(client, runtime)
    view.learn(Health(openings=1, circuit="unavailable", window=8), now_ms(client))
    assert view.room(in_flight=0) == 1
    view.admit(wanted=1, room=1)
    view.observe(Delivered())

    assert view.room(in_flight=0) == 1


def test_a_probe_that_fails_opens_the_circuit_again_for_longer(runtime: Runtime, client: Redis) -> None:
    view = open_for(client, runtime)
    view.admit(wanted=1, room=1)
    view.observe(FAILED)
    assert health(client).openings == 2

    let_hold_pass(client)
    stray = open_for(client, runtime)
    client.hset(DESTINATION, "openings", 2)
    stray.observe(FAILED)
    assert health(client).openings == 2, "what is no probe says nothing new"
    assert stray.stopped_by is not None


def test_pause_that_the_destination_asks_for_is_kept_up_to_the_longest(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    for outcome in (
        Retry("HTTP 429", 429, throttle_seconds=5.0, uses_attempt=False),
        Retry("HTTP 429: again", 429, throttle_seconds=100_000.0, uses_attempt=False),
        Retry("HTTP 429", 429, throttle_seconds=1.0, uses_attempt=False),
    ):
        view.note_pause(outcome)
        view.observe(outcome)

    found = destination.read(shard(client), DEFAULT_DESTINATION)
    assert view.stopped_by == found.state(now_ms(client)) == "throttled"
    assert found.until - now_ms(client) == pytest.approx(60_000, abs=2000)


def throttled(redis_server: EmbeddedRedis) -> AbstractContextManager[Runtime]:
    return running(redis_server, NOWHERE, delivery={"max_in_flight": 8, "retry_after_max": 3600})


LONG = Retry("HTTP 429", 429, throttle_seconds=3600.0, uses_attempt=False)


def test_answers_to_what_was_sent_before_a_throttle_do_not_end_it(redis_server: EmbeddedRedis, client: Redis) -> None:
    with throttled(redis_server) as runtime:
        view = DestinationHealth(runtime)
        view.note_pause(LONG)
        for outcome in (LONG, Delivered(), Refused("HTTP 422", 422), FAILED, Delivered()):
            view.observe(outcome)
        found = destination.read(shard(client), DEFAULT_DESTINATION)
        assert found.circuit == "throttled"
        assert found.throttled_until - now_ms(client) == pytest.approx(3_600_000, abs=2000)


@pytest.mark.parametrize(
    ("outcome", "circuit"),
    [(Delivered(), ""), (Refused("HTTP 422", 422), ""), (LONG, "throttled"), (PUSHBACK, "unavailable")],
)
def test_probe_of_a_throttle_ends_it_or_not(
    redis_server: EmbeddedRedis, client: Redis, outcome: Outcome, circuit: str
) -> None:
    with throttled(redis_server) as runtime:
        first = DestinationHealth(runtime)
        first.note_pause(LONG)
        first.observe(LONG)
        client.hset(DESTINATION, "until", 1)
        view = DestinationHealth(runtime)
        view.learn(health(client), now_ms(client))
        assert view.admit(wanted=5, room=1) == 1
        view.note_pause(outcome)
        view.observe(outcome)
        found = destination.read(shard(client), DEFAULT_DESTINATION)
        assert found.circuit == circuit
        assert bool(found.throttled_until) is bool(circuit)
        if circuit:
            assert found.until - now_ms(client) == pytest.approx(60_000, abs=2000)


@pytest.mark.parametrize("teller", ["the same run", "another run"])
def test_a_throttle_after_a_probe_that_passed_is_not_ended_by_what_was_sent_between(
    redis_server: EmbeddedRedis, client: Redis, teller: str
) -> None:
    with throttled(redis_server) as runtime:
        view = open_for(client, runtime)
        assert view.admit(wanted=5, room=1) == 1
        view.observe(Delivered())
        assert view.admit(wanted=5, room=5) == 5
        other = view if teller == "the same run" else DestinationHealth(runtime)
        other.note_pause(LONG)
        other.observe(LONG)
        view.learn(health(client), now_ms(client))
        view.observe(Delivered())
        found = destination.read(shard(client), DEFAULT_DESTINATION)
        assert found.circuit == "throttled"
        assert found.throttled_until - now_ms(client) == pytest.approx(3_600_000, abs=2000)


def test_pause_that_came_while_redis_was_away_is_kept_once_it_is_back(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    outcome = Retry("HTTP 429", 429, throttle_seconds=30.0, uses_attempt=False)
    view.is_detached = True
    view.note_pause(outcome)
    view.observe(outcome)
    assert destination.read(shard(client), DEFAULT_DESTINATION).state(now_ms(client)) is HealthState.HEALTHY

    view.throttle()
    found = destination.read(shard(client), DEFAULT_DESTINATION)
    assert view.stopped_by == found.state(now_ms(client)) == "throttled"
    assert found.until - now_ms(client) == pytest.approx(30_000, abs=2000)


# Reports


def test_observations_are_reported_once(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    assert view.report_call() is None
    view.observe(FAILED)
    view.observe(Delivered())
    view.observe(Delivered())
    view.observe(FAILED)
    assert view.successes == 2

    assert tell(view, client) == Health(failures=1, successes=2)
    assert view.successes == 2
    assert view.report_call() is None


def test_push_back_shrinks_the_window_of_all(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    for _ in range(8):
        view.observe(PUSHBACK)
    view.observe(FAILED)

    assert tell(view, client).window == 4
    assert view.room(in_flight=0) == 4


def test_failures_that_are_no_push_back_leave_the_window(runtime: Runtime, client: Redis) -> None:
    view = DestinationHealth(runtime)
    view.observe(FAILED)

    assert tell(view, client).window == 0


def test_a_window_that_is_used_up_grows_for_all_and_one_that_is_not_stays(runtime: Runtime, client: Redis) -> None:
    client.hset(DESTINATION, "window", 2)
    view = DestinationHealth(runtime)
    view.learn(health(client), now_ms(client))
    view.admit(wanted=1, room=2)
    for _ in range(10):
        view.observe(Delivered())
    assert tell(view, client).window == 2

    view.admit(wanted=2, room=2)
    view.observe(Delivered())
    view.observe(Delivered())
    assert tell(view, client).window == 3
    assert view.room(in_flight=0) == 3
