"""Processes that are killed or suspended in the middle of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faults.api import OK
from faults.ground import LEASE_SECONDS, scenario

from relay.sandbox.response import Response

if TYPE_CHECKING:
    from pathlib import Path

    from faults.ground import Ground

#: Beyond the lease, until another worker takes over; and the tolerance on a busy machine.
TAKE_OVER_SECONDS = 1.0
BUSY_SECONDS = 1.5


def dies_once(ground: Ground, point: str) -> tuple[dict[str, str], Path]:
    """Return the settings that kill the first process that passes a fail point, and the file that it leaves."""
    died = ground.directory / "died"
    return {"RELAY_TEST_CRASH": point, "RELAY_TEST_CRASH_ONCE": str(died)}, died


@scenario(1, "SIGKILL after read, before any POST", bound="repeats 0; taken over within the lease + 1 s")
def test_a_process_killed_with_a_claimed_batch_is_replaced_without_a_repeat(ground: Ground) -> None:
    crash, died = dies_once(ground, "after:claim:1")
    ground.start_workers(2, **crash)
    ground.report(50, environments=2)
    ground.wait(died.exists)
    died_at = time.monotonic() - (time.time() - died.stat().st_mtime)
    ground.wait(lambda: len(ground.api.attempts) >= 50)
    later = [attempt.read_at - died_at for attempt in ground.api.attempts if attempt.read_at > died_at]
    ground.bit(max(later) > LEASE_SECONDS / 2, "its entries waited for its lease to run out")
    assert max(later) < LEASE_SECONDS + TAKE_OVER_SECONDS + BUSY_SECONDS
    ground.check()
    ground.observed(f"all delivered {max(later):.1f} s after the kill, {ground.api.repeats()} repeats")


@scenario(2, "SIGKILL during a POST that the API processes", bound="repeats ≤ K, at least 1 seen")
def test_a_kill_during_posts_repeats_no_more_than_was_in_flight(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.3))
    ground.start_workers(2)
    ground.report(100)
    ground.wait(lambda: ground.api.in_flight >= 10)
    at_risk = ground.kill(ground.at_work())
    ground.api.behave(OK)
    ground.rest()
    repeats = ground.api.repeats()
    ground.bit(repeats >= 1, "events in flight were repeated")
    ground.check(killed=len(at_risk))
    ground.observed(f"{len(at_risk)} in flight, {repeats} repeats")


@scenario(3, "SIGKILL after a 2xx, before its commit", bound="exactly one repeat")
def test_an_answer_that_was_not_committed_is_repeated_exactly_once(ground: Ground) -> None:
    crash, died = dies_once(ground, "before:commit_delivery:1")
    ground.start_workers(1, **crash)
    ground.report(1)
    ground.wait(died.exists)
    first = ground.api.attempts[0]
    ground.rest()
    ground.bit(first.ended == "answered", "the API had answered before the process was killed")
    assert ground.api.repeats() == 1
    ground.check(killed=1)
    ground.observed(f"{ground.api.repeats()} repeat")


@scenario(5, "SIGKILL of all workers, 3 times, 10,000 events", bound="missing 0, repeats ≤ K, order kept")
def test_killing_all_workers_repeatedly_loses_and_reorders_nothing(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.01))
    ground.start_workers(2)
    ground.report(10_000, instances=1000, environments=20)
    at_risk = []
    for share in (2_000, 5_000, 8_000):
        ground.wait(lambda share=share: len(ground.api.processed_ids()) >= share, 30, ground.counters)  # type: ignore[misc]
        at_risk.append(len(ground.kill()))
        ground.start_workers(2)
    ground.report(1)  # the in-flight marker of an intake run killed with an empty inbox is removed by the next run
    ground.rest(60)
    ground.bit(ground.api.repeats() >= 1, "events in flight at a kill were repeated")
    ground.check(killed=sum(at_risk))
    ground.observed(f"{sum(at_risk)} in flight or uncommitted, {ground.api.repeats()} repeats, 0 missing")


@scenario(
    8, "SIGSTOP for 3 leases, then SIGCONT", bound="taken over; the resumed worker's commit is refused; repeats ≤ K"
)
def test_a_worker_suspended_past_its_lease_cannot_commit(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.8))
    ground.start_workers(2, RELAY_DELIVERY__MAX_ATTEMPTS="1000")
    ground.report(5)
    ground.wait(lambda: ground.api.in_flight == 5)
    asleep = ground.at_work()
    at_risk = ground.stop_and_hold(asleep)
    stopped_at = time.monotonic()
    ground.bit(at_risk, "it was suspended with answers that it had not committed")
    ground.api.behave(lambda attempt: Response(status=503) if attempt.event_id in at_risk else OK)
    with ground.load(20, instances=20):  # successes in between keep the circuit breaker closed
        ground.wait(lambda: time.monotonic() - stopped_at > 3 * LEASE_SECONDS)
        again = {attempt.event_id for attempt in ground.api.attempts if attempt.earlier}
        ground.bit(again == at_risk, "another worker has taken them over and sends them")
        ground.resume(asleep)
        ground.wait(lambda: "leases_lost" in asleep.log(), seen=asleep.log)
        assert at_risk <= ground.in_outboxes(), "the resumed worker committed over its successor"
    ground.api.behave(OK)
    ground.check(killed=len(at_risk))
    ground.observed(f"{len(at_risk)} in hand, {ground.api.repeats()} repeats, commit refused")
