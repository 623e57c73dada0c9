"""An operator who is told only "production stopped arriving at noon" finds the cause in three commands at most.

Each test plants one fault in a relay of real processes that was at work before, runs the commands as the operator
would, and looks for the words that name the cause: among the first that `relay status` says, and as a fault of
`relay doctor`. A cause that is not there must not be named: an alarm that was false once is ignored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from rig import FILLER, MEBIBYTE, TOKEN, wait_for

from relay import Producer
from relay.errors import QueueFull

if TYPE_CHECKING:
    from rig import Estate


#: What names each cause, in `relay status` and `relay doctor`.
TOKEN_REFUSED = "refuses the token"
API_DOWN = "the destination is unavailable"
THROTTLED = "limits the rate"
NO_WORKERS = "no worker is alive"
REDIS_FULL = "Redis is full"
ONE_EVENT = "one event is at fault"
PAUSED = "paused by an operator"

CAUSES = {TOKEN_REFUSED, API_DOWN, THROTTLED, NO_WORKERS, REDIS_FULL, ONE_EVENT, PAUSED}


def image(service: str, version: object) -> str:
    return f"ghcr.io/acme/{service}@sha256:{sha256(str(version).encode()).hexdigest()}"


class Operator:
    """Has a shell with the relay's variables, and counts what was typed."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self.commands = 0

    def runs(self, *command: str) -> str:
        """Run one command, and return what it says."""
        self.commands += 1
        assert self.commands <= 3, "three commands at most"
        done = subprocess.run(
            [sys.executable, "-m", "relay", *command],
            env={**os.environ, **self._estate.stack.environment},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode in {0, 1}, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout

    def faults(self) -> list[str]:
        """Run `relay doctor`, and return its lines that are faults."""
        return [line for line in self.runs("doctor").splitlines() if line.startswith("fault")]


@pytest.fixture
def operator(estate: Estate) -> Operator:
    return Operator(estate)


def report(estate: Estate, environment: str = "production", *, service: str = "web", versions: int = 30) -> None:
    """Report so many services' deployments."""
    with Producer(estate.stack.redis_url) as producer:
        producer.report_many(
            {"image": {"url": image(f"{service}-{n}", n)}, "environment": {"name": environment}}
            for n in range(versions)
        )


def was_at_work(estate: Estate) -> None:
    """A worker, and a morning's events that arrived."""
    estate.start_worker()
    report(estate, service="morning")
    estate.wait_until_done(30)


def until(estate: Estate, words: str) -> None:
    """Wait until the fault shows at all in what the relay knows, as it would have hours later."""

    wait_for(lambda: any(words in each["what"] for each in findings(estate)), 60, lambda: str(findings(estate)))


def findings(estate: Estate) -> list[dict[str, str]]:
    """What `relay status` finds, for a test to wait for: no command of the operator's."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "status", "--json"],
        env={**os.environ, **estate.stack.environment},
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


def names_first(said: str, cause: str) -> bool:
    """Whether the first line names the cause, and no line another."""
    named = {each for each in CAUSES if each in said}
    return cause in said.splitlines()[0] and named == {cause}


def test_an_expired_token(estate: Estate, operator: Operator) -> None:
    was_at_work(estate)
    estate.api.faults = [{"kind": "status", "status": 401}]
    report(estate)
    until(estate, TOKEN_REFUSED)
    said = operator.runs("status")
    assert names_first(said, TOKEN_REFUSED), said
    assert "it expired or is wrong" in said
    assert "RELAY_API_TOKEN_FILE" in said.splitlines()[0]
    faults = operator.faults()
    assert any(TOKEN_REFUSED in line for line in faults), faults
    assert all("token" in line for line in faults), faults


def test_an_api_that_is_down(estate: Estate, operator: Operator) -> None:
    was_at_work(estate)
    estate.api.close()
    report(estate)
    until(estate, API_DOWN)
    said = operator.runs("status")
    assert names_first(said, API_DOWN), said
    assert "nothing is lost" in said.splitlines()[0]
    faults = operator.faults()
    assert any("is not reachable: the connection is refused" in line for line in faults), faults


def test_an_api_that_limits_the_rate(estate: Estate, operator: Operator) -> None:
    was_at_work(estate)
    estate.api.faults = [{"kind": "status", "status": 429, "headers": {"Retry-After": "600"}}]
    report(estate)
    until(estate, THROTTLED)
    said = operator.runs("status")
    assert names_first(said, THROTTLED), said
    assert "min more" in said.splitlines()[0], "until when is told"
    faults = operator.faults()
    assert any(THROTTLED in line for line in faults), faults


def test_workers_that_are_dead(estate: Estate, operator: Operator) -> None:
    worker = estate.start_worker()
    report(estate, service="morning")
    estate.wait_until_done(30)
    worker.kill()
    report(estate)
    until(estate, NO_WORKERS)
    said = operator.runs("status")
    assert names_first(said, NO_WORKERS), said
    assert "30 events are waiting" in said.splitlines()[0]
    assert "`relay worker`" in said.splitlines()[0]
    faults = operator.faults()
    assert len(faults) == 1, faults
    assert NO_WORKERS in faults[0]
    assert "the last was worker@" in faults[0]


def test_a_redis_that_is_full(estate: Estate, operator: Operator) -> None:
    was_at_work(estate)
    used = int(estate.client.info("memory")["used_memory"])
    estate.client.config_set("maxmemory", used + 32 * MEBIBYTE)
    for number in range(int((0.95 * (used + 32 * MEBIBYTE) - used) / MEBIBYTE)):
        estate.client.set(f"other-data:{number}", FILLER)
    with pytest.raises(QueueFull):
        report(estate)
    said = operator.runs("status")
    assert names_first(said, REDIS_FULL), said
    assert "producers are refused" in said.splitlines()[0]
    assert "maxmemory" in said.splitlines()[0]
    faults = operator.faults()
    assert len(faults) == 1, faults
    assert REDIS_FULL in faults[0]


def test_one_event_that_the_api_chokes_on(estate: Estate, operator: Operator) -> None:
    """It is tried again and again, while the others arrive."""
    estate.stack.environment |= {"RELAY_DELIVERY__MAX_ATTEMPTS": "1000", "RELAY_DELIVERY__BACKOFF_MAX": "60s"}
    was_at_work(estate)
    estate.api.faults = [{"kind": "status", "status": 500, "image": "*/poison-0@*"}]
    report(estate, service="poison", versions=1)

    def others_arrive_beside_it() -> bool:
        report(estate, service=f"fresh-{estate.api.counts().accepted}", versions=1)
        return any(ONE_EVENT in each["what"] for each in findings(estate))

    wait_for(others_arrive_beside_it, 90, lambda: str(findings(estate)))
    said = operator.runs("status")
    first = said.splitlines()[0]
    assert ONE_EVENT in first or "all of one event perhaps" in first, said  # a moment of failures only, or others too
    assert "ghcr.io/acme/poison-0" in first
    assert "in production" in first
    assert not {each for each in CAUSES - {ONE_EVENT} if each in said}, said


def test_one_event_that_was_given_up(estate: Estate, operator: Operator) -> None:
    was_at_work(estate)
    estate.api.faults = [{"kind": "status", "status": 500, "image": "*/poison-0@*"}]
    report(estate, service="poison", versions=1)
    report(estate)
    wait_for(lambda: bool(estate.counters().dead_waiting), 60, lambda: str(estate.counters()))
    estate.wait_until_done(61)
    said = operator.runs("status")
    assert "1 dead letter waits for a decision" in said.splitlines()[0], said
    assert "ghcr.io/acme/poison-0" in said.splitlines()[0]
    assert not {each for each in CAUSES if each in said}, said
    said = operator.runs("dead", "list")
    assert "poison-0" in said
    assert "exhausted" in said
    assert "HTTP 500" in said


def test_an_environment_that_somebody_paused(estate: Estate, operator: Operator) -> None:
    was_at_work(estate)
    operator_of_yesterday = Operator(estate)
    operator_of_yesterday.runs("pause", "production")
    report(estate)
    report(estate, environment="staging")
    wait_for(lambda: estate.counters().delivered == 60, 60, lambda: str(estate.counters()))
    said = operator.runs("status")
    assert names_first(said, PAUSED), said
    assert said.startswith("production is paused by an operator, and 30 events are waiting there")
    assert "`relay resume production`" in said.splitlines()[0]
    faults = operator.faults()
    assert len(faults) == 1, faults
    assert "production is paused by an operator" in faults[0]


def test_nothing_at_all(estate: Estate, operator: Operator) -> None:
    """The fault is not here: then nothing is named, and the operator looks at the producers."""
    was_at_work(estate)
    said = operator.runs("status")
    assert not {each for each in CAUSES if each in said}, said
    assert operator.faults() == []
