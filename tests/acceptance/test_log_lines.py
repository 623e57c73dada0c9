"""What a worker and a gateway write to standard error, as the machines read it that collect logs."""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import requests
from rig import TOKEN, wait_for

from relay import DeploymentEvent, Producer
from relay.processes.supervisor import Children

if TYPE_CHECKING:
    from pathlib import Path

    from rig import Estate

#: Lines that a worker may write at INFO for this many events: some for its start, and for each drain.
EVENTS, MOST_LINES = 500, 100


def report(estate: Estate, version: str, count: int = EVENTS) -> None:
    with Producer(estate.stack.redis_url) as producer:
        producer.report_many(
            DeploymentEvent.of(
                f"ghcr.io/acme/app-{n}@sha256:{sha256(f'{version} {n}'.encode()).hexdigest()}",
                environment="production",
                id=f"{version}-{n}",
            )
            for n in range(count)
        )


def lines_of(estate: Estate, name: str = "worker") -> list[dict[str, Any]]:
    """Return a log's lines, each of which must be JSON."""
    return [json.loads(line) for line in estate.stack.log_path(name).read_text().splitlines()]


def test_each_drain_has_a_line_and_no_event_has_one(estate: Estate) -> None:
    estate.start_worker()
    report(estate, "one")
    estate.wait_until_done(EVENTS)
    wait_for(lambda: sum(line.get("delivered", 0) for line in lines_of(estate)) == EVENTS, 20)
    lines = lines_of(estate)
    assert len(lines) < MOST_LINES
    assert all(line["role"] == "worker" and line["worker"].startswith("worker@") for line in lines)
    assert not [line for line in lines if line["level"] not in {"info", "warning"}]
    assert sum(line.get("taken", 0) for line in lines) == EVENTS
    for line in (line for line in lines if line["event"] == "delivery run"):
        assert line["names"] == ["production"]
        assert line["environments"] == 1
        assert line["seconds"] > 0
        assert line["wakeup"]
    assert not [line for line in lines if "-one-" in json.dumps(line)]


def test_a_drain_that_met_an_outage_says_why(estate: Estate) -> None:
    estate.start_worker()
    estate.api.faults = [{"kind": "status", "status": 503}]
    report(estate, "one", 40)
    wait_for(lambda: any(line.get("held") for line in lines_of(estate)), 30)
    estate.api.faults = []
    estate.wait_until_done(40)
    held = [line for line in lines_of(estate) if line.get("held")]
    assert "unavailable (HTTP 503)" in {line["held"] for line in held}
    assert sum(line.get("retrying", 0) for line in held) > 0
    warnings = [line["event"] for line in lines_of(estate) if line["level"] == "warning"]
    assert any(event.startswith("destination default is unavailable: HTTP 503") for event in warnings)
    wait_for(lambda: "destination default is healthy again" in estate.stack.log_path("worker").read_text())


def test_dead_letters_are_a_warning(estate: Estate) -> None:
    estate.api.faults = [{"kind": "status", "status": 422}]
    estate.start_worker()
    report(estate, "one", 1)
    estate.wait_until_done(1)
    wait_for(lambda: any(line.get("dead") for line in lines_of(estate)))
    assert [line["level"] for line in lines_of(estate) if line.get("dead")] == ["warning"]


def test_at_debug_an_events_id_leads_to_what_became_of_it(estate: Estate) -> None:
    estate.stack.environment["RELAY_LOG__LEVEL"] = "DEBUG"
    estate.api.faults = [{"kind": "status", "sequence": [503, 202], "repeat": True}]
    estate.start_worker()
    report(estate, "one", 10)
    report(estate, "one", 10)
    estate.wait_until_done(20)
    wait_for(lambda: '"duplicate"' in estate.stack.log_path("worker").read_text())
    told = [line for line in lines_of(estate) if line.get("event_id") == "one-3"]
    decisions = [line["decision"] for line in told if line["event"] == "taken in"]
    assert decisions == ["new", "duplicate"]
    outcomes = [line["outcome"] for line in told if line["event"] == "attempt"]
    assert outcomes[-1] == "delivered"
    assert all(line["environment"] == "production" for line in told if line["event"] == "attempt")
    assert TOKEN not in estate.stack.log_path("worker").read_text()


def test_the_gateways_lines_are_json_too(estate: Estate) -> None:
    """Its Redis is stopped, which it has to say."""
    estate.stack.start_gateway(0)
    assert requests.get(f"{estate.stack.gateway_url}/readyz", timeout=20).status_code == 200
    announced, *rest = estate.stack.log_path("gateway").read_text().splitlines()
    assert announced.startswith("Gateway on "), "standard output is for people"
    assert all(json.loads(line)["role"] == "gateway" for line in rest)


def test_text_is_for_people(estate: Estate, tmp_path: Path) -> None:
    """On standard error that is a terminal; there is no banner on standard output, which is none."""
    leader, follower = os.openpty()
    try:
        argv = [sys.executable, "-m", "relay", "worker", "--name", "seen@test", "--concurrency", "1"]
        shell = ["sh", "-c", 'exec "$@" 2>"$0"', os.ttyname(follower), *argv]
        with Children() as children:
            children.start(
                "seen",
                shell,
                env={**os.environ, **estate.stack.environment},
                log_path=tmp_path / "stdout",
                ready=lambda: bool(estate.client.exists(estate.keys.worker("seen@test"))),
                ready_seconds=60,
                stop_seconds=20,
            )
            shown = ""
            while "ready." not in shown:
                shown += os.read(leader, 65_536).decode()
        assert "{" not in shown.partition("seen@test")[0]
        assert "\x1b[" in shown, "a terminal has colours"
        assert (tmp_path / "stdout").read_text() == ""
    finally:
        os.close(leader)
        os.close(follower)
