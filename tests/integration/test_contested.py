"""Instances that two sources change in turns are found, whatever else changes, and in a bounded place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from runs import KEYS, make_runtime_for, report, report_image

from relay.operations.diagnosis import diagnose
from relay.queue import contested
from relay.queue.contested import Change, ChangeSample, Contested
from relay.queue.status import Status, read_status
from relay.settings import DEFAULT_DESTINATION, QueueSettings
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis) -> Iterator[Runtime]:
    runtime = make_runtime_for(redis_server, "http://127.0.0.1:1/")
    yield runtime
    runtime.close()


def found(client: Redis) -> list[tuple[tuple[str, str], int]]:
    return [(each.sources, each.returns) for each in seen(client).contested]


def seen(client: Redis) -> Status:
    return read_status(client, KEYS, DEFAULT_DESTINATION, QueueSettings())


def take(runtime: Runtime, *reports: tuple[str, str], at_once: bool = False) -> None:
    """Take in reports of source and version, each in a batch of its own unless `at_once`."""
    for source, version in reports:
        report(runtime.client, version, **({"source": source} if source else {}))
        if not at_once:
            run_intake(runtime)
    run_intake(runtime)


@pytest.mark.parametrize("at_once", [False, True])
def test_two_sources_that_undo_each_other_are_found(runtime: Runtime, client: Redis, *, at_once: bool) -> None:
    take(runtime, ("eu-1", "x"), ("eu-2", "y"), at_once=at_once)
    assert found(client) == []
    take(runtime, ("eu-1", "x"), at_once=at_once)
    assert found(client) == [(("eu-1", "eu-2"), 1)]
    take(runtime, ("eu-2", "y"), ("eu-1", "x"), at_once=at_once)
    assert found(client) == [(("eu-1", "eu-2"), 3)]
    [finding] = [each for each in diagnose(seen(client)) if each.check == "contested"]
    assert "production is changed in turns by eu-1 and eu-2" in finding.what
    [key] = [KEYS.contested(DEFAULT_DESTINATION)]
    assert 0 < client.pttl(key) <= contested.CONTESTED_SECONDS * 1000
    assert 0 < client.pttl(KEYS.changes(DEFAULT_DESTINATION)) <= contested.SAMPLE_SECONDS * 1000


@pytest.mark.parametrize(
    "reports",
    [
        [("ci", "x"), ("ci", "y"), ("ci", "x"), ("ci", "y")],  # rollbacks
        [("ci", "x"), ("eu-1", "y"), ("ci", "z"), ("eu-1", "w")],  # each goes on
        [("ci", "x"), ("eu-1", "x"), ("ci", "y"), ("eu-1", "y")],  # both report the same
        [("", "x"), ("", "y"), ("", "x")],
    ],
)
def test_what_does_not_go_in_turns_is_not(runtime: Runtime, client: Redis, reports: list[tuple[str, str]]) -> None:
    take(runtime, *reports)
    assert found(client) == []


def test_reports_without_a_source_are_found_after_some_turns(runtime: Runtime, client: Redis) -> None:
    take(runtime, *[("", version) for version in "xyxyx"])
    assert found(client) == [(("", ""), 3)]


def test_a_third_source_ends_the_turns(runtime: Runtime, client: Redis) -> None:
    take(runtime, ("a", "x"), ("b", "y"), ("c", "z"), ("a", "x"))
    assert found(client) == []


def changes(number: int, digest: str, before: str, source: str) -> list[Change]:
    return [Change("e", f"i{each}", source, digest, before) for each in range(number)]


def test_the_sample_is_bounded_and_stays_the_same(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contested, "MAX_SAMPLED", 100)
    monkeypatch.setattr(contested, "MAX_CONTESTED", 20)
    monkeypatch.setattr(contested, "MAX_CHANGES", 10_000)
    sample = ChangeSample()
    for digest, before, source in [("y", "x", "b"), ("x", "y", "a"), ("y", "x", "b"), ("x", "y", "a")]:
        sample.note(client, KEYS, DEFAULT_DESTINATION, changes(2000, digest, before, source))
        assert client.hlen(KEYS.changes(DEFAULT_DESTINATION)) <= 100
    assert len(seen(client).contested) == 20
    calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    kept = {name.decode() for name in client.hkeys(KEYS.changes(DEFAULT_DESTINATION))}
    others = [each for each in changes(2000, "y", "x", "b") if f"of:e\n{each.instance}" not in kept]
    sample.note(client, KEYS, DEFAULT_DESTINATION, others[:50])
    sample.note(client, KEYS, DEFAULT_DESTINATION, [])
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= calls + 1


def test_a_script_looks_at_a_bounded_number_of_changes(client: Redis) -> None:
    """And of each batch at the same instances."""
    for digest, before, source in [("y", "x", "b"), ("x", "y", "a")]:
        ChangeSample().note(client, KEYS, DEFAULT_DESTINATION, changes(5000, digest, before, source))
        assert 0 < client.hlen(KEYS.changes(DEFAULT_DESTINATION)) <= contested.MAX_CHANGES
    assert len(seen(client).contested) == client.hlen(KEYS.changes(DEFAULT_DESTINATION))
    same = changes(1, "y", "x", "b") * 500
    ChangeSample().note(client, KEYS, DEFAULT_DESTINATION, same)


def test_what_was_found_long_ago_is_not_told(client: Redis) -> None:
    now = seen(client).now
    key = KEYS.contested(DEFAULT_DESTINATION)
    client.hset(key, "e\nold", f"{now - 86_400_000 - 1}\n1\na\nb")
    client.hset(key, "e\nnew", f"{now}\n1\na\n\t")
    assert seen(client).contested == [Contested("e", "new", ("a", ""), 1, now)]
    ChangeSample().note(client, KEYS, DEFAULT_DESTINATION, changes(1, "y", "x", "b"))
    assert client.hkeys(key) == [b"e\nnew"]


def test_a_redis_that_refuses_it_holds_up_nothing(runtime: Runtime, client: Redis) -> None:
    client.set(KEYS.changes(DEFAULT_DESTINATION), "of another type")
    take(runtime, ("a", "x"), ("b", "y"))
    report_image(client, "ghcr.io/acme/other@sha256:" + "0" * 64)
    run_intake(runtime)
    assert client.xlen(KEYS.inbox) == 0
    assert client.xlen(KEYS.of_outbox(DEFAULT_DESTINATION, "production").outbox) == 3
