"""`relay metrics` as Prometheus meets it: a process, its URL, and the numbers of a run, against what the API saw."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import requests
from exposed import Exposed, lint
from rig import TOKEN, Estate, wait_for

from relay import Producer
from relay.processes.embedded_redis import EmbeddedRedis
from relay.processes.supervisor import Child, await_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READY_SECONDS = 30

#: How long Prometheus waits for a scrape unless told otherwise.
SCRAPE_SECONDS = 10


def image(version: object, repository: str = "registry.example.com/app") -> str:
    return f"{repository}@sha256:{sha256(str(version).encode()).hexdigest()}"


@contextmanager
def exporting(redis_url: str, directory: Path, **environment: str) -> Iterator[tuple[Child, str]]:
    """Run `relay metrics` on a free port; its URL is what it prints."""
    log = directory / "metrics.log"
    env = {**os.environ, "RELAY_REDIS_URL": redis_url, **environment}
    child = Child("metrics", [sys.executable, "-m", "relay", "metrics", "--port", "0"], env=env, log_path=log)
    try:
        await_ready(child, lambda: b"\n" in log.read_bytes(), READY_SECONDS)
        line = log.read_text().splitlines()[0]
        assert line.startswith("Metrics on http://127.0.0.1:")
        yield child, line.removeprefix("Metrics on ")
    finally:
        child.kill()


def get(url: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, timeout=SCRAPE_SECONDS)


def scrape(url: str) -> Exposed:
    answer = get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Exposed(answer.text)


def test_metrics_of_a_run_equal_the_counters_and_what_the_api_saw(estate: Estate, tmp_path: Path) -> None:
    started = time.monotonic()
    estate.api.faults = [
        {"kind": "latency", "seconds": 0.3, "count": 1},
        {"kind": "status", "status": 503, "count": 3},
        {"kind": "status", "status": 400, "image": "*/refused@*"},
    ]
    estate.start_worker("one")
    estate.start_worker("two")
    with Producer(estate.stack.redis_url) as producer:
        for environment, number in (("production", 30), ("staging", 20), ("test", 10)):
            for instance in range(number):
                for version in ("a", "b", "b"):
                    producer.report(image(version), environment=environment, name=f"i{instance}")
        for number in range(4):
            producer.report(image(number, "registry.example.com/refused"), environment="production")
    estate.xadd("no json")
    counters = estate.wait_until_done(185)

    environment = {"RELAY_METRICS__ENVIRONMENTS": "2"}
    with exporting(estate.stack.redis_url, tmp_path, **environment) as (_, url):
        exposed, again = scrape(url), scrape(url)

    assert not lint(exposed.text)
    ends = ("added", "delivered", "duplicate", "stale", "superseded", "dead", "redriven", "dropped")
    told = {end: exposed.total(f"relay_events_{end}_total") for end in ends}
    assert told == {end: getattr(counters, end) for end in ends}
    assert told == {
        "added": 185, "delivered": 120, "duplicate": 60, "dead": 5,
        "stale": 0, "superseded": 0, "redriven": 0, "dropped": 0,
    }  # fmt: skip
    assert exposed.of("relay_events_delivered_total") == {
        (("environment", "production"),): 60,
        (("environment", "staging"),): 40,
        (("environment", "other"),): 20,
    }
    assert exposed.value("relay_events_dead_total", reason="refused") == 4
    assert exposed.value("relay_events_dead_total", reason="invalid") == 1
    assert exposed.total("relay_waiting_events", stream="dead") == 5
    answers = Counter(str(request.status) for request in estate.api.requests)
    attempts = {dict(labels)["code"]: n for labels, n in exposed.of("relay_delivery_attempts_total").items()}
    assert attempts == answers
    assert exposed.total("relay_delivery_attempts_total", outcome="retry") == answers["503"] == 3
    counted = exposed.of("relay_delivery_attempt_duration_seconds_count")
    assert sum(counted.values()) == len(estate.api.requests)
    took = exposed.of("relay_delivery_attempt_duration_seconds_sum")
    assert 0.3 <= sum(took.values()) <= len(estate.api.requests) * (time.monotonic() - started)
    assert exposed.value("relay_delivery_latency_seconds_count") == 120
    assert exposed.value("relay_delivery_latency_seconds_sum") > 0
    assert len(exposed.of("relay_worker_heartbeat_timestamp_seconds")) == 2
    assert exposed.value("relay_wakeups_total", why="work") > 0
    newest = exposed.value("relay_newest_delivered_timestamp_seconds")
    assert newest <= exposed.value("relay_newest_added_timestamp_seconds")
    assert newest <= exposed.value("relay_last_success_timestamp_seconds")
    assert TOKEN not in exposed.text

    def at_rest(found: Exposed) -> dict[tuple[object, ...], float]:
        lively = ("relay_scrape", "relay_worker_heartbeat", "relay_wakeups", "relay_redis_memory")
        return {key: value for key, value in found.samples.items() if not key[0].startswith(lively)}

    assert at_rest(again) == at_rest(exposed), "nothing happened between the two"


def test_a_takeover_and_an_unauthorized_destination_are_counted(estate: Estate, tmp_path: Path) -> None:
    estate.api.faults = [{"kind": "status", "status": 401}]
    worker = estate.start_worker()
    with Producer(estate.stack.redis_url) as producer:
        producer.report(image("a"), environment="production")
    with exporting(estate.stack.redis_url, tmp_path) as (_, url):

        def is_unauthorized() -> bool:
            labels = {"destination": "default", "state": "unauthorized"}
            return scrape(url).value("relay_destination_health", **labels) == 1

        wait_for(is_unauthorized, READY_SECONDS)
        assert scrape(url).total("relay_destination_unhealthy_seconds_total", state="unauthorized") > 0
        estate.api.faults = [{"kind": "hang"}]
        seen = len(estate.api.requests)
        wait_for(lambda: len(estate.api.requests) > seen, READY_SECONDS)
        worker.kill()
        estate.api.faults = []
        estate.start_worker("successor")
        estate.wait_until_done(1)
        exposed = scrape(url)

    assert exposed.value("relay_leases_taken_over_total") >= 1
    assert exposed.total("relay_delivery_attempts_total", outcome="unauthorized") >= 1
    assert exposed.value("relay_destination_health", destination="default", state="healthy") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exporter_stops_on_a_signal(number: int, tmp_path: Path) -> None:
    with EmbeddedRedis(append_only=False) as server, exporting(server.url, tmp_path) as (child, url):
        assert scrape(url).value("relay_up") == 1
        assert get(url.replace("/metrics", "/healthz")).text == "ok\n"
        assert get(url.replace("/metrics", "/else")).status_code == 404
        child.signal(number)
        ended = child.wait(READY_SECONDS)
        assert ended is not None
        assert ended.code == 0
        assert "Traceback" not in child.log_tail()


def test_redis_that_goes_or_hangs_is_told_as_away_and_as_back_when_it_is(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(append_only=False) as server,
        exporting(server.url, tmp_path) as (_, url),
    ):
        assert scrape(url).value("relay_up") == 1
        server.kill()
        away = scrape(url)
        assert away.value("relay_up") == 0
        assert not away.of("relay_events_added_total")

        server.restart()
        wait_for(lambda: scrape(url).value("relay_up") == 1, READY_SECONDS)

        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert scrape(url).value("relay_up") == 0
        finally:
            os.kill(server.pid, signal.SIGCONT)
        wait_for(lambda: scrape(url).value("relay_up") == 1, READY_SECONDS)


def test_port_that_is_taken_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    with EmbeddedRedis(append_only=False) as server, exporting(server.url, tmp_path) as (_, url):
        port = url.removesuffix("/metrics").rpartition(":")[2]
        log = tmp_path / "second.log"
        argv = [sys.executable, "-m", "relay", "metrics", "--port", port]
        second = Child("second", argv, env={**os.environ, "RELAY_REDIS_URL": server.url}, log_path=log)
        ended = second.wait(READY_SECONDS)
        assert ended is not None
        assert ended.code == 2
        assert "metrics.port" in log.read_text()
