"""Delivery runs under trouble: old events, newer ones, a pause, a Redis that goes away, events that kill a worker."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from recorded_wakeups import RecordedWakeups
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rig import event_of, wait_for
from runs import (
    KEYS,
    PRODUCTION,
    TOKEN,
    Longest,
    counters_of,
    dead_letters,
    deliver_until,
    delivered_digests,
    delivered_images,
    digest,
    image_of,
    report,
    report_image,
    report_many,
    retries_are_due,
    run_once,
    running,
)

from relay import clock
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue import leases, outbox, pausing, scripts
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.delivery import recovery
from workers.delivery.health import DestinationHealth
from workers.delivery.outboxes import LeasedOutboxes, acquire
from workers.delivery.report import DeliveryReport
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from relay.queue.outbox import Claimed
    from workers.delivery.transport import CurlTransport, Request
    from workers.runtime import Runtime

HOUR_MS = 3_600_000

#: Between our clock and Redis's.
ROUNDING_MS = 50


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    with running(redis_server, api) as made:
        yield made


class Meddled:
    """The real transport; once requests are in flight and before their answers are read, something happens."""

    def __init__(self, transport: CurlTransport, happen: Callable[[], object], *, after_answers: int = 0) -> None:
        self._transport = transport
        self._happen: Callable[[], object] | None = happen
        self._answers_to_go = after_answers

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def wait(self, timeout_seconds: float) -> Sequence[object]:
        if self._happen and self._answers_to_go <= 0 and self._transport.in_flight:
            happen, self._happen = self._happen, None
            happen()
        answers = self._transport.wait(timeout_seconds)
        self._answers_to_go -= len(answers)
        return answers

    @property
    def has_happened(self) -> bool:
        return self._happen is None


#: Settings with which nothing is tried again before a test says so, together with `Longest`.
LATER: dict[str, Any] = {"backoff_initial": 60}


def nothing_waits(client: Redis) -> bool:
    return not counters_of(client).waiting


# Old events


def report_old(client: Redis, version: str, age_ms: int, **fields: str) -> None:
    """Report a version as of some time ago: an entry's id says when it was enqueued."""
    seconds, _ = client.time()
    entry_id = f"{int(seconds) * 1000 - age_ms}-0"
    ((_, entry),) = client.xrange(KEYS.inbox, report(client, version, **fields))
    client.delete(KEYS.inbox)
    client.xadd(KEYS.inbox, entry, id=entry_id)


def put_back(client: Redis, field: str, age_ms: int) -> None:
    seconds, _ = client.time()
    client.hset(KEYS.dataset, field, int(seconds) * 1000 - age_ms)


@pytest.mark.parametrize(
    ("noted", "dead"),
    [
        pytest.param(("beat_at", HOUR_MS), 0, id="stepped ahead, or no worker ran, and none noted it"),
        pytest.param(("beat_at", -HOUR_MS), 0, id="stepped back"),
        pytest.param(("steady:expire", HOUR_MS // 10), 0, id="noted a while ago"),
        pytest.param(("steady:expire", HOUR_MS), 1, id="noted so long ago that the age is certain"),
        pytest.param(("beat_at", HOUR_MS // 10), 1, id="a short time without workers"),
    ],
)
def test_event_does_not_expire_by_one_reading_of_a_clock(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, noted: tuple[str, int], dead: int
) -> None:
    report_old(client, "old", HOUR_MS, id="old")
    with running(redis_server, api, delivery={"max_age": "30m"}) as runtime:
        run_intake(runtime)
        put_back(client, *noted)
        deliver_until(runtime, lambda: nothing_waits(client))
    assert client.xlen(KEYS.dead) == dead
    assert len(api.requests) == 1 - dead


def test_clock_that_steps_during_a_run_expires_nothing_and_has_the_leases_renewed(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis's clock steps two hours ahead after the first reading of it."""
    claim, readings = outbox.claim, 0

    def ahead(*args: Any, **options: Any) -> list[Claimed | None]:
        nonlocal readings
        readings += 1
        claims = claim(*args, **options)
        for found in claims:
            if found is not None and readings > 1:
                found.now_ms += 2 * HOUR_MS
        return claims

    monkeypatch.setattr(outbox, "claim", ahead)
    report_many(client, 60)
    with running(redis_server, api, delivery={"max_age": "1h", "batch_size": 10}, worker={"stay": 0.05}) as runtime:
        run_intake(runtime)
        report = run_once(runtime)
    assert (report.delivered, report.dead, report.leases_lost) == (60, 0, 0)
    assert readings > 2
    assert client.xlen(KEYS.dead) == 0
    assert len(delivered_images(api)) == 60


def test_run_that_was_suspended_past_its_lease_sends_nothing_more_without_it(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine sleeps while a request is in flight, and another run acquires the outbox."""
    slept = 0.0
    uptime = clock.uptime
    monkeypatch.setattr(clock, "uptime", lambda: uptime() + slept)

    def sleep() -> None:
        nonlocal slept
        slept = 3600.0
        client.set(PRODUCTION.lease, "another run")
        client.hset(PRODUCTION.run, "token", "another run")

    report_many(client, 20)
    with running(redis_server, api, delivery={"max_in_flight": 1}) as runtime:
        run_intake(runtime)
        report = run_once(replace(runtime, transport=Meddled(runtime.transport, sleep)))
    assert report.leases_lost == 1
    assert len(api.requests) == 1


def test_event_that_waited_too_long_expires_untried_and_restores_the_state(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    report_old(client, "old", HOUR_MS, id="old")
    with running(redis_server, api, delivery={"max_age": "30m"}) as runtime:
        run_intake(runtime)
        report(client, "new")
        run_intake(runtime)
        assert run_once(runtime).dead == 1
        (letter,) = dead_letters(client)
        assert {name: letter[name] for name in ("id", "reason", "detail", "attempts", "first", "last", "status")} == {
            "id": "old",
            "reason": "expired",
            "detail": "not delivered within 1800 s",
            "attempts": "0",
            "first": "",
            "last": "",
            "status": "",
        }
        deliver_until(runtime, lambda: nothing_waits(client))
        assert delivered_digests(api) == [digest("new")]

        report(client, "old")
        run_intake(runtime)
        run_once(runtime)
    assert delivered_digests(api) == [digest("new"), digest("old")], "the same report made later is new"
    assert counters_of(client).unaccounted == 0


def test_only_event_that_expires_leaves_no_state(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> None:
    report_old(client, "old", HOUR_MS)
    with running(redis_server, api, delivery={"max_age": "30m"}) as runtime:
        run_intake(runtime)
        run_once(runtime)
        assert client.exists(PRODUCTION.accepted) == 0
        report(client, "old")
        run_intake(runtime)
        run_once(runtime)
    assert delivered_digests(api) == [digest("old")]


def test_event_that_was_tried_expires_at_its_next_try(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 503, "count": 1}]
    report_old(client, "old", HOUR_MS)
    with running(redis_server, api, delivery=LATER) as patient:
        run_intake(patient)
        assert run_once(replace(patient, random=Longest())).retrying == 1
    retries_are_due(client)
    with running(redis_server, api, delivery={"max_age": "30m"}) as runtime:
        run_once(runtime)
    (letter,) = dead_letters(client)
    assert (letter["reason"], letter["attempts"]) == ("expired", "1")
    assert int(letter["first"]) > int(letter["arrived"]) + HOUR_MS - 60_000
    assert api.counts().received == 1


def test_events_that_expired_in_an_outage_do_not_use_up_the_probe(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    report_old(client, "old", HOUR_MS)
    client.hset(KEYS.destination(DEFAULT_DESTINATION), mapping={"openings": 3, "circuit": "unavailable", "window": 1})
    with running(redis_server, api, delivery={"max_age": "30m"}) as runtime:
        run_intake(runtime)
        report_image(client, image_of("another"))
        run_intake(runtime)
        assert run_once(runtime).delivered == 1
    assert delivered_images(api) == [image_of("another")]
    assert [letter["reason"] for letter in dead_letters(client)] == ["expired"]


# Only the latest


def test_latest_of_an_instance_supersedes_undelivered_ones(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    with running(redis_server, api, delivery={"history": "latest"}) as runtime:
        for version in ("a", "b", "c"):
            report(client, version)
        images = report_many(client, 3)
        run_intake(runtime)
        run_once(runtime)
        assert sorted(delivered_digests(api)) == sorted([digest("c"), *[digest("x")] * len(images)])
        counters = counters_of(client)
        assert (counters.added, counters.delivered, counters.superseded, counters.unaccounted) == (6, 4, 2, 0)

        report(client, "c")
        run_intake(runtime)
        assert counters_of(client).duplicate == 1
        report(client, "a")
        run_intake(runtime)
        run_once(runtime)
    assert delivered_digests(api)[-1] == digest("a"), "a rollback to a superseded one is a change"


def test_latest_of_an_instance_supersedes_one_that_waits_for_its_retry(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 503, "count": 1}]
    with running(redis_server, api, delivery={"history": "latest", "max_attempts": 2} | LATER) as runtime:
        report(client, "a")
        run_intake(runtime)
        assert run_once(replace(runtime, random=Longest())).retrying == 1
        for version in ("b", "c"):
            report(client, version)
            run_intake(runtime)
            run_delivery(runtime, ["production"])
        retries_are_due(client)
        deliver_until(runtime, lambda: nothing_waits(client))

    assert delivered_digests(api) == [digest("c")]
    assert api.counts().received == 2
    counters = counters_of(client)
    assert (counters.delivered, counters.superseded, counters.retries, counters.unaccounted) == (1, 2, 1, 0)
    left = {key.decode() for key in client.scan_iter(match="*default:production*")}
    assert left == {PRODUCTION.counts, PRODUCTION.accepted, PRODUCTION.delivered}


def test_every_event_is_delivered_in_order_unless_only_the_latest_counts(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    for version in ("a", "b", "c"):
        report(client, version)
    run_intake(runtime)
    run_once(runtime)

    assert delivered_digests(api) == [digest("a"), digest("b"), digest("c")]


# Paused


@pytest.mark.parametrize("stay", [0, 0.01])
def test_pause_lets_requests_in_flight_finish_and_sends_no_more(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox, caplog: pytest.LogCaptureFixture, stay: float
) -> None:
    api.faults = [{"kind": "latency", "seconds": 0.02}]
    images = report_many(client, 60)
    with running(redis_server, api, delivery={"max_in_flight": 4}, worker={"stay": stay}) as runtime:
        run_intake(runtime)

        def pause() -> None:
            pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])

        meddled = Meddled(runtime.transport, pause, after_answers=8)
        done = run_once(replace(runtime, transport=meddled))
        assert meddled.has_happened
        sent = api.counts().received
        assert 8 <= sent < len(images)
        assert done.delivered == sent == counters_of(client).delivered, "the answers in flight are committed"
        assert client.zscore(KEYS.schedule(DEFAULT_DESTINATION), "production") == float("inf")
        assert client.exists(PRODUCTION.lease, PRODUCTION.run) == 0

        assert run_once(runtime).delivered == 0
        assert api.counts().received == sent
        assert caplog.messages == [], "a pause is no reason for a warning"

        pausing.resume(client, KEYS, DEFAULT_DESTINATION, ["production"])
        deliver_until(runtime, lambda: nothing_waits(client))
    assert sorted(delivered_images(api)) == sorted(images)
    assert api.counts().repeats == 0


def test_pause_releases_entries_that_are_claimed_and_not_sent(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    """The batch still lingers for more."""
    images = report_many(client, 5)

    def pause() -> None:
        wait_for(lambda: bool(client.exists(PRODUCTION.lease)))
        pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])

    with running(redis_server, api, delivery={"linger": 3}, worker={"budget": 10}) as runtime:
        run_intake(runtime)
        pausing_thread = threading.Thread(target=pause)
        pausing_thread.start()
        run_once(runtime)
        pausing_thread.join()
    assert api.counts().received == 0
    assert counters_of(client).waiting == len(images)


def test_pause_of_one_environment_leaves_the_others_alone(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    report_many(client, 5)
    others = report_many(client, 5, "staging")
    pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])
    run_intake(runtime)
    run_once(runtime, "production", "staging")

    assert sorted(delivered_images(api)) == sorted(others)
    assert {request.environment for request in api.requests} == {"staging"}


# Redis goes away


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis to be killed, which keeps what it acknowledged."""
    with EmbeddedRedis(tmp_path / "redis", append_fsync="always") as server:
        yield server


@pytest.mark.parametrize("lease_ran_out", [False, True], ids=["", "its lease ran out"])
def test_run_that_lost_redis_commits_its_outcomes_later_and_repeats_nothing(
    own_server: EmbeddedRedis,
    api: Sandbox,
    caplog: pytest.LogCaptureFixture,
    lease_ran_out: bool,  # noqa: FBT001
) -> None:
    api.faults = [{"kind": "latency", "seconds": 0.1}]

    def restart() -> None:
        wait_for(lambda: any("Redis failed a delivery run" in message for message in caplog.messages))
        own_server.restart()
        if lease_ran_out:
            with Redis.from_url(own_server.url) as other:
                other.delete(PRODUCTION.lease)

    restarting = threading.Thread(target=restart)

    def crash() -> None:
        own_server.kill()
        restarting.start()

    with Redis.from_url(own_server.url, socket_timeout=10) as client:
        images = report_many(client, 50)
        with running(own_server, api) as runtime:
            run_intake(runtime)
            meddled = Meddled(runtime.transport, crash)
            done = run_once(replace(runtime, transport=meddled))
            assert meddled.has_happened
            restarting.join(30)
            assert done.leases_lost == 0
            assert done.delivered == api.counts().received == counters_of(client).delivered > 0
            assert client.exists(PRODUCTION.lease, PRODUCTION.run) == 0, "it was released"

            deliver_until(runtime, lambda: nothing_waits(client))
    assert sorted(delivered_images(api)) == sorted(images)
    assert api.counts().repeats == 0


def test_throttle_that_the_destination_asks_for_while_redis_is_away_holds_when_it_is_back(
    own_server: EmbeddedRedis, api: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults = [{"kind": "status", "status": 429, "headers": {"Retry-After": "60"}}]

    def restart() -> None:
        wait_for(lambda: any("Redis failed a delivery run" in message for message in caplog.messages))
        own_server.restart()

    restarting = threading.Thread(target=restart)

    def crash() -> None:
        own_server.kill()
        restarting.start()

    with Redis.from_url(own_server.url, socket_timeout=10) as client:
        report_many(client, 3)
        with running(own_server, api) as runtime:
            run_intake(runtime)
            meddled = Meddled(runtime.transport, crash)
            done = run_once(replace(runtime, transport=meddled))
            assert meddled.has_happened
            restarting.join(30)
            assert done.health.startswith("throttled")
            asked = api.counts().received
            assert run_once(runtime).health.startswith("throttled")
            assert api.counts().received == asked > 0, "no worker sends before the time"


def test_a_runs_estimate_of_redis_time_is_never_ahead(
    runtime: Runtime, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the reply takes: otherwise a throttle would seem to be over."""
    report_many(client, 2)
    run_intake(runtime)
    outboxes = LeasedOutboxes(runtime, DestinationHealth(runtime), DeliveryReport(), acquire(runtime, ["production"]))
    run_all = scripts.run_all

    def slowly(*args: Any) -> list[Any]:
        time.sleep(0.3)
        replies = run_all(*args)
        time.sleep(0.3)
        return replies

    monkeypatch.setattr(scripts, "run_all", slowly)
    outboxes.claim(500)
    seconds, microseconds = client.time()
    assert -1000 < outboxes.now_ms - (seconds * 1000 + microseconds / 1000) <= 1


def test_run_whose_lease_ran_out_goes_on_if_no_other_acquired_it(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """Redis was away for longer than a lease, and the client's own retries bridged it."""
    api.faults = [{"kind": "latency", "seconds": 0.1}]
    images = report_many(client, 5)
    run_intake(runtime)
    meddled = Meddled(runtime.transport, lambda: client.delete(PRODUCTION.lease))
    done = run_once(replace(runtime, transport=meddled))
    deliver_until(runtime, lambda: nothing_waits(client))

    assert meddled.has_happened
    assert sorted(set(delivered_images(api))) == sorted(images)
    assert api.counts().repeats == 0
    assert done.leases_lost == 0


def test_run_whose_connections_are_cut_goes_on_and_repeats_nothing(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "latency", "seconds": 0.05}]
    images = report_many(client, 100)
    run_intake(runtime)
    cut: list[int] = []
    meddled = Meddled(runtime.transport, lambda: cut.append(client.client_kill_filter(skipme=True, _type="normal")))
    run_once(replace(runtime, transport=meddled))
    deliver_until(runtime, lambda: nothing_waits(client))

    assert cut[0] >= 1
    assert sorted(delivered_images(api)) == sorted(images)
    assert api.counts().repeats == 0


def test_run_whose_outbox_another_acquired_commits_nothing(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    """No run can acquire a lease while Redis is away; but Redis may be away for one worker only."""
    images = report_many(client, 5)
    keys = PRODUCTION
    with running(redis_server, api) as runtime:
        run_intake(runtime)

        def take_over() -> None:
            client.delete(keys.lease)
            client.hset(keys.run, "token", "successor")

        done = run_once(replace(runtime, transport=Meddled(runtime.transport, take_over)))
        assert done.leases_lost == 1
        assert counters_of(client).delivered == 0
        deliver_until(runtime, lambda: nothing_waits(client))
    assert len(delivered_images(api)) == 2 * len(images)


@pytest.mark.parametrize("is_away", [False, True], ids=["redis is back", "redis stays away"])
def test_run_that_lost_redis_while_its_worker_stops_tries_for_a_moment(
    runtime: Runtime, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch, *, is_away: bool
) -> None:
    monkeypatch.setattr(recovery, "RECOVERY_STOPPING_SECONDS", 0.5)
    images = report_many(client, 5)
    run_intake(runtime)
    run_all, commits = scripts.run_all, []

    def fail(redis: Redis, calls: Sequence[scripts.Call]) -> list[Any]:
        if calls[0].script.name == "commit_delivery":
            monkeypatch.setattr(recovery, "is_stopping", lambda: True)
            commits.append(time.monotonic())
            if is_away or len(commits) == 1:
                raise RedisConnectionError
        return run_all(redis, calls)

    monkeypatch.setattr(scripts, "run_all", fail)
    if is_away:
        with pytest.raises(RedisConnectionError):
            run_once(runtime)
        assert 0.5 <= commits[-1] - commits[0] < 5
    else:
        run_once(runtime)
    assert counters_of(client).delivered == (0 if is_away else len(images))
    assert sorted(delivered_images(api)) == sorted(images)


def test_of_two_commits_of_which_one_is_applied_no_older_event_goes_out_after_a_newer(
    runtime: Runtime, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis fails a commit, the answers that came meanwhile are the next, and the run dies between the two."""
    api.faults = [{"kind": "latency", "seconds": 0.5, "count": 1}]
    report_image(client, image_of("slow", "1"))
    report_image(client, image_of("quick"))
    run_intake(runtime)
    run_all, commits = scripts.run_all, []

    def fail_then_die(redis: Redis, calls: Sequence[scripts.Call]) -> list[Any]:
        if calls[0].script.name != "commit_delivery":
            return run_all(redis, calls)
        commits.append([call.script.name for call in calls])
        if len(commits) == 1:
            raise RedisConnectionError
        run_all(redis, calls[:1])
        raise Killed

    monkeypatch.setattr(scripts, "run_all", fail_then_die)
    with pytest.raises(Killed):
        run_once(runtime)
    assert [names.count("commit_delivery") for names in commits] == [1, 2]

    monkeypatch.undo()
    client.delete(PRODUCTION.lease)
    report_image(client, image_of("slow", "2"))
    run_intake(runtime)
    deliver_until(runtime, lambda: nothing_waits(client))
    slow = [image for image in delivered_images(api) if "/slow@" in image]
    assert slow == [image_of("slow", "1"), image_of("slow", "1"), image_of("slow", "2")]


# Events that kill a worker


class Killed(BaseException):
    """Stands for SIGKILL: no run catches it, and none releases its outboxes after it."""


class Deadly:
    """The real transport; the process dies of sending some events."""

    def __init__(self, transport: CurlTransport, deadly: set[str]) -> None:
        self._transport = transport
        self._deadly = deadly

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def send(self, request: Request) -> None:
        if event_of(request.idempotency_key) in self._deadly:
            raise Killed
        self._transport.send(request)


def die_until(runtime: Runtime, condition: Callable[[], bool], most: int = 40) -> int:
    """Run delivery, and let the leases of the runs that die run out; return how many died."""
    deaths = 0
    for _ in range(most):
        if condition():
            return deaths
        retries_are_due(runtime.client)
        try:
            run_delivery(runtime, ["production"])
        except Killed:
            deaths += 1
            runtime.client.delete(PRODUCTION.lease)
    raise AssertionError(f"not within {most} runs, of which {deaths} died")


@pytest.mark.parametrize(
    "deadly", [["event-0"], ["event-7"], ["event-29"], ["event-7", "event-8"], ["event-0", "event-1", "event-29"]]
)
def test_event_that_kills_its_worker_is_a_dead_letter_and_the_others_arrive(
    runtime: Runtime, client: Redis, api: Sandbox, deadly: list[str]
) -> None:
    for number in range(30):
        report_image(client, image_of(f"app-{number}"), id=f"event-{number}")
    run_intake(runtime)
    deaths = die_until(
        replace(runtime, transport=Deadly(runtime.transport, set(deadly))), lambda: nothing_waits(client)
    )

    letters = dead_letters(client)
    assert [(letter["id"], letter["reason"]) for letter in letters] == [(name, "worker_crash") for name in deadly]
    assert letters[0]["detail"] == f"{leases.MAX_DEATHS} workers died when they delivered it"
    assert {letter["attempts"] for letter in letters} == {"0"}
    # The first has many in flight, and which one killed it is not known.
    assert deaths == 1 + leases.MAX_DEATHS * len(deadly)
    arrived = {event_of(request.idempotency_key) for request in api.requests if request.processed}
    assert arrived == {f"event-{number}" for number in range(30)} - set(deadly)
    assert api.counts().repeats <= runtime.settings.delivery.max_in_flight
    assert counters_of(client).unaccounted == 0
    assert client.exists(PRODUCTION.run) == 0


def test_deadly_event_takes_none_of_other_environments_with_it(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """After the first death a run delivers one entry at a time over all its environments."""
    environments = ["innocent-1", "innocent-2", "evil", "innocent-3"]
    for number in range(8):
        for environment in environments:
            name = "evil" if (environment, number) == ("evil", 2) else f"{environment}-{number}"
            report_image(client, image_of(name), environment, id=name)
    run_intake(runtime)
    deadly = replace(runtime, transport=Deadly(runtime.transport, {"evil"}))
    deaths = 0
    while not nothing_waits(client):
        try:
            run_delivery(deadly, environments)
        except Killed:
            deaths += 1
            client.delete(*(KEYS.of_outbox(DEFAULT_DESTINATION, name).lease for name in environments))
        assert deaths <= 1 + leases.MAX_DEATHS

    assert [letter["id"] for letter in dead_letters(client)] == ["evil"]
    arrived = {event_of(request.idempotency_key) for request in api.requests if request.processed}
    assert len(arrived) == 8 * len(environments) - 1
    assert counters_of(client).unaccounted == 0


def test_a_crash_search_delays_no_environment_that_did_not_crash(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """The others are released, with a wake-up for another run, before the first entry is sent."""
    report_image(client, image_of("evil"), "evil", id="evil")
    run_intake(runtime)
    with pytest.raises(Killed):
        run_delivery(replace(runtime, transport=Deadly(runtime.transport, {"evil"})), ["evil"])
    client.delete(KEYS.of_outbox(DEFAULT_DESTINATION, "evil").lease)
    report_many(client, 3)
    run_intake(runtime)
    wakeups = RecordedWakeups()

    with pytest.raises(Killed):
        run_delivery(
            replace(runtime, transport=Deadly(runtime.transport, {"evil"}), wakeups=wakeups), ["production", "evil"]
        )

    assert wakeups.environments == ["production"]
    assert client.exists(PRODUCTION.lease, PRODUCTION.run) == 0
    assert run_once(runtime).delivered == 3


def test_entry_of_a_crash_search_is_sent_under_its_lease_though_redis_is_slow(
    runtime: Runtime, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marking the entry waits for Redis, and the lease runs meanwhile."""
    report_image(client, image_of("app"), id="event")
    run_intake(runtime)
    with pytest.raises(Killed):
        run_delivery(replace(runtime, transport=Deadly(runtime.transport, {"event"})), ["production"])
    client.delete(PRODUCTION.lease)

    left: list[int] = []
    handle, send = leases.handle, runtime.transport.send
    slow = iter([True])

    def handle_slowly(*args: Any) -> int:
        deaths = handle(*args)
        if next(slow, False):
            time.sleep(runtime.settings.worker.lease - runtime.settings.api.timeout + 0.5)
        return deaths

    def send_and_note(request: Request) -> None:
        left.append(client.pttl(PRODUCTION.lease))
        send(request)

    monkeypatch.setattr(leases, "handle", handle_slowly)
    monkeypatch.setattr(runtime.transport, "send", send_and_note)
    deliver_until(runtime, lambda: nothing_waits(client))

    assert [event_of(request.idempotency_key) for request in api.requests] == ["event"]
    assert next(slow, None) is None, "Redis took its time"
    assert min(left) >= 1000 * runtime.settings.api.timeout - ROUNDING_MS


def test_deadly_retry_is_a_dead_letter_and_the_entry_that_it_blocks_arrives(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 503, "count": 1}]
    with running(redis_server, api, delivery=LATER) as runtime:
        report(client, "deadly", id="deadly")
        run_intake(runtime)
        assert run_once(replace(runtime, random=Longest())).retrying == 1
        report(client, "next", id="next")
        run_intake(runtime)
        die_until(replace(runtime, transport=Deadly(runtime.transport, {"deadly"})), lambda: nothing_waits(client))

    (letter,) = dead_letters(client)
    assert (letter["id"], letter["reason"], letter["attempts"]) == ("deadly", "worker_crash", "1")
    assert delivered_digests(api) == [digest("next")]


def test_worker_that_dies_for_another_reason_makes_no_dead_letter(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """Each time another event is in flight."""
    for number in range(30):
        report_image(client, image_of(f"app-{number}"), id=f"event-{number}")
    run_intake(runtime)
    for number in range(2 * leases.MAX_DEATHS):
        with pytest.raises(Killed):
            run_delivery(
                replace(runtime, transport=Deadly(runtime.transport, {f"event-{3 * number}"})), ["production"]
            )
        client.delete(PRODUCTION.lease)
    deliver_until(runtime, lambda: nothing_waits(client))

    assert client.xlen(KEYS.dead) == 0
    assert {event_of(request.idempotency_key) for request in api.requests} == {
        f"event-{number}" for number in range(30)
    }


def test_deadly_events_are_found_where_only_the_latest_counts(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    """The entries that a retry supersedes are committed before it is sent."""
    api.faults = [{"kind": "status", "status": 503, "count": 1}]
    with running(redis_server, api, delivery={"history": "latest"} | LATER) as runtime:
        report(client, "a")
        run_intake(runtime)
        assert run_once(replace(runtime, random=Longest())).retrying == 1
        report(client, "b", id="deadly")
        run_intake(runtime)
        run_once(runtime)
        report_image(client, image_of("another"), id="another")
        run_intake(runtime)
        die_until(replace(runtime, transport=Deadly(runtime.transport, {"deadly"})), lambda: nothing_waits(client))

    assert [(letter["id"], letter["reason"]) for letter in dead_letters(client)] == [("deadly", "worker_crash")]
    assert delivered_images(api) == [image_of("another")]
    assert (counters_of(client).superseded, counters_of(client).unaccounted) == (1, 0)
