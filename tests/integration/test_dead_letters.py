"""Dead letters on a real Redis: found, streamed, redriven past the stale check, dropped; and paused environments."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from letters import ARRIVED, KEYS, REPOSITORY, body, bury, digest, invalid, refused
from outboxes import lease_inbox, put
from recorded_wakeups import RecordedWakeups

from relay.errors import LeaseLost
from relay.queue import dead_letters, inbox, intake, pausing
from relay.queue import redrive as redriving
from relay.queue.counters import read_counters, read_environments
from relay.queue.dead_letters import EVERYTHING, Filters, Reason
from relay.queue.inbox import Redriven
from relay.queue.redrive import Moved, Progress, Redrive, redrive_all
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake
from workers.wiring import make_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from relay.queue.dead_letters import DeadLetter
    from workers.runtime import Runtime

PRODUCTION = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
PLENTY = 1_000_000
REFUSES = [{"kind": "status", "status": 422}]
EARLIER, LATER = "2026-01-31T12:00:00+00:00", "2026-01-31T13:00:00+00:00"


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token="token-of-the-tests") as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    settings = Settings.load(
        redis={"url": redis_server.url},
        api={"url": api.url, "token": "token-of-the-tests", "timeout": 1},
        worker={"lease": 5, "budget": 1, "stay": 0},
        delivery={"backoff_initial": "1ms", "max_attempts": 3},
    )
    made = make_runtime(settings, RecordedWakeups())
    yield made
    made.close()


@pytest.fixture
def lately(client: Redis) -> int:
    """A millisecond in which several events came, one minute ago."""
    return int(client.time()[0]) * 1000 - 60_000


def report(client: Redis, version: str, *, entry_id: str = "*", **fields: str) -> str:
    return client.xadd(KEYS.inbox, {"event": body(version), **fields}, id=entry_id).decode()


def work(runtime: Runtime, api: Sandbox, *, refuse: bool = False) -> None:
    """Take in and deliver all that waits; the API refuses it, or not."""
    api.faults = REFUSES if refuse else []
    deadline = time.monotonic() + 20
    while read_counters(runtime.client, KEYS).waiting:
        assert time.monotonic() < deadline, read_counters(runtime.client, KEYS)
        run_intake(runtime)
        run_delivery(runtime, ["production"])


def deliver_refusing(runtime: Runtime, api: Sandbox, version: str) -> None:
    """Take in and deliver what waits; the API refuses this version."""
    api.faults = [{"kind": "status", "status": 422, "image": f"{REPOSITORY}@{digest(version)}"}]
    run_intake(runtime)
    run_delivery(runtime, ["production"])
    assert not read_counters(runtime.client, KEYS).waiting


def redrive(client: Redis, filters: Filters = EVERYTHING, *, force: bool = False, **options: Any) -> Progress:
    run = Redrive(client, KEYS, max_backlog=options.pop("max_backlog", PLENTY), force=force)
    assert run.acquire()
    steps = [Progress(0, 0, is_full=False), *redrive_all(run, filters, **options)]
    run.release()
    return steps[-1]


def delivered(api: Sandbox) -> list[str]:
    """The digests that the API took, in order."""
    return [request.event["image"]["url"].partition("@")[2] for request in api.requests if request.processed]


def letters(client: Redis, filters: Filters = EVERYTHING, **options: Any) -> list[DeadLetter]:
    return [letter for page in dead_letters.walk(client, KEYS, filters, **options) for letter in page.letters]


def everything(client: Redis) -> dict[bytes, Any]:
    return {key: client.dump(key) for key in client.scan_iter()}


def assert_all_accounted_for(client: Redis) -> None:
    counters = read_counters(client, KEYS)
    assert (counters.unaccounted, counters.dead_unaccounted) == (0, 0), counters


# Redrive and the stale check


@pytest.mark.parametrize("times", [{}, {"time": EARLIER}], ids=["without a time", "with a time"])
def test_redriven_event_is_delivered(runtime: Runtime, client: Redis, api: Sandbox, times: dict[str, str]) -> None:
    report(client, "a", id="job-1", source="ci", **times)
    work(runtime, api, refuse=True)
    assert redrive(client).moved == 1
    work(runtime, api)

    assert delivered(api) == [digest("a")]
    counters = read_counters(client, KEYS)
    assert (counters.added, counters.redriven, counters.dead, counters.dead_waiting, counters.delivered) == (
        1,
        1,
        1,
        0,
        1,
    )
    assert_all_accounted_for(client)


@pytest.mark.parametrize(
    ("older", "newer"),
    [({}, {}), ({"time": EARLIER}, {}), ({}, {"time": EARLIER}), ({"time": EARLIER}, {"time": LATER})],
    ids=["no times", "only the dead one's time", "only the newer one's time", "both times"],
)
class TestNewerDeployment:
    """Is not undone by a redrive, whatever is known of when they happened."""

    def test_that_came_after_the_death(
        self, runtime: Runtime, client: Redis, api: Sandbox, older: dict[str, str], newer: dict[str, str]
    ) -> None:
        report(client, "old", **older)
        work(runtime, api, refuse=True)
        report(client, "new", **newer)
        work(runtime, api)
        self.redrive_and_see_it_stale(runtime, api)

    def test_that_came_in_the_same_millisecond(
        self, runtime: Runtime, lately: int, api: Sandbox, older: dict[str, str], newer: dict[str, str]
    ) -> None:
        report(runtime.client, "old", entry_id=f"{lately}-5", **older)
        report(runtime.client, "new", entry_id=f"{lately}-6", **newer)
        deliver_refusing(runtime, api, "old")
        self.redrive_and_see_it_stale(runtime, api)

    def redrive_and_see_it_stale(self, runtime: Runtime, api: Sandbox) -> None:
        redrive(runtime.client)
        work(runtime, api)
        assert delivered(api) == [digest("new")]
        assert read_counters(runtime.client, KEYS).stale == 1
        assert_all_accounted_for(runtime.client)


def test_an_older_time_makes_the_redriven_event_stale_though_it_arrived_later(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    report(client, "a", time=EARLIER)
    work(runtime, api, refuse=True)
    report(client, "b", entry_id="*", time=LATER)
    work(runtime, api)
    client.hset(PRODUCTION.accepted, *_with_arrival(client, 1))  # as if it had come first
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("b")]
    assert read_counters(client, KEYS).stale == 1


def _with_arrival(client: Redis, at: int) -> tuple[bytes, str]:
    [(instance, state)] = client.hgetall(PRODUCTION.accepted).items()
    head = state.decode().split("\n")
    return instance, "\n".join([*head[:2], str(at), *head[3:]])


@pytest.mark.parametrize("earlier_by", [0, 1])
def test_redrive_goes_through_though_an_older_deployment_was_delivered_late(
    runtime: Runtime, client: Redis, api: Sandbox, lately: int, earlier_by: int
) -> None:
    """What the dead letter gave back says when the older one was delivered: long after the newer one had come."""
    report(client, "older", entry_id=f"{lately - earlier_by}-1")
    report(client, "newer", entry_id=f"{lately}-2")
    deliver_refusing(runtime, api, "newer")
    assert delivered(api) == [digest("older")]
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("older"), digest("newer")]
    assert_all_accounted_for(client)


def test_what_was_delivered_after_the_death_and_given_back_is_not_undone(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    report(client, "dead")
    work(runtime, api, refuse=True)
    [letter] = letters(client)
    report(client, "newer")
    work(runtime, api)
    report(client, "also dead")
    work(runtime, api, refuse=True)
    redrive(client, Filters(event_ids=frozenset({letter.event_id})))
    work(runtime, api)

    assert delivered(api) == [digest("newer")]
    assert read_counters(client, KEYS).stale == 1


@pytest.mark.parametrize("when", [{}, {"time": "2099-01-01T00:00:00Z"}], ids=["without a time", "as of its arrival"])
def test_redrive_does_not_undo_a_rollback_that_was_reported(
    runtime: Runtime, client: Redis, api: Sandbox, when: dict[str, str]
) -> None:
    """What it was rolled back to is what was last delivered, so the report is a duplicate; it counts all the same."""
    report(client, "good")
    work(runtime, api)
    report(client, "bad")
    work(runtime, api, refuse=True)
    [letter] = letters(client)
    report(client, "good", **when)
    work(runtime, api)
    assert read_counters(client, KEYS).duplicate == 1
    report(client, "worse")
    work(runtime, api, refuse=True)  # gives back what was confirmed, too
    redrive(client, Filters(event_ids=frozenset({letter.event_id})))
    work(runtime, api)

    assert delivered(api) == [digest("good")]
    assert read_counters(client, KEYS).stale == 1
    assert_all_accounted_for(client)


@pytest.mark.parametrize("what", ["a report of before it", "a retry of the first report", "nothing"])
def test_redrive_goes_through_where_nothing_tells_that_it_was_rolled_back(
    runtime: Runtime, client: Redis, api: Sandbox, what: str
) -> None:
    report(client, "good", id="job-1")
    work(runtime, api)
    report(client, "bad")
    work(runtime, api, refuse=True)
    if what != "nothing":
        report(client, "good", **({"time": EARLIER} if what == "a report of before it" else {"id": "job-1"}))
        work(runtime, api)
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("good"), digest("bad")]
    assert_all_accounted_for(client)


@pytest.mark.parametrize("later_by", [0, 7])
def test_events_that_died_together_end_as_they_would_have(
    runtime: Runtime, client: Redis, api: Sandbox, lately: int, later_by: int
) -> None:
    report(client, "one", entry_id=f"{lately}-7")
    report(client, "two", entry_id=f"{lately + later_by}-8")
    work(runtime, api, refuse=True)
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("one"), digest("two")]


@pytest.mark.parametrize("later_by", [0, 7])
def test_the_older_of_two_dead_letters_does_not_undo_the_newer_redriven_before(
    runtime: Runtime, client: Redis, api: Sandbox, lately: int, later_by: int
) -> None:
    report(client, "one", entry_id=f"{lately}-7")
    second = report(client, "two", entry_id=f"{lately + later_by}-8")
    work(runtime, api, refuse=True)
    redrive(client, Filters(event_ids=frozenset({second})))
    work(runtime, api)
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("two")]
    assert read_counters(client, KEYS).stale == 1


def test_what_died_beside_a_newer_delivery_does_not_undo_it_when_a_later_death_gave_that_back(
    runtime: Runtime, client: Redis, api: Sandbox
) -> None:
    """The state that "three" gives back is of "two": it must say when "two" came, not when it was delivered."""
    report(client, "one")
    report(client, "two")
    deliver_refusing(runtime, api, "one")
    work(runtime, api)
    report(client, "three")
    deliver_refusing(runtime, api, "three")
    redrive(client, Filters(image=digest("one")))
    work(runtime, api)

    assert delivered(api) == [digest("two")]
    assert read_counters(client, KEYS).stale == 1


def test_what_was_delivered_since_is_a_duplicate(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    report(client, "a")
    work(runtime, api, refuse=True)
    report(client, "a")
    work(runtime, api)
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("a")]
    assert read_counters(client, KEYS).duplicate == 1
    assert_all_accounted_for(client)


@pytest.mark.parametrize("since", ["a", "b"], ids=["the same", "another"])
def test_forced_redrive_is_delivered_whatever_was_since(
    runtime: Runtime, client: Redis, api: Sandbox, since: str
) -> None:
    report(client, "a", id="job-1", time=EARLIER)
    work(runtime, api, refuse=True)
    report(client, since, id="job-2", time=LATER)
    work(runtime, api)
    redrive(client, force=True)
    work(runtime, api)

    assert delivered(api) == [digest(since), digest("a")]
    report(client, "a")
    work(runtime, api)
    assert read_counters(client, KEYS).duplicate == 1, "it is what runs from then on"
    assert_all_accounted_for(client)


def test_event_that_dies_again_keeps_its_history(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    arrived, _, sequence = report(client, "a", id="job-1", source="ci", time=EARLIER).partition("-")
    deaths = []
    for times in (1, 2):
        work(runtime, api, refuse=True)
        [letter] = letters(client)
        assert (letter.redriven.times if letter.redriven else 0) == times - 1
        deaths.append(letter.dead_since)
        redrive(client, force=times == 2)
        [(_, entry)] = client.xrange(KEYS.inbox)
        assert Redriven.decode(entry[b"redriven"].decode()) == Redriven(
            times, int(arrived), int(sequence), times == 2
        )
        assert (entry[b"event"], entry[b"id"], entry[b"source"]) == (letter.named[b"event"], b"job-1", b"ci")
        assert entry[b"time"] == b"2026-01-31T12:00:00.000+00:00"
    run_intake(runtime)
    [(_, waiting)] = client.xrange(PRODUCTION.outbox)
    assert int(waiting[b"arrived"]) >= deaths[-1], "it would expire at once"
    assert waiting[b"redriven"].startswith(b"2 ")
    work(runtime, api, refuse=True)
    assert [letter.redriven.times for letter in letters(client) if letter.redriven] == [2]
    counters = read_counters(client, KEYS)
    assert (counters.added, counters.redriven, counters.dead, counters.dead_waiting) == (1, 2, 3, 1)
    assert_all_accounted_for(client)


# Unreadable entries


def test_unreadable_entry_goes_back_as_it_came(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    raw = {b"event": b'{"image":\xff', b"\xfe": b"\r\n\x00", b"reason": b"mine", b"redrived": b"no"}
    arrived = client.xadd(KEYS.inbox, raw).decode()
    run_intake(runtime)
    for times in (1, 2):
        [letter] = letters(client)
        assert (letter.reason, dict(letter.fields)[b"reason"]) == ("invalid", b"mine")
        redrive(client)
        [(_, entry)] = client.xrange(KEYS.inbox)
        redriven = entry.pop(b"redriven")
        assert entry == raw
        assert redriven.decode() == f"{times} {arrived}"
        run_intake(runtime)
    counters = read_counters(client, KEYS)
    assert (counters.added, counters.redriven, counters.dead, counters.dead_waiting) == (1, 2, 3, 1)
    assert counters.dead_by_reason == {"invalid": 3}
    assert_all_accounted_for(client)


def test_unreadable_entry_with_all_fields_that_are_kept_loses_none(runtime: Runtime, client: Redis) -> None:
    client.xadd(KEYS.inbox, {f"f{number}": number for number in range(40)})
    for _ in range(3):
        run_intake(runtime)
        [letter] = letters(client)
        assert [name for name, _ in letter.fields if name != b"redriven"] == [f"f{n}".encode() for n in range(32)]
        redrive(client)
    [(_, entry)] = client.xrange(KEYS.inbox)
    assert entry[b"redriven"].startswith(b"3 ")


def test_mended_configuration_lets_a_redriven_entry_in(
    runtime: Runtime, client: Redis, api: Sandbox, redis_server: EmbeddedRedis
) -> None:
    settings = runtime.settings
    strict = settings.model_copy(update={"queue": settings.queue.model_copy(update={"max_event_bytes": 10})})
    refusing = make_runtime(strict, RecordedWakeups())
    report(client, "a")
    run_intake(refusing)
    refusing.close()
    redrive(client)
    work(runtime, api)

    assert delivered(api) == [digest("a")]
    assert_all_accounted_for(client)


def test_death_at_intake_is_counted_by_its_reason(client: Redis) -> None:
    lease = lease_inbox(client)
    put(client, *[{"event": "{"}] * 3)
    reasons = (Reason.INVALID, Reason.WORKER_CRASH, Reason.WORKER_CRASH)
    intake.dead_letter(
        lease, [(entry, reason, "why") for entry, reason in zip(inbox.head(client, KEYS, 3), reasons, strict=True)]
    )

    counters = read_counters(client, KEYS)
    assert counters.dead_by_reason == {"invalid": 1, "worker_crash": 2}
    assert counters.dead == counters.dead_waiting == 3
    assert_all_accounted_for(client)


# The script and its lease


def begun(client: Redis, **options: Any) -> Redrive:
    run = Redrive(client, KEYS, **{"max_backlog": PLENTY, **options})
    assert run.acquire()
    return run


def test_redrive_applied_twice_moves_once(client: Redis) -> None:
    bury(client, refused("a"), invalid({"event": "{"}), refused("b"))
    run = begun(client)
    found = letters(client)
    assert run.move(found) == Moved(3, is_full=False)
    client.pexpire(KEYS.redrive_lease, 60_000)
    before = {key: value for key, value in everything(client).items() if key != KEYS.redrive_lease.encode()}

    assert run.move(found) == Moved(0, is_full=False)
    assert everything(client).items() >= before.items()
    assert client.xlen(KEYS.inbox) == 3
    assert_all_accounted_for(client)


def test_second_redrive_waits_for_the_first(client: Redis) -> None:
    first = begun(client)
    second = Redrive(client, KEYS, max_backlog=PLENTY)
    assert not second.acquire()
    assert first.acquire(), "its own lease is no obstacle: the answer of its first try may have been lost"
    first.release()
    assert second.acquire()
    assert 0 < client.pttl(KEYS.redrive_lease) <= redriving.LEASE_SECONDS * 1000


def test_redrive_that_lost_its_lease_moves_nothing_more(client: Redis) -> None:
    bury(client, *(refused(str(number)) for number in range(10)))
    run = begun(client)
    steps = redrive_all(run, EVERYTHING, rate=3)
    assert next(steps).moved == 3
    client.set(KEYS.redrive_lease, "successor")

    with pytest.raises(LeaseLost):
        list(steps)
    run.release()
    assert client.get(KEYS.redrive_lease) == b"successor"
    assert (client.xlen(KEYS.inbox), client.xlen(KEYS.dead)) == (3, 7)


def test_walk_that_finds_nothing_for_long_keeps_the_lease(client: Redis) -> None:
    bury(client, *(refused(str(number)) for number in range(60)))
    run = begun(client)
    client.pexpire(KEYS.redrive_lease, 60_000)
    run._renewed_at -= redriving.LEASE_SECONDS / 2
    list(redrive_all(run, Filters(environment="none")))

    assert 0 < client.pttl(KEYS.redrive_lease) <= redriving.LEASE_SECONDS * 1000


def test_redrive_stops_when_the_queue_is_full(client: Redis) -> None:
    bury(client, *(refused(str(number)) for number in range(10)))
    client.xadd(KEYS.inbox, {"event": "{}"})
    client.hset(KEYS.counts, "outbox", 2)

    assert redrive(client, max_backlog=7)[1:] == (4, True)
    assert (client.xlen(KEYS.inbox), client.xlen(KEYS.dead)) == (5, 6)
    assert redrive(client, max_backlog=7)[1:] == (0, True)
    assert redrive(client, max_backlog=13)[1:] == (6, False)


@pytest.fixture
def full_memory(client: Redis) -> Iterator[None]:
    """Redis at `maxmemory` from now on."""
    client.config_set("maxmemory", 1)
    yield
    client.config_set("maxmemory", 0)


def test_redrive_drop_pause_and_resume_work_at_maxmemory(client: Redis, request: pytest.FixtureRequest) -> None:
    bury(client, refused("a"), refused("b"))
    run = begun(client)
    found = letters(client)
    request.getfixturevalue("full_memory")

    assert run.move([*found[:1], *found[:1]]) == Moved(1, is_full=False)
    assert run.move(found) == Moved(1, is_full=False)
    assert dead_letters.drop(client, KEYS, found) == 0
    assert pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])[0].newly
    assert pausing.resume(client, KEYS, DEFAULT_DESTINATION, ["production"]) != [None]
    assert_all_accounted_for(client)


def test_redrive_at_a_rate_takes_its_time_and_moves_all(client: Redis) -> None:
    bury(client, *(refused(str(number)) for number in range(12)))
    started = time.monotonic()

    assert redrive(client, rate=10).moved == 12
    assert time.monotonic() - started >= 1.0


def test_limit_is_how_many_are_redriven(client: Redis) -> None:
    ids = bury(client, *(refused(str(number)) for number in range(120)))

    assert redrive(client, limit=70).moved == 70
    assert [letter.letter_id for letter in letters(client)] == ids[70:]


def test_what_dies_meanwhile_is_not_redriven_again(client: Redis) -> None:
    bury(client, *(refused(str(number)) for number in range(120)))
    run = begun(client)
    for _ in redrive_all(run, EVERYTHING):
        bury(client, refused("again"))

    assert client.xlen(KEYS.inbox) == 120
    assert {letter.event_id for letter in letters(client)} == {"job-again"}


def test_drop_applied_twice_counts_once(client: Redis) -> None:
    bury(client, refused("a"), refused("b"))
    [one, _] = letters(client)

    assert (
        dead_letters.drop(client, KEYS, [one]),
        dead_letters.drop(client, KEYS, [one]),
        dead_letters.drop(client, KEYS, []),
    ) == (1, 0, 0)
    counters = read_counters(client, KEYS)
    assert (counters.dead, counters.dropped, counters.dead_waiting) == (2, 1, 1)
    assert_all_accounted_for(client)


def test_letters_deleted_by_hand_show_in_the_counters(client: Redis) -> None:
    bury(client, refused("a"), refused("b"))
    client.delete(KEYS.dead)

    assert read_counters(client, KEYS).dead_unaccounted == 2


# Finding


OLD, NEW = 100_000, 10_000  # milliseconds ago
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"one", "two", "three", "four"}),
    ({"environment": "production"}, {"one", "three"}),
    ({"environment": "*ing"}, {"two"}),
    ({"environment": "*"}, {"one", "two", "three", "four"}),
    ({"reasons": frozenset({"expired"})}, {"two"}),
    ({"reasons": frozenset({"expired", "invalid"})}, {"two", "four"}),
    ({"image": "acme/api"}, {"two"}),
    ({"image": "ghcr.io/*"}, {"two"}),
    ({"image": "acme/*"}, set()),
    ({"image": digest("one")}, {"one"}),
    ({"older_than_seconds": 50}, {"one", "two"}),
    ({"newer_than_seconds": 50}, {"three", "four"}),
    ({"older_than_seconds": 99_999_999_999}, set()),
    ({"newer_than_seconds": 99_999_999_999}, {"one", "two", "three", "four"}),
    ({"event_ids": frozenset({"job-one", "four"})}, {"one", "four"}),
    ({"environment": "production", "newer_than_seconds": 50}, {"three"}),
]


@pytest.mark.parametrize(("filters", "expected"), CASES)
def test_each_filter_finds_what_it_says(client: Redis, filters: dict[str, Any], expected: set[str]) -> None:
    seconds, microseconds = client.time()
    now = seconds * 1000 + microseconds // 1000
    bury(
        client,
        refused("one"),
        refused("two", environment="staging", reason="expired", repository="ghcr.io/acme/api"),
        died=now - OLD,
    )
    bury(client, refused("three"), invalid({"event": "{", "id": "four"}), died=now - NEW)
    names = {letter.event_id.removeprefix("job-") for letter in letters(client, Filters(**filters))}

    assert names == expected
    found = letters(client, Filters(**filters), newest_first=True)
    assert [letter.letter_id for letter in found[::-1]] == [
        letter.letter_id for letter in letters(client, Filters(**filters))
    ]


@pytest.mark.parametrize(
    ("fields", "event_id", "environment", "image"),
    [
        ({"event": b"\xff"}, f"{ARRIVED}-2", "", ""),
        ({"no": "event"}, f"{ARRIVED}-2", "", ""),
        ({"event": "[" * 100_000}, f"{ARRIVED}-2", "", ""),
        ({"event": '{"image": 5, "environment": ["x"], "id": 7}'}, "7", "", ""),
        ({"event": '{"image": {"url": "nginx:1"}, "environment": {"name": "e"}}'}, f"{ARRIVED}-2", "e", "nginx:1"),
        ({"event": "{}", "id": b"\xffx"}, "\ufffdx", "", ""),
    ],
)
def test_what_is_known_of_an_unreadable_entry_is_found(
    client: Redis, fields: dict[Any, Any], event_id: str, environment: str, image: str
) -> None:
    bury(client, invalid(fields))
    [letter] = letters(client)

    assert (letter.event_id, letter.environment, letter.image) == (event_id, environment, image)
    assert not letter.was_accepted


@pytest.mark.parametrize(
    "entry",
    [{"any": "thing"}, {"attempts": "1"}, {"reason": "x", "attempts": "x"}, {**refused("a"), "arrived": "x"}],
)
def test_letter_that_somebody_else_added_can_be_redriven(client: Redis, entry: dict[str, str]) -> None:
    client.xadd(KEYS.dead, entry)

    assert redrive(client).moved == 1
    [(_, fields)] = client.xrange(KEYS.inbox)
    Redriven.decode(fields[b"redriven"].decode())


def test_twenty_thousand_letters_are_never_in_memory_together(client: Redis) -> None:
    padding = "x" * 1500
    for start in range(0, 20_000, 2000):
        bury(client, *(refused(str(number), detail=padding) for number in range(start, start + 2000)))
    assert len(letters(client, Filters(environment="none"))) == 0  # the scripts and modules are there
    tracemalloc.start()
    try:
        found = sum(len(page.letters) for page in dead_letters.walk(client, KEYS))
        walking = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        moved = redrive(client).moved
        redriving_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (found, moved) == (20_000, 20_000)
    assert max(walking, redriving_peak) < 12_000_000, "of at least 40,000,000 bytes"
    assert_all_accounted_for(client)


def test_page_of_huge_letters_is_small(client: Redis) -> None:
    bury(client, *(invalid({"event": "x" * 1_000_000}) for _ in range(80)))
    sizes = [page.scanned for page in dead_letters.walk(client, KEYS)]

    assert sum(sizes) == 80
    assert max(sizes) <= 5


def test_ledger_adds_up_with_redrives_drops_and_deaths_again(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    for number in range(20):
        report(client, str(number), id=f"job-{number}")
    client.xadd(KEYS.inbox, {"event": "{"})
    work(runtime, api, refuse=True)
    assert_all_accounted_for(client)
    redrive(client, Filters(event_ids=frozenset({"job-3", "job-4", "job-5"})))
    assert_all_accounted_for(client)
    run_intake(runtime)
    assert_all_accounted_for(client)
    work(runtime, api)
    dead_letters.drop(client, KEYS, letters(client, Filters(event_ids=frozenset({"job-5", "job-6"}))))
    redrive(client)
    work(runtime, api, refuse=True)

    counters = read_counters(client, KEYS)
    assert counters.added == 21
    assert counters.dropped == 1
    assert_all_accounted_for(client)


# Pausing


def test_paused_environment_stays_so_since_when_it_was(client: Redis) -> None:
    [first] = pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])
    again, other = pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production", "staging"])

    assert first.newly
    assert not again.newly
    assert again.since == first.since
    assert pausing.paused(client, KEYS, DEFAULT_DESTINATION) == {"production": first.since, "staging": other.since}


def test_resumed_environment_is_looked_at_at_once_if_it_has_something_to_deliver(client: Redis) -> None:
    schedule = KEYS.schedule(DEFAULT_DESTINATION)
    [paused, _] = pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production", "empty"])
    client.xadd(PRODUCTION.outbox, {"event": "{}"})
    client.zadd(schedule, {"production": float("inf")})

    resumed = pausing.resume(client, KEYS, DEFAULT_DESTINATION, ["production", "empty", "never paused"])
    assert resumed[0] == paused.since
    assert resumed[2] is None
    assert client.zscore(schedule, "production") >= paused.since
    assert client.zscore(schedule, "production") < float("inf")
    assert client.zscore(schedule, "empty") is None
    assert pausing.paused(client, KEYS, DEFAULT_DESTINATION) == {}

    before = everything(client)
    assert pausing.resume(client, KEYS, DEFAULT_DESTINATION, ["production"]) == [None]
    assert everything(client) == before


def test_environment_that_is_due_already_is_not_put_off_by_resuming(client: Redis) -> None:
    pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["production"])
    client.xadd(PRODUCTION.outbox, {"event": "{}"})
    client.zadd(KEYS.schedule(DEFAULT_DESTINATION), {"production": 5})
    pausing.resume(client, KEYS, DEFAULT_DESTINATION, ["production"])

    assert client.zscore(KEYS.schedule(DEFAULT_DESTINATION), "production") == 5


def test_paused_environment_shows_though_it_never_got_an_event(client: Redis) -> None:
    client.hset(KEYS.of_outbox(DEFAULT_DESTINATION, "production").counts, "superseded", 3)
    client.zadd(KEYS.environments(DEFAULT_DESTINATION), {"production": 0})
    [paused] = pausing.pause(client, KEYS, DEFAULT_DESTINATION, ["staging"])
    production, staging = read_environments(client, KEYS, DEFAULT_DESTINATION)

    assert (production.environment, production.paused_since, production.superseded) == ("production", None, 3)
    assert (staging.environment, staging.paused_since, staging.waiting) == ("staging", paused.since, 0)
