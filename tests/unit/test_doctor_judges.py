"""What the doctor says of what it saw: judged from values, without a Redis, an API or a worker."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from relay.operations.doctor import api, broker, configuration, examination, leases, redis_server, workers
from relay.operations.doctor.examination import Check, run_all
from relay.operations.doctor.leases import Left, Place
from relay.operations.doctor.masking import mask_for, mask_for_refused, masked
from relay.operations.doctor.redis_server import Server, judge, server_of
from relay.operations.doctor.result import Grade, Result, ok
from relay.operations.doctor.workers import Look
from relay.settings import ApiSettings, BrokerSettings, QueueSettings, RedisSettings, Settings, WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path

MEBIBYTE = 2**20

#: What redis-py reads from a sound server with a limit of its own.
SOUND_INFO = {
    "redis_version": "7.0.15",
    "role": "master",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "maxmemory_policy": "noeviction",
    "used_memory": 10 * MEBIBYTE,
    "mem_not_counted_for_evict": 0,
    "maxmemory": 2048 * MEBIBYTE,
    "evicted_keys": 0,
}
SOUND_CONFIG = {"appendfsync": "always", "save": ""}


def graded(results: object) -> dict[str, Grade]:
    assert isinstance(results, list)
    return {each.check: each.grade for each in results if each.grade is not Grade.OK}


def test_a_sound_redis_has_nothing_wrong() -> None:
    found = list(judge(server_of(SOUND_INFO, SOUND_CONFIG), QueueSettings()))
    assert graded(found) == {}
    assert {each.check for each in found} == {"redis.version", "redis.persistence", "redis.eviction", "redis.memory"}


@pytest.mark.parametrize(
    ("info", "config", "check", "grade", "words"),
    [
        ({"redis_version": "6.0.16"}, {}, "redis.version", Grade.FAULT, "6.0.16, too old"),
        ({"redis_version": "5.0"}, {}, "redis.version", Grade.FAULT, "upgrade it to 6.2"),
        ({"redis_version": "3.2.12"}, {}, "redis.version", Grade.FAULT, "too old"),
        ({"redis_version": ""}, {}, "redis.version", Grade.NOTE, "does not tell"),
        ({"role": "slave"}, {}, "redis.role", Grade.FAULT, "name the primary"),
        ({"aof_enabled": 0}, {}, "redis.persistence", Grade.FAULT, "keeps nothing on disk"),
        ({"aof_enabled": 0}, {"save": "3600 1"}, "redis.persistence", Grade.FAULT, "snapshots only"),
        ({}, {"appendfsync": "everysec"}, "redis.persistence", Grade.WARNING, "last 2 seconds"),
        ({}, {"appendfsync": "no"}, "redis.persistence", Grade.WARNING, "half a minute"),
        ({}, {"appendfsync": ""}, "redis.persistence", Grade.NOTE, "how often"),
        ({"aof_enabled": None}, {}, "redis.persistence", Grade.NOTE, "appendonly is on"),
        ({"aof_last_write_status": "err"}, {}, "redis.disk", Grade.FAULT, "refuses all writes"),
        ({"rdb_last_bgsave_status": "err"}, {}, "redis.disk", Grade.WARNING, "last snapshot failed"),
        ({"aof_last_bgrewrite_status": "err"}, {}, "redis.disk", Grade.WARNING, "file grows"),
        ({"maxmemory_policy": "allkeys-lru"}, {}, "redis.eviction", Grade.FAULT, "throws away what waits"),
        ({"maxmemory_policy": "volatile-ttl"}, {}, "redis.eviction", Grade.FAULT, "noeviction"),
        (
            {"maxmemory_policy": "allkeys-lru", "evicted_keys": 7},
            {},
            "redis.eviction",
            Grade.FAULT,
            "7 keys are gone",
        ),
        (
            {"maxmemory_policy": "allkeys-lru", "maxmemory": 0},
            {},
            "redis.eviction",
            Grade.WARNING,
            "no maxmemory yet",
        ),
        ({"maxmemory_policy": ""}, {}, "redis.eviction", Grade.NOTE, "does not tell"),
        ({"maxmemory": 0}, {}, "redis.memory", Grade.WARNING, "no maxmemory"),
        ({"maxmemory": 256 * MEBIBYTE}, {}, "redis.memory", Grade.WARNING, "about 235,929 waiting events"),
        ({"used_memory": 1500 * MEBIBYTE}, {}, "redis.memory", Grade.WARNING, "nearly full: 73% of 2.0 GiB"),
        ({"used_memory": 1900 * MEBIBYTE}, {}, "redis.memory", Grade.FAULT, "producers are refused"),
        ({"used_memory": None}, {}, "redis.memory", Grade.NOTE, "does not tell"),
    ],
)
def test_what_is_wrong_with_a_redis_is_named(
    info: dict[str, object], config: dict[str, str], check: str, grade: Grade, words: str
) -> None:
    found = list(judge(server_of(SOUND_INFO | info, SOUND_CONFIG | config), QueueSettings()))
    also = {"redis.memory": Grade.WARNING} if not info.get("maxmemory", 1) else {}  # no limit is told of, too
    assert graded(found) == {**also, check: grade}, "one fault in, one found"
    [result] = [each for each in found if each.check == check and each.grade is grade]
    assert words in str(result)


@pytest.mark.parametrize("version", ["6.2.0", "6.2.14", "7.0.15", "8.0.3", "10.1"])
def test_redis_6_2_and_later_is_new_enough(version: str) -> None:
    [result] = [each for each in judge(Server(version=version), QueueSettings()) if each.check == "redis.version"]
    assert result.grade is Grade.OK


def test_a_server_that_tells_nothing_is_not_judged() -> None:
    found = list(judge(server_of({}, {}), QueueSettings()))
    assert {each.grade for each in found} == {Grade.NOTE}


def test_memory_that_is_not_counted_against_the_limit_is_not_counted() -> None:
    info = SOUND_INFO | {"used_memory": 1900 * MEBIBYTE, "mem_not_counted_for_evict": 1500 * MEBIBYTE}
    assert graded(list(judge(server_of(info, SOUND_CONFIG), QueueSettings()))) == {}


@pytest.mark.parametrize(
    ("before", "theirs", "after", "words"),
    [
        (100.0, 100.2, 100.4, "agree"),
        (100.0, 99.0, 100.0, "agree"),
        (100.0, 130.0, 100.1, "30 s behind Redis's"),
        (100.0, 40.0, 100.1, "60 s ahead of Redis's"),
        (100.0, 104.0, 105.0, "agree"),  # a slow answer is no skew
    ],
)
def test_clocks_that_differ_are_told(before: float, theirs: float, after: float, words: str) -> None:
    result = redis_server.skew(before, theirs, after)
    assert words in result.what
    assert result.grade is (Grade.OK if words == "agree" else Grade.WARNING)


@pytest.mark.parametrize(("seconds", "words"), [(1.0, "agree"), (-60.0, "60 s ahead"), (90.0, "90 s behind")])
def test_the_apis_clock_is_compared(seconds: float, words: str) -> None:
    assert words in api.skew(seconds).what


EXPECTED = (
    ({401, 403}, Grade.FAULT, "refuses the token"),
    ({404, 405, 410}, Grade.FAULT, "no such URL"),
    (range(300, 400), Grade.FAULT, "redirects to https://other.example.com/path"),
    ({408, 425, 429}, Grade.WARNING, "limits the rate"),
    (range(500, 600), Grade.FAULT, "is failing"),
    ({400, 415, 422}, Grade.NOTE, "whether it accepts the token is not known"),
    (range(200, 500), Grade.WARNING, "nothing is known"),
)


@pytest.mark.parametrize("status", range(200, 600))
def test_every_status_says_something_true_of_url_and_token(status: int) -> None:
    answer = api.Answer(status, location="https://other.example.com/path", excerpt="said")
    result = api.judge("https://api.example.com/", answer, None)
    grade, words = next((grade, words) for statuses, grade, words in EXPECTED if status in statuses)
    assert result.grade is grade
    assert words in result.what
    assert result.do


@pytest.mark.parametrize(("bare", "grade"), [(401, Grade.OK), (403, Grade.OK), (422, Grade.NOTE), (500, Grade.NOTE)])
def test_a_token_is_known_to_be_accepted_only_if_nothing_goes_without(bare: int, grade: Grade) -> None:
    assert api.judge("https://api.example.com/", api.Answer(422), api.Answer(bare)).grade is grade


NOW = 1_700_000_000_000
HEAD = f"{NOW - 120_000}-0".encode()


def test_no_worker_is_told_with_the_last_that_was_there() -> None:
    result = workers.judge_presence(Look(now=NOW, gone={"a@one": NOW - 600_000, "b@two": NOW - 300_000}))
    assert result.grade is Grade.FAULT
    assert "the last was b@two, 5 min ago" in result.what


ALIVE = {"relay@one": NOW}
OVERDUE = Look(now=NOW, alive=ALIVE, inbox_head=HEAD, work=(5,))


@pytest.mark.parametrize(
    ("second", "grade"),
    [
        (Look(now=NOW + 2000, alive=ALIVE, inbox_head=HEAD, work=(5,)), Grade.FAULT),
        (Look(now=NOW + 2000, alive=ALIVE, inbox_head=HEAD, work=(6,)), Grade.OK),  # something was done
        (Look(now=NOW + 2000, alive=ALIVE, inbox_head=HEAD, work=(5,), at_work=True), Grade.OK),  # somebody is at it
        (Look(now=NOW + 2000, alive=ALIVE, inbox_head=f"{NOW - 119_000}-0".encode(), work=(5,)), Grade.OK),
        (Look(now=NOW + 2000, alive=ALIVE, work=(5,)), Grade.OK),
    ],
)
def test_workers_consume_nothing_only_if_nothing_moves_and_nobody_is_at_it(second: Look, grade: Grade) -> None:
    assert workers.is_overdue(OVERDUE, 40)
    assert workers.judge_work(OVERDUE, second, 40).grade is grade


def test_an_outbox_that_is_due_for_long_is_overdue_and_named() -> None:
    seen = Look(now=NOW, alive=ALIVE, due={"production": NOW - 300_000})
    result = workers.judge_work(seen, seen, 40)
    assert result.grade is Grade.FAULT
    assert "production waits for 5 min" in result.what
    assert not workers.is_overdue(Look(now=NOW, alive=ALIVE, due={"production": NOW - 30_000}), 40)


@pytest.mark.parametrize(
    ("answered", "beating", "found"),
    [
        ({"a"}, {"a"}, {}),
        (set(), set(), {}),
        ({"a"}, set(), {"workers.scheduling.poller": Grade.FAULT}),
        ({"a", "b"}, {"a"}, {"workers.scheduling.poller": Grade.FAULT}),
        (set(), {"a"}, {"workers.scheduling.broker": Grade.FAULT}),
        ({"a"}, {"a", "b"}, {"workers.scheduling.broker": Grade.WARNING}),
    ],
)
def test_workers_that_are_half_alive_are_told(answered: set[str], beating: set[str], found: dict[str, Grade]) -> None:
    assert graded(list(broker.judge(frozenset(answered), frozenset(beating), "redis://b"))) == found


PLACE = Place("production", "the:lease", "the:wakeup", "the:run")


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (Left(PLACE, -1), "the lease of production is left over and never expires"),
        (Left(PLACE, 86_400_000), "the lease of production is left over and lasts 24 h more"),
        (Left(PLACE, -2, wakeup_rest=-1), "the wakeup of production is left over and never expires"),
        (Left(PLACE, -2, run_idle=3_600_000, waits=True), "a drain of production died 60 min ago"),
        (Left(Place("the redrive", "the:redrive"), -1), "the lease of the redrive is left over"),
        (Left(PLACE, -2), ""),
        (Left(PLACE, 15_000, wakeup_rest=5_000), ""),
        (Left(PLACE, 15_000, run_idle=3_600_000, waits=True), ""),  # its drain is at it
        (Left(PLACE, -2, run_idle=1_000, waits=True), ""),  # the next drain is on its way
        (Left(PLACE, -2, run_idle=3_600_000), ""),  # nothing waits: nobody has reason to come
    ],
)
def test_what_is_left_over_is_told(left: Left, words: str) -> None:
    found = list(leases.judge([left], WorkerSettings(), 40))
    assert [words in each.what for each in found] == ([True] if words else [])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RELAY_API_TOKN", "RELAY_API_TOKEN"),
        ("RELAY_REDIS_URI", "RELAY_REDIS_URL"),
        ("RELAY_CONFIGS", "RELAY_CONFIG"),
        ("RELAY_SOMETHING_ELSE_ALTOGETHER", None),
    ],
)
def test_a_variable_that_is_no_setting_is_told_with_the_likeliest(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("RELAY_REDIS_SERVER", "/usr/bin/redis-server")
    [result] = configuration.examine(Settings())
    assert result.grade is Grade.WARNING
    assert name in result.what
    assert (f"did you mean {meant}?" == result.do) if meant else ("did you mean" not in result.do)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[api]\ntokn = "x"\n', "did you mean api.token?"),
        ('[apii]\ntoken = "x"\n', "apii"),
        ('[api]\nurl = "http://api.example.com/"\n', "the token would travel in the clear"),
        ("[api\n", "cannot be read"),
    ],
)
def test_a_file_that_is_refused_is_told_and_mended_first(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(text)
    monkeypatch.setenv("RELAY_CONFIG", str(path))
    refused, others = examination.examine(offline=True)
    assert refused.grade is Grade.FAULT
    assert words in str(refused)
    assert others.grade is Grade.NOTE


def test_files_with_secrets_that_all_may_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, toml = tmp_path / "token", tmp_path / "relay.toml"
    token.write_text("secret-of-the-file")
    toml.write_text(f'[api]\ntoken_file = "{token}"\n[gateway]\ntoken = "inline"\n')
    monkeypatch.setenv("RELAY_CONFIG", str(toml))
    for path in (token, toml):
        path.chmod(0o640)
    assert {each.grade for each in configuration.examine(Settings.load())} == {Grade.OK}
    for path in (token, toml):
        path.chmod(0o644)
    told = [each for each in configuration.examine(Settings.load()) if each.grade is Grade.WARNING]
    assert [str(token) in told[0].what, str(toml) in told[1].what] == [True, True]
    toml.write_text(f'[api]\ntoken_file = "{token}"\n')
    assert len([each for each in configuration.examine(Settings.load()) if each.grade is Grade.WARNING]) == 1


def test_rules_and_environments_that_do_not_meet_are_told() -> None:
    found = list(configuration.environments(["edge-*", "prodction"], ["edge-1", "production"]))
    assert [each.grade for each in found] == [Grade.NOTE, Grade.NOTE]
    assert '[environments."prodction"] matches no environment' in found[0].what
    assert "no rule of [environments] matches production" in found[1].what
    [fine] = configuration.environments(["edge-*"], ["edge-1"])
    assert fine.grade is Grade.OK
    [none] = configuration.environments([], ["edge-1"])
    assert none.grade is Grade.OK


def test_secrets_are_masked_wherever_they_turn_up() -> None:
    settings = Settings(
        redis=RedisSettings(url="redis://user:pa%2Fss-1@h:1/0"),
        broker=BrokerSettings(url="redis://h:1/0?password=query-secret"),
        api=ApiSettings(token="the-token"),
    )
    said = "the-token pa%2Fss-1 pa/ss-1 query-secret user"
    [result] = masked([Result(check="c", grade=Grade.OK, what=said, do=said)], mask_for(settings))
    assert result.what == result.do == "*** *** *** *** user"


def test_secrets_of_a_configuration_that_is_refused_are_masked_too() -> None:
    mask = mask_for_refused(
        {
            "RELAY_BROKER_URL": "amqp://u:broker%2Fsecret@h/",
            "RELAY_GATEWAY__TOKEN": "gate",
            "RELAY_GATEWAY__OPERATOR_TOKEN": "console",
            "RELAY_GATEWAY_TOKEN": "pipeline",
            "RELAY_API_TOKEN": "no",
        }
    )
    assert mask("broker%2Fsecret broker/secret gate console pipeline no") == "*** *** *** *** *** no"


def test_a_check_that_hangs_or_fails_keeps_no_other_from_being_made() -> None:
    forever = threading.Event()

    def hangs() -> list[Result]:
        forever.wait(60)
        return []

    def fails() -> list[Result]:
        raise ZeroDivisionError("of its own")

    checks = [Check("hangs", hangs), Check("fails", fails), Check("works", lambda: [ok("works", "well")])]
    try:
        found = run_all(checks, seconds=1.0)
    finally:
        forever.set()
    assert [(each.check, each.grade) for each in found] == [
        ("hangs", Grade.FAULT),
        ("fails", Grade.FAULT),
        ("works", Grade.OK),
    ]
    assert "no end within 1 s" in found[0].what
    assert "ZeroDivisionError: of its own" in found[1].what


@pytest.mark.parametrize(
    ("gateway", "grades"),
    [
        ({}, []),
        ({"admission": "open", "metrics": "open"}, []),  # on loopback
        ({"host": "*", "token": "of-producers"}, []),
        ({"host": "*", "token": "of-producers", "metrics": "open"}, [Grade.NOTE]),
        ({"host": "::", "token": "of-producers", "admission": "open"}, [Grade.WARNING]),
        ({"host": "10.0.0.1", "token": "t", "admission": "open", "metrics": "open"}, [Grade.WARNING, Grade.NOTE]),
    ],
)
def test_open_doors_beyond_loopback_are_named(gateway: dict[str, str], grades: list[Grade]) -> None:
    found = configuration.examine(Settings.load(gateway=gateway, kubernetes={"cluster": "kind-1"}))
    assert [each.grade for each in found if each.check == "configuration.open"] == grades


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://user:secret@[2001:db8::1]:8443/a?token=b#c", "https://[2001:db8::1]:8443/a"),
        ("http://[::1]/", "http://[::1]/"),
        ("https://api.example.com:8443/", "https://api.example.com:8443/"),
    ],
)
def test_an_address_is_shown_as_a_url_has_it(url: str, where: str) -> None:
    assert api._where(url) == where
