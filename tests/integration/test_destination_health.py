"""The gate: one drain's view of a destination's health, and what it tells the others."""

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


def tell(gate: DestinationHealth, client: Redis) -> Health:
    """Do with the gate's observation what a settlement does."""
    call = gate.report_call()
    assert call is not None
    health = Health.decode(scripts.run(client, call))
    gate.learn(health, now_ms(client))
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
    """Return a gate that knows of an open circuit whose hold is over."""
    client.hset(DESTINATION, mapping={"until": 1, "openings": 1, "circuit": "unavailable", "window": 1})
    gate = DestinationHealth(runtime)
    gate.learn(health(client), now_ms(client))
    return gate


# Letting through


def test_all_that_fits_the_window_is_let_through_without_asking_redis(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    client.config_resetstat()
    assert gate.room(in_flight=0) == 8
    assert gate.room(in_flight=6) == 2
    assert gate.admit(wanted=5, room=8) == 5
    assert gate.admit(wanted=50, room=2) == 2

    assert "cmdstat_evalsha" not in client.info("commandstats")
    assert not gate.is_probing


def test_the_window_that_all_share_counts_and_never_beyond_the_drains_own(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    gate.learn(Health(window=3), now_ms(client))
    assert gate.room(in_flight=0) == 3

    gate.learn(Health(window=500), now_ms(client))
    assert gate.room(in_flight=0) == 8


def test_there_is_no_room_once_the_destination_is_held(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    now = now_ms(client)
    gate.learn(Health(until=int(now) - 1, reason="throttled"), now)
    assert gate.stopped_by is None

    gate.learn(Health(until=int(now) + 5000, reason="throttled"), now)
    assert gate.stopped_by == "throttled"
    assert gate.room(in_flight=0) == 0

    gate.learn(Health(), now)
    assert gate.stopped_by is not None, "the drain ends at it"


def test_one_probe_is_let_through_and_another_drain_ends_at_once(runtime: Runtime, client: Redis) -> None:
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


def test_a_rate_limit_is_no_hold(redis_server: EmbeddedRedis, client: Redis) -> None:
    with running(redis_server, NOWHERE, api={"rate_limit": 0.01, "burst": 3}) as limited:
        gate = DestinationHealth(limited)
        assert gate.admit(wanted=30, room=32) == 3
        assert gate.room(in_flight=0) > 0, "whether more may go is asked when there is more"
        assert gate.admit(wanted=30, room=32) == 0

        assert gate.stopped_by is None
        assert gate.room(in_flight=0) == 0
        assert gate.pause_seconds == pytest.approx(100, abs=5)


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
        gate = open_for(client, runtime)
        if readable:
            path.write_text(TOKEN)
        else:
            path.unlink()
        assert gate.admit(wanted=1, room=1) == 1
        if readable:
            assert not runtime.transport.reload_token(), "it was read when the probe was admitted"
        assert ("cannot be read" in caplog.text) == (not readable)
        assert client.hget(runtime.keys.counts, "token:changed") == (b"1" if readable else None)
        assert client.hget(runtime.keys.counts, "token:failed") == (None if readable else b"1")


# What the answers do


def test_failures_of_all_drains_together_open_the_circuit(runtime: Runtime, client: Redis) -> None:
    gate, other = DestinationHealth(runtime), DestinationHealth(runtime)
    for _ in range(FAILURES - 2):
        other.observe(FAILED)
    assert tell(other, client).failures == FAILURES - 2
    gate.learn(health(client), now_ms(client))
    gate.observe(FAILED)
    assert gate.stopped_by is None

    gate.observe(FAILED)

    assert gate.stopped_by is not None
    assert (gate.stopped_by, gate.because) == ("unavailable", "HTTP 500")
    assert health(client).openings == 1


def test_a_success_between_keeps_the_circuit_closed(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    gate.learn(Health(failures=FAILURES - 1), now_ms(client))
    gate.observe(Delivered())
    for _ in range(FAILURES - 1):
        gate.observe(FAILED)

    assert gate.stopped_by is None
    assert tell(gate, client).failures == FAILURES - 1


def test_refusals_say_nothing_of_the_destination(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    for _ in range(3 * FAILURES):
        gate.observe(Refused("HTTP 422", 422))

    assert gate.stopped_by is None
    assert gate.report_call() is None


@pytest.mark.parametrize("own_fault", [False, True])
def test_a_refused_token_opens_the_circuit_at_once_unless_it_is_the_events_own_affair(
    runtime: Runtime,
    client: Redis,
    own_fault: bool,  # noqa: FBT001
) -> None:
    gate = DestinationHealth(runtime)
    gate.observe(Unauthorized("HTTP 403", 403), own_fault=own_fault)

    assert (gate.stopped_by is None) == own_fault
    assert health(client).openings == (0 if own_fault else 1)


def test_a_probe_that_passes_closes_the_circuit_and_the_window_grows_from_one(
    runtime: Runtime, client: Redis
) -> None:
    gate = open_for(client, runtime)
    gate.admit(wanted=1, room=1)
    gate.observe(Delivered())

    assert (gate.is_probing, gate.stopped_by, gate.room(in_flight=0)) == (False, None, 2)
    assert (health(client).openings, health(client).circuit, health(client).window) == (0, "", 1)
    assert tell(gate, client).window == 2


def test_deliveries_begin_slowly_whatever_the_window_was_before(runtime: Runtime, client: Redis) -> None:
    gate = open_for(client, runtime)
    gate.learn(Health(openings=1, circuit="unavailable", window=8), now_ms(client))
    assert gate.room(in_flight=0) == 1
    gate.admit(wanted=1, room=1)
    gate.observe(Delivered())

    assert gate.room(in_flight=0) == 1


def test_a_probe_that_fails_opens_the_circuit_again_for_longer(runtime: Runtime, client: Redis) -> None:
    gate = open_for(client, runtime)
    gate.admit(wanted=1, room=1)
    gate.observe(FAILED)
    assert health(client).openings == 2

    let_hold_pass(client)
    stray = open_for(client, runtime)
    client.hset(DESTINATION, "openings", 2)
    stray.observe(FAILED)
    assert health(client).openings == 2, "what is no probe says nothing new"
    assert stray.stopped_by is not None


def test_what_the_api_asks_for_is_held_up_to_the_longest(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    for outcome in (
        Retry("HTTP 429", 429, throttle_seconds=5.0, uses_attempt=False),
        Retry("HTTP 429: again", 429, throttle_seconds=100_000.0, uses_attempt=False),
        Retry("HTTP 429", 429, throttle_seconds=1.0, uses_attempt=False),
    ):
        gate.note_pause(outcome)
        gate.observe(outcome)

    found = destination.read(shard(client), DEFAULT_DESTINATION)
    assert gate.stopped_by == found.state(now_ms(client)) == "throttled"
    assert found.until - now_ms(client) == pytest.approx(60_000, abs=2000)


def throttled(redis_server: EmbeddedRedis) -> AbstractContextManager[Runtime]:
    return running(redis_server, NOWHERE, delivery={"max_in_flight": 8, "retry_after_max": 3600})


LONG = Retry("HTTP 429", 429, throttle_seconds=3600.0, uses_attempt=False)


def test_answers_to_what_was_sent_before_a_throttle_do_not_end_it(redis_server: EmbeddedRedis, client: Redis) -> None:
    with throttled(redis_server) as runtime:
        gate = DestinationHealth(runtime)
        gate.note_pause(LONG)
        for outcome in (LONG, Delivered(), Refused("HTTP 422", 422), FAILED, Delivered()):
            gate.observe(outcome)
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
        gate = DestinationHealth(runtime)
        gate.learn(health(client), now_ms(client))
        assert gate.admit(wanted=5, room=1) == 1
        gate.note_pause(outcome)
        gate.observe(outcome)
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
        gate = open_for(client, runtime)
        assert gate.admit(wanted=5, room=1) == 1
        gate.observe(Delivered())
        assert gate.admit(wanted=5, room=5) == 5
        other = gate if teller == "the same run" else DestinationHealth(runtime)
        other.note_pause(LONG)
        other.observe(LONG)
        gate.learn(health(client), now_ms(client))
        gate.observe(Delivered())
        found = destination.read(shard(client), DEFAULT_DESTINATION)
        assert found.circuit == "throttled"
        assert found.throttled_until - now_ms(client) == pytest.approx(3_600_000, abs=2000)


def test_what_the_api_asks_for_is_told_once_there_is_somebody_to_tell(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    outcome = Retry("HTTP 429", 429, throttle_seconds=30.0, uses_attempt=False)
    gate.is_detached = True
    gate.note_pause(outcome)
    gate.observe(outcome)
    assert destination.read(shard(client), DEFAULT_DESTINATION).state(now_ms(client)) is HealthState.HEALTHY

    gate.throttle()
    found = destination.read(shard(client), DEFAULT_DESTINATION)
    assert gate.stopped_by == found.state(now_ms(client)) == "throttled"
    assert found.until - now_ms(client) == pytest.approx(30_000, abs=2000)


# What the others are told


def test_what_was_seen_is_told_once(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    assert gate.report_call() is None
    gate.observe(FAILED)
    gate.observe(Delivered())
    gate.observe(Delivered())
    gate.observe(FAILED)
    assert gate.successes == 2

    assert tell(gate, client) == Health(failures=1, successes=2)
    assert gate.successes == 2
    assert gate.report_call() is None


def test_push_back_shrinks_the_window_of_all(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    for _ in range(8):
        gate.observe(PUSHBACK)
    gate.observe(FAILED)

    assert tell(gate, client).window == 4
    assert gate.room(in_flight=0) == 4


def test_failures_that_are_no_push_back_leave_the_window(runtime: Runtime, client: Redis) -> None:
    gate = DestinationHealth(runtime)
    gate.observe(FAILED)

    assert tell(gate, client).window == 0


def test_a_window_that_is_used_up_grows_for_all_and_one_that_is_not_stays(runtime: Runtime, client: Redis) -> None:
    client.hset(DESTINATION, "window", 2)
    gate = DestinationHealth(runtime)
    gate.learn(health(client), now_ms(client))
    gate.admit(wanted=1, room=2)
    for _ in range(10):
        gate.observe(Delivered())
    assert tell(gate, client).window == 2

    gate.admit(wanted=2, room=2)
    gate.observe(Delivered())
    gate.observe(Delivered())
    assert tell(gate, client).window == 3
    assert gate.room(in_flight=0) == 3
