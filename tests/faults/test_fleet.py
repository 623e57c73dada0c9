"""Workers that start and stop, as in a rollout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faults.ground import scenario

if TYPE_CHECKING:
    from faults.ground import Ground


LONGEST_SILENCE_SECONDS = 2.0

#: Delay that a busy machine may add, in seconds.
BUSY_SECONDS = 2.0

#: Of eight workers, the number that must have delivered before seven are stopped.
SEVERAL = 4


@scenario(6, "rolling restart of all workers under load", bound="repeats 0, no silence of 2 s")
def test_rolling_restart_repeats_no_request_and_leaves_no_gap(ground: Ground) -> None:
    sweep = {"RELAY_WORKER__SWEEP": "500ms"}  # after this a wake-up is repeated that a stopping worker received
    old = ground.start_workers(2, concurrency=2, **sweep)
    with ground.load(200):
        for worker in old:
            ground.wait(lambda worker=worker: ground.has_delivered(worker), seen=worker.log)  # type: ignore[misc]
        since = time.monotonic()
        for worker in old:
            assert ground.terminate(worker) == [0]
            ground.start_workers(1, concurrency=2, **sweep)
        for worker in ground.running:
            ground.wait(lambda worker=worker: ground.has_delivered(worker), seen=worker.log)  # type: ignore[misc]
        until = time.monotonic()
    ground.bit(not set(old) & set(ground.running), "each worker was replaced while it delivered")
    silence = ground.api.longest_silence(since, until)
    assert silence < LONGEST_SILENCE_SECONDS + BUSY_SECONDS
    ground.check()
    ground.observed(
        f"{len(ground.api.attempts)} POSTs, longest silence {silence:.2f} s, {ground.api.repeats()} repeats"
    )


@scenario(35, "1 → 8 → 1 workers under load", bound="repeats 0")
def test_scaling_up_and_down_repeats_no_request(ground: Ground) -> None:
    first = ground.start_workers(1)
    with ground.load(50, environments=20):
        others = ground.start_workers(7)
        ground.wait(lambda: sum(map(ground.has_delivered, ground.running)) >= SEVERAL)
        codes = ground.terminate(*others)
    ground.bit(codes == [0] * 7, "seven stopped while others delivered")
    assert ground.running == first
    ground.check()
    ground.observed(f"{len(ground.api.attempts)} POSTs by up to 8 workers, {ground.api.repeats()} repeats")
