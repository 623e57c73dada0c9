"""The demo's event log is what it claims to be, and is reckoned rightly."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from itertools import pairwise
from typing import TypeAlias

import pytest

from relay.demo.counters import Entry, Fate, Reckoning, Report, fates, partition, read, reckon
from relay.demo.estate import LOG_NAME, MALFORMED, shipped_log, simulate
from relay.errors import InvalidEvent
from relay.events.event import Defaults, DeploymentEvent, Instance

HEX = "0123456789abcdef" * 4
OTHER_HEX = "f" * 64


Simulated: TypeAlias = list[tuple[Entry, Fate]]
Readable: TypeAlias = list[tuple[Report, Entry, Fate]]


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return simulate()


@pytest.fixture(scope="module")
def shipped() -> list[Entry]:
    return shipped_log()


@pytest.fixture(scope="module")
def valid(simulated: Simulated) -> Readable:
    return [(read(made), made, fate) for made, fate in simulated if fate is not Fate.INVALID]


def entry(digest: str = HEX, url: str = "nginx", **envelope: str) -> Entry:
    return {"event": json.dumps({"image": {"url": f"{url}@sha256:{digest}"}}), **envelope}


def at(minute: int) -> str:
    return f"2026-11-02T10:{minute:02}:00Z"


# The shipped file


def test_shipped_log_is_what_the_generator_makes(simulated: Simulated, shipped: list[Entry]) -> None:
    assert shipped == [made for made, _ in simulated], "run python -m relay.demo.estate --write"


def test_shipped_log_is_small() -> None:
    assert len(resources.files("relay.demo").joinpath(LOG_NAME).read_bytes()) < 1024 * 1024


def test_shipped_entries_are_fields_of_an_xadd(shipped: list[Entry]) -> None:
    for fields in shipped:
        assert "event" in fields
        assert fields.keys() <= {"event", "id", "source", "time"}
        assert all(isinstance(text, str) for text in fields.values())


# What the estate is like


def test_estate_is_wide(simulated: Simulated, valid: Readable) -> None:
    sources = {given["source"] for _, given, _ in valid if "source" in given}
    assert 24_000 <= len(simulated) <= 26_000
    assert len({report.instance for report, _, _ in valid}) >= 3_000
    assert len({report.instance.environment for report, _, _ in valid}) == 12
    assert len({source for source in sources if "/" not in source}) == 6
    assert len({source for source in sources if "/" in source}) == 2
    assert len({report.digest for report, _, _ in valid}) <= 1_500
    assert 80 <= len({report.instance.repository for report, _, _ in valid}) <= 100


def test_a_good_part_is_news_and_the_rest_is_not(simulated: Simulated) -> None:
    shares = {fate: count / len(simulated) for fate, count in Counter(fate for _, fate in simulated).items()}
    assert 0.35 <= shares[Fate.NEWS] <= 0.50
    assert 0.45 <= shares[Fate.DUPLICATE] <= 0.60
    assert 0.02 <= shares[Fate.STALE] <= 0.10


@pytest.mark.parametrize("kind", MALFORMED)
def test_every_malformed_kind_is_there_once_and_invalid(simulated: Simulated, kind: str) -> None:
    wanted = MALFORMED[kind]
    assert [fate for made, fate in simulated if made.items() >= wanted.items()] == [Fate.INVALID]


def test_platforms_and_spellings_vary(valid: Readable) -> None:
    bodies = Counter(text for _, given, _ in valid for text in _spellings(given))
    assert {report.instance.platform for report, _, _ in valid} == {
        ("linux", "amd64", None),
        ("linux", "arm64", None),
        ("linux", "arm", "v7"),
    }
    assert min(bodies[spelling] for spelling in SPELLINGS) >= 50


SPELLINGS = {
    "pullable": '"docker-pullable://',
    "short name": '"url":"nginx@sha256:',
    "tag beside digest": '"docker.io/library/nginx:1.27.',
    "synonym of amd64": '"x86_64"',
    "synonym of arm64": '"aarch64"',
}


def _spellings(given: Entry) -> list[str]:
    return [spelling for spelling, text in SPELLINGS.items() if text in given["event"]]


def test_environment_and_platform_are_often_left_to_the_defaults(valid: Readable) -> None:
    assert sum('"environment"' not in given["event"] for _, given, _ in valid) >= 100
    assert sum('"platform"' not in given["event"] for _, given, _ in valid) >= 5_000


def test_one_repository_runs_many_times_in_an_environment(valid: Readable) -> None:
    names = {report.instance for report, _, _ in valid}
    envoys = [
        instance.name
        for instance in names
        if instance.environment == "staging" and instance.repository == "docker.io/envoyproxy/envoy"
    ]
    assert len(envoys) == len(set(envoys)) >= 30


def test_producers_retry_under_the_same_id_at_once_and_after_a_change(valid: Readable) -> None:
    """Both kinds: where the digest alone tells the repeat, and where only the id does."""
    current: dict[object, str] = {}
    seen: set[str] = set()
    retries: Counter[str] = Counter()
    for report, _, fate in valid:
        if report.id in seen:
            assert fate is Fate.DUPLICATE
            retries["at once" if current[report.instance] == report.digest else "after a change"] += 1
        if report.id:
            seen.add(report.id)
        if fate is Fate.NEWS:
            current[report.instance] = report.digest
    assert retries["at once"] >= 50
    assert retries["after a change"] >= 50


def test_rollbacks_happen(valid: Readable) -> None:
    accepted: dict[object, list[str]] = {}
    for report, _, fate in valid:
        if fate is Fate.NEWS:
            accepted.setdefault(report.instance, []).append(report.digest)
    histories = accepted.values()
    assert sum(len(set(history)) < len(history) for history in histories) >= 200
    assert all(before != after for history in histories for before, after in pairwise(history))


# The reckoning


def test_reckoning_agrees_with_what_happened(simulated: Simulated) -> None:
    assert list(fates(made for made, _ in simulated)) == [fate for _, fate in simulated]


def test_relay_reads_each_entry_as_the_ledger_does(valid: Readable) -> None:
    for report, made, _ in valid:
        event = parse(made).completed(Defaults())
        instance = report.instance
        assert (event.image.digest, event.time) == (report.digest, report.time)
        assert event.instance == Instance(
            environment=instance.environment,
            repository=instance.repository,
            name=instance.name or "",
            platform="/".join(filter(None, instance.platform)),
        )


@pytest.mark.parametrize("kind", MALFORMED)
def test_relay_refuses_every_malformed_kind(kind: str) -> None:
    with pytest.raises(InvalidEvent):
        parse(MALFORMED[kind])


def parse(made: Entry) -> DeploymentEvent:
    return DeploymentEvent.parse(made["event"], id=made.get("id"), source=made.get("source"), time=made.get("time"))


def test_counts_are_of_every_entry(simulated: Simulated) -> None:
    counts = Counter(fate for _, fate in simulated)
    reckoning = reckon(made for made, _ in simulated)
    assert reckoning == Reckoning(
        delivered=counts[Fate.NEWS],
        duplicate=counts[Fate.DUPLICATE],
        stale=counts[Fate.STALE],
        invalid=len(MALFORMED),
    )
    assert reckoning.total == len(simulated)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([entry(), entry()], ["news", "duplicate"]),
        ([entry(), entry(OTHER_HEX), entry()], ["news", "news", "news"]),
        ([entry(id="1"), entry(OTHER_HEX, id="2"), entry(id="1")], ["news", "news", "duplicate"]),
        ([entry(time=at(5)), entry(OTHER_HEX, time=at(4))], ["news", "stale"]),
        ([entry(time=at(5)), entry(OTHER_HEX, time=at(5))], ["news", "news"]),
        (
            [entry(time=at(5)), entry(time=at(4)), entry(OTHER_HEX, time=at(4))],
            ["news", "duplicate", "stale"],
        ),
        (
            [entry(time=at(4)), entry(time=at(6)), entry(OTHER_HEX, time=at(5))],
            ["news", "duplicate", "stale"],
        ),
        ([entry(time=at(5)), entry(OTHER_HEX), entry(time=at(4))], ["news", "news", "stale"]),
        ([entry(), entry(url="docker.io/library/nginx:1.27")], ["news", "duplicate"]),
        ([entry(), entry(url="docker.io/nginxinc/nginx")], ["news", "news"]),
    ],
)
def test_ledger_knows_the_rules(entries: list[Entry], expected: list[str]) -> None:
    assert list(fates(entries)) == expected


def test_ledger_remembers_the_last_eight_ids() -> None:
    def reports(count: int) -> list[Entry]:
        return [entry(f"{number:064x}", id=str(number)) for number in range(count)]

    assert list(fates(reports(8) + reports(1)))[-1] is Fate.DUPLICATE
    assert list(fates(reports(9) + reports(1)))[-1] is Fate.NEWS


# Several producers at once


@pytest.fixture(scope="module")
def shares(shipped: list[Entry]) -> list[list[Entry]]:
    return partition(shipped, 4)


def test_partition_gives_every_producer_something_and_keeps_the_order(
    shipped: list[Entry], shares: list[list[Entry]]
) -> None:
    position = {id(fields): number for number, fields in enumerate(shipped)}
    numbers = [[position[id(fields)] for fields in share] for share in shares]
    assert all(numbers)
    assert all(own == sorted(own) for own in numbers)
    assert sorted(number for own in numbers for number in own) == list(range(len(shipped)))


def test_partition_keeps_each_environment_with_one_producer() -> None:
    def named(environment: str, number: int) -> Entry:
        body = {"image": {"url": f"nginx@sha256:{number:064x}"}, "environment": {"name": environment}}
        return {"event": json.dumps(body)}

    entries = [named(environment, number) for number in range(3) for environment in "abcdefgh"]
    for share in partition(entries, 3):
        environments = Counter(read(fields).instance.environment for fields in share)
        assert set(environments.values()) == {3}


def test_partition_takes_a_missing_environment_for_the_default() -> None:
    named = {"event": entry()["event"].replace("{", '{"environment":{"name":"deployed"},', 1)}
    assert max(map(len, partition([entry(), named], 8))) == 2


def test_partition_does_not_change_the_reckoning(shares: list[list[Entry]], simulated: Simulated) -> None:
    counts = Counter(fate for share in shares for fate in fates(share))
    assert counts == Counter(fate for _, fate in simulated)
