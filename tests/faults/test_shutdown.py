"""Workers that stop at one signal, and at a second."""

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

#: Requests may last until a busy machine has handled a signal. Without the signal, runs would last longer than all
#: asserted times.
BUDGET_SECONDS, TIMEOUT_SECONDS = 10.0, 3.0
PATIENT = {
    "RELAY_API__TIMEOUT": f"{TIMEOUT_SECONDS}s",
    "RELAY_WORKER__BUDGET": f"{BUDGET_SECONDS}s",
    "RELAY_WORKER__LEASE": "4s",
    "RELAY_DELIVERY__MAX_IN_FLIGHT": "8",
}
SLOW_SECONDS = 1.0

#: Delay that a busy machine may add to a deadline, in seconds.
BUSY_SECONDS = 3.0

#: Requests that must be in flight at the signal.
SEVERAL = 3

#: Logged by a worker at its first signal.
STOPPING = "relay: stopping"

#: Exit code of a worker after a second signal.
AT_ONCE = 128 + signal.SIGTERM


def under_way(ground: Ground, answer: Response, count: int, several: int = SEVERAL) -> Worker:
    """Start a worker, report events that get this answer, and return it with several requests in flight."""
    ground.api.behave(OK)
    [worker] = ground.start_workers(1, **PATIENT)
    ground.wait(lambda: not ground.counters().waiting)
    ground.api.behave(answer)
    ground.report(count)
    ground.wait(lambda: ground.api.in_flight >= several, seen=worker.log)
    return worker


def leftover_leases(ground: Ground) -> list[str]:
    """Return the leases and the in-flight markers that were not released."""
    return [key for key in ground.leftovers() if key.startswith(("lease:", "run:"))]


@scenario(7, "SIGTERM with slow answers; with hanging ones; a second SIGTERM",
          bound="all answered, exit 0; deadline kept, leases released; exit at once; repeats ≤ K + T")  # fmt: skip
def test_worker_finishes_requests_in_flight_unless_a_second_signal_ends_it(ground: Ground) -> None:
    worker = under_way(ground, Response(delay_seconds=SLOW_SECONDS), 20)
    signalled_at, count = time.monotonic(), len(ground.api.attempts)
    assert ground.terminate(worker) == [0]
    ends = [attempt.ended_at or 0 for attempt in ground.api.attempts[:count]]
    ground.bit(max(ends) > signalled_at, "answers came after the signal")
    assert {attempt.ended for attempt in ground.api.attempts} == {"answered"}
    assert not ground.in_outboxes() & ground.api.processed_ids().keys(), "an answered request is not committed"
    assert ground.in_outboxes(), "no entry was left to release"
    assert not leftover_leases(ground)

    worker = under_way(ground, STALL, SEVERAL)
    signalled_at = time.monotonic()
    assert ground.terminate(worker) == [0]
    hanging_seconds = time.monotonic() - signalled_at
    ground.bit(ground.api.unknowable() >= SEVERAL, "requests were not answered")
    assert hanging_seconds < TIMEOUT_SECONDS + MARGIN_SECONDS + BUSY_SECONDS
    assert not leftover_leases(ground)

    worker = under_way(ground, STALL, SEVERAL, 1)  # fewer, because all others timed out
    ports = worker.ports()
    worker.child.signal(signal.SIGTERM)
    ground.wait(lambda: STOPPING in worker.log())
    signalled_at = time.monotonic()
    assert ground.terminate(worker) == [AT_ONCE]
    forced_seconds = time.monotonic() - signalled_at
    ground.wait(lambda: ground.api.has_closed(ports))
    cut_off = [a for a in ground.api.attempts if a.ended_at and a.ended_at >= signalled_at and a.ended == "left"]
    ground.bit(cut_off, "the second signal cut requests off")
    assert leftover_leases(ground)

    at_risk = ground.api.unknowable()
    ground.api.behave(OK)
    ground.start_workers(1, **PATIENT)
    ground.check(unknowable=at_risk)
    ground.observed(
        f"{count} slow answers awaited; left {hanging_seconds:.1f} s after the signal with a deadline of "
        f"{TIMEOUT_SECONDS:g} s for a POST; {forced_seconds:.1f} s after a second signal; "
        f"{ground.api.repeats()} repeats of {at_risk} without an answer"
    )
