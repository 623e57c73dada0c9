"""Operators and estates: a full queue, redrive, pause and resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from faults.api import OK
from faults.ground import digest, report_of, scenario

from relay import DeploymentEvent, Producer, QueueFull
from relay.cli import EX_TEMPFAIL
from relay.queue import pausing
from relay.queue.redrive import LEASE_SECONDS as REDRIVE_LEASE_SECONDS
from relay.sandbox.response import Response
from relay.settings import DEFAULT_DESTINATION, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.api import Attempt
    from faults.ground import Ground

PRODUCERS = 20
EVENTS_EACH = 60
MAX_BACKLOG = 300

#: Deadline of a refusal, which is one round trip, on a machine that is busy with twenty producers.
REFUSED_SECONDS = 2.0

#: Seconds between two attempts of a producer that was refused.
PATIENCE_SECONDS = 0.05

DEAD = 10_000
#: Dead letters that the API refuses again, that were overtaken, and that were delivered since.
SOME = 100
#: Further dead letters that are delivered by force.
FORCED = 20
#: Slow enough that the first redrive still runs when the second begins, on a busy machine, too.
RATE = 400

PAUSED, OTHER = "env-0", "env-1"

#: POSTs in flight of one run. A run learns of a pause when it commits, and until then may have filled each of its
#: slots once more, with the events admitted within one commit round: 10 ms and an answer's time.
MAX_IN_FLIGHT = 8
ANSWER_SECONDS = 0.02

#: Tolerance of a commit round on a busy machine.
BUSY_SECONDS = 2.0

#: POSTs of the other environment that show that time has passed and the load continues.
MEANWHILE = 40


def relay(ground: Ground, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the relay."""
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, **ground.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def started(ground: Ground, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command of the relay; it is killed when the context ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, **ground.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        try:
            yield command
        finally:
            command.kill()


def event_of(name: str, environment: str, *, version: object = 1, event_id: str | None = None) -> DeploymentEvent:
    return DeploymentEvent.of(
        f"ghcr.io/acme/{name}@{digest(f'{name}-{version}')}",
        environment=environment,
        id=event_id or f"{environment}-{name}-{version}",
    )


# 31


class Crowd:
    """Concurrent producers, each with its own connection, that report one event after the other."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._settings = Settings.load(redis={"url": ground.redis.url}, queue={"max_backlog": MAX_BACKLOG})
        #: Seconds of each refusal, and unexpected exceptions.
        self.refusals: list[float] = []
        self.errors: list[BaseException] = []

    def report(self, round_: str, *, until_refused: bool) -> None:
        """Report from all at once; each until it is refused, or until all its events are enqueued."""
        threads = [threading.Thread(target=self._produce, args=(round_, n, until_refused)) for n in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors

    def _produce(self, round_: str, number: int, until_refused: bool) -> None:  # noqa: FBT001 - a thread's arguments
        try:
            with Producer(settings=self._settings) as producer:
                for version in range(EVENTS_EACH):
                    event = event_of(f"{round_}-{number}", f"env-{number % 4}", version=version)
                    while not self._is_taken(producer, event):
                        if until_refused:
                            return
                        time.sleep(PATIENCE_SECONDS)  # as a producer does that is asked to retry later
        except BaseException as error:  # noqa: BLE001 - raised once all have ended
            self.errors.append(error)

    def _is_taken(self, producer: Producer, event: DeploymentEvent) -> bool:
        began = time.monotonic()
        try:
            producer.report_event(event)
        except QueueFull:
            self.refusals.append(time.monotonic() - began)
            return False
        self._ground.oracle.note([report_of(event)])
        return True


@scenario(31, "queue full with 20 producers", bound="each refused in time; accepted = E exactly; then accepted again")
def test_a_full_queue_refuses_each_producer_and_has_exactly_what_it_acknowledged(ground: Ground) -> None:
    crowd = Crowd(ground)
    crowd.report("first", until_refused=True)
    assert ground.counters().added == ground.oracle.added == MAX_BACKLOG
    ground.bit(len(crowd.refusals) == PRODUCERS, "each producer got the error that the queue is full")
    ground.environment["RELAY_QUEUE__MAX_BACKLOG"] = str(MAX_BACKLOG)
    assert relay(ground, "report", f"ghcr.io/acme/one-more@{digest(0)}").returncode == EX_TEMPFAIL
    assert ground.counters().added == MAX_BACKLOG

    ground.api.behave(Response(delay_seconds=0.005))  # the queue stays full for a while
    ground.start_workers(1)
    before = len(crowd.refusals)
    crowd.report("second", until_refused=False)
    again = len(crowd.refusals) - before
    ground.bit(again > 0, "producers were refused while the workers made room")
    assert max(crowd.refusals) < REFUSED_SECONDS
    assert ground.rest().added == ground.oracle.added == MAX_BACKLOG + PRODUCERS * EVENTS_EACH
    ground.check()
    ground.observed(
        f"{MAX_BACKLOG} taken, then {PRODUCERS} refused; with workers {PRODUCERS * EVENTS_EACH} more taken, "
        f"{again} refusals between, the slowest in {max(crowd.refusals):.2f} s"
    )


# 32


def letters(ground: Ground, environment: str) -> dict[str, dict[str, Any]]:
    """Return an environment's dead letters as an operator sees them, by their events."""
    done = relay(ground, "dead", "export", "--environment", environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {letter["event_id"]: letter for letter in found}


def bury(ground: Ground) -> dict[str, list[DeploymentEvent]]:
    """Report events that the API refuses, and wait until all are dead; return them by their later outcome."""
    counts = {"again": SOME, "overtaken": SOME, "since": SOME, "forced": FORCED}
    doomed = {kind: [event_of(f"app-{n}", f"env-{kind}") for n in range(count)] for kind, count in counts.items()}
    plain = [event_of(f"app-{n}", f"env-{n % 10}") for n in range(DEAD - 3 * SOME)]
    ground.api.behave(Response(status=422))
    # The plain ones first: the killed redrive then moves only those, and none that is dead again before the next.
    for part in (plain, [event for events in doomed.values() for event in events]):
        ground.report_events(part)
        ground.wait(lambda: ground.counters().dead_waiting == ground.oracle.added, 60, ground.counters)
    return {"plain": plain, **doomed}


@scenario(32, "redrive of 10,000 at a rate, SIGKILL in the middle, a second one at once; some fail again, some were "
          "overtaken or delivered since",
          bound="each moved once; the second refused; resumable; history kept; skipped unless forced")  # fmt: skip
def test_a_redrive_moves_each_dead_letter_once_and_undoes_nothing(ground: Ground) -> None:
    ground.start_workers(1)
    doomed = bury(ground)
    before = letters(ground, "env-again")

    ground.api.behave(OK)
    ground.report_events([event_of(f"app-{n}", "env-overtaken", version=2) for n in range(SOME)])
    ground.report_events([event_of(f"app-{n}", "env-forced", version=2) for n in range(FORCED)])
    ground.report_events(doomed["since"])  # their producers reported them once more
    ground.rest()
    ground.oracle.overtaken = [event.id or "" for event in doomed["overtaken"]]

    ground.api.behave(lambda attempt: Response(status=422) if attempt.environment == "env-again" else OK)
    chosen = ("dead", "redrive", "--yes", "--environment", "env-[!f]*")
    began = time.monotonic()
    with started(ground, *chosen, "--rate", str(RATE)) as first:
        ground.wait(lambda: ground.counters().redriven > 0, 30, ground.counters)
        second = relay(ground, *chosen)
        assert second.returncode == EX_TEMPFAIL, second.stderr
        ground.wait(lambda: ground.counters().redriven > RATE, 30, ground.counters)
        assert first.poll() is None
        first.kill()
        first.wait()
        took = time.monotonic() - began
    moved = ground.counters().redriven
    ground.bit(0 < moved < DEAD, "the redrive was killed in the middle")
    ground.bit("another redrive is running" in second.stderr, "the second was refused")
    assert moved <= RATE * (took + 1), f"{moved} in {took:.1f} s"

    assert 0 < ground.client.pttl(ground.keys.redrive_lease) <= REDRIVE_LEASE_SECONDS * 1000
    ground.client.pexpire(ground.keys.redrive_lease, 1)  # its 15 s, for which the next one waits, scaled down
    ground.wait(lambda: not ground.client.exists(ground.keys.redrive_lease))
    third = relay(ground, *chosen)
    assert (third.returncode, third.stderr.split()[0]) == (0, str(DEAD - moved)), third.stderr
    counters = ground.rest(60)
    assert counters.redriven == DEAD
    assert (counters.stale, counters.duplicate) == (SOME, SOME)
    ground.oracle.check_order(ground.api)
    check_moved_once(ground, doomed)

    after = letters(ground, "env-again")
    assert after.keys() == before.keys()
    for event_id, letter in after.items():
        assert (before[event_id]["redriven"], letter["redriven"]) == (0, 1)
        assert letter["first_enqueued_at"] == before[event_id]["first_enqueued_at"]

    ground.api.behave(OK)
    assert relay(ground, "dead", "redrive", "--environment", "env-forced", "--force").returncode == 0
    assert relay(ground, "dead", "redrive", "--environment", "env-again").returncode == 0
    counters = ground.rest()
    assert (counters.redriven, counters.dead_waiting) == (DEAD + FORCED + SOME, 0)
    assert {event.id for event in doomed["forced"] + doomed["again"]} <= set(ground.api.processed_ids())
    ground.check(ordered=False)  # checked above; the forced ones break the order
    ground.observed(
        f"{moved} moved, killed, the second refused, {DEAD - moved} moved by the third; {SOME} stale, "
        f"{SOME} duplicate, {SOME} dead again with their history, {FORCED} forced; {ground.api.repeats()} repeats"
    )


def check_moved_once(ground: Ground, doomed: dict[str, list[DeploymentEvent]]) -> None:
    """Check that each was sent again once, except those that would have undone or repeated a delivery."""
    times: dict[str, int] = {}
    for attempt in ground.api.attempts:
        times[attempt.event_id] = times.get(attempt.event_id, 0) + 1
    expected = {"plain": 2, "again": 2, "overtaken": 1, "since": 2, "forced": 1}  # `since`: by its second report
    for kind, events in doomed.items():
        assert {times[event.id or ""] for event in events} == {expected[kind]}, kind


# 33


def attempts_of(ground: Ground, environment: str) -> list[Attempt]:
    return [attempt for attempt in list(ground.api.attempts) if attempt.environment == environment]


@scenario(33, "pause and resume under load, over a restart of the workers",
          bound="beyond what was in flight at most one settlement round (a window of 8); nothing while paused; "
                "order kept")  # fmt: skip
def test_a_paused_environment_stays_paused_over_a_restart_and_keeps_the_order(ground: Ground) -> None:
    ground.environment["RELAY_DELIVERY__MAX_IN_FLIGHT"] = str(MAX_IN_FLIGHT)
    ground.api.behave(Response(delay_seconds=ANSWER_SECONDS))
    old = ground.start_workers(1)
    lease = ground.keys.of_outbox(DEFAULT_DESTINATION, PAUSED).lease
    with ground.load(100, instances=20, environments=2):
        ground.wait(lambda: len(attempts_of(ground, PAUSED)) > MEANWHILE and in_flight_of(ground, PAUSED) > 0)
        assert relay(ground, "pause", PAUSED).returncode == 0
        paused_at = on_our_clock(pausing.paused(ground.client, ground.keys, DEFAULT_DESTINATION)[PAUSED])
        ground.wait(lambda: not ground.client.exists(lease) and not in_flight_of(ground, PAUSED))
        sent = attempts_of(ground, PAUSED)
        late = [attempt.read_at - paused_at for attempt in sent if attempt.read_at > paused_at]
        assert len(late) <= MAX_IN_FLIGHT
        assert max(late, default=0) < ANSWER_SECONDS + BUSY_SECONDS

        go_on(ground, OTHER)
        assert ground.terminate(*old) == [0]
        ground.start_workers(1)
        go_on(ground, OTHER)
        waited = len(ground.in_outboxes())
        ground.bit(waited > MEANWHILE, "events of the paused environment waited over the restart")
        assert len(attempts_of(ground, PAUSED)) == len(sent), "an event was sent while it was paused"

        assert relay(ground, "resume", PAUSED).returncode == 0
        ground.wait(lambda: len(attempts_of(ground, PAUSED)) > len(sent) + MEANWHILE, seen=ground.counters)
    ground.check()
    ground.observed(
        f"{len(late)} POSTs after the pause, 0 over the restart while {waited} piled up; "
        f"{len(ground.api.attempts)} POSTs, {ground.api.repeats()} repeats, order kept"
    )


def in_flight_of(ground: Ground, environment: str) -> int:
    return sum(not attempt.ended for attempt in attempts_of(ground, environment))


def go_on(ground: Ground, environment: str) -> None:
    """Wait until this many more of an environment's events were sent."""
    enough = len(attempts_of(ground, environment)) + MEANWHILE
    ground.wait(lambda: len(attempts_of(ground, environment)) >= enough, seen=ground.counters)


def on_our_clock(redis_ms: int) -> float:
    """Convert a moment of Redis's clock, which is this machine's, to the API's clock."""
    return redis_ms / 1000 - (time.time() - time.monotonic())
