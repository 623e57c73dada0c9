"""The drains against a real Redis and a real HTTP server, stopped at the points where they could race."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from drains import (
    KEYS,
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
from rig import wait_for

from relay import Producer
from relay.errors import QueueFull
from relay.queue import health, inbox, leases, scripts
from relay.queue.counters import read_ledger
from relay.queue.inbox import InboxEntry
from relay.queue.keys import DEFAULT_ENDPOINT
from relay.sandbox import Sandbox
from workers.delivery.run import drain_outboxes
from workers.intake import run as intake
from workers.intake.run import drain_inbox
from workers.scheduling import poller as doorman_module
from workers.scheduling.poller import Doorman

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
    drain_inbox(runtime)
    report(client, "a")
    judge = intake.judge_in_order
    rounds = []

    def judge_and_let_delivery_in(*args: object, **options: object) -> object:
        rounds.append(judged := judge(*args, **options))
        if len(rounds) == 1:
            drain_outboxes(runtime, ["production"])
        return judged

    monkeypatch.setattr(intake, "judge_in_order", judge_and_let_delivery_in)
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])

    verdicts = [[verdict for item in judged for verdict, _ in item.entries] for judged in rounds]
    assert verdicts == [["duplicate"], ["new"]], "the race did not happen"
    ledger = read_ledger(client, runtime.keys)
    assert (ledger.dead, ledger.duplicate, ledger.delivered, ledger.unaccounted) == (1, 0, 1, 0)


def test_a_dead_letter_that_was_not_the_last_accepted_leaves_the_state(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    for version in ("a", "b"):
        report(client, version)
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])
    report(client, "b")
    report(client, "a")
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])
    assert delivered_digests(api) == [digest("b"), digest("a")]
    assert read_ledger(client, runtime.keys).duplicate == 1


def test_intake_whose_lease_ran_out_commits_nothing(
    runtime: Runtime, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(client, "a")
    judge = intake.judge_in_order

    def pause_past_the_lease(*args: object, **options: object) -> object:
        client.delete(runtime.keys.intake_lease)
        keys = runtime.keys
        successor = leases.acquire_call(
            keys.intake_bell, keys.intake_lease, keys.intake_run, "successor", 5, counts=keys.counts
        )
        scripts.run(client, successor)
        return judge(*args, **options)

    monkeypatch.setattr(intake, "judge_in_order", pause_past_the_lease)
    done = drain_inbox(runtime)
    assert done is not None
    assert done.lease_lost
    assert client.xlen(runtime.keys.inbox) == 1
    assert client.get(runtime.keys.intake_lease) == b"successor"


def test_delivery_whose_lease_ran_out_commits_nothing(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    report(client, "a")
    drain_inbox(runtime)
    keys = runtime.keys.of_outbox(DEFAULT_ENDPOINT, "production")
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
    done = drain_outboxes(paused, ["production"])
    assert done is not None
    assert done.leases_lost == 1
    assert client.xlen(keys.outbox) == 1, "a drain without its lease took the entry out"
    assert read_ledger(client, runtime.keys).delivered == 0

    client.delete(keys.lease)
    drain_outboxes(runtime, ["production"])
    assert delivered_digests(api) == [digest("a"), digest("a")]
    assert len({request.idempotency_key for request in api.requests}) == 1


def test_what_is_sent_has_left_before_the_drain_waits_for_redis(
    runtime: Runtime, client: Redis, api: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would leave after that wait, when the lease that it was sent under may be another's."""
    for number in range(150):
        report_image(client, image_of(f"app-{number}"))
    drain_inbox(runtime)
    api.faults = [{"kind": "latency", "seconds": 0.02, "jitter_seconds": 0.02}]
    run_all, wait = scripts.run_all, runtime.transport.wait
    answered: list[object] = []
    waits: list[int] = []

    class Transport:
        """The real one; what it has answered is counted."""

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
    done = drain_outboxes(replace(runtime, transport=Transport()), ["production"])
    assert done is not None
    assert done.delivered == 150
    assert sum(map(bool, waits)) > 1, "it never asked Redis with anything in flight"


def test_only_one_drain_at_a_time(runtime: Runtime, client: Redis) -> None:
    report(client, "a")
    client.set(runtime.keys.intake_lease, "another", px=5000)
    assert drain_inbox(runtime) is None
    client.delete(runtime.keys.intake_lease)
    drain_inbox(runtime)
    client.set(runtime.keys.of_outbox(DEFAULT_ENDPOINT, "production").lease, "another", px=5000)
    assert drain_outboxes(runtime, ["production"]) is None


def test_what_keeps_failing_is_a_dead_letter_with_its_last_answer(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "status": 500}]
    report(client, "a", id="job-1", source="ci")
    drain_inbox(runtime)
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
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])
    delivered = delivered_digests(api)
    assert delivered.count(digest("x")) == 50
    assert digest("after") not in delivered, "a later event overtook a failing one of its instance"
    assert client.zcard(runtime.keys.of_outbox(DEFAULT_ENDPOINT, "production").parked) == 2


def test_a_backlog_larger_than_a_batch_with_failures_all_over_is_delivered_in_order(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    """Small batches, so that parked entries lie before, in and behind the window."""
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
    drain_inbox(runtime)
    deliver_until(runtime, lambda: not read_ledger(client, runtime.keys).waiting)
    for name in ("one", "two", "three"):
        found = [r.event["image"]["url"] for r in api.requests if r.processed and r.event["image"]["name"] == name]
        assert found == [f"{REPOSITORY}@{digest(version)}" for version in versions]
    assert api.counts().repeats == 0
    runtime.close()


def test_ten_thousand_quiet_environments_cost_tens_of_bells(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    runtime = make_runtime_for(redis_server, api, worker={"budget": 60})
    rings: list[tuple[str, ...]] = []
    runtime.bells._ring = lambda _task, names: rings.append(tuple(names))  # type: ignore[method-assign]
    entries = [
        {"event": json.dumps({"image": {"url": f"{REPOSITORY}@{digest('a')}"}, "environment": {"name": f"env-{n}"}})}
        for n in range(10_000)
    ]
    for start in range(0, len(entries), 1000):
        scripts.run(client, inbox.append_call(runtime.keys, entries[start : start + 1000], 1_000_000))
    done = drain_inbox(runtime)
    assert done is not None
    runtime.bells.ring_delivery(done.to_deliver)
    assert sum(len(names) for names in rings) == 10_000
    assert len(rings) <= 110
    for names in rings[:3]:
        drain_outboxes(runtime, names)
    assert api.counts().accepted == sum(len(names) for names in rings[:3])
    runtime.close()


class Heard:
    """Bells that ring here."""

    def __init__(self) -> None:
        self.rings: list[str] = []

    def ring_intake(self) -> None:
        self.rings.append("intake")

    def ring_delivery(self, environments: list[str]) -> None:
        self.rings += environments


def test_the_doorman_rings_again_for_what_lost_its_bell(runtime: Runtime, client: Redis) -> None:
    heard = Heard()
    doorman = Doorman(runtime.settings, client, heard, "tests")  # type: ignore[arg-type]
    doorman.ring_for_what_waits()
    assert heard.rings == []
    report(client, "a")
    doorman.ring_for_what_waits()
    doorman.ring_for_what_waits()
    assert heard.rings == ["intake"], "bells must coalesce"
    client.delete(runtime.keys.intake_bell)
    doorman.ring_for_what_waits()
    assert heard.rings == ["intake", "intake"]
    drain_inbox(runtime)
    heard.rings.clear()
    keys = runtime.keys.of_outbox(DEFAULT_ENDPOINT, "production")
    client.delete(keys.bell)
    doorman.ring_for_what_waits()
    assert heard.rings == ["production"]
    client.delete(keys.bell)
    client.set(keys.lease, "somebody", px=5000)
    doorman.ring_for_what_waits()
    assert heard.rings == ["production"], "a drain is at it already"


def test_doorman_rests_from_many_outboxes_and_not_from_the_inbox(
    runtime: Runtime, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorman_module, "FEW", 2)
    monkeypatch.setattr(doorman_module, "REST_FACTOR", 1_000_000)
    monkeypatch.setattr(doorman_module, "LOOK_SECONDS", 60.0)  # the most that it rests
    for number in range(3):
        report(client, "a", f"env-{number}")
    drain_inbox(runtime)
    outboxes = [KEYS.of_outbox(DEFAULT_ENDPOINT, f"env-{number}") for number in range(3)]
    heard = Heard()
    doorman = Doorman(runtime.settings, client, heard, "tests")  # type: ignore[arg-type]

    def ring() -> None:
        client.delete(KEYS.intake_bell, *(outbox.bell for outbox in outboxes))
        doorman.ring_for_what_waits()

    ring()
    assert heard.rings == ["env-0", "env-1", "env-2"]
    report(client, "b", "env-0")
    ring()
    assert heard.rings[3:] == ["intake"]
    doorman._rest_until = 0.0
    ring()
    assert heard.rings[4:] == ["intake", "env-0", "env-1", "env-2"]


def test_script_flush_in_between_is_survived(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    for version in ("a", "b"):
        client.script_flush()
        report(client, version)
        drain_inbox(runtime)
        client.script_flush()
        drain_outboxes(runtime, ["production"])
    assert delivered_digests(api) == [digest("a"), digest("b")]


def test_an_outbox_that_somebody_deleted_is_reported_and_does_not_fill_the_queue_for_ever(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    for n in range(10):
        report(client, str(n))
    drain_inbox(runtime)
    client.delete(runtime.keys.of_outbox(DEFAULT_ENDPOINT, "production").outbox)
    drain_outboxes(runtime, ["production"])
    ledger = read_ledger(client, runtime.keys)
    assert (ledger.added, ledger.waiting, ledger.unaccounted) == (10, 0, 10), "a loss must show"
    report(client, "next")
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])
    assert delivered_digests(api) == [digest("next")]


def test_a_digest_is_delivered_again_once_when_it_is_time_and_not_for_each_report(
    redis_server: EmbeddedRedis, client: Redis, api: Sandbox
) -> None:
    runtime = make_runtime_for(redis_server, api, delivery={"reassert_after": "50ms"})
    report(client, "a")
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])
    seconds, microseconds = client.time()
    later = seconds * 1000 + microseconds // 1000 + 60_000
    for n in range(20):
        body = {"image": {"url": f"{REPOSITORY}@{digest('a')}"}, "environment": {"name": "production"}}
        client.xadd(runtime.keys.inbox, {"event": json.dumps(body)}, id=f"{later}-{n}")
    drain_inbox(runtime)
    drain_outboxes(runtime, ["production"])
    assert delivered_digests(api) == [digest("a"), digest("a")]
    runtime.close()


def test_a_hold_set_by_another_worker_is_heeded_with_entries_in_hand(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    for n in range(200):
        body = {"image": {"url": f"ghcr.io/acme/app-{n}@{digest('x')}"}, "environment": {"name": "production"}}
        client.xadd(runtime.keys.inbox, {"event": json.dumps(body)})
    drain_inbox(runtime)
    api.faults = [{"kind": "latency", "seconds": 0.02}]
    wait = runtime.transport.wait

    class Transport:
        """The real one; after the first answers another worker holds the endpoint."""

        def __getattr__(self, name: str) -> object:
            return getattr(runtime.transport, name)

        def wait(self, timeout_seconds: float) -> object:
            answers = wait(timeout_seconds)
            if answers and not client.exists(runtime.keys.endpoint(DEFAULT_ENDPOINT)):
                health.hold(client, runtime.keys, DEFAULT_ENDPOINT, seconds=60, reason="rate_limited")
            return answers

    done = drain_outboxes(replace(runtime, transport=Transport()), ["production"])
    assert done is not None
    assert done.held == "rate_limited"
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
        drain_inbox(runtime)
        deliver_until(runtime, lambda: not read_ledger(client, runtime.keys).waiting)
    finally:
        client.config_set("maxmemory", 0)
    ledger = read_ledger(client, runtime.keys)
    assert (ledger.added, ledger.delivered, ledger.dead, ledger.retries, ledger.unaccounted) == (4, 2, 2, 1, 0)
    assert api.counts().repeats == 0
