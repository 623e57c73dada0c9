"""SIGKILL before and after every script that changes or reads the queue, and by one event."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faults.api import OK
from faults.ground import digest, report_of, scenario

from relay import DeploymentEvent
from relay.queue import leases
from relay.sandbox.response import Response
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults.api import Attempt
    from faults.ground import Ground

    Step = Callable[..., int]

STEPS = Path(__file__).with_name("steps.py")

SCRIPTS = {Path(file.name).stem for file in files("relay.queue.scripts").iterdir() if file.name.endswith(".lua")} - {
    "prelude"
}

#: Scripts without points of their own. `observe` shares the round trip of `commit_delivery`; `heads` only reads,
#: before `snapshot`, if more environments have waiting events than are read by name. `defer` runs when a fresh entry
#: is claimed while a retry waits, and the stateful model (tests/integration/test_model.py) kills runs there.
ALONGSIDE = {"observe", "heads", "defer"}

#: The step that runs each script, and the passes at which a process is killed. The first `acquire` of a worker is
#: intake's, the second delivery's; a redrive's second is its release.
PASSES = {
    "beat": ("work", 1),
    "waiting": ("work", 1),
    "wake": ("work", 1),
    "acquire": ("work", 2),
    "commit_intake": ("work", 1),
    "contested": ("work", 1),
    "release_inbox": ("work", 1),
    "claim": ("work", 1),
    "admit": ("work", 2),
    "commit_delivery": ("work", 2),
    "release_outbox": ("work", 1),
    "change_health": ("work", 1),
    "handle": ("work", 2),
    "append": ("report", 1),
    "dead_page": ("redrive", 1),
    "redrive": ("redrive", 2),
    "drop": ("drop", 1),
    "pause": ("pause", 1),
    "resume": ("pause", 1),
    "forget": ("forget", 1),
    "forget_environment": ("forget", 1),
    "counters": ("status", 1),
    "environments": ("status", 1),
    "snapshot": ("scrape", 1),
    "dead_letter_inbox": ("work", 1),  # last, because its letters are dropped by none of the others
}

#: Point → the step that passes it.
POINTS = {
    f"{when}:{script}:{n + 1}": step
    for script, (step, passes) in PASSES.items()
    for n in range(passes)
    for when in ("before", "after")
} | {
    "after:post:1": "work",
    "after:post:3": "work",
    "before:change_health:1~throttled": "work",  # the fail point, and what the API answers there
    "after:change_health:1~throttled": "work",
}

#: Events of each point, by their outcome: the first two are of one instance, and so are the next two.
OUTCOMES = {"first": "a", "later": "a", "retried": "b", "behind": "b", "refused": "c", "alone": "d"}

#: Size of an entry that is too large to be read, in bytes.
OVERSIZE_BYTES = 4_000_000

#: Immediate retries, and a rate limit that is asked for and never reached.
SWIFT = {
    "RELAY_DELIVERY__BACKOFF_INITIAL": "1ms",
    "RELAY_DELIVERY__BACKOFF_MAX": "1ms",
    "RELAY_API__RATE_LIMIT": "1000000",
    "RELAY_API__BURST": "1000",
}

#: Leases that are released after a kill, as if they had expired.
PASSING = ("lease:*", "wakeup:*")


def answer(attempt: Attempt) -> Response:
    """Accept each event at its second attempt; at the first, refuse some and provoke a rarely used script."""
    _, point, outcome = attempt.event_id.split(" ")
    if attempt.earlier:
        return OK
    if point.endswith("~throttled"):
        return Response(status=429, headers={"Retry-After": "60"})
    if "change_health" in point:
        return Response(status=401)
    return {"refused": Response(status=422), "retried": Response(status=503)}.get(outcome, OK)


def events_of(point: str) -> list[DeploymentEvent]:
    """Return a point's events, of their own instances in two environments."""
    return [
        DeploymentEvent.of(
            f"ghcr.io/acme/{instance}-{list(POINTS).index(point)}@{digest(point + outcome)}",
            environment="env-1" if outcome == "alone" else "env-0",
            id=f"event {point} {outcome}",
        )
        for outcome, instance in OUTCOMES.items()
    ]


@contextmanager
def stepping(ground: Ground) -> Iterator[Step]:
    """Return a function that executes a step in a process of its own, and returns its exit code."""
    with subprocess.Popen(
        [sys.executable, str(STEPS)],
        env={**os.environ, **ground.environment, **SWIFT, "PYTHONPATH": str(STEPS.parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def step(name: str, argument: str = "", crash: str = "") -> int:
            print(crash, name, argument, sep="\t", file=process.stdin, flush=True)
            assert process.stdout
            return int(process.stdout.readline())

        yield step
        process.stdin.close()
        assert process.wait(10) == 0


def let_leases_pass(ground: Ground) -> None:
    for pattern in PASSING:
        for key in ground.client.scan_iter(ground.keys.prefix + pattern):
            ground.client.delete(key)


def places(ground: Ground) -> Counter[str]:
    """Return how often each event is in the inbox, an outbox, or the dead letters."""
    outboxes = ground.client.scan_iter(ground.keys.of_outbox(DEFAULT_DESTINATION, "").outbox + "*")
    streams = [ground.keys.inbox, ground.keys.dead, *outboxes]
    return Counter(fields[b"id"].decode() for key in streams for _, fields in ground.client.xrange(key))


def check_places(ground: Ground, point: str, unsure: int = 0) -> None:
    """Check that each event is in one place or counted; `unsure` of them may not have been enqueued, all or none."""
    lying, counters = places(ground), ground.counters()
    twice = [event for event, n in lying.items() if n > 1]
    assert not twice, f"{point}: in two places: {twice}"
    reported = {report.event_id for report in (*ground.oracle.acknowledged, *ground.oracle.uncertain)}
    gone = reported - lying.keys()
    ended = counters.delivered + counters.dropped
    assert len(gone) - ended in {0, unsure}, f"{point}: in no place: {sorted(gone)}, {counters}"
    assert len(lying) == counters.waiting + counters.dead_waiting, f"{point}: {lying}, {counters}"
    assert (counters.unaccounted, counters.dead_unaccounted) == (0, 0), f"{point}: {counters}"
    assert not counters.stale + counters.superseded, f"{point}: {counters}"


@scenario(4, "SIGKILL at every fail point of every script",
          bound="each event in exactly one place; repeats = K")  # fmt: skip
def test_a_kill_before_or_after_any_script_leaves_each_event_in_one_place(ground: Ground) -> None:
    assert PASSES.keys() | ALONGSIDE == SCRIPTS, "a script has no point here"
    ground.api.behave(answer)
    at_risk = 0
    with stepping(ground) as step:
        for point, name in POINTS.items():
            at_risk += die_and_recover(ground, step, point, name)
    ground.bit(ground.api.repeats() >= 1, "answered and uncommitted events were repeated")
    assert ground.api.repeats() == at_risk
    forgive_dropped(ground)
    ground.api.behave(OK)
    ground.start_workers(1)
    ground.check(killed=at_risk)
    ground.observed(f"killed at {len(POINTS)} points of {len(PASSES)} scripts, {ground.api.repeats()} repeats")


def die_and_recover(ground: Ground, step: Step, point: str, name: str) -> int:
    """Kill a process at a point, check all places, and continue; return the number of uncommitted POSTs."""
    events, argument, unsure = events_of(point), "env-0", 0
    if name == "report":
        argument = json.dumps([{**json.loads(event.body()), "id": event.id} for event in events])
        ground.oracle.note(map(report_of, events), acknowledged=False)
        unsure = len(events)
    else:
        ground.report_events(events)
    if "dead_letter_inbox" in point:
        ground.xadd({"id": f"event {point} oversize", "event": b"x" * OVERSIZE_BYTES}, malformed=True)
    if name in {"redrive", "drop"}:
        assert step("work_on") == 0
    if "handle" in point:  # the in-flight marker is only written after a crash
        assert step("work", crash="after:claim:1") == -signal.SIGKILL
        let_leases_pass(ground)
    killed = step(name, argument, crash=point.partition("~")[0])
    assert killed == -signal.SIGKILL, f"no process was killed at {point}"
    ground.wait(lambda: not ground.api.connections)
    check_places(ground, point, unsure)
    uncommitted = ground.in_outboxes() & ground.api.processed_ids().keys()
    let_leases_pass(ground)
    if name != "work":  # its caller repeats it
        assert step(name, argument) == 0
    if name == "report":
        ground.oracle.note(map(report_of, events))
    assert step("work_on") == 0
    check_places(ground, f"after {point}")
    return len(uncommitted)


def forgive_dropped(ground: Ground) -> None:
    """Remove events from the oracle that an operator dropped."""
    oracle, owed = ground.oracle, ground.api.processed_ids().keys() | places(ground).keys()
    dropped = [report for report in oracle.acknowledged if report.event_id not in owed]
    assert len(dropped) == ground.counters().dropped
    oracle.acknowledged = [report for report in oracle.acknowledged if report.event_id in owed]
    oracle.uncertain += dropped


#: Timers of workers that are killed four times.
SOON = {
    "RELAY_API__TIMEOUT": "500ms",
    "RELAY_WORKER__LEASE": "1500ms",
    "RELAY_WORKER__BUDGET": "500ms",
    "RELAY_WORKER__SWEEP": "500ms",
}


@scenario(9, "an event that kills its worker process, among 100 good ones",
          bound="dead letter `worker_crash`, after 4 deliveries; the 100 delivered; repeats ≤ K")  # fmt: skip
@pytest.mark.parametrize(
    ("stage", "detail"),
    [("deliver", "workers died when they delivered it"), ("intake", "workers died when they took it in")],
)
def test_an_event_that_kills_its_process_becomes_a_dead_letter(ground: Ground, stage: str, detail: str) -> None:
    [worker] = ground.start_workers(1, **SOON, RELAY_TEST_CRASH_EVENT=f"{stage}:event-50")
    first = set(worker.pids)
    ground.report(101)
    ground.wait(lambda: not first <= set(worker.pids))
    ground.wait(lambda: not ground.api.connections)  # the API still reads what the killed process had sent
    at_risk = ground.in_outboxes() & ground.api.processed_ids().keys()
    counters = ground.rest()
    [(_, letter)] = ground.client.xrange(ground.keys.dead)
    deaths = worker.log().count("exited with 'signal 9 (SIGKILL)'")
    ground.bit(deaths, "processes were killed by it")
    assert letter[b"id"] == b"event-50"
    assert letter[b"detail"].decode() == f"{leases.MAX_DEATHS} {detail}"
    assert counters.dead_by_reason == {"worker_crash": 1}
    assert deaths == leases.MAX_DEATHS + 1
    ground.check(killed=len(at_risk))
    ground.observed(f"{stage}: dead after {deaths} deliveries, 100 delivered, {ground.api.repeats()} repeats")
