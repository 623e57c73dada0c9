"""A backlog of which nothing can be delivered for a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faults.ground import scenario

if TYPE_CHECKING:
    from faults.ground import Ground, Worker
    from faults.proxy import Proxy

#: Maximum memory that a worker takes more with a large backlog than with a small one. Its window is some thousand
#: events; 27,000 more would take 40 MB.
MORE_MEGABYTES = 24.0

#: Events reported at once, so that no producer has all of them in memory.
PART = 10_000

INSTANCES = 3_000


def pile_up(ground: Ground, worker: Worker, link: Proxy, count: int, delivery_seconds: float) -> tuple[float, float]:
    """Build a backlog while the API is down, then deliver it; return the worker's peak memory and the seconds."""
    tried = ground.counters().retries
    worker.forget_peak()
    link.refuse()
    link.reset_all()
    for start in range(0, count, PART):
        ground.report(min(PART, count - start), instances=INSTANCES, environments=20)
    ground.wait(lambda: not ground.client.xlen(ground.keys.inbox), delivery_seconds, ground.counters)
    ground.wait(lambda: ground.counters().retries > tried, seen=ground.counters)
    ground.bit(ground.counters().waiting == count, "the whole backlog waited while the API was down")
    link.listen()
    since = time.monotonic()
    ground.wait(lambda: not ground.counters().waiting, delivery_seconds, ground.counters)
    return worker.peak_megabytes(), time.monotonic() - since


def pile_up_and_drain(ground: Ground, small: int, large: int, delivery_seconds: float) -> None:
    """Compare a worker's memory with a small and a large backlog, and count the deliveries."""
    link = ground.api_proxy()
    [worker] = ground.start_workers(1)
    small_peak, _ = pile_up(ground, worker, link, small, delivery_seconds)
    large_peak, seconds = pile_up(ground, worker, link, large, delivery_seconds)
    ground.rest()
    assert large_peak - small_peak < MORE_MEGABYTES
    assert ground.counters().dead == 0
    ground.check()
    ground.observed(
        f"{large:,} delivered in {seconds:.0f} s, missing 0; the worker's memory {large_peak:.0f} MB at the most, "
        f"{large_peak - small_peak:+.1f} MB against a backlog of {small:,}"
    )


@scenario(36, "backlog of 30,000 events with the API down, then delivered", bound="memory flat, missing 0",
          timeout=400)  # fmt: skip
def test_a_large_backlog_takes_no_more_memory(ground: Ground) -> None:
    pile_up_and_drain(ground, 3_000, 30_000, 120)


@scenario(36, "backlog of a million events with the API down, then delivered", bound="memory flat, missing 0",
          slow=True, timeout=1800)  # fmt: skip
def test_a_backlog_of_a_million_takes_no_more_memory(ground: Ground) -> None:
    pile_up_and_drain(ground, 10_000, 1_000_000, 1200)
