"""The demo's estate is as wide and varied as it should be, and its outcomes are those of the rules."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest
import rules
from rules import Decision, Report, decisions

from relay.demo.estate import MALFORMED, Arrival, Entry, Outcome, Subject, partition, simulate
from relay.errors import InvalidEvent
from relay.events.event import Defaults, DeploymentEvent

PRODUCERS = 4

Valid: TypeAlias = list[tuple[Subject, Entry, Outcome]]


@pytest.fixture(scope="module")
def arrivals() -> list[Arrival]:
    return simulate()


@pytest.fixture(scope="module")
def valid(arrivals: list[Arrival]) -> Valid:
    return [(each.subject, each.entry, each.outcome) for each in arrivals if each.subject]


def instance(subject: Subject) -> Subject:
    return subject._replace(digest="")


def parse(entry: Entry) -> DeploymentEvent:
    return DeploymentEvent.parse(
        entry["event"], id=entry.get("id"), source=entry.get("source"), time=entry.get("time")
    )


def test_simulation_is_the_same_each_time(arrivals: list[Arrival]) -> None:
    assert simulate() == arrivals


def test_entries_are_fields_of_an_xadd(arrivals: list[Arrival]) -> None:
    for entry in (each.entry for each in arrivals):
        assert "event" in entry
        assert entry.keys() <= {"event", "id", "source", "time"}
        assert all(isinstance(text, str) for text in entry.values())


def test_estate_is_wide(arrivals: list[Arrival], valid: Valid) -> None:
    sources = {entry["source"] for _, entry, _ in valid if "source" in entry}
    assert 24_000 <= len(arrivals) <= 26_000
    assert len({instance(subject) for subject, _, _ in valid}) >= 3_000
    assert len({subject.environment for subject, _, _ in valid}) == 12
    assert len({source for source in sources if "/" not in source}) == 6
    assert len({source for source in sources if "/" in source}) == 2
    assert len({subject.digest for subject, _, _ in valid}) <= 1_500
    assert 80 <= len({subject.repository for subject, _, _ in valid}) <= 100
    assert {subject.platform for subject, _, _ in valid} == {"linux/amd64", "linux/arm64", "linux/arm/v7"}


def test_outcomes_are_mixed(arrivals: list[Arrival]) -> None:
    shares = {outcome: n / len(arrivals) for outcome, n in Counter(each.outcome for each in arrivals).items()}
    assert 0.35 <= shares[Outcome.DELIVERED] <= 0.50
    assert 0.45 <= shares[Outcome.DUPLICATE] <= 0.60
    assert 0.02 <= shares[Outcome.STALE] <= 0.10


@pytest.mark.parametrize("kind", MALFORMED)
def test_each_malformed_kind_occurs_once_and_the_relay_refuses_it(arrivals: list[Arrival], kind: str) -> None:
    wanted = MALFORMED[kind]
    assert [each.outcome for each in arrivals if each.entry.items() >= wanted.items()] == [Outcome.INVALID]
    with pytest.raises(InvalidEvent):
        parse(wanted)


@pytest.mark.parametrize(
    "spelling",
    [
        '"docker-pullable://',
        '"url":"nginx@sha256:',
        '"docker.io/library/nginx:1.27.',
        '"x86_64"',
        '"aarch64"',
    ],
)
def test_spellings_vary(valid: Valid, spelling: str) -> None:
    assert sum(spelling in entry["event"] for _, entry, _ in valid) >= 50


def test_environment_and_platform_are_often_left_to_the_defaults(valid: Valid) -> None:
    assert sum('"environment"' not in entry["event"] for _, entry, _ in valid) >= 100
    assert sum('"platform"' not in entry["event"] for _, entry, _ in valid) >= 5_000


def test_one_repository_runs_many_times_in_an_environment(valid: Valid) -> None:
    envoy = ("staging", "docker.io/envoyproxy/envoy")
    envoys = {instance(subject) for subject, _, _ in valid if subject[:2] == envoy}
    assert len(envoys) == len({subject.name for subject in envoys}) >= 30


def test_producers_retry_with_the_same_id_at_once_and_after_a_change(valid: Valid) -> None:
    """Both kinds: the digest alone shows the first as a duplicate, only the id the second."""
    current: dict[Subject, str] = {}
    seen: set[str] = set()
    retries: Counter[str] = Counter()
    for subject, entry, outcome in valid:
        if entry.get("id") in seen:
            assert outcome is Outcome.DUPLICATE
            retries["at once" if current[instance(subject)] == subject.digest else "after a change"] += 1
        seen |= {entry["id"]} if "id" in entry else set()
        if outcome is Outcome.DELIVERED:
            current[instance(subject)] = subject.digest
    assert retries["at once"] >= 50
    assert retries["after a change"] >= 50


def test_rollbacks_happen(valid: Valid) -> None:
    accepted: dict[Subject, list[str]] = defaultdict(list)
    for subject, _, outcome in valid:
        if outcome is Outcome.DELIVERED:
            accepted[instance(subject)].append(subject.digest)
    histories = accepted.values()
    assert sum(len(set(history)) < len(history) for history in histories) >= 200
    assert all(before != after for history in histories for before, after in pairwise(history))


def test_relay_parses_each_entry_as_what_happened(valid: Valid) -> None:
    for subject, entry, _ in valid:
        event = parse(entry).completed(Defaults())
        made = event.instance
        assert subject == (made.environment, made.repository, made.name or None, made.platform, event.image.digest)


def test_outcomes_are_those_of_the_rules(valid: Valid) -> None:
    """The simulation knows the outcomes from what happened, and the rules from ids, digests and times alone."""
    reports = [
        (
            instance(subject),
            Report(event_id=entry.get("id", ""), digest=subject.digest, rank=(n, 0), time=seconds(entry)),
        )
        for n, (subject, entry, _) in enumerate(valid)
    ]
    outcomes = [Outcome.DELIVERED if each.is_delivered else Outcome(each) for each in decisions(reports)]
    assert outcomes == [outcome for _, _, outcome in valid]


def seconds(entry: Entry) -> float | None:
    time = parse(entry).time
    return time.timestamp() if time else None


def test_restated_rules_import_nothing_of_the_relay() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import rules; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(rules.__file__).parent)], capture_output=True, text=True, check=True
    )
    assert not {"relay", "workers"} & set(done.stdout.split())


A, B, C = "sha256:a", "sha256:b", "sha256:c"


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([(A, "", None), (A, "", None)], ["new", "duplicate"]),
        ([(A, "", None), (B, "", None), (A, "", None)], ["new", "changed", "changed"]),
        ([(A, "1", None), (B, "2", None), (A, "1", None)], ["new", "changed", "duplicate"]),
        ([(A, "", 5), (B, "", 4)], ["new", "stale"]),
        ([(A, "", 5), (B, "", 5)], ["new", "changed"]),
        ([(A, "", 5), (A, "", 4), (B, "", 4)], ["new", "duplicate", "stale"]),
        ([(A, "", 4), (A, "", 6), (B, "", 5)], ["new", "duplicate", "stale"]),
        ([(A, "", 5), (B, "", None), (C, "", 4)], ["new", "changed", "stale"]),
        ([(str(n), str(n), None) for n in (*range(8), 0)], ["new", *["changed"] * 7, "duplicate"]),
        ([(str(n), str(n), None) for n in (*range(9), 0)], ["new", *["changed"] * 9]),
    ],
)
def test_restated_rules(reports: list[tuple[str, str, float | None]], expected: list[str]) -> None:
    made = [
        ("one instance", Report(event_id=event_id, digest=digest, rank=(n, 0), time=time))
        for n, (digest, event_id, time) in enumerate(reports)
    ]
    assert decisions(made) == [Decision(each) for each in expected]


def test_partition_gives_each_producer_entries_in_order_and_each_environment_one_producer(
    arrivals: list[Arrival],
) -> None:
    shares = partition(arrivals, PRODUCERS)
    positions: dict[int, list[int]] = defaultdict(list)
    for position, each in enumerate(arrivals):
        positions[id(each.entry)].append(position)
    environments = {id(each.entry): each.subject.environment for each in arrivals if each.subject}
    producer_of: dict[str, int] = {}
    for number, share in enumerate(shares):
        own = [positions[id(entry)].pop(0) for entry in share]
        assert own
        assert own == sorted(own)
        for entry in share:
            if id(entry) in environments:
                assert producer_of.setdefault(environments[id(entry)], number) == number
    assert not any(positions.values())
