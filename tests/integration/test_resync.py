"""A resync: an environment's current state is told once more, and nothing is undone by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from outboxes import next_millisecond, now_ms
from rig import wait_for
from runs import (
    KEYS,
    PRODUCTION,
    REPOSITORY,
    TOKEN,
    counters_of,
    deliver_until,
    delivered_digests,
    delivered_images,
    digest,
    image_of,
    make_runtime_for,
    report,
    report_image,
    report_many,
)

from relay.queue import forgetting, inventory
from relay.queue.dead_letters import walk
from relay.queue.redrive import Redrive
from relay.queue.resync import Progress, rehearse, resync_all
from relay.queue.state import Accepted, Delivered
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

DAY_MS = 86_400_000
INSTANCE = f"{REPOSITORY} linux/amd64 "


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, api)
    yield made
    made.close()


def resync(client: Redis, *, max_backlog: int = 1_000_000, seen_since: int | None = None) -> list[Progress]:
    next_millisecond(client)
    steps = resync_all(
        client, KEYS, DEFAULT_DESTINATION, "production",
        max_backlog=max_backlog, memory_watermark=1.0, seen_since=seen_since,
    )  # fmt: skip
    return list(steps)


def instance_of(image: str) -> str:
    return f"{image.partition('@')[0]} linux/amd64 "


def redrive(client: Redis) -> None:
    run = Redrive(client, KEYS, max_backlog=1_000_000)
    assert run.acquire()
    for page in list(walk(client, KEYS)):
        run.move(page.letters)
    run.release()


def deliver(runtime: Runtime) -> None:
    """Take in all that lies in the inbox, and deliver it."""
    run_intake(runtime)
    deliver_until(runtime, lambda: not counters_of(runtime.client).waiting)


def accepted(client: Redis) -> Accepted:
    return Accepted.decode(client.hget(PRODUCTION.accepted, INSTANCE).decode())


def milliseconds(client: Redis) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def delivered(client: Redis) -> Delivered:
    return Delivered.decode(client.hget(PRODUCTION.delivered, INSTANCE).decode())


def test_every_instance_is_told_once_more_and_the_ledger_adds_up(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    images = report_many(client, 450)
    report(client, "elsewhere", "staging")
    run_intake(runtime)
    deliver_until(runtime, lambda: counters_of(client).delivered == 451, "production", "staging")
    before = {image: delivered_images(api).count(image) for image in images}

    assert resync(client)[-1] == Progress(450, 450, 0)
    assert counters_of(client).waiting == 450
    deliver(runtime)

    after = {image: delivered_images(api).count(image) for image in images}
    assert set(before.values()) == {1}
    assert set(after.values()) == {2}
    counters = counters_of(client)
    assert (counters.added, counters.delivered, counters.unaccounted) == (901, 901, 0)


def test_only_what_was_seen_lately_is_told_again_if_that_is_asked_for(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """Of two instances one was taken down a month ago, and was reported by nothing since."""
    gone, there = report_many(client, 2)
    deliver(runtime)
    now = forgetting.now_ms(client)
    state = client.hget(PRODUCTION.accepted, instance_of(gone))
    month_ago = Accepted.decode(state.decode())._replace(seen=now - 30 * DAY_MS)
    client.hset(PRODUCTION.accepted, instance_of(gone), month_ago.encode())

    expected = Progress(scanned=2, added=1, undelivered=0, not_seen=1)
    since = now - DAY_MS
    assert list(rehearse(client, KEYS, DEFAULT_DESTINATION, "production", seen_since=since))[-1] == expected
    assert resync(client, seen_since=since)[-1] == expected
    deliver(runtime)
    assert delivered_images(api).count(there) == 2
    assert delivered_images(api).count(gone) == 1
    assert resync(client, seen_since=now - 31 * DAY_MS)[-1].added == 2


def test_a_body_says_all_of_its_instance(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    body = (
        f'{{"image":{{"url":"ghcr.io/acme/api@{digest("a")}","name":"side car"}},'
        '"environment":{"name":"production"},"platform":{"os":"linux","architecture":"arm","variant":"v6"}}'
    )
    client.xadd(KEYS.inbox, {"event": body})
    deliver(runtime)
    (told,) = (Delivered.decode(value.decode()) for value in client.hvals(PRODUCTION.delivered))
    wait_for(lambda: milliseconds(client) > told.at, seen=lambda: "Redis's clock stands still")
    resync(client)
    deliver(runtime)

    first, second = [request.event for request in api.requests]
    assert first == second


def test_the_state_is_as_if_there_had_been_none(runtime: Runtime, client: Redis) -> None:
    report(client, "a", id="job-1", time="2025-01-01T00:00:00Z")
    deliver(runtime)
    state, told = accepted(client), delivered(client)
    wait_for(lambda: milliseconds(client) > told.at, seen=lambda: "Redis's clock stands still")
    resync(client)
    deliver(runtime)

    assert accepted(client)._replace(resynced=0) == state
    assert delivered(client)._replace(at=told.at) == told
    assert delivered(client).at > told.at


def test_it_can_be_asked_for_again_though_the_clock_was_set_back(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """The inbox gives ids ahead of the clock then, and a delivery is noted by the clock."""
    report(client, "a")
    deliver(runtime)
    client.xadd(KEYS.inbox, {"event": "{"}, id=f"{now_ms(client) + DAY_MS}-0")
    for _ in range(3):
        resync(client)
        deliver(runtime)
    assert len(api.requests) == 4


def test_asked_for_twice_before_it_is_delivered_it_is_told_once(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    report(client, "a")
    deliver(runtime)
    resync(client)
    resync(client)
    run_intake(runtime)
    resync(client)
    deliver(runtime)
    assert delivered_digests(api) == [digest("a")] * 2
    assert counters_of(client).duplicate == 2

    resync(client)
    deliver(runtime)
    assert delivered_digests(api) == [digest("a")] * 3


def test_what_is_on_its_way_is_passed_over(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    report(client, "a")
    deliver(runtime)
    report(client, "b")
    report_image(client, image_of("other"))
    run_intake(runtime)
    assert list(rehearse(client, KEYS, DEFAULT_DESTINATION, "production"))[-1] == Progress(2, 0, 2)
    assert client.xlen(KEYS.inbox) == 0
    assert resync(client)[-1] == Progress(2, 0, 2)
    deliver(runtime)
    assert delivered_digests(api).count(digest("b")) == 1


@pytest.mark.parametrize("taken_in", [False, True], ids=["before it is taken in", "after it is taken in"])
def test_what_is_reported_meanwhile_wins(runtime: Runtime, client: Redis, api: Sandbox, *, taken_in: bool) -> None:
    report(client, "a")
    deliver(runtime)
    resync(client)
    if taken_in:
        run_intake(runtime)
    report(client, "b")
    deliver(runtime)
    assert delivered_digests(api) == [digest("a")] * 2 + [digest("b")]


def test_what_was_reported_before_it_was_asked_for_wins(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """The resync read that A runs; B lies in the inbox before its entry."""
    report(client, "a")
    deliver(runtime)
    report(client, "b")
    resync(client)
    deliver(runtime)
    assert delivered_digests(api) == [digest("a"), digest("b")]
    assert counters_of(client).stale == 1


def test_what_died_between_can_still_be_redriven(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    """A resync is no report: that A was told again says nothing against B, which came after A and died."""
    report(client, "a")
    deliver(runtime)
    api.faults = [{"kind": "status", "status": 422, "count": 1}]
    report(client, "b")
    deliver(runtime)
    resync(client)
    deliver(runtime)
    redrive(client)
    deliver(runtime)
    assert delivered_digests(api) == [digest("a"), digest("a"), digest("b")]


def test_what_the_api_refuses_can_be_asked_for_again_and_redriven(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    report(client, "a", id="job-1")
    deliver(runtime)
    api.faults = [{"kind": "status", "status": 422, "count": 2}]
    state = accepted(client)
    resync(client)
    deliver(runtime)
    assert accepted(client) == state
    resync(client)
    deliver(runtime)
    assert counters_of(client).dead_waiting == 2
    redrive(client)
    deliver(runtime)
    assert delivered_digests(api) == [digest("a")] * 2, "of two letters that ask for the same, one is enough"
    counters = counters_of(client)
    assert (counters.unaccounted, counters.dead_unaccounted, counters.dead_waiting) == (0, 0, 0)


def test_a_full_queue_is_said_and_tried_again(runtime: Runtime, client: Redis) -> None:
    report_many(client, 250)
    deliver(runtime)
    steps = resync_all(client, KEYS, DEFAULT_DESTINATION, "production", max_backlog=1, memory_watermark=1.0)
    first = next(steps)
    assert first.added >= inventory.STEP
    assert "events wait" in next(steps).full
    deliver(runtime)
    *_, last = steps
    assert (last.added, last.full) == (250, "")
