"""The doctor finds what is planted in a real Redis and a real API: one test for each thing."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from kombu import Connection
from redis import Redis
from rig import FILLER, MEBIBYTE, TOKEN, wait_for
from servers import Authority

from relay.connections.clients import connect
from relay.operations.doctor import api, broker, leases, redis_server, workers
from relay.operations.doctor.run import run_doctor
from relay.operations.finding import Severity
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue import inbox, scripts
from relay.queue.keys import Keys
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION, ApiSettings, QueueSettings, RedisSettings, Settings, WorkerSettings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from relay.operations.finding import Finding

KEYS = Keys()

#: Work that is due for longer than this is overdue.
REPAIR_SECONDS = 0.5


@pytest.fixture(scope="module")
def durable() -> Iterator[EmbeddedRedis]:
    """A Redis with which nothing is wrong."""
    sound = {"maxmemory": "2gb"}
    with EmbeddedRedis(append_fsync="always", options=sound) as server:
        yield server


@contextmanager
def planted(server: EmbeddedRedis, **values: str) -> Iterator[Redis]:
    """Set these for as long as the context lasts; `maxmemory_policy` is maxmemory-policy."""
    with Redis.from_url(server.url) as client:
        names = {name.replace("_", "-"): value for name, value in values.items()}
        before = {name: client.config_get(name)[name] for name in names}
        for name, value in names.items():
            client.config_set(name, value)
        try:
            yield client
        finally:
            for name, value in before.items():
                client.config_set(name, value)
            client.flushall()


def found_in(client: Redis, queue: QueueSettings | None = None) -> dict[str, Finding]:
    """What is not as it should be."""
    settings = Settings(queue=queue or QueueSettings())
    return {
        each.check: each for each in redis_server.check_redis(client, settings) if each.severity is not Severity.OK
    }


def test_a_redis_with_nothing_wrong_is_sound(durable: EmbeddedRedis) -> None:
    with planted(durable) as client:
        assert found_in(client) == {}


def test_a_redis_without_persistence_is_found(durable: EmbeddedRedis) -> None:
    with planted(durable, appendonly="no") as client:
        result = found_in(client)["redis.persistence"]
    assert result.severity is Severity.FAULT
    assert "keeps nothing on disk" in result.what
    assert "config set appendonly yes" in result.do


def test_a_redis_with_snapshots_only_is_found(durable: EmbeddedRedis) -> None:
    with planted(durable, appendonly="no", save="3600 1") as client:
        assert "snapshots only (save 3600 1)" in found_in(client)["redis.persistence"].what


@pytest.mark.parametrize(("fsync", "lost"), [("everysec", "the last 2 seconds"), ("no", "half a minute")])
def test_a_redis_that_syncs_now_and_then_is_told_with_what_may_be_lost(
    durable: EmbeddedRedis, fsync: str, lost: str
) -> None:
    with planted(durable, appendfsync=fsync) as client:
        result = found_in(client)["redis.persistence"]
    assert result.severity is Severity.WARNING
    assert lost in result.what


def test_a_redis_that_evicts_is_found(durable: EmbeddedRedis) -> None:
    with planted(durable, maxmemory_policy="allkeys-lru") as client:
        found = found_in(client)
    assert found["redis.eviction"].severity is Severity.FAULT
    assert "allkeys-lru" in found["redis.eviction"].what


def test_a_redis_without_a_limit_of_memory_is_found(durable: EmbeddedRedis) -> None:
    with planted(durable, maxmemory="0") as client:
        assert "no maxmemory" in found_in(client)["redis.memory"].what


def test_a_redis_too_small_for_the_backlog_is_found(durable: EmbeddedRedis) -> None:
    with planted(durable, maxmemory="100mb") as client:
        assert "too small for queue.max_backlog" in found_in(client)["redis.memory"].what
        assert found_in(client, QueueSettings(max_backlog=10_000)) == {}


def test_a_redis_that_is_full_is_found(durable: EmbeddedRedis) -> None:
    with planted(durable, maxmemory=str(64 * MEBIBYTE)) as client:
        queue = QueueSettings(max_backlog=1000)
        for number in range(49):
            client.set(f"filler:{number}", FILLER)
        assert found_in(client, queue)["redis.memory"].severity is Severity.WARNING
        for number in range(49, 60):
            client.set(f"filler:{number}", FILLER)
        result = found_in(client, queue)["redis.memory"]
    assert result.severity is Severity.FAULT
    assert "full" in result.what


def test_a_redis_whose_snapshot_failed_is_found() -> None:
    with EmbeddedRedis(append_only=False) as server, Redis.from_url(server.url) as client:
        shutil.rmtree(server.directory)
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert "snapshot failed" in found_in(client)["redis.disk"].what
        server.directory.mkdir()


def test_a_replica_is_found(durable: EmbeddedRedis) -> None:
    with EmbeddedRedis(append_only=False) as server, Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", durable.port)
        assert found_in(client)["redis.role"].severity is Severity.FAULT


def test_a_user_who_may_not_ask_is_told_what_is_not_known(durable: EmbeddedRedis) -> None:
    with planted(durable) as client:
        client.acl_setuser(
            "narrow", enabled=True, passwords=["+pw"], commands=["+@all", "-info", "-config"], keys=["*"]
        )
        url = durable.url.replace("//", "//narrow:pw@")
        with Redis.from_url(url) as narrow:
            found = found_in(narrow)
        client.acl_deluser("narrow")
    assert {each.severity for each in found.values()} == {Severity.NOTE}
    assert "redis.persistence" in found


def test_a_clock_that_is_off_is_found(durable: EmbeddedRedis) -> None:
    settings = Settings()
    with planted(durable) as client:
        late = list(redis_server.check_redis(client, settings, clock=lambda: time.time() - 90))
        early = list(redis_server.check_redis(client, settings, clock=lambda: time.time() + 90))
    assert "90 s behind Redis's" in late[-1].what
    assert "90 s ahead of Redis's" in early[-1].what
    assert {late[-1].severity, early[-1].severity} == {Severity.WARNING}


def reach(url: str) -> Finding:
    settings = Settings(redis=RedisSettings(url=url, connect_timeout=1, timeout=1))
    with connect(settings.redis, retries=0) as client:
        return redis_server.check_connection(client, settings)


def test_a_redis_that_is_not_there_is_found(durable: EmbeddedRedis) -> None:
    assert reach(durable.url).severity is Severity.OK
    refused = reach("redis://127.0.0.1:1/0")
    assert refused.severity is Severity.FAULT
    assert "is not reachable" in refused.what
    unknown = reach("redis://nowhere.invalid:6379/0")
    assert "is not reachable" in unknown.what
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hangs = reach(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
    assert "did not answer in time" in hangs.what


def test_a_redis_that_wants_another_password_is_found() -> None:
    with EmbeddedRedis(append_only=False) as server, Redis.from_url(server.url) as client:
        client.config_set("requirepass", "the-right-one")
        for url in (server.url, server.url.replace("//", "//:the-wrong-one@")):
            result = reach(url)
            assert result.severity is Severity.FAULT
            assert "refuses the user or password" in result.what
            assert "the-wrong-one" not in str(result)
        client.execute_command("AUTH", "the-right-one")
        client.config_set("requirepass", "")


def test_all_else_is_looked_at_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_REDIS_URL", "redis://:pass-of-redis@127.0.0.1:1/0")
    monkeypatch.setenv("RELAY_API_TOKN", "x")
    with Sandbox(token=TOKEN) as sandbox:
        monkeypatch.setenv("RELAY_API_URL", sandbox.url)
        monkeypatch.setenv("RELAY_API_TOKEN", "another-token")
        found = {each.check: each for each in run_doctor(offline=False)}
    assert found["redis"].severity is Severity.FAULT
    assert "refuses the token" in found["api"].what
    assert "RELAY_API_TOKEN?" in found["configuration"].do
    assert found["workers"].severity is Severity.NOTE


# The API.


def ask(url: str, token: str = TOKEN, **more: object) -> Finding:
    settings = Settings(api=ApiSettings(url=url, token=token, connect_timeout=2, timeout=2, **more))
    return next(iter(api.check_api(settings)))


def test_an_api_that_accepts_the_token_is_known_to_without_a_deployment() -> None:
    with Sandbox(token=TOKEN) as sandbox:
        result = ask(sandbox.url)
        assert sandbox.counts().accepted == 0
    assert result.severity is Severity.OK
    assert "accepts the token" in result.what


def test_a_wrong_token_is_found() -> None:
    with Sandbox(token=TOKEN) as sandbox:
        result = ask(sandbox.url, "another-token")
    assert result.severity is Severity.FAULT
    assert "the API refuses the token" in result.what
    assert "RELAY_API_TOKEN_FILE" in result.do


@pytest.mark.parametrize(
    ("status", "severity", "words"),
    [
        (401, Severity.FAULT, "refuses the token"),
        (404, Severity.FAULT, "no such URL"),
        (405, Severity.FAULT, "no such URL"),
        (422, Severity.NOTE, "not known"),
        (429, Severity.WARNING, "limits the rate"),
        (503, Severity.FAULT, "is failing"),
    ],
)
def test_what_an_api_answers_is_understood(status: int, severity: Severity, words: str) -> None:
    with Sandbox(token=TOKEN) as sandbox:
        sandbox.faults = [{"kind": "status", "status": status}]
        result = ask(sandbox.url)
    assert result.severity is severity
    assert words in result.what


def test_a_redirect_is_named_and_not_followed() -> None:
    with Sandbox(token=TOKEN) as elsewhere, Sandbox(token=TOKEN) as sandbox:
        target = f"{elsewhere.url}/login?secret=1"
        sandbox.faults = [{"kind": "status", "status": 302, "headers": {"Location": target}}]
        result = ask(sandbox.url)
        assert not elsewhere.requests, "the token went to where the redirect points"
    assert result.severity is Severity.FAULT
    assert f"redirects to {elsewhere.url}/login (HTTP 302)" in result.what
    assert "secret" not in str(result)


def test_an_answer_that_drips_is_not_waited_for() -> None:
    with Sandbox(token=TOKEN) as sandbox:
        sandbox.faults = [{"kind": "slow_body", "bytes": 1000, "seconds_per_byte": 0.5}]
        assert ask(sandbox.url).severity is Severity.OK
        assert "refuses the token" in ask(sandbox.url, "another-token").what


def test_an_api_that_takes_anything_is_told_to_prove_nothing() -> None:
    with page(200) as url:
        result = ask(url)
    assert result.severity is Severity.WARNING
    assert "nothing is known" in result.what


def test_an_api_that_is_not_there_is_found() -> None:
    assert "the connection is refused" in ask("http://127.0.0.1:1/").what
    assert "its name cannot be resolved" in ask("https://nowhere.invalid/").what
    with Sandbox(token=TOKEN) as sandbox:
        sandbox.faults = [{"kind": "hang"}]
        assert "no answer came in time" in ask(sandbox.url).what
        sandbox.faults = [{"kind": "reset", "when": "before"}]
        assert "the connection broke" in ask(sandbox.url).what
        assert "TLS is not accepted" in ask(sandbox.url.replace("http:", "https:")).what


def test_a_certificate_that_nobody_vouches_for_is_found(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with page(422, authority.server("api")) as url:
        stranger = ask(url)
        assert stranger.severity is Severity.FAULT
        assert "certificate or TLS is not accepted" in stranger.what
        assert "HTTP 422" in ask(url, ca_file=authority.file).what


def test_no_api_and_no_token_are_found() -> None:
    [result] = api.check_api(Settings())
    assert result.severity is Severity.FAULT
    assert "RELAY_API_URL" in result.what
    [result] = api.check_api(Settings(api=ApiSettings(url="https://nowhere.invalid/")))
    assert "no token" in result.what


def test_a_token_in_a_netrc_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password netrc-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Sandbox(token=TOKEN) as sandbox:
        assert ask(sandbox.url).severity is Severity.OK


def test_an_apis_clock_that_is_off_is_found() -> None:
    with page(422) as url:
        settings = Settings(api=ApiSettings(url=url, token=TOKEN))
        on_time = list(api.check_api(settings))
        late = list(api.check_api(settings, clock=lambda: time.time() - 90))
    assert on_time[-1].what.endswith("agree")
    assert "behind the API's" in late[-1].what
    assert late[-1].severity is Severity.WARNING


@contextmanager
def page(status: int, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that answers everything so, with a Date."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that does not trust us hangs up
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


# What lies in Redis.


@pytest.fixture
def in_use(client: Redis) -> Redis:
    """A queue with an event in the inbox and a worker's heartbeat."""
    entry = {"event": b'{"image": {"url": "nginx"}}'}
    scripts.run(client, inbox.append_call(KEYS, [entry], 100, 1.0))
    return client


def left_over(client: Redis, repair_seconds: float = 40) -> list[Finding]:
    found = leases.check_leases(client, KEYS, DEFAULT_DESTINATION, WorkerSettings(), repair_seconds)
    return [each for each in found if each.severity is not Severity.OK]


def test_a_lease_that_never_expires_is_found(in_use: Redis) -> None:
    assert left_over(in_use) == []
    in_use.set(KEYS.intake_lease, "gone", px=15_000)
    assert left_over(in_use) == []
    in_use.persist(KEYS.intake_lease)
    [result] = left_over(in_use)
    assert "the lease of the inbox is left over and never expires" in result.what
    assert KEYS.intake_lease in result.do


def test_left_over_lease_wakeup_mark_and_redrive_lease_are_found(in_use: Redis) -> None:
    outbox = KEYS.of_outbox(DEFAULT_DESTINATION, "production")
    in_use.zadd(KEYS.schedule(DEFAULT_DESTINATION), {"production": 1})
    in_use.set(outbox.lease, "gone", ex=86_400)
    in_use.set(outbox.wakeup, "1")
    in_use.set(KEYS.redrive_lease, "gone")
    told = " ".join(each.what for each in left_over(in_use))
    assert "the lease of production is left over and lasts 24 h more" in told
    assert "the wake-up mark of production is left over and never expires" in told
    assert "the lease of the redrive is left over" in told


def test_the_in_flight_marker_of_a_run_that_died_long_ago_is_found(in_use: Redis) -> None:
    in_use.hset(KEYS.intake_run, mapping={"token": "gone"})
    wait_for(lambda: bool(in_use.object("IDLETIME", KEYS.intake_run)))
    assert left_over(in_use, repair_seconds=40) == []
    [result] = left_over(in_use, repair_seconds=0.5)
    assert "a run of the inbox died" in result.what
    in_use.set(KEYS.intake_lease, "next", px=15_000)
    assert left_over(in_use, repair_seconds=0.5) == []


def test_looking_changes_nothing(in_use: Redis) -> None:
    def everything() -> dict[bytes, bytes]:
        return {key: in_use.dump(key) for key in in_use.scan_iter()}

    in_use.hset(KEYS.intake_run, mapping={"token": "gone"})
    in_use.zadd(KEYS.schedule(DEFAULT_DESTINATION), {"production": 1})
    before = everything()
    left_over(in_use)
    list(workers.check_workers(in_use, KEYS, DEFAULT_DESTINATION, 10))
    list(redis_server.check_redis(in_use, Settings()))
    assert everything() == before


def test_workers_that_beat_while_nothing_moves_are_found(in_use: Redis) -> None:
    """The heartbeat is of the main process; that nothing is done shows in the work."""
    in_use.set(KEYS.worker("relay@one"), "beats", ex=60)
    in_use.zadd(KEYS.workers, {"relay@one": time.time() * 1000})
    wait_for(lambda: workers.is_overdue(workers.read_work(in_use, KEYS, DEFAULT_DESTINATION), REPAIR_SECONDS))
    there, work = workers.check_workers(in_use, KEYS, DEFAULT_DESTINATION, REPAIR_SECONDS, sleep=lambda _: None)
    assert there.severity is Severity.OK
    assert work.severity is Severity.FAULT
    assert "relay@one gives heartbeats but consumes nothing: the inbox has waited" in work.what

    def process_one(_: float) -> None:
        in_use.hincrby(KEYS.counts, "duplicate", 1)

    _, work = workers.check_workers(in_use, KEYS, DEFAULT_DESTINATION, REPAIR_SECONDS, sleep=process_one)
    assert work.severity is Severity.OK


def test_a_held_or_paused_outbox_is_no_workers_fault(in_use: Redis) -> None:
    in_use.delete(KEYS.inbox)
    in_use.zadd(KEYS.schedule(DEFAULT_DESTINATION), {"production": 1})
    assert workers.read_work(in_use, KEYS, DEFAULT_DESTINATION).due == {"production": 1}
    in_use.hset(KEYS.paused(DEFAULT_DESTINATION), "production", 1)
    assert workers.read_work(in_use, KEYS, DEFAULT_DESTINATION).due == {}
    in_use.delete(KEYS.paused(DEFAULT_DESTINATION))
    in_use.hset(KEYS.destination(DEFAULT_DESTINATION), "openings", 1)
    assert workers.read_work(in_use, KEYS, DEFAULT_DESTINATION).due == {}


def test_messages_under_another_separator_are_found(client: Redis, redis_server: EmbeddedRedis) -> None:
    """A sender with `sep=":"`, as Celery's documentation has it: its lists are not those that workers read."""
    settings = Settings(redis=RedisSettings(url=redis_server.url))

    def found() -> dict[str, str]:
        return {each.check: each.what for each in broker.check_broker(settings, frozenset)}

    options = {"sep": ":", "priority_steps": [0, 3, 6, 9]}
    with Connection(redis_server.url, transport_options=options) as connection:
        for priority in (0, 3, 9):
            connection.Producer().publish({}, exchange="", routing_key="celery", priority=priority)
    assert "2 messages are in celery:3, celery:9" in found()["broker.unread"]
    client.delete("celery:3", "celery:9")
    assert "broker.unread" not in found()
