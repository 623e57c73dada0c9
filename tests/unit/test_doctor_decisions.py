"""What the doctor says of what it saw: judged from values, without a Redis, an API or a worker."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from relay.operations.doctor import api, broker, configuration, leases, redis_server, workers
from relay.operations.doctor.leases import RunKeys, RunReading
from relay.operations.doctor.redis_server import decide_redis
from relay.operations.doctor.run import run_all, run_doctor
from relay.operations.doctor.workers import WorkReading
from relay.operations.finding import Check, Finding, Severity, ok
from relay.queue.redis_server import RedisServer, parse_server
from relay.settings import QueueSettings, Settings, WorkerSettings

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


def severities(results: object) -> dict[str, Severity]:
    assert isinstance(results, list)
    return {each.check: each.severity for each in results if each.severity is not Severity.OK}


def test_a_correct_redis_has_no_findings() -> None:
    found = list(decide_redis(parse_server(SOUND_INFO, SOUND_CONFIG), QueueSettings()))
    assert severities(found) == {}
    assert {each.check for each in found} == {"redis.version", "redis.persistence", "redis.eviction", "redis.memory"}


@pytest.mark.parametrize(
    ("info", "config", "check", "severity", "words"),
    [
        ({"redis_version": "6.0.16"}, {}, "redis.version", Severity.FAULT, "6.0.16, too old"),
        ({"redis_version": "5.0"}, {}, "redis.version", Severity.FAULT, "upgrade it to 6.2"),
        ({"redis_version": "3.2.12"}, {}, "redis.version", Severity.FAULT, "too old"),
        ({"redis_version": ""}, {}, "redis.version", Severity.NOTE, "does not report"),
        ({"role": "slave"}, {}, "redis.role", Severity.FAULT, "name the primary"),
        ({"aof_enabled": 0}, {}, "redis.persistence", Severity.FAULT, "keeps nothing on disk"),
        ({"aof_enabled": 0}, {"save": "3600 1"}, "redis.persistence", Severity.FAULT, "snapshots only"),
        ({}, {"appendfsync": "everysec"}, "redis.persistence", Severity.WARNING, "last 2 seconds"),
        ({}, {"appendfsync": "no"}, "redis.persistence", Severity.WARNING, "half a minute"),
        ({}, {"appendfsync": ""}, "redis.persistence", Severity.NOTE, "how often"),
        ({"aof_enabled": None}, {}, "redis.persistence", Severity.NOTE, "appendonly is on"),
        ({"aof_last_write_status": "err"}, {}, "redis.disk", Severity.FAULT, "refuses all writes"),
        ({"rdb_last_bgsave_status": "err"}, {}, "redis.disk", Severity.WARNING, "last snapshot failed"),
        ({"aof_last_bgrewrite_status": "err"}, {}, "redis.disk", Severity.WARNING, "file grows"),
        ({"maxmemory_policy": "allkeys-lru"}, {}, "redis.eviction", Severity.FAULT, "silently deletes"),
        ({"maxmemory_policy": "volatile-ttl"}, {}, "redis.eviction", Severity.FAULT, "noeviction"),
        (
            {"maxmemory_policy": "allkeys-lru", "evicted_keys": 7},
            {},
            "redis.eviction",
            Severity.FAULT,
            "7 keys were evicted",
        ),
        (
            {"maxmemory_policy": "allkeys-lru", "maxmemory": 0},
            {},
            "redis.eviction",
            Severity.WARNING,
            "no maxmemory yet",
        ),
        ({"maxmemory_policy": ""}, {}, "redis.eviction", Severity.NOTE, "does not report"),
        ({"maxmemory": 0}, {}, "redis.memory", Severity.WARNING, "no maxmemory"),
        ({"maxmemory": 256 * MEBIBYTE}, {}, "redis.memory", Severity.WARNING, "about 235,929 waiting events"),
        ({"used_memory": 1500 * MEBIBYTE}, {}, "redis.memory", Severity.WARNING, "nearly full: 73% of 2.0 GiB"),
        ({"used_memory": 1900 * MEBIBYTE}, {}, "redis.memory", Severity.FAULT, "producers are refused"),
        ({"used_memory": None}, {}, "redis.memory", Severity.NOTE, "does not report"),
    ],
)
def test_each_problem_of_a_redis_is_reported(
    info: dict[str, object], config: dict[str, str], check: str, severity: Severity, words: str
) -> None:
    found = list(decide_redis(parse_server(SOUND_INFO | info, SOUND_CONFIG | config), QueueSettings()))
    also = {"redis.memory": Severity.WARNING} if not info.get("maxmemory", 1) else {}  # no limit is told of, too
    assert severities(found) == {**also, check: severity}, "one fault in, one found"
    [result] = [each for each in found if each.check == check and each.severity is severity]
    assert words in str(result)


@pytest.mark.parametrize("version", ["6.2.0", "6.2.14", "7.0.15", "8.0.3", "10.1"])
def test_redis_6_2_and_later_is_new_enough(version: str) -> None:
    [result] = [
        each for each in decide_redis(RedisServer(version=version), QueueSettings()) if each.check == "redis.version"
    ]
    assert result.severity is Severity.OK


def test_a_server_that_reports_nothing_gets_only_notes() -> None:
    found = list(decide_redis(parse_server({}, {}), QueueSettings()))
    assert {each.severity for each in found} == {Severity.NOTE}


def test_memory_outside_the_limit_is_not_counted() -> None:
    info = SOUND_INFO | {"used_memory": 1900 * MEBIBYTE, "mem_not_counted_for_evict": 1500 * MEBIBYTE}
    assert severities(list(decide_redis(parse_server(info, SOUND_CONFIG), QueueSettings()))) == {}


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
def test_different_clocks_are_reported(before: float, theirs: float, after: float, words: str) -> None:
    result = redis_server.decide_skew(before, theirs, after)
    assert words in result.what
    assert result.severity is (Severity.OK if words == "agree" else Severity.WARNING)


@pytest.mark.parametrize(("seconds", "words"), [(1.0, "agree"), (-60.0, "60 s ahead"), (90.0, "90 s behind")])
def test_the_apis_clock_is_compared(seconds: float, words: str) -> None:
    assert words in api.decide_skew(seconds).what


EXPECTED = (
    ({401, 403}, Severity.FAULT, "refuses the token"),
    ({404, 405, 410}, Severity.FAULT, "no such URL"),
    (range(300, 400), Severity.FAULT, "redirects to https://other.example.com/path"),
    ({408, 425, 429}, Severity.WARNING, "limits the rate"),
    (range(500, 600), Severity.FAULT, "is failing"),
    ({400, 415, 422}, Severity.NOTE, "whether it accepts the token is not known"),
    (range(200, 500), Severity.WARNING, "nothing is known"),
)


@pytest.mark.parametrize("status", range(200, 600))
def test_every_status_has_a_finding_about_url_and_token(status: int) -> None:
    answer = api.ProbeAnswer(status, location="https://other.example.com/path", excerpt="said")
    result = api.decide_answer("https://api.example.com/", answer, None)
    severity, words = next((severity, words) for statuses, severity, words in EXPECTED if status in statuses)
    assert result.severity is severity
    assert words in result.what
    assert result.do


@pytest.mark.parametrize(
    ("bare", "severity"), [(401, Severity.OK), (403, Severity.OK), (422, Severity.NOTE), (500, Severity.NOTE)]
)
def test_a_token_is_known_to_be_accepted_only_if_nothing_goes_without(bare: int, severity: Severity) -> None:
    assert (
        api.decide_answer("https://api.example.com/", api.ProbeAnswer(422), api.ProbeAnswer(bare)).severity
        is severity
    )


NOW = 1_700_000_000_000
HEAD = f"{NOW - 120_000}-0"


def test_missing_workers_are_reported_with_the_last_one() -> None:
    result = workers.decide_presence(WorkReading(now=NOW, gone={"a@one": NOW - 600_000, "b@two": NOW - 300_000}))
    assert result.severity is Severity.FAULT
    assert "the last was b@two, 5 min ago" in result.what


ALIVE = {"relay@one": NOW}
OVERDUE = WorkReading(now=NOW, alive=ALIVE, inbox_head=HEAD, progress=(5,))


@pytest.mark.parametrize(
    ("second", "severity"),
    [
        (WorkReading(now=NOW + 2000, alive=ALIVE, inbox_head=HEAD, progress=(5,)), Severity.FAULT),
        (WorkReading(now=NOW + 2000, alive=ALIVE, inbox_head=HEAD, progress=(6,)), Severity.OK),  # something was done
        (
            WorkReading(now=NOW + 2000, alive=ALIVE, inbox_head=HEAD, progress=(5,), is_running=True),
            Severity.OK,
        ),
        (
            WorkReading(now=NOW + 2000, alive=ALIVE, inbox_head=f"{NOW - 119_000}-0".encode(), progress=(5,)),
            Severity.OK,
        ),
        (WorkReading(now=NOW + 2000, alive=ALIVE, progress=(5,)), Severity.OK),
    ],
)
def test_workers_consume_nothing_only_if_nothing_moves_and_no_run_holds_a_lease(
    second: WorkReading, severity: Severity
) -> None:
    assert workers.is_overdue(OVERDUE, 40)
    assert workers.decide_work(OVERDUE, second, 40).severity is severity


def test_an_overdue_outbox_is_reported() -> None:
    seen = WorkReading(now=NOW, alive=ALIVE, due={"production": NOW - 300_000})
    result = workers.decide_work(seen, seen, 40)
    assert result.severity is Severity.FAULT
    assert "production has waited for 5 min" in result.what
    assert not workers.is_overdue(WorkReading(now=NOW, alive=ALIVE, due={"production": NOW - 30_000}), 40)


@pytest.mark.parametrize(
    ("answered", "alive", "found"),
    [
        ({"a"}, {"a"}, {}),
        (set(), set(), {}),
        ({"a"}, set(), {"workers.poller": Severity.FAULT}),
        ({"a", "b"}, {"a"}, {"workers.poller": Severity.FAULT}),
        (set(), {"a"}, {"workers.broker": Severity.FAULT}),
        ({"a"}, {"a", "b"}, {"workers.broker": Severity.WARNING}),
    ],
)
def test_half_alive_workers_are_reported(answered: set[str], alive: set[str], found: dict[str, Severity]) -> None:
    assert severities(list(broker.decide_workers(frozenset(answered), frozenset(alive), "redis://b"))) == found


RUN = RunKeys("production", "the:lease", "the:wakeup", "the:run")


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (RunReading(RUN, -1), "the lease of production is left over and never expires"),
        (RunReading(RUN, 86_400_000), "the lease of production is left over and lasts 24 h more"),
        (RunReading(RUN, -2, wakeup_rest=-1), "the wake-up mark of production is left over and never expires"),
        (RunReading(RUN, -2, marker_idle=3_600_000, is_work_waiting=True), "a run of production died 60 min ago"),
        (RunReading(RunKeys("the redrive", "the:redrive"), -1), "the lease of the redrive is left over"),
        (RunReading(RUN, -2), ""),
        (RunReading(RUN, 15_000, wakeup_rest=5_000), ""),
        (RunReading(RUN, 15_000, marker_idle=3_600_000, is_work_waiting=True), ""),  # a run holds the lease
        (RunReading(RUN, -2, marker_idle=1_000, is_work_waiting=True), ""),  # the next run is about to start
        (RunReading(RUN, -2, marker_idle=3_600_000), ""),  # nothing waits, so no run starts
    ],
)
def test_left_over_keys_are_reported(left: RunReading, words: str) -> None:
    found = list(leases.decide_leases([left], WorkerSettings(), 40))
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
def test_an_unknown_variable_is_reported_with_the_likeliest_one(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("RELAY_REDIS_SERVER", "/usr/bin/redis-server")
    [result] = configuration.check_configuration(Settings())
    assert result.severity is Severity.WARNING
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
def test_a_refused_file_is_the_only_check(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(text)
    monkeypatch.setenv("RELAY_CONFIG", str(path))
    refused, others = run_doctor(offline=True)
    assert refused.severity is Severity.FAULT
    assert words in str(refused)
    assert others.severity is Severity.NOTE


def test_world_readable_secret_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, toml = tmp_path / "token", tmp_path / "relay.toml"
    token.write_text("secret-of-the-file")
    toml.write_text(f'[api]\ntoken_file = "{token}"\n[gateway]\ntoken = "inline"\n')
    monkeypatch.setenv("RELAY_CONFIG", str(toml))
    for path in (token, toml):
        path.chmod(0o640)
    assert {each.severity for each in configuration.check_configuration(Settings.load())} == {Severity.OK}
    for path in (token, toml):
        path.chmod(0o644)
    told = [each for each in configuration.check_configuration(Settings.load()) if each.severity is Severity.WARNING]
    assert [str(token) in told[0].what, str(toml) in told[1].what] == [True, True]
    toml.write_text(f'[api]\ntoken_file = "{token}"\n')
    assert (
        len(
            [each for each in configuration.check_configuration(Settings.load()) if each.severity is Severity.WARNING]
        )
        == 1
    )


def test_unmatched_rules_and_environments_are_reported() -> None:
    found = list(configuration.decide_environments(["edge-*", "prodction"], ["edge-1", "production"]))
    assert [each.severity for each in found] == [Severity.NOTE, Severity.NOTE]
    assert '[environments."prodction"] matches no environment' in found[0].what
    assert "no rule of [environments] matches production" in found[1].what
    [fine] = configuration.decide_environments(["edge-*"], ["edge-1"])
    assert fine.severity is Severity.OK
    [none] = configuration.decide_environments([], ["edge-1"])
    assert none.severity is Severity.OK


def test_a_check_that_hangs_or_fails_stops_no_other() -> None:
    forever = threading.Event()

    def hangs() -> list[Finding]:
        forever.wait(60)
        return []

    def fails() -> list[Finding]:
        raise ZeroDivisionError("of its own")

    checks = [Check("hangs", hangs), Check("fails", fails), Check("works", lambda: [ok("works", "well")])]
    try:
        found = run_all(checks, seconds=1.0)
    finally:
        forever.set()
    assert [(each.check, each.severity) for each in found] == [
        ("hangs", Severity.FAULT),
        ("fails", Severity.FAULT),
        ("works", Severity.OK),
    ]
    assert "did not finish within 1 s" in found[0].what
    assert "ZeroDivisionError: of its own" in found[1].what


@pytest.mark.parametrize(
    ("gateway", "found"),
    [
        ({}, []),
        ({"admission": "open", "metrics": "open"}, []),  # on loopback
        ({"host": "*", "token": "of-producers"}, []),
        ({"host": "*", "token": "of-producers", "metrics": "open"}, [Severity.NOTE]),
        ({"host": "::", "token": "of-producers", "admission": "open"}, [Severity.WARNING]),
        (
            {"host": "10.0.0.1", "token": "t", "admission": "open", "metrics": "open"},
            [Severity.WARNING, Severity.NOTE],
        ),
    ],
)
def test_open_gateways_beyond_loopback_are_reported(gateway: dict[str, str], found: list[str]) -> None:
    findings = configuration.check_configuration(Settings.load(gateway=gateway, kubernetes={"cluster": "kind-1"}))
    assert [each.severity for each in findings if each.check == "configuration.open"] == found


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://user:secret@[2001:db8::1]:8443/a?token=b#c", "https://[2001:db8::1]:8443/a"),
        ("http://[::1]/", "http://[::1]/"),
        ("https://api.example.com:8443/", "https://api.example.com:8443/"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, where: str) -> None:
    assert api._where(url) == where
