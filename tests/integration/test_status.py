"""The look that `relay status` takes: what it sees, in how many commands, and that it changes nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from letters import bury, refused
from runs import KEYS, PRODUCTION, report, report_image

from relay.queue import counters, pausing
from relay.queue.epoch import beat
from relay.queue.status import MAX_RETRYING, Retrying, Status, read_status
from relay.settings import DEFAULT_DESTINATION, QueueSettings

if TYPE_CHECKING:
    from redis import Redis

QUEUE = QueueSettings(max_backlog=1000)


def look(client: Redis) -> Status:
    return read_status(client, KEYS, DEFAULT_DESTINATION, QUEUE)


def let_wait(client: Redis, name: str, entries: int) -> None:
    """Let entries wait in an environment's outbox, as commit_intake.lua does."""
    keys = KEYS.of_outbox(DEFAULT_DESTINATION, name)
    pipeline = client.pipeline()
    for number in range(entries):
        pipeline.xadd(keys.outbox, {"event": "{}"}, id=f"{1_750_000_000_000 + number}-0")
    pipeline.hset(keys.counts, mapping={"outbox": entries, "new": entries})
    pipeline.hincrby(KEYS.counts, "outbox", entries)
    pipeline.hincrby(KEYS.counts, "taken", entries)
    pipeline.zadd(KEYS.schedule(DEFAULT_DESTINATION), {name: 1})
    pipeline.zadd(KEYS.environments(DEFAULT_DESTINATION), {name: 0})
    pipeline.execute()


def commands(client: Redis) -> int:
    return sum(stat["calls"] for stat in client.info("commandstats").values())


def test_status_of_an_empty_redis(client: Redis) -> None:
    seen = look(client)
    assert (seen.inbox, seen.inbox_oldest, seen.workers, seen.environments, seen.newest_dead) == (
        0,
        None,
        {},
        [],
        None,
    )
    assert seen.server.memory_used
    assert seen.server.maxmemory == 0
    assert seen.max_backlog == 1000


def test_a_running_intake_is_seen(client: Redis) -> None:
    client.set(KEYS.intake_lease, "token", px=60_000)
    assert look(client).is_intake_running


def test_of_many_retries_those_that_wait_longest_are_read(client: Redis) -> None:
    for number in range(2 * MAX_RETRYING):
        outbox = KEYS.of_outbox(DEFAULT_DESTINATION, f"env-{number}")
        let_wait(client, f"env-{number}", 1)
        client.delete(outbox.outbox)
        client.xadd(outbox.outbox, {"event": "{}"}, f"{2000 - number}-0")
        client.zadd(outbox.due, {"one": 1})
    seen = {each.environment for each in look(client).retrying}
    assert seen == {f"env-{number}" for number in range(MAX_RETRYING, 2 * MAX_RETRYING)}


def test_the_oldest_event_is_read_for_a_bounded_number_of_environments(client: Redis) -> None:
    """For those with the most waiting, with retries, scheduled first, or paused: reading all takes as long again."""
    waiting = {f"env-{number}": 1 + number for number in range(9)}
    for name, entries in waiting.items():
        let_wait(client, name, entries)
    client.zadd(KEYS.of_outbox(DEFAULT_DESTINATION, "env-0").due, {"one": 1})
    client.zadd(KEYS.schedule(DEFAULT_DESTINATION), {"env-1": 0.5, "env-2": 0.7})
    pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["env-4", "empty"])

    def known(oldest_of: int | None) -> set[str]:
        seen = read_status(client, KEYS, DEFAULT_DESTINATION, QUEUE, oldest_of=oldest_of)
        assert {each.environment: each.waiting for each in seen.environments} == {**waiting, "empty": 0}
        assert [each.environment for each in seen.paused] == ["empty", "env-4"]
        assert {each.oldest for each in seen.environments} <= {None, 1_750_000_000_000}
        return {each.environment for each in seen.environments if each.oldest is not None}

    assert known(2) == {"env-0", "env-1", "env-2", "env-4", "env-7", "env-8"}
    assert known(0) == {"env-4"}
    assert known(None) == known(100) == set(waiting)


def test_status_has_all_parts(client: Redis) -> None:
    first = report(client, "a")
    report_image(client, "broken")
    for name in ("a@host", "b@host", "gone@host"):
        beat(client, KEYS, name, keep_seconds=60)
    client.delete(KEYS.worker("gone@host"))
    let_wait(client, "production", 3)
    pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["staging"])
    instance = "ghcr.io/acme/api linux/amd64 "
    client.zadd(PRODUCTION.due, {instance: 5, "tried less": 1, "and later": 9})
    client.hset(PRODUCTION.attempts, mapping={instance: "4 5 1750000000000 0 0", "tried less": "1 1 1 0 0"})
    client.hset(PRODUCTION.run, mapping={"token": "t", "deaths": 2})
    client.hset(KEYS.intake_run, mapping={"token": "t", "deaths": 1})
    letter = bury(client, refused("one"), refused("two"))[-1]
    seen = look(client)

    assert (seen.inbox, seen.inbox_oldest) == (2, int(first.partition("-")[0]))
    assert list(seen.workers) == ["a@host", "b@host"]
    assert [(each.environment, each.waiting, each.retrying, each.delivery_count) for each in seen.environments] == [
        ("production", 3, 3, 2),
        ("staging", 0, 0, 0),
    ]
    assert seen.environments[0].oldest == 1_750_000_000_000
    assert [each.environment for each in seen.paused] == ["staging"]
    assert list(seen.retrying) == [Retrying("production", instance, 5)]
    assert (seen.inbox_delivery_count, seen.is_intake_running) == (1, False)
    assert seen.newest_dead is not None
    assert seen.newest_dead.letter_id == letter
    assert seen.counters.waiting == 5


def test_status_takes_a_bounded_number_of_commands_and_changes_nothing(client: Redis) -> None:
    """However many environments and events there are: a script for each few hundred, and nothing that grows."""
    for number in range(1200):
        let_wait(client, f"env-{number:04}", 2)
    sent: list[bytes] = []
    unwatched = client.connection_pool.connection_class.send_packed_command

    def count(self: Any, command: Any, **options: Any) -> Any:
        sent.append(command if isinstance(command, bytes) else b"".join(command))
        return unwatched(self, command, **options)

    before = client.info("persistence")["rdb_changes_since_last_save"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.connection_pool.connection_class, "send_packed_command", count)
        seen = look(client)
    assert len(seen.environments) == 1200
    assert seen.counters.waiting == 2400
    assert 5 < len(sent) < 25, "round trips"
    number = sum(len(re.findall(rb"\*\d+\r\n\$\d+\r\n[A-Z]", each)) for each in sent)
    assert len(sent) <= number < 40, "commands"
    assert client.info("persistence")["rdb_changes_since_last_save"] == before


def test_status_sends_no_command_per_event(client: Redis) -> None:
    let_wait(client, "production", 1)
    look(client)

    def calls() -> int:
        client.config_resetstat()
        look(client)
        return commands(client)

    few = calls()
    let_wait(client, "staging", 1)
    client.delete(KEYS.of_outbox(DEFAULT_DESTINATION, "staging").outbox)
    for number in range(3000):
        client.xadd(PRODUCTION.outbox, {"event": "{}"}, id=f"{1_760_000_000_000 + number}-0")
    assert calls() <= few + 10


def test_environments_are_found_without_reading_the_key_space(client: Redis) -> None:
    let_wait(client, "production", 1)
    client.config_resetstat()
    assert counters.environment_names(client, KEYS, DEFAULT_DESTINATION) == ["production"]
    assert "cmdstat_scan" not in client.info("commandstats")
