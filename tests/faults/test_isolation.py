"""One failing event, many busy environments, or a hanging API do not delay the others."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from faults.api import OK, STALL
from faults.ground import TIMEOUT_SECONDS, digest, scenario

from relay import DeploymentEvent
from relay.sandbox.response import Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from faults.api import Attempt
    from faults.ground import Ground

#: Tolerances on a busy machine: of a promised time, and of one event's latency.
BUSY_SECONDS = 2.0
BUSY_LATENCY_SECONDS = 0.1

#: Maximum time of an attempt beyond its deadline.
DEADLINE_MARGIN_SECONDS = 0.1

#: Maximum slowdown of others by one failing event.
SLOWER_FOR_AN_EVENT = 1.2

#: Failures of an event before it succeeds, and of one until its attempts are used up; each is followed by a pause of
#: a quarter of a second on average, in which a run that waited would delay all others.
SUCCEEDS_AFTER, USED_UP_AFTER = 5, 6

#: Of scenario 39: pool processes, events of all busy environments (more than those processes deliver meanwhile), and
#: how long the quiet one reports.
PROCESSES = 2
BUSY_EVENTS = 8_000
QUIET_SECONDS = 8.0

#: Default budget of a delivery run, where the ground's timers are scaled down.
DEFAULT_TIMERS = {"RELAY_WORKER__LEASE": "15s", "RELAY_WORKER__BUDGET": "5s", "RELAY_WORKER__SWEEP": "5s"}

#: Time-outs after which no slot may be lost.
TIME_OUTS = 500

#: Deadline of a POST in that scenario.
SHORT_DEADLINE_SECONDS = 0.15

#: Maximum POSTs in flight of one run.
MAX_IN_FLIGHT = 32


def share(values: Sequence[float], part: float) -> float:
    """Return a quantile."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@dataclass(slots=True)
class Pulse:
    """Reports one event at a time at a steady rate, and measures each event's latency to the API's answer."""

    ground: Ground
    per_second: float
    environment: str
    reported: dict[str, float] = field(default_factory=dict)

    def beat(self, seconds: float) -> list[str]:
        """Report for this many seconds and return the ids."""
        ids = []
        began = time.monotonic()
        with self.ground.producer() as producer:
            for n in range(int(seconds * self.per_second)):
                self.ground.wait(lambda due=began + n / self.per_second: time.monotonic() >= due)  # type: ignore[misc]
                name = f"{self.environment}-{len(self.reported)}"
                event = DeploymentEvent.of(
                    f"ghcr.io/acme/{name}@{digest(name)}", environment=self.environment, id=name
                )
                self.reported[name] = time.monotonic()
                self.ground.report_events([event], producer)
                ids.append(name)
        return ids

    def latencies(self, ids: Sequence[str]) -> list[float]:
        """Wait until these are delivered and return their latencies in seconds."""
        ended: dict[str, float] = {}

        def arrived() -> bool:
            ended.update({a.event_id: a.ended_at for a in list(self.ground.api.attempts) if a.ended_at is not None})
            return ended.keys() >= set(ids)

        self.ground.wait(arrived, seen=self.ground.counters)
        return [ended[name] - self.reported[name] for name in ids]


def unheard(ground: Ground) -> int:
    """Return how many answers may have been sent just after the client left: the last ones on closed connections."""
    still_open = {connection.number for connection in ground.api.connections}
    last = {attempt.connection: attempt for attempt in list(ground.api.attempts)}
    return sum(a.processed and a.ended == "answered" and a.connection not in still_open for a in last.values())


def told(latencies: Sequence[float]) -> str:
    """Format in milliseconds: median, p90 and p99."""
    return "/".join(f"{1000 * share(latencies, part):.0f}" for part in (0.5, 0.9, 0.99))


def check_not_slower(factor: float, disturbed: Sequence[float], alone: Sequence[float]) -> None:
    """Compare medians and p90. The p99 of some hundred events is one pause of the machine, and is only shown."""
    for part in (0.5, 0.9):
        bound = factor * (share(alone, part) + BUSY_LATENCY_SECONDS)
        assert share(disturbed, part) < bound, f"{told(disturbed)} ms beside it, {told(alone)} ms alone"


@scenario(21, "500 for one event only", bound="its instance waits until it succeeds or is exhausted; the others' "
          "median and p90 within 1.2 times (undisturbed + 0.1 s)")  # fmt: skip
def test_a_failing_event_delays_only_its_own_instance(ground: Ground) -> None:
    failures = {"recovering-0": SUCCEEDS_AFTER, "used-up-0": USED_UP_AFTER}
    ground.api.behave(
        lambda attempt: Response(status=500) if attempt.earlier < failures.get(attempt.event_id, 0) else OK
    )
    pauses = {"RELAY_DELIVERY__BACKOFF_INITIAL": "500ms", "RELAY_DELIVERY__BACKOFF_MAX": "500ms"}
    ground.start_workers(2, RELAY_DELIVERY__MAX_ATTEMPTS=str(USED_UP_AFTER), **pauses)
    pulse = Pulse(ground, 100, "env-0")
    pulse.latencies(pulse.beat(0.5))  # so that all connections are open
    alone, disturbed = [], []
    for instance in ("recovering", "used-up"):  # in turns, so that other load of the machine affects both
        alone += pulse.latencies(pulse.beat(1.5))
        ids = [f"{instance}-{n}" for n in range(3)]
        images = [f"ghcr.io/acme/{instance}@{digest(name)}" for name in ids]
        ground.report_events(
            [DeploymentEvent.of(image, environment="env-0", id=name) for image, name in zip(images, ids, strict=True)]
        )
        disturbed += pulse.latencies(pulse.beat(1.5))
        ground.wait(lambda last=ids[-1]: last in ground.api.processed_ids(), seen=ground.counters)  # type: ignore[misc]
        tries = [a.event_id for a in ground.api.attempts if a.event_id in ids]
        failed = failures[ids[0]]
        ground.bit(tries[:failed] == [ids[0]] * failed, "it failed repeatedly, and its instance waited")
        assert tries[failed:] == (ids if instance == "recovering" else ids[1:]), "it was not released in its order"
    assert ground.outcomes().dead_ids == ["used-up-0"]
    check_not_slower(SLOWER_FOR_AN_EVENT, disturbed, alone)
    ground.check()
    ground.observed(
        f"released after success at attempt {SUCCEEDS_AFTER + 1}, and when used up after {USED_UP_AFTER}; "
        f"the others' median/p90/p99: {told(alone)} ms alone, {told(disturbed)} ms beside it"
    )


#: How every tenth attempt hangs.
HANGS = (
    Response(hangs=True),
    Response(status=503, drip_seconds=0.05, drips_head=True),
    Response(status=503, body=b"." * 1000, drip_seconds=0.05),
    Response(status=202, body=b"." * 1000, drip_seconds=0.05),
)


@scenario(22, "hang, slow-loris headers, slow-loris body, jittery latency", bound="each attempt ends by the deadline "
          "+ 0.1 s; the concurrency limit shrinks; no slot leaks over 500 time-outs; repeats ≤ T")  # fmt: skip
def test_no_slot_is_lost_to_an_api_that_hangs(ground: Ground) -> None:
    def respond(attempt: Attempt) -> Response:
        if attempt.number % 10 == 0:
            return HANGS[attempt.number // 10 % len(HANGS)]
        return Response(delay_seconds=attempt.number * 7 % 11 / 2000)

    def left() -> list[Attempt]:
        return [attempt for attempt in list(ground.api.attempts) if attempt.ended == "left"]

    def over() -> bool:
        windows.append(int(ground.health("window") or 0) or MAX_IN_FLIGHT)
        return len(left()) >= TIME_OUTS

    windows: list[int] = []
    ground.api.behave(respond)
    deadline = {"RELAY_API__TIMEOUT": f"{SHORT_DEADLINE_SECONDS}s", "RELAY_DELIVERY__MAX_ATTEMPTS": "20"}
    ground.start_workers(1, **deadline)
    ground.report(5500, environments=5)
    ground.wait(over, 60, lambda: f"{len(left())} time-outs, window {ground.health('window')}")
    ground.bit(len(left()) >= TIME_OUTS, "the client abandoned so many requests")
    assert min(windows) < MAX_IN_FLIGHT / 2, "the concurrency limit did not shrink"
    durations = [attempt.ended_at - attempt.read_at for attempt in left() if attempt.ended_at is not None]
    assert share(durations, 0.5) < SHORT_DEADLINE_SECONDS + DEADLINE_MARGIN_SECONDS
    assert max(durations) < SHORT_DEADLINE_SECONDS + DEADLINE_MARGIN_SECONDS + BUSY_SECONDS

    ground.api.behave(Response(delay_seconds=0.02))
    most = 0

    def regrown() -> bool:
        nonlocal most
        most = max(most, ground.api.in_flight)
        return most >= MAX_IN_FLIGHT

    ground.report(2000, environments=5)
    ground.wait(regrown, seen=lambda: f"{most} at once of {MAX_IN_FLIGHT}, window {ground.health('window')}")
    ground.api.behave(OK)
    ground.rest(60)
    assert ground.counters().dead == 0
    time_outs = ground.api.unknowable() + unheard(ground)
    ground.check(unknowable=time_outs)
    ground.observed(
        f"{len(durations)} time-outs, p90 {share(durations, 0.9):.2f} s and the longest {max(durations):.2f} s of "
        f"{SHORT_DEADLINE_SECONDS} s; window down to {min(windows)}, and {most} POSTs at once again after; "
        f"{ground.api.repeats()} repeats, T = {time_outs}"
    )


class IsolationError(AssertionError):
    """The quiet environment was slowed down by more than the promised factor."""


@pytest.mark.xfail(
    raises=IsolationError,
    strict=True,
    reason="a delivery run keeps its process until its budget ends: of the quiet environment, measured with default "
    "timers, p50 0.13, 0.13 and 1.97 s and p90 0.14, 1.24 and 4.76 s beside 0, 3 and 20 busy environments",
)
@scenario(39, "busy environments: one more than processes, then ten times as many, at an API of 100 ms; one quiet "
          "environment with an event each half second", bound="the quiet one's p50 within 1.2 times and p90 within 2 "
          "times of undisturbed, intake included", timeout=180)  # fmt: skip
def test_busy_environments_delay_only_themselves(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.1))
    ground.start_workers(1, concurrency=PROCESSES, **DEFAULT_TIMERS)
    pulse = Pulse(ground, 2, "quiet")
    pulse.latencies(pulse.beat(1))  # so that all connections are open
    alone = pulse.latencies(pulse.beat(QUIET_SECONDS))
    beside: dict[int, list[float]] = {}
    for busy in (PROCESSES + 1, 10 * PROCESSES):
        ground.report(BUSY_EVENTS, environments=busy)
        beside[busy] = pulse.latencies(pulse.beat(QUIET_SECONDS))
        ground.bit(ground.counters().waiting > BUSY_EVENTS / 10, f"{busy} environments had a backlog throughout")
    ground.api.behave(OK)
    ground.rest(60)
    ground.check()
    for busy, disturbed in beside.items():
        ground.observed(f"median/p90/p99 {told(alone)} ms alone, {told(disturbed)} ms beside {busy} busy ones")
    for disturbed in beside.values():
        for part, factor in ((0.5, 1.2), (0.9, 2.0)):
            if share(disturbed, part) > factor * share(alone, part) + BUSY_LATENCY_SECONDS:
                raise IsolationError("; ".join(ground.observations))


@scenario(30, "a destination that hangs with 200 environments", bound="each attempt ends by the deadline + 0.1 s, "
          "runs end and release, nothing lost or dead, recovers; repeats ≤ T")  # fmt: skip
def test_two_hundred_environments_survive_a_destination_that_hangs(ground: Ground) -> None:
    ground.api.behave(STALL)
    ground.start_workers(2)
    ground.report(1000, environments=200)

    def leases() -> list[str]:
        return [name for name in ground.leftovers() if name.startswith("lease:deliver:")]

    ground.wait(lambda: ground.api.in_flight > 1)
    ground.wait(lambda: int(ground.health("openings") or 0) >= 3, seen=ground.counters)
    ground.wait(lambda: not leases(), seen=leases)
    hung = list(ground.api.attempts)
    ground.wait(lambda: all(attempt.ended == "left" for attempt in hung))
    ground.bit(hung, "the destination answered nothing")
    durations = [attempt.ended_at - attempt.read_at for attempt in hung if attempt.ended_at is not None]
    assert max(durations) < TIMEOUT_SECONDS + DEADLINE_MARGIN_SECONDS + BUSY_SECONDS
    mended_at = time.monotonic()
    ground.api.behave(OK)
    ground.rest(60)
    took = time.monotonic() - mended_at
    assert ground.counters().dead == 0
    time_outs = ground.api.unknowable()
    ground.check(unknowable=time_outs)
    ground.observed(
        f"{len(hung)} requests hung, the longest for {max(durations):.2f} s; all arrived {took:.1f} s after it was "
        f"recovered; {ground.api.repeats()} repeats, T = {time_outs}"
    )
