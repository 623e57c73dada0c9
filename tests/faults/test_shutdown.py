"""Workers that are asked to stop, and that are told to."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from faults.api import OK, STALL
from faults.ground import scenario

from relay.sandbox.response import Response
from workers.scheduling.shutdown import MARGIN_SECONDS

if TYPE_CHECKING:
    from faults.ground import Ground, Worker

#: POSTs may take long enough to be still under way when a signal was heeded on a busy machine; and drains, were they
#: not told, would go on for longer than all that is asserted.
BUDGET_SECONDS, TIMEOUT_SECONDS = 10.0, 3.0
PATIENT = {
    "RELAY_API__TIMEOUT": f"{TIMEOUT_SECONDS}s",
    "RELAY_WORKER__BUDGET": f"{BUDGET_SECONDS}s",
    "RELAY_WORKER__LEASE": "4s",
    "RELAY_DELIVERY__MAX_IN_FLIGHT": "8",
}
SLOW_SECONDS = 1.0

#: What a busy machine may add to a deadline.
BUSY_SECONDS = 3.0

#: POSTs that must be under way at the signal.
SEVERAL = 3

#: What a worker says that heeded its first signal.
STOPPING = "relay: stopping"

#: The exit code of a worker that was told twice.
AT_ONCE = 128 + signal.SIGTERM


def under_way(ground: Ground, answer: Response, count: int, several: int = SEVERAL) -> Worker:
    """Start a worker, report events that get this answer, and return it with several POSTs under way."""
    ground.api.behave(OK)
    [worker] = ground.start_workers(1, **PATIENT)
    ground.wait(lambda: not ground.counters().waiting)
    ground.api.behave(answer)
    ground.report(count)
    ground.wait(lambda: ground.api.in_flight >= several, seen=worker.log)
    return worker


def held(ground: Ground) -> list[str]:
    """Return the leases, and the marks of runs, that nobody let go of."""
    return [key for key in ground.leftovers() if key.startswith(("lease:", "run:"))]


@scenario(7, "SIGTERM with slow answers; with hanging ones; a second SIGTERM",
          bound="all answered, exit 0; deadline kept, leases released; exit at once; repeats ≤ K + T")  # fmt: skip
def test_a_worker_finishes_what_is_under_way_unless_it_is_told_twice(ground: Ground) -> None:
    worker = under_way(ground, Response(delay_seconds=SLOW_SECONDS), 20)
    told_at, count = time.monotonic(), len(ground.api.attempts)
    assert ground.terminate(worker) == [0]
    ends = [attempt.ended_at or 0 for attempt in ground.api.attempts[:count]]
    ground.bit(max(ends) > told_at, "answers came after the signal")
    assert {attempt.ended for attempt in ground.api.attempts} == {"answered"}
    assert not ground.in_outboxes() & ground.api.processed_ids().keys(), "what was answered is not committed"
    assert ground.in_outboxes(), "nothing was left to hand back"
    assert not held(ground)

    worker = under_way(ground, STALL, SEVERAL)
    told_at = time.monotonic()
    assert ground.terminate(worker) == [0]
    hanging_seconds = time.monotonic() - told_at
    ground.bit(ground.api.unknowable() >= SEVERAL, "answers never came")
    assert hanging_seconds < TIMEOUT_SECONDS + MARGIN_SECONDS + BUSY_SECONDS
    assert not held(ground)

    worker = under_way(ground, STALL, SEVERAL, 1)  # fewer, since all of the others timed out
    ports = worker.ports()
    worker.child.signal(signal.SIGTERM)
    ground.wait(lambda: STOPPING in worker.log())
    told_at = time.monotonic()
    assert ground.terminate(worker) == [AT_ONCE]
    told_twice_seconds = time.monotonic() - told_at
    ground.wait(lambda: ground.api.has_closed(ports))
    cut_off = [a for a in ground.api.attempts if a.ended_at and a.ended_at >= told_at and a.ended == "left"]
    ground.bit(cut_off, "the second signal cut off what was under way")
    assert held(ground)

    at_risk = ground.api.unknowable()
    ground.api.behave(OK)
    ground.start_workers(1, **PATIENT)
    ground.check(unknowable=at_risk)
    ground.observed(
        f"{count} slow answers awaited; left {hanging_seconds:.1f} s after the signal with a deadline of "
        f"{TIMEOUT_SECONDS:g} s for a POST; {told_twice_seconds:.1f} s after a second signal; "
        f"{ground.api.repeats()} repeats of {at_risk} without an answer"
    )
