"""Intake and delivery runs against a real Redis and a real HTTP server, stopped where they could race."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from outboxes import throttle
from rig import wait_for
from runs import (
    REPOSITORY,
    TOKEN,
    deliver_until,
    delivered_digests,
    digest,
    image_of,
    make_runtime_for,
    report,
    report_image,
)

from relay import Producer
from relay.errors import QueueFull
from relay.queue import leases, scripts
from relay.queue.counters import read_counters
from relay.queue.inbox import InboxEntry
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.delivery.run import run_delivery
from workers.intake import run as intake
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, api)
    yield made
    made.close()


def test_intake_that_judged_by_a_state_given_back_meanwhile_judges_again(
    runtime: Runtime, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race: intake reads that A was accepted, delivery dead-letters A, intake would commit "duplicate"."""
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    report(client, "a")
    run_intake(runtime)
    report(client, "a")
    decide = intake.decide_in_order
    rounds = []

    def decide_and_let_delivery_in(*args: object, **options: object) -> object:
        rounds.append(decided := decide(*args, **options))
        if len(rounds) == 1:
            run_delivery(runtime, ["production"])
        return decided

    monkeypatch.setattr(intake, "decide_in_order", decide_and_let_delivery_in)
    run_intake(runtime)
    run_delivery(runtime, ["production"])

    decisions = [[entry.decision for item in decided.instances for entry in item.entries] for decided in rounds]
    assert decisions == [["duplicate"], ["new"]], "the race did not happen"
    counters = read_counters(client, runtime.keys)
    assert (counters.dead, counters.duplicate, counters.delivered, counters.unaccounted) == (1, 0, 1, 0)


def test_a_dead_letter_that_was_not_the_last_accepted_leaves_the_state(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    for version in ("a", "b"):
        report(client, version)
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    report(client, "b")
    report(client, "a")
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    assert delivered_digests(api) == [digest("b"), digest("a")]
    assert read_counters(client, runtime.keys).duplicate == 1


def test_intake_whose_lease_ran_out_commits_nothing(
    runtime: Runtime, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(client, "a")
    decide = intake.decide_in_order

    def pause_past_the_lease(*args: object, **options: object) -> object:
        client.delete(runtime.keys.intake_lease)
        keys = runtime.keys
        successor = leases.acquire_call(
            keys.intake_wakeup, keys.intake_lease, keys.intake_run, "successor", 5, counts=keys.counts
        )
        scripts.run(client, successor)
        return decide(*args, **options)

    monkeypatch.setattr(intake, "decide_in_order", pause_past_the_lease)
    done = run_intake(runtime)
    assert done is not None
    assert done.lease_lost
    assert client.xlen(runtime.keys.inbox) == 1
    assert client.get(runtime.keys.intake_lease) == b"successor"


def test_delivery_whose_lease_ran_out_commits_nothing(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    report(client, "a")
    run_intake(runtime)
    keys = runtime.keys.of_outbox(DEFAULT_DESTINATION, "production")
    wait = runtime.transport.wait

    class PausedTransport:
        """The real one, but the process sleeps past its lease while a request is in flight."""

        def __getattr__(self, name: str) -> object:
            return getattr(runtime.transport, name)

        def wait(self, timeout_seconds: float) -> object:
            answers = wait(timeout_seconds)
            if answers:
                client.set(keys.lease, "successor", px=5000)
            return answers

    paused = replace(runtime, transport=PausedTransport())
    done = run_delivery(paused, ["production"])
    assert done is not None
    assert done.leases_lost == 1
    assert client.xlen(keys.outbox) == 1, "a run without its lease deleted the entry"
    assert read_counters(client, runtime.keys).delivered == 0

    client.delete(keys.lease)
    run_delivery(runtime, ["production"])
    assert delivered_digests(api) == [digest("a"), digest("a")]
    assert len({request.idempotency_key for request in api.requests}) == 1


def test_what_is_sent_has_left_before_the_drain_waits_for_redis(
    runtime: Runtime, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would leave after that wait, when the lease that it was sent under may be another's."""
    for number in range(150):
        report_image(client, image_of(f"app-{number}"))
    run_intake(runtime)
    api.faults = [{"kind": "latency", "seconds": 0.02, "jitter_seconds": 0.02}]
    run_all, wait = scripts.run_all, runtime.transport.wait
    answered: list[object] = []
    waits: list[int] = []

    class Transport:
        """The real one; its answers are counted."""

        def __getattr__(self, name: str) -> object:
            return getattr(runtime.transport, name)

        def wait(self, timeout_seconds: float) -> object:
            answers = wait(timeout_seconds)
            answered.extend(answers)
            return answers

    def run_when_all_have_left(client: Redis, calls: Sequence[scripts.Call]) -> list[Any]:
        sent = len(answered) + runtime.transport.in_flight
        wait_for(lambda: api.counts().received >= sent, seen=lambda: f"{api.counts().received} of {sent} have left")
        waits.append(runtime.transport.in_flight)
        return run_all(client, calls)

    monkeypatch.setattr(scripts, "run_all", run_when_all_have_left)
    done = run_delivery(replace(runtime, transport=Transport()), ["production"])
    assert done is not None
    assert done.delivered == 150
    assert sum(map(bool, waits)) > 1, "it never asked Redis with anything in flight"


def test_only_one_drain_at_a_time(runtime: Runtime, client: Redis) -> None:
    report(client, "a")
    client.set(runtime.keys.intake_lease, "another", px=5000)
    assert run_intake(runtime) is None
    client.delete(runtime.keys.intake_lease)
    run_intake(runtime)
    client.set(runtime.keys.of_outbox(DEFAULT_DESTINATION, "production").lease, "another", px=5000)
    assert run_delivery(runtime, ["production"]) is None


def test_what_keeps_failing_is_a_dead_letter_with_its_last_answer(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 500}]
    report(client, "a", id="job-1", source="ci")
    run_intake(runtime)
    deliver_until(runtime, lambda: client.xlen(runtime.keys.dead) == 1)
    [(_, letter)] = client.xrange(runtime.keys.dead)
    assert {name: letter[name] for name in (b"id", b"source", b"reason", b"status", b"attempts")} == {
        b"id": b"job-1",
        b"source": b"ci",
        b"reason": b"exhausted",
        b"status": b"500",
        b"attempts": b"3",
    }
    assert api.counts().received == 3
    left = {key.decode() for key in client.scan_iter() if b"default:production" in key}
    assert left == {"{relay:0}:counts:default:production"}, "a finished outbox left something behind"


def test_a_failing_instance_holds_up_itself_and_no_other(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    api.faults = [{"kind": "status", "status": 404, "image": f"{REPOSITORY}@{digest('stuck')}"}]
    for version in ("stuck", "after"):
        report(client, version)
    for n in range(50):
        body = {"image": {"url": f"ghcr.io/acme/app-{n}@{digest('x')}"}, "environment": {"name": "production"}}
        client.xadd(runtime.keys.inbox, {"event": json.dumps(body)})
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    delivered = delivered_digests(api)
    assert delivered.count(digest("x")) == 50
    assert digest("after") not in delivered, "a later event overtook a failing one of its instance"
    assert client.zcard(runtime.keys.of_outbox(DEFAULT_DESTINATION, "production").deferred) == 2


def test_a_backlog_larger_than_a_batch_with_failures_all_over_is_delivered_in_order(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    """Small batches, so that deferred entries lie before, in and behind the window."""
    runtime = make_runtime_for(
        redis_server, api, delivery={"batch_size": 7, "max_attempts": 50}, intake={"batch_size": 11}
    )
    api.faults = [{"kind": "status", "status": 500, "probability": 0.3}]
    versions = [str(n) for n in range(40)]
    for version in versions:
        for name in ("one", "two", "three"):
            body = {
                "image": {"url": f"{REPOSITORY}@{digest(version)}", "name": name},
                "environment": {"name": "production"},
            }
            client.xadd(runtime.keys.inbox, {"event": json.dumps(body)})
    run_intake(runtime)
    deliver_until(runtime, lambda: not read_counters(client, runtime.keys).waiting)
    for name in ("one", "two", "three"):
        found = [r.event["image"]["url"] for r in api.requests if r.processed and r.event["image"]["name"] == name]
        assert found == [f"{REPOSITORY}@{digest(version)}" for version in versions]
    assert api.counts().repeats == 0
    runtime.close()


def test_script_flush_in_between_is_survived(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    for version in ("a", "b"):
        client.script_flush()
        report(client, version)
        run_intake(runtime)
        client.script_flush()
        run_delivery(runtime, ["production"])
    assert delivered_digests(api) == [digest("a"), digest("b")]


def test_an_outbox_that_somebody_deleted_is_reported_and_does_not_fill_the_queue_for_ever(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    for n in range(10):
        report(client, str(n))
    run_intake(runtime)
    client.delete(runtime.keys.of_outbox(DEFAULT_DESTINATION, "production").outbox)
    run_delivery(runtime, ["production"])
    counters = read_counters(client, runtime.keys)
    assert (counters.added, counters.waiting, counters.unaccounted) == (10, 0, 10), "a loss must show"
    report(client, "next")
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    assert delivered_digests(api) == [digest("next")]


def test_a_digest_is_delivered_again_once_when_it_is_time_and_not_for_each_report(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    runtime = make_runtime_for(redis_server, api, delivery={"reassert_after": "50ms"})
    report(client, "a")
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    seconds, microseconds = client.time()
    later = seconds * 1000 + microseconds // 1000 + 60_000
    for n in range(20):
        body = {"image": {"url": f"{REPOSITORY}@{digest('a')}"}, "environment": {"name": "production"}}
        client.xadd(runtime.keys.inbox, {"event": json.dumps(body)}, id=f"{later}-{n}")
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    assert delivered_digests(api) == [digest("a"), digest("a")]
    runtime.close()


def test_a_hold_set_by_another_worker_is_heeded_with_entries_in_hand(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    for n in range(200):
        body = {"image": {"url": f"ghcr.io/acme/app-{n}@{digest('x')}"}, "environment": {"name": "production"}}
        client.xadd(runtime.keys.inbox, {"event": json.dumps(body)})
    run_intake(runtime)
    api.faults = [{"kind": "latency", "seconds": 0.02}]
    wait = runtime.transport.wait

    class Transport:
        """The real one; after the first answers another worker holds the destination."""

        def __getattr__(self, name: str) -> object:
            return getattr(runtime.transport, name)

        def wait(self, timeout_seconds: float) -> object:
            answers = wait(timeout_seconds)
            if answers and not client.exists(runtime.keys.destination(DEFAULT_DESTINATION)):
                throttle(client, 60)
            return answers

    done = run_delivery(replace(runtime, transport=Transport()), ["production"])
    assert done is not None
    assert done.health == "throttled"
    assert api.counts().received <= 2 * runtime.settings.delivery.max_in_flight
    assert api.counts().received == done.delivered


def test_intake_reads_less_at_a_time_when_entries_are_large() -> None:
    small = [InboxEntry(f"{n}-0", {b"event": b"x" * 500}) for n in range(50)]
    large = [InboxEntry(f"{n}-0", {b"event": b"x" * 1_000_000}) for n in range(50)]
    assert intake.next_count(small, 50, 500) == 200
    assert intake.next_count(small, 200, 500) == 500
    assert intake.next_count(large, 200, 500) == 8
    assert intake.next_count([InboxEntry("1-0", {b"event": b"x" * 100_000_000})], 8, 500) == 1
    assert intake.next_count([InboxEntry("1-0", {})], 1, 500) == 4


def test_at_maxmemory_producers_are_refused_and_workers_go_on(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """Each script's first write frees memory, so that what is accepted is still delivered, and recorded."""
    api.faults = [{"kind": "status", "sequence": [202, 422, 500]}]
    for name in ("delivered", "refused", "retried"):
        body = {"image": {"url": f"{REPOSITORY}@{digest('a')}", "name": name}, "environment": {"name": "production"}}
        client.xadd(runtime.keys.inbox, {"event": json.dumps(body)})
    client.xadd(runtime.keys.inbox, {"event": "unreadable"})
    client.config_set("maxmemory", 1)
    try:
        with Producer(settings=runtime.settings) as producer, pytest.raises(QueueFull, match="memory"):
            producer.report(f"{REPOSITORY}@{digest('a')}")
        run_intake(runtime)
        deliver_until(runtime, lambda: not read_counters(client, runtime.keys).waiting)
    finally:
        client.config_set("maxmemory", 0)
    counters = read_counters(client, runtime.keys)
    assert (counters.added, counters.delivered, counters.dead, counters.retries, counters.unaccounted) == (
        4,
        2,
        2,
        1,
        0,
    )
    assert api.counts().repeats == 0
