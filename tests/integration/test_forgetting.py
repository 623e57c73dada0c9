"""Letting go of what was not seen for long: only that, only if nothing of it waits, and never over an intake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.keys import DEFAULT_ENDPOINT, Keys
from relay.store import dataset, forgetting, scripts
from relay.store.state import Accepted

if TYPE_CHECKING:
    import pytest
    from redis import Redis

KEYS = Keys()
OUTBOX = KEYS.of_outbox(DEFAULT_ENDPOINT, "production")
OLD, NOW = 1_000, 2_000


def remember(client: Redis, instance: str, seen: int, digest: str = "sha256:a") -> str:
    state = Accepted(digest, None, seen, seen, (f"id-{seen}",)).encode()
    client.hset(OUTBOX.accepted, instance, state)
    client.hset(OUTBOX.delivered, instance, f"{digest}\n\n{seen}")
    return state


def known(client: Redis) -> tuple[set[bytes], set[bytes]]:
    return set(client.hkeys(OUTBOX.accepted)), set(client.hkeys(OUTBOX.delivered))


def walk(client: Redis, seen_before: int) -> int:
    cursor, forgotten = 0, 0
    while True:
        cursor, count = forgetting.forget_page(client, OUTBOX, cursor, seen_before)
        forgotten += count
        if not cursor:
            return forgotten


def test_only_what_is_old_is_forgotten_and_its_delivery_with_it(client: Redis) -> None:
    remember(client, "old", OLD)
    remember(client, "new", NOW)
    assert walk(client, NOW) == 1
    assert known(client) == ({b"new"}, {b"new"})
    assert walk(client, NOW) == 0


def test_an_instance_with_an_event_waiting_is_not_forgotten(client: Redis) -> None:
    remember(client, "waits", OLD)
    remember(client, "old", OLD)
    client.xadd(OUTBOX.outbox, {"event": "{}", "instance": "waits"})
    assert walk(client, NOW) == 1
    assert known(client)[0] == {b"waits"}


def test_with_more_waiting_than_is_read_nothing_is_forgotten(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MAX_WAITING", 2)
    remember(client, "old", OLD)
    for _ in range(3):
        client.xadd(OUTBOX.outbox, {"event": "{}", "instance": "other"})
    assert walk(client, NOW) == 0
    client.xtrim(OUTBOX.outbox, maxlen=2, approximate=False)
    assert walk(client, NOW) == 1


def test_an_intake_in_between_keeps_the_instance(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is read, then an intake takes an event of the instance in, then the script runs."""
    remember(client, "old", OLD)
    run = scripts.run

    def intake_comes_first(client: Redis, call: scripts.Call) -> object:
        remember(client, "old", NOW, "sha256:b")
        return run(client, call)

    monkeypatch.setattr(forgetting.scripts, "run", intake_comes_first)
    assert walk(client, NOW) == 0
    assert known(client) == ({b"old"}, {b"old"})


def test_thousands_are_walked_in_pages(client: Redis) -> None:
    for number in range(3 * forgetting.PAGE):
        remember(client, f"{number}", OLD if number % 2 else NOW)
    assert walk(client, NOW) == 3 * forgetting.PAGE // 2
    assert len(known(client)[0]) == 3 * forgetting.PAGE // 2


def test_environments_are_those_of_which_anything_is_known(client: Redis) -> None:
    remember(client, "a", OLD)
    for name in ("a:b", "*[x]"):
        client.hset(KEYS.of_outbox(DEFAULT_ENDPOINT, name).accepted, "a", "")
    client.hset(KEYS.of_outbox("other", "elsewhere").accepted, "a", "")
    assert forgetting.environments(client, KEYS, DEFAULT_ENDPOINT) == ["*[x]", "a:b", "production"]


def test_one_walk_at_a_time(client: Redis) -> None:
    assert forgetting.claim(client, KEYS, 60)
    assert not forgetting.claim(client, KEYS, 60)
    forgetting.unclaim(client, KEYS)
    assert forgetting.claim(client, KEYS, 60)
    assert 0 < client.pttl(KEYS.forgetting) <= 60_000


def test_a_beat_tells_the_data_set_and_a_flushed_one_is_counted_once(client: Redis) -> None:
    first = dataset.beat(client, KEYS, "one", keep_seconds=10)
    assert dataset.beat(client, KEYS, "two", keep_seconds=10) == first
    assert dataset.beat(client, KEYS, "one", keep_seconds=10, known=first) == first
    assert client.hget(KEYS.counts, "resets") is None
    assert 0 < client.pttl(KEYS.worker("one")) <= 10_000
    client.flushall()
    second = dataset.beat(client, KEYS, "one", keep_seconds=10, known=first)
    assert second != first
    assert dataset.beat(client, KEYS, "two", keep_seconds=10, known=first) == second
    assert dataset.beat(client, KEYS, "one", keep_seconds=10, known=second) == second
    assert client.hget(KEYS.counts, "resets") == b"1"


def test_a_worker_gives_its_sign_of_life_at_maxmemory(client: Redis) -> None:
    client.config_set("maxmemory", 1)
    try:
        assert dataset.beat(client, KEYS, "one", keep_seconds=10)
        assert client.exists(KEYS.worker("one"))
    finally:
        client.config_set("maxmemory", 0)


def test_workers_that_give_no_more_signs_of_life_are_forgotten_by_the_others(client: Redis) -> None:
    dataset.beat(client, KEYS, "gone", keep_seconds=10)
    client.zincrby(KEYS.workers, -10_001, "gone")
    dataset.beat(client, KEYS, "one", keep_seconds=10)
    dataset.beat(client, KEYS, "two", keep_seconds=10)
    assert set(client.zrange(KEYS.workers, 0, -1)) == {b"one", b"two"}
