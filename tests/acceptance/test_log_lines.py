"""The log lines of a worker and a gateway on standard error, as a log collector reads them."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import requests
from rig import TOKEN, wait_for

from relay.processes.supervisor import Children

if TYPE_CHECKING:
    from pathlib import Path

    from rig import Estate

#: Events, and the maximum lines of a worker at INFO for them: some for its start, and one for each run.
EVENTS, MAX_LINES = 500, 100


def lines_of(estate: Estate, name: str = "worker") -> list[dict[str, Any]]:
    """Return the lines of a log; each must be JSON."""
    return [json.loads(line) for line in estate.log(name).splitlines()]


def test_each_run_has_a_line_and_no_event_has_one(estate: Estate) -> None:
    estate.start_worker()
    estate.report(EVENTS, environment="production", ids="event-of-the-tests-")
    estate.wait_until_done(EVENTS)
    wait_for(lambda: sum(line.get("delivered", 0) for line in lines_of(estate)) == EVENTS, 20)
    lines = lines_of(estate)
    assert len(lines) < MAX_LINES
    assert all(line["role"] == "worker" and line["worker"].startswith("worker@") for line in lines)
    assert not [line for line in lines if line["level"] not in {"info", "warning"}]
    assert sum(line.get("taken", 0) for line in lines) == EVENTS
    for line in (line for line in lines if line["event"] == "delivery run"):
        assert line["names"] == ["production"]
        assert line["environments"] == 1
        assert line["seconds"] > 0
        assert line["wakeup"]
    assert not [line for line in lines if "event-of-the-tests" in json.dumps(line)]


def test_line_of_a_run_that_met_an_outage_has_its_reason(estate: Estate) -> None:
    estate.start_worker()
    estate.api.faults = [{"kind": "status", "status": 503}]
    estate.report(40)
    wait_for(lambda: any(line.get("health") for line in lines_of(estate)), 30)
    estate.api.faults = []
    estate.wait_until_done(40)
    unhealthy = [line for line in lines_of(estate) if line.get("health")]
    assert "unavailable (HTTP 503)" in {line["health"] for line in unhealthy}
    assert sum(line.get("retrying", 0) for line in unhealthy) > 0
    warnings = [line["event"] for line in lines_of(estate) if line["level"] == "warning"]
    assert any(event.startswith("destination default is unavailable: HTTP 503") for event in warnings)
    wait_for(lambda: "destination default is healthy again" in estate.log())


def test_dead_letters_are_a_warning(estate: Estate) -> None:
    estate.api.faults = [{"kind": "status", "status": 422}]
    estate.start_worker()
    estate.report(1)
    estate.wait_until_done(1)
    wait_for(lambda: any(line.get("dead") for line in lines_of(estate)))
    assert [line["level"] for line in lines_of(estate) if line.get("dead")] == ["warning"]


def test_lines_at_debug_have_an_events_id_and_its_outcomes(estate: Estate) -> None:
    estate.stack.environment["RELAY_LOG__LEVEL"] = "DEBUG"
    estate.api.faults = [{"kind": "status", "sequence": [503, 202], "repeat": True}]
    estate.start_worker()
    for _ in range(2):
        estate.report(10, environment="production", ids="one-")
    estate.wait_until_done(20)
    wait_for(lambda: '"duplicate"' in estate.log())
    found = [line for line in lines_of(estate) if line.get("event_id") == "one-3"]
    decisions = [line["decision"] for line in found if line["event"] == "taken in"]
    assert decisions == ["new", "duplicate"]
    outcomes = [line["outcome"] for line in found if line["event"] == "attempt"]
    assert outcomes[-1] == "delivered"
    assert all(line["environment"] == "production" for line in found if line["event"] == "attempt")
    assert TOKEN not in estate.log()


def test_lines_of_the_gateway_are_json_too(estate: Estate) -> None:
    estate.stack.start_gateway(0)
    assert requests.get(f"{estate.stack.gateway_url}/readyz", timeout=20).status_code == 200
    announced, *rest = estate.log("gateway").splitlines()
    assert announced.startswith("Gateway on "), "standard output is for a person"
    assert all(json.loads(line)["role"] == "gateway" for line in rest)


def test_lines_on_a_terminal_are_text(estate: Estate, tmp_path: Path) -> None:
    """Standard error is a terminal; standard output is none, so there is no banner."""
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
