"""A machine without disk, descriptors or memory, and clocks that are wrong."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faults.api import OK
from faults.ground import Footprint, Worker, scenario

from relay.processes.supervisor import Child
from relay.queue.health import HealthState
from relay.sandbox.response import Response
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults.ground import Ground

READY_SECONDS = 60.0

#: No test here waits for a time-out; these are long enough for a busy machine.
PATIENCE = {"RELAY_API__TIMEOUT": "4s", "RELAY_API__CONNECT_TIMEOUT": "3s", "RELAY_WORKER__LEASE": "6s"}

#: Redirections of a worker's output, and the descriptor that each makes.
OUTPUTS = {
    "> /dev/full 2>&1": "/dev/full",
    "<&- >&- 2>&-": "/dev/null",
    "> >(exit) 2>&1": "pipe:",
}


def start_with_output(ground: Ground, name: str, redirection: str) -> Worker:
    """Start a worker without output: only its heartbeat shows that it runs."""
    argv = [sys.executable, "-m", "relay", "worker", "--name", f"{name}@%h", "--concurrency", "1"]
    log = ground.directory / f"{name}.log"
    shell = ["bash", "-c", f'exec "$@" {redirection}', "bash", *argv]
    child = Child(name, shell, env={**os.environ, **ground.environment}, log_path=log)
    worker = Worker(name, child, log, ground.keys.worker(f"{name}@{socket.gethostname()}"))
    ground.workers.append(worker)
    return worker


def output_of(pid: int, descriptor: int) -> str:
    """Return a descriptor's target, without its number."""
    return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink()).partition("[")[0]


def deliver_with_all(ground: Ground, workers: list[Worker]) -> None:
    """Check that each of them delivers."""
    with ground.load(100, environments=20):
        for worker in workers:
            ground.wait(lambda worker=worker: ground.has_delivered(worker), READY_SECONDS)  # type: ignore[misc]


@scenario(28, "log disk full; standard output full, closed, or its reader gone; no consumer of Celery's events",
          bound="deliveries continue")  # fmt: skip
def test_a_log_that_cannot_be_written_stops_no_delivery(ground: Ground) -> None:
    mute = [start_with_output(ground, f"mute{n}", output) for n, output in enumerate(OUTPUTS)]
    [logging] = ground.start_workers(1)
    for worker in mute:
        ground.wait(
            lambda worker=worker: bool(ground.client.exists(worker.heartbeat)) and len(worker.pids) > 1, READY_SECONDS
        )  # type: ignore[misc]
    for worker, output in zip(mute, OUTPUTS.values(), strict=True):
        seen = {output_of(pid, descriptor) for pid in worker.pids for descriptor in (1, 2)}
        ground.bit(seen == {output}, f"standard output was {output}: {seen}")
        worker.at_first = Footprint.of(worker.pids)

    full = logging.log_path.stat().st_size
    for pid in logging.pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, full))
    deliver_with_all(ground, [*mute, logging])
    ground.bit(logging.log_path.stat().st_size == full, "the log could not grow")
    assert ground.running == ground.workers
    ground.check()
    assert ground.terminate(*ground.workers) == [0] * len(ground.workers)
    ground.observed(f"{len(ground.api.attempts)} POSTs by {len(ground.workers)} workers, each exits with 0")


FEW_DESCRIPTORS = 64


def limit_descriptors(pids: list[int], most: int) -> None:
    for pid in pids:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))


@scenario(29, "descriptor limit 64, then none left while Redis and the API close every connection",
          bound="backs off, 0 dead with max_attempts 1, recovers")  # fmt: skip
def test_a_worker_without_descriptors_backs_off_and_uses_up_no_attempt(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.1))
    [worker] = ground.start_workers(
        1, RELAY_DELIVERY__MAX_ATTEMPTS="1", RELAY_DELIVERY__MAX_IN_FLIGHT="200", **PATIENCE
    )
    before, _ = resource.prlimit(worker.child.pid, resource.RLIMIT_NOFILE)

    limit_descriptors(worker.pids, FEW_DESCRIPTORS)
    ground.report(300)
    ground.rest()
    few = ground.counters()
    most = max(len(os.listdir(f"/proc/{pid}/fd")) for pid in worker.pids)  # noqa: PTH208 - names suffice
    assert few.dead == 0
    ground.bit(few.retries, "some POSTs got no descriptor")
    ground.bit(f"is {HealthState.UNAVAILABLE}: connect" in worker.log(), "the destination was unavailable for it")
    assert most <= FEW_DESCRIPTORS

    ground.api.behave(OK)
    limit_descriptors(worker.pids, before)
    pool = worker.pids[1:]
    limit_descriptors(pool, 1)
    ground.api.close_idle()
    ground.client.client_kill_filter(_type="normal", skipme=True)
    ground.report(100)
    ground.wait(lambda: "Too many open files" in worker.log(), seen=worker.log)
    ground.bit(ground.counters().waiting == 100, "no event could be claimed or delivered")
    limit_descriptors(pool, before)
    since = time.monotonic()
    ground.rest()
    back = time.monotonic() - since
    assert worker.pids[1:] == pool
    ground.check()
    ground.observed(
        f"{few.retries} POSTs put off with {FEW_DESCRIPTORS} descriptors, 0 dead; with none at all nothing moved, "
        f"and everything {back:.1f} s after there were some again"
    )


OVERSIZE_BYTES = 500_000_000
ADDRESS_SPACE_BYTES = 1 << 30

#: Maximum growth of a process in megabytes while an entry of 500 is dead-lettered.
GROWTH_MEGABYTES = 64


@scenario(38, "an entry of 500 MB by plain XADD, workers limited to 1 GiB of address space",
          bound="a dead letter with its size after one look, never read whole; the 20 good entries behind it "
          "arrive")  # fmt: skip
def test_an_oversize_entry_stops_no_intake(ground: Ground) -> None:
    # Redis copies the entry and appends it to its file, and answers no other command meanwhile.
    ground.client.connection_pool.connection_kwargs["socket_timeout"] = READY_SECONDS
    ground.client.connection_pool.disconnect()
    workers = ground.start_workers(2, RELAY_REDIS__TIMEOUT="20s")
    for worker in workers:
        for pid in worker.pids:
            resource.prlimit(pid, resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    processes = [worker.pids for worker in workers]
    before = [worker.forget_peak() for worker in workers]
    since = time.monotonic()
    entry_id = ground.xadd({"event": b"x" * OVERSIZE_BYTES}, malformed=True)
    good = ground.report(20)
    ground.wait(
        lambda: set(good) <= ground.api.processed_ids().keys(), timeout_seconds=READY_SECONDS, seen=ground.counters
    )
    took = time.monotonic() - since

    [(_, letter)] = ground.client.xrange(ground.keys.dead)
    assert letter[b"entry"].decode() == entry_id
    assert int(letter[b"size"]) == OVERSIZE_BYTES + len("event")
    ground.bit(len(letter[b"event"]) < OVERSIZE_BYTES, "the entry was cut")
    assert int(ground.client.hget(ground.keys.counts, "taken_over") or 0) == 0, "no process crashed"
    assert [worker.pids for worker in workers] == processes
    growth = max(worker.peak_megabytes() - peak for worker, peak in zip(workers, before, strict=True))
    assert growth < GROWTH_MEGABYTES
    ground.check()
    ground.observed(f"dead-lettered and 20 delivered within {took:.1f} s; a worker grew by {growth:.0f} MB at most")


HOUR_SECONDS = 3600

#: Maximum pause of retries, and of the destination, while clocks step.
BACKOFF_SECONDS = 2.0
HOLD_SECONDS = 2

#: Maximum difference of two readings of one clock, as each is rounded.
CLOCK_MS = 2.0

#: Events that fail once, too few to open the circuit breaker.
FAILING = 15


class Clock:
    """The clock of the processes that are started with `environment`, and of no others."""

    def __init__(self, file: Path, seconds: float) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            pytest.skip("libfaketime is not installed: apt-get install faketime")
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "0",  # the file is read once a second
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.step(seconds)

    def step(self, seconds: float) -> None:
        """Offset the clock from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


def step_until(ground: Ground, clock: Clock, over: Callable[[], bool]) -> None:
    """Step the clock back and forth until a condition holds."""
    off = 0

    def stepped() -> bool:
        nonlocal off
        off = HOUR_SECONDS if off <= 0 else -HOUR_SECONDS
        clock.step(off)
        return over()

    ground.wait(stepped, READY_SECONDS)


def epoch_ms(monotonic: float) -> float:
    """Return a moment by Redis's clock, which is this machine's."""
    return (monotonic + time.time() - time.monotonic()) * 1000


def discarded(workers: list[Worker]) -> int:
    """Return how many wake-ups these workers received and discarded as expired."""
    return sum(worker.log().count("Discarding revoked task") for worker in workers)


@scenario(34, "a worker's clock an hour ahead, then stepping by hours during Retry-After and a back-off",
          bound="no early retry, no takeover, 0 repeats, no wake-up discarded", timeout=300)  # fmt: skip
def test_a_wrong_clock_makes_no_retry_early(ground: Ground, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock", HOUR_SECONDS)
    backoff = {
        "RELAY_DELIVERY__BACKOFF_INITIAL": f"{BACKOFF_SECONDS}s",
        "RELAY_DELIVERY__BACKOFF_MAX": f"{BACKOFF_SECONDS}s",
    }
    both = ground.start_workers(1, **PATIENCE, **backoff)
    both += ground.start_workers(1, **PATIENCE, **backoff, **clock.environment)
    ground.bit("Substantial drift" in "".join(worker.log() for worker in both), "Celery sees the clocks differ")

    ground.api.behave(Response(delay_seconds=0.05))  # so that leases are held for a while
    with ground.load(100, environments=10):
        for worker in both:
            ground.wait(lambda worker=worker: ground.has_delivered(worker), READY_SECONDS, worker.log)  # type: ignore[misc]
        for off in (-HOUR_SECONDS, HOUR_SECONDS):
            seen = len(ground.api.attempts)
            clock.step(off)
            ground.wait(lambda seen=seen: len(ground.api.attempts) > seen + 50, READY_SECONDS)  # type: ignore[misc]
    ground.rest()

    ground.api.behave(Response(status=503, headers={"Retry-After": str(HOLD_SECONDS)}))
    [held] = ground.report(1)
    destination = ground.keys.destination(DEFAULT_DESTINATION)
    ground.wait(lambda: bool(ground.client.hget(destination, "until")))
    until = float(ground.client.hget(destination, "until"))
    before = len(ground.api.attempts)
    ground.api.behave(OK)
    ground.report(20, environments=10)
    step_until(ground, clock, lambda: len(ground.api.attempts) > before)
    ground.rest()
    early = [
        attempt.event_id for attempt in ground.api.attempts[before:] if epoch_ms(attempt.read_at) < until - CLOCK_MS
    ]
    assert not early, f"sent before the hold of {held} was over"

    ground.api.behave(lambda attempt: OK if attempt.earlier else Response(status=500))
    retried = set(ground.report(FAILING))
    before = ground.counters().retries
    due_key = ground.keys.of_outbox(DEFAULT_DESTINATION, "env-0").due
    ground.wait(lambda: ground.counters().retries >= before + FAILING)
    soonest = epoch_ms(time.monotonic()) + BACKOFF_SECONDS * 1000  # later ones were claimed, and will be retried
    due = {name.decode(): at for name, at in ground.client.zrange(due_key, 0, -1, withscores=True) if at <= soonest}
    ground.bit(due, "retries waited for retry_at")
    step_until(ground, clock, lambda: retried <= set(ground.api.processed_ids()))
    ground.rest()
    again = {attempt.repository: epoch_ms(attempt.read_at) for attempt in ground.api.attempts if attempt.earlier}
    waited = {name: again[name.split()[0]] - at for name, at in due.items()}
    assert min(waited.values()) >= -CLOCK_MS, f"retried before retry_at: {waited}"

    clock.step(0)
    ground.check()
    assert not any("leases_lost" in worker.log() for worker in both)
    assert not discarded(both), "a wake-up was discarded for its age"
    ground.observed(
        f"{len(ground.api.attempts)} POSTs, {ground.api.repeats()} repeats; {len(waited)} retries, the hastiest "
        f"{min(waited.values()):.0f} ms after its time; no wakeup thrown away"
    )
