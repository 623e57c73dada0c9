"""Idempotency keys on the wire: what the API gets with each attempt of an event."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from outboxes import next_millisecond, now_ms
from rig import event_of
from runs import (
    KEYS,
    TOKEN,
    counters_of,
    digest,
    make_runtime_for,
    report,
    retries_are_due,
    run_once,
)

from relay.queue import epoch
from relay.queue.dead_letters import walk
from relay.queue.redrive import Redrive
from relay.queue.resync import resync_all
from relay.queue.state import REMEMBERED_IDS
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

REFUSES = [{"kind": "status", "status": 422}]


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, api)
    yield made
    made.close()


def keys_of(api: Sandbox) -> list[str]:
    return [request.idempotency_key or "" for request in api.requests]


def test_two_data_sets_give_different_keys_to_events_with_the_same_entry_id(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    body = json.dumps({"image": {"url": f"nginx@{digest('a')}"}, "environment": {"name": "production"}})
    entry_id = f"{now_ms(client)}-0"
    for _ in range(2):
        client.flushall()
        client.xadd(KEYS.inbox, {"event": body}, id=entry_id)
        run_intake(runtime)
        run_once(runtime)
    one, other = keys_of(api)
    assert one != other
    assert event_of(one) == event_of(other) == entry_id


def test_several_images_under_one_id_have_keys_of_their_own(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    for name in ("api", "worker"):
        image = {"url": f"ghcr.io/acme/{name}@{digest('a')}"}
        event = json.dumps({"image": image, "environment": {"name": "production"}})
        client.xadd(KEYS.inbox, {"event": event, "id": "release-7"})
    run_intake(runtime)
    run_once(runtime)
    assert len(set(keys_of(api))) == 2


def test_attempts_of_one_event_carry_one_key_also_after_a_redrive(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    api.faults = [{"kind": "status", "sequence": [503, 503, 422, 422, 202]}]
    report(client, "a")
    run_intake(runtime)
    for _ in range(3):
        retries_are_due(client)
        run_once(runtime)
    for _ in range(2):
        epoch.beat(client, KEYS, "a worker", keep_seconds=10)
        moving = Redrive(client, KEYS, max_backlog=100)
        assert moving.acquire()
        for page in walk(client, KEYS):
            moving.move(page.letters)
        moving.release()
        run_intake(runtime)
        run_once(runtime)
    assert counters_of(client).delivered == 1
    assert len(keys_of(api)) == 5
    assert len(set(keys_of(api))) == 1


def test_an_event_that_is_accepted_anew_under_its_id_has_another_key(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """A rollback under an old id, which the state has forgotten, is not the first deployment sent again."""
    for number, version in enumerate(["a", *(f"b{each}" for each in range(REMEMBERED_IDS)), "a"]):
        report(client, version, id="job-0" if version == "a" else f"job-{number}")
        run_intake(runtime)
        run_once(runtime)
    keys = keys_of(api)
    assert event_of(keys[0]) == event_of(keys[-1]) == "job-0"
    assert len(set(keys)) == len(keys) == REMEMBERED_IDS + 2


def test_a_forced_redrive_has_another_key(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """The API may have taken what died and another since: with the same key it would drop what is forced."""
    api.faults = REFUSES
    report(client, "a", id="job-7")
    run_intake(runtime)
    run_once(runtime)
    api.faults = []
    report(client, "b", id="job-8")
    run_intake(runtime)
    run_once(runtime)
    moving = Redrive(client, KEYS, max_backlog=100, force=True)
    assert moving.acquire()
    for page in walk(client, KEYS):
        moving.move(page.letters)
    moving.release()
    run_intake(runtime)
    run_once(runtime)
    first, _, forced = keys_of(api)
    assert event_of(first) == event_of(forced) == "job-7"
    assert first != forced


def test_what_is_told_again_on_purpose_carries_another_key(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """An API that honours the key must take a resync for a request of its own."""
    report(client, "a", id="job-7")
    run_intake(runtime)
    run_once(runtime)
    next_millisecond(client)
    list(resync_all(client, KEYS, DEFAULT_DESTINATION, "production", max_backlog=100, memory_watermark=1.0))
    run_intake(runtime)
    run_once(runtime)
    assert len(set(keys_of(api))) == 2
