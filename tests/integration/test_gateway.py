"""The gateway on real sockets, with a real Redis."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gateways import (
    BODY,
    DEADLINE_SECONDS,
    HEADERS,
    IMAGE,
    TOKEN,
    Running,
    environment,
    inbox,
    process,
    running,
    status_of,
)
from rig import wait_for

from relay.errors import ConfigurationError
from relay.gateway import app, asgi, report_parsing, server
from relay.processes.embedded_redis import EmbeddedRedis, free_port
from relay.producer.queue_producer import CHUNK
from relay.queue import scripts
from relay.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import redis

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.mark.parametrize("path", ["/", "/v1/deployments", "/?ignored=1"])
def test_the_deployment_apis_request_is_accepted(gateway: Running, client: redis.Redis, path: str) -> None:
    answer = gateway.post(path=path, Content_Type="application/json")
    assert answer.status_code == 202
    assert answer.headers["Content-Type"] == "application/json"
    assert inbox(client) == [{b"event": BODY, b"id": answer.json()["id"].encode()}]


def test_the_envelope_of_headers_is_in_the_entry(gateway: Running, client: redis.Redis) -> None:
    answer = gateway.post(ce_id="deploy-7", ce_source="/clusters/east%201", ce_time="2025-01-31T12:00:00Z")
    assert (answer.status_code, answer.json()) == (202, {"id": "deploy-7"})
    assert inbox(client) == [
        {
            b"event": BODY,
            b"id": b"deploy-7",
            b"source": b"/clusters/east 1",
            b"time": b"2025-01-31T12:00:00+00:00",
            b"receipt": b"1",
        }
    ]


def test_an_idempotency_key_is_the_id(gateway: Running) -> None:
    assert gateway.post(Idempotency_Key="key-1").json() == {"id": "key-1"}


def test_an_array_is_many(gateway: Running, client: redis.Redis) -> None:
    documents = [{"image": {"url": IMAGE, "name": f"n{number}"}, "id": f"i{number}"} for number in range(CHUNK + 5)]
    answer = gateway.post(json.dumps(documents))
    assert (answer.status_code, answer.json()) == (202, {"ids": [each["id"] for each in documents]})
    assert [fields[b"id"].decode() for fields in inbox(client)] == answer.json()["ids"]


def test_lines_are_many_and_have_ids_of_the_requests_key(gateway: Running, client: redis.Redis) -> None:
    answer = gateway.post(BODY + b"\n\n" + BODY + b"\r\n", **LINES, Idempotency_Key="batch")
    assert (answer.status_code, answer.json()) == (202, {"ids": ["batch:0", "batch:1"]})
    assert len(inbox(client)) == 2


def test_valid_events_of_many_are_enqueued(gateway: Running, client: redis.Redis) -> None:
    answer = gateway.post(BODY + b'\n{"image": {"url": "app:latest"}}\n' + BODY, **LINES, ce_id="b")
    assert answer.status_code == 202
    assert answer.json()["ids"] == ["b:0", None, "b:2"]
    (fault,) = answer.json()["errors"]
    assert (fault["index"], fault["field"]) == (1, "image.url")
    assert [fields[b"id"] for fields in inbox(client)] == [b"b:0", b"b:2"]


def test_many_without_a_valid_event_are_422(gateway: Running, client: redis.Redis) -> None:
    answer = gateway.post("[1, {}]")
    assert answer.status_code == 422
    assert [each["index"] for each in answer.json()["errors"]] == [0, 1]
    assert inbox(client) == []


@pytest.mark.parametrize(
    ("body", "headers", "status", "field"),
    [
        (b"", {}, 400, ""),
        (b"{", {}, 400, ""),
        (b"[1,", {}, 400, ""),
        (BODY, {"Content-Type": "text/plain"}, 415, ""),
        (BODY, {"Content-Encoding": "br"}, 415, ""),
        (b'{"image": {"url": "app:latest"}}', {}, 422, "image.url"),
        (BODY, {"ce-time": "yesterday"}, 422, "time"),
        (BODY, {"ce-id": "x" * 129}, 422, "id"),
        (BODY, {"ce-source": "%FF"}, 422, "source"),
        (b'{"image": "%s"}' % (b"x" * 70_000), {}, 413, ""),
    ],
)  # fmt: skip
def test_refusals_name_the_field(
    gateway: Running, client: redis.Redis, *, body: bytes, headers: dict[str, str], status: int, field: str
) -> None:
    answer = gateway.post(body, **headers)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert answer.json()["error"]
    assert inbox(client) == []


def test_tokens(gateway: Running, client: redis.Redis) -> None:
    missing = gateway.ask("POST", "/", data=BODY)
    assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
    wrong = gateway.post(Authorization="Bearer guessed")
    assert wrong.status_code == 403
    for answer in (missing, wrong):
        assert set(answer.json()) == {"error", "field"}
        assert TOKEN not in answer.text
        assert "guessed" not in answer.text
    assert inbox(client) == []


def test_a_gateway_without_tokens_accepts_all_reports(redis_server: EmbeddedRedis, client: redis.Redis) -> None:
    with running(redis_server.url, token="") as gateway:
        json_type = {"Content-Type": "application/json"}
        assert gateway.ask("POST", "/", data=BODY, headers=json_type).status_code == 202


def test_a_gateway_without_tokens_must_listen_on_loopback() -> None:
    with pytest.raises(ConfigurationError, match="set a token"):
        Settings.load(gateway={"host": "0.0.0.0"})


def test_unknown_paths_and_wrong_methods(gateway: Running) -> None:
    for method, path, status, allow in [
        ("GET", "/nothing", 404, ""),
        ("POST", "/v1/deployments/", 404, ""),
        ("GET", "/", 405, "POST"),
        ("DELETE", "/v1/deployments", 405, "POST"),
        ("POST", "/healthz", 405, "GET, HEAD"),
    ]:
        answer = gateway.ask(method, path)
        assert (answer.status_code, set(answer.json())) == (status, {"error", "field"})
        assert sorted(answer.headers.get("Allow", "").split(", ")) == allow.split(", ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /events/unknown HTTP/1.1\r\nAuthorization: Bearer {token}", 404),
        ("GET /events/ HTTP/1.1\r\nAuthorization: Bearer {token}", 404),
        ("GET /events/%ff%00 HTTP/1.1\r\nAuthorization: Bearer {token}", 404),
        ("GET /events/a HTTP/1.1", 401),
        ("GET /events/a HTTP/1.1\r\nAuthorization: Bearer guessed", 403),
        ("POST /events/a HTTP/1.1\r\nContent-Length: 0", 405),
        ("OPTIONS /events/a HTTP/1.1", 405),
        ("GET /events/a b HTTP/1.1", 400),
        ("BREW /events/a HTTP/1.1", 400),
        ("GET /events/a HTTP/1.1\r\nContent-Length: x", 400),
        ("GET /events/a HTTP/1.1\r\na: b\r\n folded", 400),
        ("GET /events HTTP/1.1", 404),
    ],
)
def test_every_error_is_json(gateway: Running, head: str, status: int) -> None:
    with gateway.connect() as connection:
        connection.sendall(f"{head.format(token=TOKEN)}\r\nHost: localhost\r\n\r\n".encode())
        received = http.client.HTTPResponse(connection)
        received.begin()
        assert (received.status, received.headers["Content-Type"]) == (status, "application/json")
        assert {*json.load(received)} == {"error", "field"}


def test_health(gateway: Running) -> None:
    assert gateway.ask("GET", "/healthz").status_code == 200
    assert gateway.ask("GET", "/readyz").status_code == 200


def test_an_unavailable_redis_is_503_until_it_returns() -> None:
    with (
        EmbeddedRedis(append_fsync="always") as redis_server,
        running(redis_server.url.replace("://", "://default:hunter2@")) as gateway,
    ):
        # This Redis has no password; with its default user it takes any.
        assert gateway.post().status_code == 202
        redis_server.kill()
        answers = [gateway.post(), gateway.post(BODY, **LINES), gateway.ask("GET", "/readyz")]
        for answer in answers:
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["error"] == "Redis cannot be reached"
            assert "hunter2" not in answer.text
        assert answers[1].json()["ids"] == [None]
        assert gateway.ask("GET", "/healthz").status_code == 200
        redis_server.restart()
        assert gateway.ask("GET", "/readyz").status_code == 200
        assert gateway.post().status_code == 202


def test_a_redis_that_hangs_is_503_in_time(client: redis.Redis, redis_server: EmbeddedRedis) -> None:
    with running(redis_server.url) as gateway:
        client.execute_command("CLIENT", "PAUSE", "3000", "ALL")
        started = time.monotonic()
        answers = [gateway.post(), gateway.ask("GET", "/readyz")]
        assert time.monotonic() - started < 3 * app.READY_SECONDS
        client.execute_command("CLIENT", "UNPAUSE")
    assert answers[0].status_code == 503
    assert answers[0].json()["error"] == "Redis did not answer in time"


def test_a_request_cut_off_by_the_shutdown_is_503(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_SECONDS", 0.2)
    with contextlib.ExitStack() as stack:
        with running(redis_server.url) as gateway:
            connection = stack.enter_context(gateway.connect())
            connection.sendall(head("Content-Length: 100", "Expect: 100-continue"))
            assert b" 100 Continue" in connection.recv(1000)
        answer = stack.enter_context(http.client.HTTPResponse(connection))
        answer.begin()
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0


def test_a_full_queue_is_429(
    redis_server: EmbeddedRedis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_QUEUE__MAX_BACKLOG", "1")
    with running(redis_server.url) as gateway:
        assert gateway.post().status_code == 202
        full = gateway.post()
        assert (full.status_code, full.headers["Retry-After"]) == (429, "5")
        assert "full" in full.json()["error"]
        client.flushall()
        many = gateway.post(b"\n".join([BODY] * (CHUNK + 1)), **LINES, ce_id="m")
    assert many.status_code == 429
    assert many.json()["ids"] == [f"m:{number}" for number in range(CHUNK)] + [None]
    assert len(inbox(client)) == CHUNK


def test_a_redis_short_of_memory_is_429(gateway: Running, client: redis.Redis) -> None:
    client.config_set("maxmemory", "1mb")
    try:
        full = gateway.post()
        assert (full.status_code, full.headers["Retry-After"]) == (429, "5")
        assert "memory" in full.json()["error"]
        assert not inbox(client)
    finally:
        client.config_set("maxmemory", 0)
    assert gateway.post().status_code == 202


def test_a_flushed_script_is_loaded_again(gateway: Running, client: redis.Redis) -> None:
    client.script_flush()
    assert gateway.post().status_code == 202


def test_more_requests_at_once_than_redis_has_connections(redis_server: EmbeddedRedis, client: redis.Redis) -> None:
    number = 200
    request = head(f"Content-Length: {len(BODY)}") + BODY
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(running(redis_server.url, redis={"url": redis_server.url}))
        sockets = [stack.enter_context(gateway.connect()) for _ in range(number)]
        for each in sockets:
            each.sendall(request)
        assert [status_of(each) for each in sockets] == [202] * number
    assert len(inbox(client)) == number


def head(*lines: str) -> bytes:
    named = [f"{name}: {value}" for name, value in HEADERS.items()]
    return "\r\n".join(["POST / HTTP/1.1", "Host: localhost", *named, *lines, "", ""]).encode()


@pytest.mark.parametrize("length", [10**12, report_parsing.MAX_MANY_BYTES + 1])
def test_a_body_declared_too_large_is_refused_before_it_is_sent(gateway: Running, length: int) -> None:
    with gateway.connect() as connection:
        connection.sendall(head(f"Content-Length: {length}", "Expect: 100-continue"))
        assert status_of(connection) == 413
        assert connection.recv(1) == b""


def test_one_event_declared_too_large_is_refused_at_its_first_bytes(gateway: Running) -> None:
    with gateway.connect() as connection:
        connection.sendall(head("Content-Length: 100000") + b'{"image"')
        assert status_of(connection) == 413


def test_an_endless_body_is_refused_without_reading_it(gateway: Running) -> None:
    sent = 0
    chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
    with gateway.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while sent < 100 * report_parsing.MAX_MANY_BYTES:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 10 * report_parsing.MAX_MANY_BYTES


def test_a_slightly_too_large_body_gets_its_response(gateway: Running) -> None:
    answer = gateway.post(b" " * (report_parsing.MAX_MANY_BYTES + 100_000))
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")


def test_a_disconnect_within_the_body_enqueues_nothing(
    gateway: Running, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with gateway.connect() as connection:
        connection.sendall(head("Content-Length: 100") + BODY[:20])
    assert gateway.post().status_code == 202
    assert len(inbox(client)) == 1
    assert caplog.text == ""


@pytest.mark.parametrize("begun", [b"", BODY[:20]], ids=["not begun", "begun"])
def test_a_body_that_does_not_arrive_is_408(gateway: Running, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.1)
    with gateway.connect() as connection:
        connection.sendall(head("Content-Length: 100") + begun)
        assert status_of(connection) == 408


def test_expect_100_continue_is_answered(gateway: Running) -> None:
    with gateway.connect() as connection:
        connection.sendall(head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert status_of(connection) == 202


def test_an_unexpected_error_is_500_and_one_log_line(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError(TOKEN)

    monkeypatch.setattr(scripts, "run_async", broken)
    with caplog.at_level(logging.INFO):
        answer = gateway.post()
    assert (answer.status_code, set(answer.json())) == (500, {"error", "field"})
    assert "RuntimeError at " in caplog.text
    assert TOKEN not in answer.text + caplog.text
    assert "Traceback" not in answer.text + caplog.text


def test_the_command_serves_until_sigterm(redis_server: EmbeddedRedis, client: redis.Redis, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with process(redis_server.url, log) as (gateway, child):
        answer = gateway.post(Authorization="Bearer in-no-log", path="/?token=in-no-log")
        assert answer.status_code == 202
        with gateway.connect():  # an idle connection does not delay the end
            assert child.stop()
    ended = child.poll()
    assert ended is not None
    assert ended.code == 0
    assert log.read_text() == f"Gateway on {gateway.url}\n"
    assert len(inbox(client)) == 1


def test_sigterm_lets_a_request_under_way_end(
    redis_server: EmbeddedRedis, client: redis.Redis, tmp_path: Path
) -> None:
    with process(redis_server.url, tmp_path / "gateway.log") as (gateway, child):
        with gateway.connect() as connection:
            connection.sendall(head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            child.signal(15)
            wait_for(lambda: refuses(gateway), DEADLINE_SECONDS)
            connection.sendall(BODY)
            assert status_of(connection) == 202
        ended = child.wait(DEADLINE_SECONDS)
    assert ended is not None
    assert ended.code == 0
    assert len(inbox(client)) == 1


def refuses(gateway: Running) -> bool:
    try:
        gateway.connect().close()
    except ConnectionError:
        return True
    return False


def relay(redis_url: str, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}\nfrom relay.cli import main\nmain(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, "gateway", *arguments],
        env=environment(redis_url), capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip


def test_the_command_reports_configuration_errors(redis_server: EmbeddedRedis) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        taken = relay(redis_server.url, "--port", str(port))
    beyond = relay(redis_server.url, "--host", "0.0.0.0")
    lacking = relay(redis_server.url, before="sys.modules['uvicorn'] = None")
    url = relay("nonsense://")
    for ended, says in [
        (taken, f"port {port}"),
        (beyond, "set a token"),
        (lacking, "pip install 'deployment-relay[gateway]'"),
        (url, "redis.url"),
    ]:
        assert (ended.returncode, ended.stdout) == (2, "")
        assert says in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_command_has_examples() -> None:
    helped = relay("", "--help")
    assert helped.returncode == 0
    assert "  relay gateway\n" in helped.stdout
