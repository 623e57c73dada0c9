"""How a worker stops: the first signal asks, the second forces."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rig import pool_processes, wait_for

if TYPE_CHECKING:
    from rig import Estate

    from relay.processes.supervisor import Child


def under_load(estate: Estate, worker: Child, latency_seconds: float, events: int = 2000) -> list[int]:
    """Report events to a slow destination, wait for the first request, and return the pool's processes."""
    estate.api.faults = [{"kind": "latency", "seconds": latency_seconds}]
    estate.report(events)
    estate.api.wait_for(1, timeout_seconds=20)
    return pool_processes(worker.pid)


def have_ended(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{each}/cmdline").exists() for each in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["relay worker", "celery worker"])
def test_first_signal_stops_a_worker_with_exit_code_0(estate: Estate, command: str, number: int) -> None:
    """Requests in flight are finished and committed, the rest is released: no lease is left, no request repeated."""
    if command == "relay worker":
        worker = estate.start_worker()
    else:
        worker = estate.stack.start("worker", ["-m", "celery", "-A", "workers", "worker", "-c", "2", "-n", "w@test"])
        wait_for(lambda: bool(estate.client.exists(estate.keys.worker("w@test"))), 60)
    under_load(estate, worker, latency_seconds=0.3)
    worker.signal(number)
    end = worker.wait(20)
    assert end is not None
    assert end.code == 0, estate.stack.log_path("worker").read_text()
    assert not list(estate.client.scan_iter("{relay:0}:lease:*")), "a lease outlived its run"
    counters = estate.counters()
    assert counters.delivered == len(estate.api.requests)
    assert counters.waiting > 0, "the load was over before the signal"
    assert counters.unaccounted == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_a_worker_at_once_with_its_children(estate: Estate, number: int) -> None:
    estate.stack.environment |= {"RELAY_API__TIMEOUT": "60s", "RELAY_WORKER__LEASE": "90s"}
    worker = estate.start_worker()
    processes = under_load(estate, worker, latency_seconds=50)
    worker.signal(number)
    wait_for(lambda: "once more" in estate.stack.log_path("worker").read_text())
    worker.signal(number)
    end = worker.wait(10)
    assert end is not None
    assert end.code == 128 + number
    wait_for(lambda: have_ended(processes), 10)
    assert estate.client.exists(estate.keys.of_outbox("default", "deployed").lease), "it waited for its run"


def test_signal_to_the_whole_group_interrupts_no_run(estate: Estate) -> None:
    """systemd sends SIGTERM this way, a terminal SIGINT."""
    worker = estate.start_worker()
    under_load(estate, worker, latency_seconds=0.3)
    os.killpg(worker.pid, signal.SIGTERM)
    end = worker.wait(20)
    assert end is not None
    assert end.code == 0
    assert estate.counters().delivered == len(estate.api.requests)
    assert not list(estate.client.scan_iter("{relay:0}:lease:*"))


def test_next_worker_continues_where_a_stopping_one_ended(estate: Estate) -> None:
    first = estate.start_worker("first")
    under_load(estate, first, latency_seconds=0.05, events=1000)
    first.signal(signal.SIGTERM)
    assert first.wait(20) is not None
    estate.api.faults = []
    estate.start_worker("second")
    counters = estate.wait_until_done(1000)
    assert (counters.delivered, counters.unaccounted, len(estate.api.requests)) == (1000, 0, 1000)


@pytest.mark.parametrize("where", ["closed", "full", "broken"])
def test_log_that_cannot_be_written_stops_no_delivery(estate: Estate, where: str) -> None:
    redirect = {"closed": ">&- 2>&-", "full": ">/dev/full 2>&1", "broken": "> >(exit) 2>&1"}[where]
    command = f'exec "$0" -m relay worker --name mute@test --concurrency 1 {redirect}'
    worker = estate.stack._children.start(
        "mute", ["bash", "-c", command, sys.executable], env={**os.environ, **estate.stack.environment}
    )
    wait_for(lambda: bool(estate.client.exists(estate.keys.worker("mute@test"))), 60)
    under_load(estate, worker, latency_seconds=0, events=200)
    estate.api.faults = []
    assert estate.wait_until_done(200).delivered == 200
    worker.signal(signal.SIGTERM)
    end = worker.wait(20)
    assert end is not None
    assert end.code == 0
