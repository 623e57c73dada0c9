"""What runs where, as the state has it; and the other readers that the console stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from letters import KEYS, bury, digest, refused

from relay.events.event import Instance
from relay.queue import counters, dead_letters, inventory, pausing
from relay.queue import health as destination
from relay.queue.dead_letters import Filters
from relay.queue.shard import Shard
from relay.queue.state import Accepted, Delivered
from relay.settings import DEFAULT_DESTINATION as DESTINATION

if TYPE_CHECKING:
    from redis import Redis

NOW = 1_750_000_000_000
PRODUCTION = KEYS.of_outbox(DESTINATION, "production")


def instance(name: str) -> Instance:
    return Instance(environment="production", repository="ghcr.io/acme/api", name=name, platform="linux/amd64")


def accept(client: Redis, name: str, version: str, *, time: int | None = None) -> None:
    state = Accepted(digest(version), time, NOW, NOW + 1, ("id-1", "id-2"), 3)
    client.hset(PRODUCTION.accepted, instance(name).key, state.encode())


def deliver(client: Redis, name: str, version: str) -> None:
    client.hset(PRODUCTION.delivered, instance(name).key, f"{digest(version)}\n{NOW}\n{NOW + 9}\n{NOW}-3")


def read(client: Redis, **how: object) -> inventory.Page:
    return inventory.read_page(client, KEYS, DESTINATION, "production", **how)  # type: ignore[arg-type]


def test_an_environment_that_nobody_reported_is_empty(client: Redis) -> None:
    assert read(client) == inventory.Page(running=[], scanned=0, after=0)
    assert inventory.count(client, KEYS, DESTINATION, "production") == 0


def test_each_instance_with_its_digest_and_what_the_api_was_told(client: Redis) -> None:
    accept(client, "b", "2", time=NOW - 5000)
    deliver(client, "b", "1")
    accept(client, "a", "1")
    deliver(client, "a", "1")
    accept(client, "c with a space", "1")
    page = read(client)
    assert [each.instance for each in page.running] == [instance("a"), instance("b"), instance("c with a space")]
    a, b, c = page.running
    assert {each.last_seen_at for each in page.running} == {NOW + 1}
    assert (a.digest, a.since, a.is_delivered) == (digest("1"), NOW, True)
    assert (b.digest, b.since, b.is_delivered) == (digest("2"), NOW - 5000, False)
    assert b.last_delivered == Delivered(digest("1"), NOW, NOW + 9, f"{NOW}-3")
    assert (c.last_delivered, c.is_delivered) == (None, False)
    assert (page.scanned, page.after) == (3, 0)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("", ["a", "b"]),
        ("ACME/", ["a", "b"]),
        (digest("old"), ["b"]),
        (digest("2")[9:20], ["b"]),
        ("nothing", []),
        ("api linux/amd64 b", ["b"]),
    ],
)
def test_a_search_looks_at_names_and_digests(client: Redis, wanted: str, names: list[str]) -> None:
    accept(client, "a", "1")
    accept(client, "b", "2")
    deliver(client, "b", "old")
    assert [each.instance.name for each in read(client, text=wanted).running] == names


def test_a_large_environment_comes_in_pages(client: Redis) -> None:
    for number in range(1000):
        accept(client, f"n{number}", "1")
    pages = [read(client, limit=100)]
    while pages[-1].after:
        pages.append(read(client, limit=100, after=pages[-1].after))
    names = [each.instance.name for page in pages for each in page.running]
    assert sorted(names) == sorted(f"n{number}" for number in range(1000))
    assert max(len(page.running) for page in pages) < 100 + 2 * inventory.STEP
    assert len(pages) > 3
    whole = [each for page in inventory.pages(client, KEYS, DESTINATION, "production") for each in page]
    assert sorted(each.instance.name for each in whole) == sorted(names)


def test_a_search_that_finds_nothing_looks_at_a_bounded_number(client: Redis) -> None:
    for number in range(1500):
        accept(client, f"n{number}", "1")
    page = read(client, text="nothing", max_scanned=400)
    assert page.running == []
    assert 400 <= page.scanned < 1000
    assert page.after


def test_many_environments_are_read_in_order(client: Redis) -> None:
    names = [f"e{number}" for number in range(600)]
    for name in names[:-1]:
        client.hset(KEYS.of_outbox(DESTINATION, name).counts, mapping={"delivered": int(name[1:])})
    client.zadd(KEYS.environments(DESTINATION), dict.fromkeys(names[:-1], 0))
    pausing.pause(client, KEYS, DESTINATION, names[-1:])
    assert counters.environment_names(client, KEYS, DESTINATION) == sorted(names)
    read = counters.read_environments(client, KEYS, DESTINATION)
    assert [each.environment for each in read] == sorted(names)
    assert {each.environment: each.delivered for each in read} == {
        name: 0 if name == names[-1] else int(name[1:]) for name in names
    }
    assert [each.environment for each in read if each.paused_since is not None] == names[-1:]


def test_an_destinations_health_is_read_without_a_change(client: Redis) -> None:
    key = KEYS.destination(DESTINATION)
    assert destination.read(Shard(client=client, keys=KEYS), DESTINATION) == destination.Health()
    assert not client.exists(key)
    client.hset(
        key,
        mapping={"until": 7, "reason": "unauthorized", "openings": 2, "circuit": "unauthorized", "probe_until": 9},
    )
    health = destination.read(Shard(client=client, keys=KEYS), DESTINATION)
    assert health == destination.Health(
        until=7, reason="unauthorized", openings=2, circuit="unauthorized", probe_until=9
    )


def test_the_newest_letters_come_in_pages(client: Redis) -> None:
    buried = bury(client, *(refused(str(number)) for number in range(130)))
    some = dead_letters.newest(client, KEYS, Filters(), limit=50, max_scanned=1000, max_seconds=60)
    listed = list(some.letters)
    while some.after is not None:
        some = dead_letters.newest(
            client, KEYS, Filters(), limit=50, max_scanned=1000, max_seconds=60, after=some.after
        )
        listed += some.letters
    assert [letter.letter_id for letter in listed] == buried[::-1]


def test_what_is_behind_nothing_readable_begins_at_the_newest(client: Redis) -> None:
    (letter,) = bury(client, refused("1"))
    assert [
        each.letter_id
        for each in dead_letters.newest(
            client, KEYS, Filters(), limit=5, max_scanned=5, max_seconds=60, after="x"
        ).letters
    ] == [letter]


def test_what_died_after_a_moment_is_not_meant(client: Redis) -> None:
    before, after = bury(client, refused("1"), refused("2"), died=NOW)
    pages = list(dead_letters.walk(client, KEYS, Filters(dead_until=NOW)))
    assert [letter.letter_id for page in pages for letter in page.letters] == [before]
    pages = list(dead_letters.walk(client, KEYS, Filters(dead_until=NOW + 1, older_than_seconds=0)))
    assert [letter.letter_id for page in pages for letter in page.letters] == [before, after]


def test_a_look_at_letters_ends_in_time_and_goes_on(client: Redis) -> None:
    bury(client, refused("wanted", environment="staging"), *(refused(str(number)) for number in range(200)))
    filters, behind, looks = Filters(environment="staging"), "", 0
    while not (
        some := dead_letters.newest(client, KEYS, filters, limit=5, max_scanned=10**6, max_seconds=0, after=behind)
    ).letters:
        behind, looks = some.after or "", looks + 1
    assert looks > 1
