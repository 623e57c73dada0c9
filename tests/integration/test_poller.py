"""The poller and its wake-ups: which ones it sends, and how many of them the broker holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from recorded_wakeups import RecordedWakeups
from runs import KEYS, REPOSITORY, digest, report, running

from relay.queue import inbox, scripts
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.intake.run import run_intake
from workers.scheduling import poller as poller_module
from workers.scheduling import wakeups
from workers.scheduling.app import RelayApp
from workers.scheduling.poller import Poller
from workers.scheduling.wakeups import DELIVER, FORGET, INTAKE, CeleryWakeups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis) -> Iterator[Runtime]:
    with running(redis_server, "http://127.0.0.1:1/", worker={"budget": 60}) as made:
        yield made


@pytest.fixture
def broker(redis_server: EmbeddedRedis, client: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[CeleryWakeups]:
    """At most 5 delivery wake-ups may be queued, counted each time."""
    monkeypatch.setattr(wakeups, "MAX_QUEUED", 5)
    monkeypatch.setattr(wakeups, "COUNT_SECONDS", 0)
    app = RelayApp(Settings.load(redis={"url": redis_server.url}))
    yield CeleryWakeups(app)
    app.close()


def wake_deliveries(broker: CeleryWakeups, number: int) -> None:
    for environment in range(number):
        broker.wake_delivery([f"env-{environment}"])


def test_lost_wakeup_is_repeated_unless_a_run_has_the_lease(runtime: Runtime, client: Redis) -> None:
    sent = RecordedWakeups()
    poller = Poller(runtime.settings, runtime.shard, sent)
    poller.send_wakeups()
    assert sent.intake == 0
    report(client, "a")
    poller.send_wakeups()
    poller.send_wakeups()
    assert sent.intake == 1, "wake-ups must coalesce"
    client.delete(KEYS.intake_wakeup)
    poller.send_wakeups()
    assert sent.intake == 2
    run_intake(runtime)

    keys = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
    client.delete(keys.wakeup)
    poller.send_wakeups()
    assert sent.environments == ["production"]
    client.delete(keys.wakeup)
    client.set(keys.lease, "another run", px=5000)
    poller.send_wakeups()
    assert sent.environments == ["production"]
    client.delete(keys.lease)
    poller.send_wakeups()
    assert sent.environments == ["production"] * 2
    poller.send_wakeups(repeat=True)
    assert sent.environments == ["production"] * 3, "a worker that stops repeats wake-ups that are under way"


def test_after_a_poll_of_many_outboxes_only_the_inbox_is_polled(
    runtime: Runtime, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller_module, "FEW_OUTBOXES", 2)
    monkeypatch.setattr(poller_module, "REST_FACTOR", 1_000_000)
    monkeypatch.setattr(poller_module, "POLL_SECONDS", 60.0)  # the longest rest
    names = [f"env-{number}" for number in range(3)]
    for name in names:
        report(client, "a", name)
    run_intake(runtime)
    sent = RecordedWakeups()
    poller = Poller(runtime.settings, runtime.shard, sent)

    def poll() -> tuple[int, list[str]]:
        sent.clear()
        client.delete(KEYS.intake_wakeup, *(KEYS.of_outbox(DEFAULT_DESTINATION, name).wakeup for name in names))
        poller.send_wakeups()
        return sent.intake, sent.environments

    assert poll() == (0, names)
    report(client, "b", "env-0")
    assert poll() == (1, [])
    poller._outboxes_rest_until = 0.0
    assert poll() == (1, names)


def test_ten_thousand_quiet_environments_cost_tens_of_wakeups(
    runtime: Runtime, client: Redis, broker: CeleryWakeups
) -> None:
    sent: list[int] = []
    broker.send = lambda _task, names: bool(sent.append(len(names)))  # type: ignore[method-assign]
    entries = [
        {"event": json.dumps({"image": {"url": f"{REPOSITORY}@{digest('a')}"}, "environment": {"name": f"env-{n}"}})}
        for n in range(10_000)
    ]
    for start in range(0, len(entries), 1000):
        scripts.run(client, inbox.append_call(KEYS, entries[start : start + 1000], 1_000_000))
    done = run_intake(replace(runtime, wakeups=broker))
    assert done is not None
    broker.wake_delivery(done.to_deliver)
    assert sum(sent) == 10_000
    assert len(sent) <= 110


def test_delivery_wakeups_on_the_broker_are_bounded_and_others_are_not(broker: CeleryWakeups, client: Redis) -> None:
    wake_deliveries(broker, 20)
    for _ in range(20):
        broker.wake_intake()
    assert (client.llen(DELIVER), client.llen(INTAKE)) == (5, 20)

    client.rpop(DELIVER, 2)
    broker.wake_delivery([f"env-{number}" for number in range(5 * wakeups.ENVIRONMENTS_PER_WAKEUP)])
    assert client.llen(DELIVER) == 5
    assert broker.send(FORGET)
    assert client.llen(DELIVER) == 6


def test_queued_wakeups_are_counted_once_a_second_at_most(
    broker: CeleryWakeups, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "COUNT_SECONDS", 60)
    wake_deliveries(broker, 20)
    assert client.llen(DELIVER) == 20
