"""What wakeups do to a broker that nobody empties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.settings import Settings
from workers.scheduling import wakeups
from workers.scheduling.app import RelayApp
from workers.scheduling.wakeups import DELIVER, INTAKE, Wakeups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis


@pytest.fixture
def rung(redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wakeups]:
    monkeypatch.setattr(wakeups, "MOST_WAITING", 5)
    monkeypatch.setattr(wakeups, "COUNT_SECONDS", 0)
    app = RelayApp(Settings.load(redis={"url": redis_server.url}))
    yield Wakeups(app)
    app.close()


def test_bells_that_nobody_answers_are_bounded(rung: Wakeups, client: Redis) -> None:
    for number in range(20):
        rung.wake_delivery([f"env-{number}"])
        rung.wake_intake()
    assert (client.llen(DELIVER), client.llen(INTAKE)) == (5, 20)

    client.rpop(DELIVER, 2)
    for number in range(20):
        rung.wake_delivery([f"env-{number}"])
    assert client.llen(DELIVER) == 5


def test_bells_are_counted_now_and_then(rung: Wakeups, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeups, "COUNT_SECONDS", 60)
    for number in range(20):
        rung.wake_delivery([f"env-{number}"])
    assert client.llen(DELIVER) == 20


def test_a_walk_over_what_is_remembered_is_called_for_all_the_same(rung: Wakeups, client: Redis) -> None:
    rung.wake_delivery([f"env-{number}" for number in range(5 * wakeups.ENVIRONMENTS_PER_WAKEUP)])
    assert client.llen(DELIVER) == 5
    assert rung.ring_forget()
    assert client.llen(DELIVER) == 6
