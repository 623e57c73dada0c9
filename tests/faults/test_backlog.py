"""A backlog that nobody can get rid of for a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faults.ground import scenario

if TYPE_CHECKING:
    from faults.ground import Ground, Worker
    from faults.proxy import Proxy

#: What a worker may take more with a large backlog than it had with a small one. Its window is some thousand events;
#: 27,000 more would take 40 MB.
MORE_MEGABYTES = 24.0

#: Reported at once, so that no producer has all of them in memory.
PART = 10_000

INSTANCES = 3_000


def pile_up(ground: Ground, worker: Worker, link: Proxy, count: int, drain_seconds: float) -> tuple[float, float]:
    """Let so much wait while the API is down, then drain it; return the worker's peak and how long the drain took."""
    tried = ground.counters().retries
    worker.forget_peak()
    link.refuse()
    link.reset_all()
    for start in range(0, count, PART):
        ground.report(min(PART, count - start), instances=INSTANCES, environments=20)
    ground.wait(lambda: not ground.client.xlen(ground.keys.inbox), drain_seconds, ground.counters)
    ground.wait(lambda: ground.counters().retries > tried, seen=ground.counters)
    ground.bit(ground.counters().waiting == count, "all of it waited while the API was down")
    link.listen()
    since = time.monotonic()
    ground.wait(lambda: not ground.counters().waiting, drain_seconds, ground.counters)
    return worker.peak_megabytes(), time.monotonic() - since


def pile_up_and_drain(ground: Ground, small: int, large: int, drain_seconds: float) -> None:
    """Compare what a worker needs for a small backlog with what it needs for a large one, and count what arrives."""
    link = ground.api_proxy()
    [worker] = ground.start_workers(1)
    small_peak, _ = pile_up(ground, worker, link, small, drain_seconds)
    large_peak, seconds = pile_up(ground, worker, link, large, drain_seconds)
    ground.rest()
    assert large_peak - small_peak < MORE_MEGABYTES
    assert ground.counters().dead == 0
    ground.check()
    ground.observed(
        f"{large:,} drained in {seconds:.0f} s, missing 0; the worker's memory {large_peak:.0f} MB at the most, "
        f"{large_peak - small_peak:+.1f} MB against a backlog of {small:,}"
    )


@scenario(36, "backlog of 30,000 events with the API down, then drained", bound="memory flat, missing 0",
          timeout=400)  # fmt: skip
def test_a_backlog_takes_no_more_memory_when_it_is_large(ground: Ground) -> None:
    pile_up_and_drain(ground, 3_000, 30_000, 120)


@scenario(36, "backlog of a million events with the API down, then drained", bound="memory flat, missing 0",
          slow=True, timeout=1800)  # fmt: skip
def test_a_backlog_of_a_million_takes_no_more_memory(ground: Ground) -> None:
    pile_up_and_drain(ground, 10_000, 1_000_000, 1200)
