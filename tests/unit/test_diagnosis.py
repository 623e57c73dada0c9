"""What is wrong: each fault is named first, whatever it brings about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from relay.operations.diagnosis import Cause, diagnose
from relay.operations.finding import Severity
from relay.operations.status import describe, duration
from relay.queue.clock_ahead import ClockAhead
from relay.queue.contested import Contested
from relay.queue.counters import Counters, EnvironmentCounts
from relay.queue.dead_letters import DeadLetter
from relay.queue.health import Health
from relay.queue.redis_server import RedisServer
from relay.queue.status import Retrying, Status

NOW = 1_750_000_000_000
NOTHING = Counters(**dict.fromkeys(
    ("added", "redriven", "waiting", "accepted", "delivered", "duplicate", "stale", "superseded", "dead", "dropped",
     "dead_waiting", "retries", "ignored"), 0,
))  # fmt: skip
WELL = Health(successes=100, window=32)


def counters(**counts: int) -> Counters:
    """A counters that adds up."""
    made = replace(NOTHING, **counts)
    ended = made.delivered + made.duplicate + made.stale + made.superseded + made.dead
    return replace(made, added=made.waiting + ended - made.redriven)


def environment(name: str = "production", **known: Any) -> EnvironmentCounts:
    none = dict.fromkeys(("waiting", "retrying", "delivered", "duplicate", "stale", "superseded", "dead"), 0)
    return EnvironmentCounts(environment=name, **{**none, "oldest": None, **known})


def status(**parts: Any) -> Status:
    """A relay that is well, but for these parts."""
    well = {
        "destination": "default",
        "now": NOW,
        "counters": counters(delivered=100),
        "health": WELL,
        "workers": {"relay@host": NOW - 500},
    }
    return Status(**{**well, "max_backlog": 1000, "memory_watermark": 0.9, **parts})


FULL_REDIS = RedisServer(memory_used=95, maxmemory=100)
WAITING = counters(waiting=50, delivered=100)
BUSY = [environment(waiting=50, oldest=NOW - 5000)]
LETTER = DeadLetter(
    f"{NOW - 5000}-0",
    ((b"event", b'{"image": {"url": "ghcr.io/acme/api@sha256:00"}, "environment": {"name": "production"}}'),),
    {"reason": "refused", "detail": "HTTP 422: no", "attempts": "1", "environment": "production"},
)
DEAD = {"counters": counters(delivered=100, dead=1, dead_waiting=1), "newest_dead": LETTER}
EXPIRED = Health(until=NOW + 1500, reason="unauthorized", circuit="unauthorized", openings=3, failures=0)
DOWN = Health(until=NOW + 1500, reason="unavailable", circuit="unavailable", openings=3, failures=22)
LIMITED = Health(until=NOW + 30_000, reason="throttled", successes=9)
PAUSED = [environment(waiting=30, paused_since=NOW - 9000, oldest=NOW - 9000), environment("staging", waiting=20)]
CONTESTED = Contested("shop", "ghcr.io/acme/api linux/amd64 ", ("eu-1", "eu-2"), 3, NOW - 5000)
RETRYING = {"retrying": [Retrying("production", "ghcr.io/acme/api linux/amd64 ", 5)]}


@pytest.mark.parametrize(
    ("seen", "cause", "words"),
    [
        (status(write_error="READONLY You can't write"), "read_only", ["no writes", "READONLY", "promoted"]),
        (status(workers={}, counters=WAITING), "no_workers", ["50 events are waiting", "relay worker"]),
        (status(workers={}), "no_workers", ["nothing is waiting"]),
        (status(health=EXPIRED, counters=WAITING), "unauthorized", ["token", "RELAY_API_TOKEN_FILE", "in 2 s"]),
        (status(health=EXPIRED._replace(until=0, probe_until=NOW + 1)), "unauthorized", ["a probe is under way"]),
        (status(health=EXPIRED._replace(circuit="misconfigured")), "misconfigured", ["RELAY_API_URL"]),
        (status(health=DOWN, counters=WAITING), "unavailable", ["22 attempts in a row", "nothing is lost"]),
        (status(health=LIMITED, counters=WAITING), "throttled", ["429", "for 30 s more"]),
        (
            status(
                health=LIMITED._replace(openings=1, circuit="throttled", throttled_until=NOW + 3_000_000),
                counters=WAITING,
            ),
            "throttled",
            ["for 50 min more", "relay resume --destination default", "the next probe is in 30 s"],
        ),
        (status(health=LIMITED._replace(until=NOW - 900), counters=WAITING), "throttled", ["api.rate_limit"]),
        (status(health=Health(failures=7), counters=WAITING, environments=BUSY),
         "failing", ["last 7 attempts"]),
        (
            status(
                health=Health(failures=7),
                counters=WAITING,
                environments=[environment(waiting=1, retrying=1)],
                **RETRYING,
            ),
            "failing",
            ["all of one event perhaps", "ghcr.io/acme/api linux/amd64 in production"],
        ),
        (status(counters=WAITING, environments=PAUSED), "paused", ["production is paused", "relay resume"]),
        (status(server=FULL_REDIS, counters=WAITING, environments=BUSY), "redis_full", ["95%", "maxmemory"]),
        (status(counters=counters(waiting=1000), environments=BUSY), "queue_full", ["full", "queue.max_backlog"]),
        (status(counters=counters(waiting=900), environments=BUSY), "queue_full", ["90% full"]),
        (status(counters=WAITING, inbox_delivery_count=1), "worker_crashes", ["the inbox", "worker_crash"]),
        (status(environments=[environment(delivery_count=2)], counters=WAITING), "worker_crashes", ["production"]),
        (status(inbox_oldest=NOW - 300_000, counters=WAITING), "inbox_late", ["5 min", "intake is not running"]),
        (
            status(inbox_oldest=NOW - 300_000, is_intake_running=True, counters=WAITING),
            "inbox_late",
            ["5 min", "though intake is running"],
        ),
        (
            status(counters=WAITING, environments=[environment(waiting=50, retrying=2, oldest=NOW - 300_000)]),
            "behind",
            ["production is 5 min behind"],
        ),
        (
            status(counters=WAITING, environments=[environment(waiting=50, oldest=NOW - 300_000)]),
            "behind",
            ["production is 5 min behind"],
        ),
        (
            status(counters=WAITING, environments=[environment(waiting=9, retrying=1)], **RETRYING),
            "poison",
            ["one event is at fault", "ghcr.io/acme/api linux/amd64 in production", "5 times"],
        ),
        (
            status(contested=[CONTESTED, CONTESTED._replace(instance="b linux/amd64 ")]),
            "contested",
            ["ghcr.io/acme/api linux/amd64 in shop", "in turns by eu-1 and eu-2", "changed back 3 times", "5 s ago",
             "and 1 more like it", "CLUSTER_NAME"],
        ),
        (
            status(contested=[CONTESTED._replace(sources=("", ""))]),
            "contested",
            ["by reports without a source, perhaps of two clusters"],
        ),
        (
            status(clock_ahead=ClockAhead(86_400_000, "production", "east"), clocks_ahead=7),
            "clock_ahead",
            ["source east is 24 h ahead", "production", "7 such", "correct that clock", "delivery.max_clock_skew"],
        ),
        (
            status(**DEAD),
            "dead_letters",
            ["1 dead letter waits", "5 s old", "ghcr.io/acme/api@sha256:00 in production", "refused, HTTP 422: no",
             f"relay dead show {LETTER.letter_id}"],
        ),
        (status(counters=replace(NOTHING, added=3)), "unaccounted", ["3 events are unaccounted", "defect"]),
    ],
)  # fmt: skip
def test_a_single_cause_is_reported_with_what_to_do(seen: Status, cause: str, words: list[str]) -> None:
    [finding] = diagnose(seen)
    assert finding.check == cause
    for word in words:
        assert word in str(finding)


@pytest.mark.parametrize(
    ("seen", "causes"),
    [
        pytest.param(
            status(
                workers={},
                counters=counters(waiting=1000),
                inbox_oldest=1,
                server=FULL_REDIS,
            ),
            ["no_workers", "redis_full", "queue_full"],
            id="workers that are away fill the queue",
        ),
        pytest.param(
            status(health=DOWN, counters=counters(waiting=1000), environments=[environment(waiting=1000, oldest=1)]),
            ["unavailable", "queue_full"],
            id="an API that is down fills the queue, and what waits for it is not behind",
        ),
        pytest.param(
            status(health=EXPIRED, counters=WAITING, environments=[*PAUSED[1:], environment("x", paused_since=1)]),
            ["unauthorized", "paused"],
            id="an old pause is no news beside an expired token",
        ),
        pytest.param(
            status(
                counters=WAITING,
                server=FULL_REDIS,
                environments=[environment(waiting=1, paused_since=1)],
            ),
            ["redis_full", "paused"],
            id="a pause that holds little up does not explain a full Redis",
        ),
        pytest.param(
            status(counters=WAITING, server=FULL_REDIS, environments=PAUSED),
            ["paused", "redis_full"],
            id="a pause that holds most of it up does",
        ),
        pytest.param(
            status(health=DOWN, environments=[environment(retrying=1)], **RETRYING, **DEAD),
            ["unavailable", "dead_letters"],
            id="no event is at fault while the API fails all",
        ),
        pytest.param(
            status(health=DOWN._replace(reason="throttled"), counters=WAITING),
            ["unavailable"],
            id="a pause that a failing API asked for",
        ),
    ],
)
def test_a_cause_comes_before_its_consequences(seen: Status, causes: list[str]) -> None:
    assert [finding.check for finding in diagnose(seen)] == causes


@pytest.mark.parametrize(
    "seen",
    [
        status(),
        status(counters=WAITING, environments=BUSY),
        status(server=RedisServer(memory_used=89, maxmemory=100)),
        status(server=RedisServer(memory_used=95, maxmemory=0)),
        status(health=Health(failures=2), counters=WAITING),
        status(health=LIMITED._replace(until=NOW - 90_000), counters=WAITING),
        status(health=LIMITED),
        status(counters=WAITING, environments=[environment(waiting=20, retrying=2, oldest=NOW - 300_000)]),
        status(environments=[environment(waiting=1, retrying=1)], retrying=[Retrying("production", "x", 1)]),
        status(counters=counters(waiting=799)),
        status(inbox=1, inbox_oldest=NOW - 1000, counters=WAITING),
    ],
    ids=["idle", "at work", "memory left", "no maxmemory", "two failures", "limited long ago", "nothing is limited",
         "tries explain it", "tried once", "room left", "just come"],
)  # fmt: skip
def test_a_healthy_status_has_no_findings(seen: Status) -> None:
    assert diagnose(seen) == []


def test_every_cause_has_a_case() -> None:
    marks = [
        mark
        for function in (test_a_single_cause_is_reported_with_what_to_do,)
        for mark in function.pytestmark  # type: ignore[attr-defined]
    ]
    assert {case[1] for mark in marks for case in mark.args[1]} == set(Cause)


def test_severities_are_in_ascending_order() -> None:
    assert list(Severity) == ["ok", "note", "warning", "fault"]


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (Health(), ["healthy", "nothing was tried yet"]),
        (WELL, ["healthy", "the last attempt succeeded", "up to 32 requests at once"]),
        (LIMITED, ["throttled for 30 s more"]),
        (DOWN, ["unavailable", "the next probe is in 2 s", "22 failed in a row", "circuit opened 3 times in a row"]),
        (DOWN._replace(probe_until=NOW + 5), ["a probe is under way"]),
        (DOWN._replace(until=NOW - 5), ["a probe is next"]),
    ],
)
def test_health_is_described_in_words(health: Health, words: list[str]) -> None:
    for word in words:
        assert word in describe(health, NOW)


@pytest.mark.parametrize(
    ("milliseconds", "written"),
    [(-5, "0 s"), (0, "0 s"), (12_000, "12 s"), (119_000, "119 s"), (300_000, "5 min"), (7_200_000, "2 h"),
     (400_000_000, "5 d")],
)  # fmt: skip
def test_durations_are_short(milliseconds: int, written: str) -> None:
    assert duration(milliseconds) == written


def test_a_replica_is_a_fault_only_without_live_workers() -> None:
    """Workers whose signs of life are replicated write to the primary: then only this client reads from a replica."""
    worst = diagnose(status(workers={}, write_error="READONLY You can't write"))[0]
    assert (worst.check, worst.severity) == (Cause.READ_ONLY, Severity.FAULT)
    [found] = diagnose(status(write_error="READONLY You can't write"))
    assert (found.check, found.severity) == (Cause.READ_ONLY, Severity.WARNING)
