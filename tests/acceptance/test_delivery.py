"""From a queue entry to the API, through real Celery worker processes."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections import defaultdict
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from rig import TOKEN, event_of, pool_processes, signal_all, wait_for

from relay import DeploymentEvent, Producer
from workers.delivery.circuit_breaker import FAILURES

if TYPE_CHECKING:
    from rig import Estate


def digest(version: object) -> str:
    return f"sha256:{sha256(str(version).encode()).hexdigest()}"


def image(version: object, repository: str = "docker.io/library/nginx") -> str:
    return f"{repository}@{digest(version)}"


def received_digests(estate: Estate) -> list[str]:
    return [request.event["image"]["url"].partition("@")[2] for request in estate.api.requests]


def test_a_bare_queue_entry_is_delivered_with_its_defaults(estate: Estate) -> None:
    estate.start_worker()
    estate.xadd(json.dumps({"image": {"url": image("a")}}))
    estate.api.wait_for(1, timeout_seconds=10)
    assert json.loads(estate.api.requests[0].body) == {
        "image": {"url": image("a")},
        "environment": {"name": "deployed"},
        "platform": {"os": "linux", "architecture": "amd64"},
    }


def test_a_rollback_is_delivered_and_a_repeat_is_not(estate: Estate) -> None:
    estate.start_worker()
    with Producer(estate.stack.redis_url) as producer:
        for version in ("a", "b", "a", "a", "a"):
            producer.report(image(version), environment="production")
    counters = estate.wait_until_done(5)
    assert received_digests(estate) == [digest("a"), digest("b"), digest("a")]
    assert (counters.delivered, counters.duplicate, counters.unaccounted) == (3, 2, 0)


def test_order_is_kept_for_each_of_500_instances_from_two_producers(estate: Estate) -> None:
    """A, B, A and A, A, A for 500 instances, interleaved at random, while the API sometimes fails."""
    estate.api.faults = [{"kind": "status", "status": 503, "probability": 0.05}]
    estate.start_worker("one", concurrency=2)
    estate.start_worker("two", concurrency=2)

    def produce(half: int) -> None:
        rng = random.Random(half)
        left = {n: list("abaaa") for n in range(half, 500, 2)}
        events = []
        while left:
            n = rng.choice(list(left))
            version = left[n].pop(0)
            if not left[n]:
                del left[n]
            url = image(f"{version}{n}", f"ghcr.io/acme/app-{n}")
            events.append(DeploymentEvent.of(url, environment=f"env-{n % 7}"))
        with Producer(estate.stack.redis_url) as producer:
            for start in range(0, len(events), 10):
                assert len(producer.report_many(events[start : start + 10])) == 10

    threads = [threading.Thread(target=produce, args=(half,)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = estate.wait_until_done(2500, timeout_seconds=60)

    assert (counters.delivered, counters.duplicate, counters.dead, counters.unaccounted) == (1500, 1000, 0, 0)
    attempts = defaultdict(list)
    delivered = defaultdict(list)
    for request in estate.api.requests:
        url = request.event["image"]["url"]
        attempts[url.partition("@")[0]].append(request.idempotency_key)
        if request.processed:
            delivered[url.partition("@")[0]].append(url.partition("@")[2])
    for n in range(500):
        repository = f"ghcr.io/acme/app-{n}"
        assert delivered[repository] == [digest(f"{version}{n}") for version in "aba"]
        assert len(list(groupby(attempts[repository]))) == 3, "an event was tried before the one before it was done"
    assert any(len(set(keys)) < len(keys) for keys in attempts.values()), "no attempt failed: nothing was shown"
    assert estate.api.counts().repeats == 0


@pytest.mark.parametrize("victim", ["worker", "child"])
def test_a_killed_process_loses_nothing(estate: Estate, victim: str) -> None:
    """SIGKILL of a whole worker, or of a pool process, with requests in flight."""
    estate.api.faults = [{"kind": "latency", "seconds": 0.05}]
    doomed = estate.start_worker("doomed", concurrency=2)
    with Producer(estate.stack.redis_url) as producer:
        events = (
            DeploymentEvent.of(image(n, f"ghcr.io/acme/app-{n}"), environment=f"env-{n % 4}") for n in range(3000)
        )
        assert len(producer.report_many(events)) == 3000
    estate.api.wait_for(300, timeout_seconds=20)
    if victim == "worker":
        doomed.kill()
        estate.start_worker("successor")
    else:
        signal_all(pool_processes(doomed.pid), signal.SIGKILL)
    counters = estate.wait_until_done(3000, timeout_seconds=60)
    counts = estate.api.counts()
    assert (counters.delivered, counters.dead, counters.unaccounted) == (3000, 0, 0)
    assert counts.accepted - counts.repeats == 3000
    assert counts.repeats <= 2 * 32 + 250, "more was repeated than was in flight or answered and not yet committed"


def test_a_run_suspended_past_its_lease_is_replaced_and_cannot_commit(estate: Estate) -> None:
    paused = estate.start_worker("paused", concurrency=1)
    estate.api.faults = [{"kind": "latency", "seconds": 0.3}]
    with Producer(estate.stack.redis_url) as producer:
        events = (DeploymentEvent.of(image(n, f"ghcr.io/acme/app-{n}"), environment="production") for n in range(300))
        assert len(producer.report_many(events)) == 300
    estate.api.wait_for(40, timeout_seconds=10)
    children = pool_processes(paused.pid)
    signal_all([paused.pid, *children], signal.SIGSTOP)
    estate.api.faults = []
    estate.start_worker("successor")
    counters = estate.wait_until_done(300)
    assert counters.delivered == 300
    signal_all([*children, paused.pid], signal.SIGCONT)
    log = estate.stack.log_path("paused")
    wait_for(lambda: "leases_lost" in log.read_text(), timeout_seconds=20, seen=log.read_text)
    counts = estate.api.counts()
    assert estate.counters().delivered == 300
    assert counts.accepted - counts.repeats == 300
    assert counts.repeats <= 32 + 250


def test_an_outage_loses_nothing_and_a_refused_event_is_a_dead_letter(estate: Estate) -> None:
    estate.start_worker()
    estate.api.faults = [
        {"kind": "status", "status": 422, "image": "ghcr.io/acme/refused@*"},
        {
            "kind": "status",
            "status": 503,
            "count": FAILURES + 2,
        },  # as many as open the circuit breaker, and two probes
    ]
    with Producer(estate.stack.redis_url) as producer:
        for n in range(50):
            producer.report(image(n, f"ghcr.io/acme/app-{n}"), environment="production")
        producer.report(image(1, "ghcr.io/acme/refused"), environment="production")
    counters = estate.wait_until_done(51)
    assert (counters.delivered, counters.dead_by_reason, counters.unaccounted) == (50, {"refused": 1}, 0)
    assert counters.retries > 0
    [(_, letter)] = estate.client.xrange(estate.keys.dead)
    assert letter[b"reason"] == b"refused"
    assert letter[b"status"] == b"422"

    estate.api.faults = []
    with Producer(estate.stack.redis_url) as producer:
        producer.report(image(1, "ghcr.io/acme/refused"), environment="production")
    counters = estate.wait_until_done(52)
    assert counters.delivered == 51, "the report made again was taken for a duplicate of one that never arrived"


def test_a_bad_token_uses_up_no_attempt(estate: Estate) -> None:
    estate.api.faults = [{"kind": "status", "status": 401, "count": 3}]
    estate.start_worker()
    estate.xadd(json.dumps({"image": {"url": image("a")}}))
    counters = estate.wait_until_done(1)
    assert (counters.delivered, counters.dead) == (1, 0)
    assert estate.api.counts().received > 1


def test_retry_after_throttles_the_whole_destination(estate: Estate) -> None:
    estate.api.faults = [{"kind": "status", "status": 429, "headers": {"Retry-After": "2"}, "count": 1}]
    estate.start_worker("one", concurrency=2)
    estate.start_worker("two", concurrency=2)
    for n in range(5):
        estate.xadd(json.dumps({"image": {"url": image(n, f"ghcr.io/a/b{n}")}, "environment": {"name": f"e{n}"}}))
    counters = estate.wait_until_done(5)
    assert counters.delivered == 5
    told = next(request for request in estate.api.requests if request.status == 429)
    late = [r for r in estate.api.requests if r.monotonic_seconds > told.monotonic_seconds + 0.5]
    assert late
    assert min(r.monotonic_seconds for r in late) >= told.monotonic_seconds + 1.9


def test_a_celery_producer_needs_no_relay(estate: Estate) -> None:
    estate.start_worker()
    with Celery(broker=estate.stack.redis_url, set_as_current=False) as app:
        body = {"image": {"url": image("c")}, "environment": {"name": "production"}}
        app.send_task("relay.report", args=[body], kwargs={"id": "job-7", "source": "ci"})
        app.send_task("relay.report", args=[{"image": {"url": "nginx:1.27"}}])
        app.send_task("relay.report", args=[body], kwargs={"environment": "no such argument"})
        app.send_task("relay.report")
    counters = estate.wait_until_done(4)
    assert (counters.delivered, counters.dead_by_reason) == (1, {"invalid": 3})
    assert event_of(estate.api.requests[0].idempotency_key) == "job-7"


def test_an_environment_has_its_own_default_platform(estate: Estate) -> None:
    estate.stack.environment["RELAY_ENVIRONMENTS"] = '{"edge-*": {"platform": "linux/arm/v7"}}'
    estate.start_worker()
    for environment in ("edge-7", "production"):
        body = {"image": {"url": image("a")}, "environment": {"name": environment}, "platform": None}
        estate.xadd(json.dumps(body))
    estate.wait_until_done(2)
    platforms = {r.environment: r.event["platform"] for r in estate.api.requests}
    assert platforms == {
        "edge-7": {"os": "linux", "architecture": "arm", "variant": "v7"},
        "production": {"os": "linux", "architecture": "amd64"},
    }


def test_the_token_is_only_in_the_request(estate: Estate) -> None:
    estate.api.faults = [{"kind": "status", "sequence": [401, 500, 422]}]
    estate.start_worker()
    for n in range(3):
        estate.xadd(json.dumps({"image": {"url": image(n, f"ghcr.io/a/b{n}")}}))
    estate.wait_until_done(3)
    token = TOKEN.encode()
    assert token not in b"".join(estate.client.dump(key) or b"" for key in estate.client.scan_iter())
    assert token not in b"".join(path.read_bytes() for path in estate.stack.directory.rglob("*.log"))


def test_sigterm_stops_a_worker_under_load_with_nothing_left(estate: Estate) -> None:
    estate.api.faults = [{"kind": "latency", "seconds": 0.05}]
    worker = estate.start_worker()
    with Producer(estate.stack.redis_url) as producer:
        events = (DeploymentEvent.of(image(n, f"ghcr.io/acme/app-{n}")) for n in range(2000))
        assert len(producer.report_many(events)) == 2000
    estate.api.wait_for(100, timeout_seconds=10)
    worker.signal(signal.SIGTERM)
    ended = worker.wait(15)
    assert ended is not None
    assert ended.code == 0
    assert not list(estate.client.scan_iter("{relay:0}:lease:*")), "a run left its lease"
    estate.start_worker("successor")
    assert estate.wait_until_done(2000).delivered == 2000
    assert estate.api.counts().repeats == 0
