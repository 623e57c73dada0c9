"""Delivery runs and the destination's health: which answers stop deliveries and which use up attempts."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from outboxes import now_ms, read_health
from rig import wait_for
from runs import (
    DESTINATION,
    KEYS,
    PRODUCTION,
    REPOSITORY,
    TOKEN,
    Longest,
    counters_of,
    dead_letters,
    deliver_until,
    delivered_images,
    digest,
    image_of,
    let_hold_pass,
    report,
    report_image,
    report_many,
    retries_are_due,
    run_once,
    running,
)

from relay.queue.outbox import Trials
from relay.sandbox import Sandbox
from workers.delivery.attempts import SLOW_BACKOFF_SECONDS
from workers.delivery.circuit_breaker import FAILURES
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.delivery.transport import CurlTransport
    from workers.runtime import Runtime


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    with running(redis_server, api) as made:
        yield made


def trials(client: Redis) -> list[Trials]:
    """What was tried of the events that wait for a retry."""
    return [Trials.decode(value) for value in client.hvals(PRODUCTION.attempts)]


def circuit(client: Redis) -> str:
    return (client.hget(DESTINATION, "circuit") or b"").decode()


def probe(runtime: Runtime, *environments: str) -> str:
    """Let all pauses be over, execute one run, and return what stopped it."""
    let_hold_pass(runtime.client)
    retries_are_due(runtime.client)
    return run_once(runtime, *environments).health


def nothing_waits(client: Redis) -> bool:
    return not counters_of(client).waiting


# The token


@pytest.fixture
def expired(tmp_path: Path) -> Path:
    """A file with a token that the API takes no more."""
    path = tmp_path / "token"
    path.write_text("expired")
    return path


@pytest.mark.parametrize("status", [401, 403])
def test_bad_token_stops_all_and_uses_up_nothing_until_it_is_rotated(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, expired: Path, status: int
) -> None:
    images = report_many(client, 40)
    api.faults = [{"kind": "status", "status": status}]
    with running(redis_server, api, api={"token": "", "token_file": expired}) as runtime:
        run_intake(runtime)
        assert run_once(runtime).health.startswith(f"unauthorized (HTTP {status}")
        assert api.counts().received <= runtime.settings.delivery.max_in_flight
        for _ in range(2 * runtime.settings.delivery.max_attempts):
            before = api.counts().received
            assert probe(runtime).startswith("unauthorized")
            assert api.counts().received == before + 1, "one probe at a time"
        assert {each.attempts for each in trials(client)} == {0}
        assert (client.xlen(KEYS.dead), counters_of(client).waiting) == (0, 40)

        api.faults = []
        assert probe(runtime).startswith("unauthorized (HTTP 403"), "the token is still the old one"
        expired.write_text(TOKEN)
        assert circuit(client) == "unauthorized"
        let_hold_pass(client)
        retries_are_due(client)
        deliver_until(runtime, lambda: nothing_waits(client))

    assert sorted(delivered_images(api)) == sorted(images)
    assert client.xlen(KEYS.dead) == 0
    assert circuit(client) == ""


def test_probe_carries_a_token_that_was_rotated_during_the_run(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, expired: Path
) -> None:
    class Rotating(Random):
        """The run shuffles before it asks whether it may probe."""

        def shuffle(self, x: Any) -> None:
            expired.write_text(TOKEN)
            super().shuffle(x)

    report_many(client, 3)
    with running(redis_server, api, api={"token": "", "token_file": expired}) as runtime:
        run_intake(runtime)
        run_once(runtime)
        before = api.counts().by_status[403]
        assert probe(replace(runtime, random=Rotating())) == ""
        deliver_until(runtime, lambda: nothing_waits(client))

    assert api.counts().by_status == {403: before, 202: 3}


def test_event_that_alone_gets_a_403_is_forbidden_and_the_others_are_delivered(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 403, "image": image_of("forbidden")}]
    report_image(client, image_of("forbidden"), id="forbidden")
    images = report_many(client, 40)
    run_intake(runtime)

    def others_go_on_until_it_is_dead() -> bool:
        if client.xlen(KEYS.dead):
            return True
        images.append(f"{REPOSITORY}@{digest(str(len(images)))}")
        report(client, str(len(images) - 1))
        run_intake(runtime)
        return False

    deliver_until(runtime, others_go_on_until_it_is_dead)
    deliver_until(runtime, lambda: nothing_waits(client))

    (letter,) = dead_letters(client)
    assert (letter["id"], letter["reason"], letter["status"]) == ("forbidden", "forbidden", "403")
    assert int(letter["attempts"]) >= 3
    assert sorted(delivered_images(api)) == sorted(images)
    assert counters_of(client).unaccounted == 0


def test_event_that_alone_gets_a_401_is_tried_ever_later_and_delays_no_other(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 401, "image": image_of("unauthorized")}]
    report_image(client, image_of("unauthorized"), id="unauthorized")
    images = report_many(client, 10)
    with running(redis_server, api) as runtime:
        run_intake(runtime)
        for _ in range(6):
            let_hold_pass(client)
            retries_are_due(client)
            images.append(f"{REPOSITORY}@{digest(str(len(images)))}")
            report(client, str(len(images) - 1))
            run_intake(runtime)
            run_once(runtime)
        deliver_until(runtime, lambda: counters_of(client).waiting == 1)

        (only,) = trials(client)
        assert only.attempts == 0
        assert only.forbidden > 3, "each one that was answered while others passed makes the next pause longer"
        assert (client.xlen(KEYS.dead), circuit(client)) == (0, "")
        assert sorted(delivered_images(api)) == sorted(images)

        let_hold_pass(client)
        retries_are_due(client)
        report_image(client, image_of("another"))
        run_intake(runtime)
        assert run_once(runtime).health == "", "it is known by now whose fault it is"


def test_403_for_all_is_the_tokens_fault_and_forbids_nothing(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 403}]
    images = report_many(client, 10)
    run_intake(runtime)
    assert run_once(runtime).health.startswith("unauthorized (HTTP 403")
    for _ in range(15):
        before = api.counts().received
        assert probe(runtime).startswith("unauthorized")
        assert api.counts().received == before + 1
    assert (client.xlen(KEYS.dead), {each.attempts for each in trials(client)}) == (0, {0})

    api.faults = []
    let_hold_pass(client)
    retries_are_due(client)
    deliver_until(runtime, lambda: nothing_waits(client))
    assert sorted(delivered_images(api)) == sorted(images)


# A wrong URL, an unknown image


def test_404_for_all_is_a_wrong_url_and_kills_nothing(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 404}]
    images = report_many(client, 2 * FAILURES)
    run_intake(runtime)
    held = run_once(runtime).health
    assert held.startswith("misconfigured (HTTP 404")
    for _ in range(2 * runtime.settings.delivery.max_attempts):
        before = api.counts().received
        assert probe(runtime).startswith("misconfigured")
        assert api.counts().received == before + 1
    assert (client.xlen(KEYS.dead), counters_of(client).waiting) == (0, len(images))
    assert max(each.attempts for each in trials(client)) == 1, "only those before it was known used one up"

    api.faults = []
    let_hold_pass(client)

    def all_delivered() -> bool:
        retries_are_due(client)
        return nothing_waits(client)

    deliver_until(runtime, all_delivered)
    assert sorted(delivered_images(api)) == sorted(images)


def test_429_without_retry_after_uses_no_attempt_and_is_retried_ever_later(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 429, "image": image_of("limited")}]
    report_image(client, image_of("limited"))
    pauses = []
    with running(redis_server, api, delivery={"backoff_initial": 10}) as made:
        runtime = replace(made, random=Longest())
        for number in range(4):
            report_image(client, image_of(f"other-{number}"))  # so that no run of failures opens the circuit
            run_intake(runtime)
            retries_are_due(client)
            seconds, microseconds = client.time()
            run_once(runtime)
            ((_, due),) = client.zrange(PRODUCTION.due, 0, -1, withscores=True)
            pauses.append(due / 1000 - seconds - microseconds / 1e6)
        assert {each.attempts for each in trials(client)} == {0}
    assert pauses == pytest.approx([10, 20, 40, 80], abs=2)


def test_404_for_one_is_retried_slowly_until_its_attempts_are_used_up(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    runtime = replace(runtime, random=Longest())
    api.faults = [{"kind": "status", "status": 404, "image": image_of("unknown")}]
    report_image(client, image_of("unknown"), id="unknown")
    images = report_many(client, 10)
    run_intake(runtime)
    pauses = []
    for _ in range(runtime.settings.delivery.max_attempts):
        assert not client.xlen(KEYS.dead)
        retries_are_due(client)
        seconds, microseconds = client.time()
        assert run_once(runtime).health == ""
        pauses += [
            due / 1000 - seconds - microseconds / 1e6
            for _, due in client.zrange(PRODUCTION.due, 0, -1, withscores=True)
        ]

    assert pauses == pytest.approx([SLOW_BACKOFF_SECONDS, 2 * SLOW_BACKOFF_SECONDS], abs=2)
    (letter,) = dead_letters(client)
    assert (letter["id"], letter["reason"], letter["status"], letter["attempts"]) == (
        "unknown",
        "exhausted",
        "404",
        "3",
    )
    assert sorted(delivered_images(api)) == sorted(images)


# Too many requests


def too_many(seconds: int) -> list[dict[str, Any]]:
    """The first request is one too many."""
    return [{"kind": "status", "status": 429, "headers": {"Retry-After": str(seconds)}, "count": 1}]


ONE_AT_ONCE: dict[str, Any] = {"delivery": {"max_in_flight": 1, "max_attempts": 1}}


def test_retry_after_stops_all_runs_and_uses_up_nothing(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = too_many(30)
    images = report_many(client, 5) + report_many(client, 5, "staging")
    with running(redis_server, api, **ONE_AT_ONCE) as one, running(redis_server, api, **ONE_AT_ONCE) as two:
        run_intake(one)
        assert run_once(one).health.startswith("throttled (HTTP 429")
        assert run_once(two, "staging").health == "throttled"
        assert run_once(one).health == "throttled"
        assert api.counts().received == 1
        ((attempts, answers, *_),) = trials(client)
        assert (attempts, answers) == (0, 1)

        let_hold_pass(client)
        deliver_until(two, lambda: nothing_waits(client), "production", "staging")

    assert len(delivered_images(api)) == len(images)
    assert client.xlen(KEYS.dead) == 0


def test_no_run_sends_anything_before_the_end_of_retry_after(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = too_many(1)
    report_many(client, 5)
    report_many(client, 5, "staging")
    with running(redis_server, api, **ONE_AT_ONCE) as one, running(redis_server, api, **ONE_AT_ONCE) as two:
        run_intake(one)

        def keep_trying() -> bool:
            run_once(one)
            run_once(two, "staging")
            return nothing_waits(client)

        wait_for(keep_trying)

    first, *others = [request.monotonic_seconds for request in api.requests]
    assert min(others) - first >= 0.95


def test_retry_after_is_capped(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 503, "headers": {"Retry-After": "86400"}}]
    report(client, "a")
    with running(redis_server, api, delivery={"retry_after_max": 60}) as runtime:
        run_intake(runtime)
        run_once(runtime)
    assert read_health(client).until - now_ms(client) == pytest.approx(60_000, abs=3000)


def test_rate_limit_is_kept_by_all_runs_together(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    rate, burst, each = 100.0, 5, 40
    limited: dict[str, Any] = {"api": {"rate_limit": rate, "burst": burst}}
    environments = ["one", "two"]
    for name in environments:
        report_many(client, each, name)
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        runtimes = [stack.enter_context(running(redis_server, api, **limited)) for _ in environments]
        run_intake(runtimes[0])
        seconds, microseconds = client.time()
        started = seconds + microseconds / 1e6

        def deliver(runtime: Runtime, name: str) -> None:
            wait_for(lambda: run_once(runtime, name).delivered == 0)

        list(pool.map(deliver, runtimes, environments))
        seconds, microseconds = client.time()

    assert len(delivered_images(api)) == 2 * each
    assert seconds + microseconds / 1e6 - started >= (2 * each - burst) / rate - 0.01


# The API is not there


def test_api_that_refuses_connections_kills_nothing(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    images = report_many(client, FAILURES + 5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with running(redis_server, url, delivery={"max_attempts": 1}) as runtime:
            run_intake(runtime)
            assert run_once(runtime).health.startswith("unavailable (connect")
            for _ in range(5):
                assert probe(runtime).startswith("unavailable (connect")
    assert (client.xlen(KEYS.dead), counters_of(client).waiting) == (0, len(images))
    assert {each.attempts for each in trials(client)} == {0}

    let_hold_pass(client)
    retries_are_due(client)
    with running(redis_server, api) as runtime:
        deliver_until(runtime, lambda: nothing_waits(client))
    assert sorted(delivered_images(api)) == sorted(images)


def test_outage_uses_up_no_attempt_once_the_circuit_is_open(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 500}]
    report_many(client, FAILURES)
    run_intake(runtime)
    assert run_once(runtime).health.startswith("unavailable (HTTP 500")
    for _ in range(10):
        probe(runtime)

    assert client.xlen(KEYS.dead) == 0
    assert max(each.attempts for each in trials(client)) == 1
    assert max(each.answers for each in trials(client)) < 10, "the probes are spread over the events"


def test_one_of_many_runs_probes_and_the_others_send_nothing(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    environments = [f"env-{number}" for number in range(4)]
    images = [image for name in environments for image in report_many(client, 5, name)]
    api.faults = [{"kind": "status", "status": 500}]
    # Pauses as after some failed probes: longer than it takes a slow machine to finish all of the runs.
    client.hset(DESTINATION, mapping={"openings": 6, "circuit": "unavailable", "window": 1, "failures": FAILURES})
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        runtimes = [stack.enter_context(running(redis_server, api)) for _ in environments]
        run_intake(runtimes[0])
        for number in range(1, 4):
            let_hold_pass(client)
            reports = list(pool.map(run_once, runtimes, environments))
            assert api.counts().received == number
            assert all(each.health.startswith("unavailable") for each in reports)
        assert read_health(client).openings == 9

        api.faults = []
        let_hold_pass(client)

        def all_delivered() -> bool:
            for name in environments:
                retries_are_due(client, name)
            return nothing_waits(client)

        deliver_until(runtimes[0], all_delivered, *environments)
    assert len(delivered_images(api)) == len(images)
    assert api.counts().repeats == 0


def test_window_shrinks_when_the_api_pushes_back_and_grows_again(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    with running(redis_server, api, delivery={"max_in_flight": 8}) as runtime:
        api.faults = [{"kind": "status", "status": 503, "count": 8}]
        report_many(client, 8)
        run_intake(runtime)
        run_delivery(runtime, ["production"])
        shrunk = int(client.hget(DESTINATION, "window") or 0)
        assert 1 <= shrunk <= 4

        retries_are_due(client)
        for number in range(300):
            report_image(client, image_of(f"more-{number}"))
        run_intake(runtime)
        deliver_until(runtime, lambda: nothing_waits(client))

    assert int(client.hget(DESTINATION, "window") or 0) == 8
    assert client.xlen(KEYS.dead) == 0


def test_window_bounds_the_requests_in_flight(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    client.hset(DESTINATION, "window", 3)
    api.faults = [{"kind": "hang"}]
    report_many(client, 20)
    with running(redis_server, api, api={"timeout": 0.3}, worker={"budget": 0.1}) as runtime:
        run_intake(runtime)
        run_delivery(runtime, ["production"])

    assert api.counts().received == 3


class Watched:
    """The real transport, which notes at each request how many were answered before and how many are in flight."""

    def __init__(self, transport: CurlTransport) -> None:
        self._transport = transport
        self.answered = 0
        self.seen: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def send(self, request: Any) -> None:
        self._transport.send(request)
        self.seen.append((self.answered, self._transport.in_flight))

    def wait(self, timeout_seconds: float) -> object:
        answers = self._transport.wait(timeout_seconds)
        self.answered += len(answers)
        return answers


def test_deliveries_begin_slowly_after_an_outage(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    watched = Watched(runtime.transport)
    client.hset(DESTINATION, mapping={"openings": 2, "circuit": "unavailable", "window": 1, "failures": FAILURES})
    report_many(client, 300)
    run_intake(runtime)
    deliver_until(replace(runtime, transport=watched), lambda: nothing_waits(client))

    for answered, in_flight in watched.seen:  # it takes 1 + 2 + ... + n successes for n + 1 at once
        assert in_flight * (in_flight - 1) // 2 <= answered, f"{in_flight} at once after {answered} successes"
    assert max(in_flight for _, in_flight in watched.seen) > 5
    assert circuit(client) == ""


def test_every_second_request_answered_403_by_a_used_up_limit_throttles_and_kills_nothing(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [
        {"kind": "status", "sequence": [403, 202], "repeat": True, "headers": {"X-RateLimit-Remaining": "0"}}
    ]
    images = report_many(client, 20)
    run_intake(runtime)
    assert run_once(runtime).health.startswith("throttled (HTTP 403")
    deliver_until(runtime, lambda: nothing_waits(client))
    assert (sorted(delivered_images(api)), client.xlen(KEYS.dead)) == (sorted(images), 0)
    assert api.counts().by_status[403] >= 1
