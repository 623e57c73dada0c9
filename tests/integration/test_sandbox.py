"""The stand-in on real sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import requests

pytest.importorskip("httptools")

from relay.sandbox import Sandbox
from relay.sandbox.connection import MAX_DISCARDED_BYTES, MAX_HEAD_BYTES, Limits
from relay.sandbox.contract import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEX = "0123456789abcdef" * 4
BODY = json.dumps(
    {"image": {"url": f"registry.example.com/app@sha256:{HEX}"}, "environment": {"name": "production"}}
).encode()
HEADERS = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
DEADLINE_SECONDS = 10.0


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token="secret") as sandbox:
        yield sandbox


def connect(api: Sandbox) -> socket.socket:
    host, _, port = api.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS)


def raw(body: bytes = BODY, key: str = "k", extra: str = "") -> bytes:
    head = (
        "POST /report HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: application/json\r\nIdempotency-Key: {key}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def read_until(sock: socket.socket, ending: bytes, times: int = 1) -> bytes:
    data = b""
    while data.count(ending) < times:
        part = sock.recv(65536)
        if not part:
            break
        data += part
    return data


def post(api: Sandbox, body: bytes = BODY, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return session.post(api.url, data=body, headers=HEADERS | named, timeout=DEADLINE_SECONDS)


def ask(api: Sandbox, method: str, path: str, document: Any = None) -> tuple[int, Any]:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.request(method, f"{api.url}/_sandbox/{path}", json=document, timeout=DEADLINE_SECONDS)
    return answer.status_code, answer.json()


def test_accepted_is_an_empty_202_and_recorded(api: Sandbox) -> None:
    answer = post(api, Idempotency_Key="a")
    assert (answer.status_code, answer.content) == (202, b"")
    (request,) = api.requests
    assert (request.sequence, request.idempotency_key, request.environment) == (1, "a", "production")
    assert (request.status, request.processed, request.body) == (202, True, BODY)


def test_refusals_name_the_field_and_the_scheme(api: Sandbox) -> None:
    refused = post(api, b"{}")
    assert (refused.status_code, refused.json()["field"]) == (422, "image.url")
    assert post(api, Authorization="").headers["WWW-Authenticate"] == "Bearer"
    assert api.counts().by_status == {401: 1, 422: 1}
    assert api.counts().accepted == 0


def test_keep_alive_and_pipelining(api: Sandbox) -> None:
    with connect(api) as sock:
        sock.sendall(b"".join(raw(key=str(number)) for number in range(200)))
        answers = read_until(sock, b"\r\n\r\n", 200)
    assert answers.count(b"HTTP/1.1 202") == 200
    assert [each.idempotency_key for each in api.requests] == [str(number) for number in range(200)]
    assert {each.connection for each in api.requests} == {1}


def test_pipelined_requests_wait_for_a_slow_answer(api: Sandbox) -> None:
    api.faults = [{"kind": "latency", "seconds": 0.1, "count": 1}, {"kind": "status", "status": 503}]
    with connect(api) as sock:
        sock.sendall(b"".join(raw(key=str(number)) for number in range(300)))
        answers = read_until(sock, b"\r\n\r\n", 300)
    assert answers.startswith(b"HTTP/1.1 202")
    assert answers.count(b"HTTP/1.1 503") == 299


def test_request_in_single_bytes(api: Sandbox) -> None:
    with connect(api) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in raw():
            sock.sendall(bytes([byte]))
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 202")


def test_expect_100_continue_is_answered(api: Sandbox) -> None:
    head, _, body = raw(extra="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with connect(api) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 202")


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, MAX_DISCARDED_BYTES // 2])
def test_large_bodies_get_413_on_a_kept_connection(api: Sandbox, size: int) -> None:
    with connect(api) as sock:
        sock.sendall(raw(b"x" * size))
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 413")
        sock.sendall(raw())
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 202")
    assert api.counts().by_status == {202: 1, 413: 1}


def test_head_is_bounded(api: Sandbox) -> None:
    with connect(api) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES + 10) + b"\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 431")


def test_garbage_gets_400(api: Sandbox) -> None:
    with connect(api) as sock:
        sock.sendall(b"\x16\x03\x01 what\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert api.counts().unreadable == 1


def test_incomplete_request_times_out_and_so_does_an_idle_connection() -> None:
    with (
        Sandbox(limits=Limits(request_timeout_seconds=0.2, idle_timeout_seconds=0.2)) as api,
        connect(api) as slow,
        connect(api) as idle,
    ):
        slow.sendall(raw()[:-5])
        assert read_until(slow, b"\r\n\r\n").startswith(b"HTTP/1.1 408")
        assert idle.recv(1) == b""


def test_latency_is_seen(api: Sandbox) -> None:
    api.faults = [{"kind": "latency", "seconds": 0.15}]
    before = time.monotonic()
    assert post(api).status_code == 202
    assert time.monotonic() - before >= 0.15


def test_status_sequence_and_headers_are_seen(api: Sandbox) -> None:
    api.faults = [
        {"kind": "status", "sequence": [503, 202]},
        {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}, "count": 1},
    ]
    answers = [post(api, Idempotency_Key="a") for _ in range(4)]
    assert [each.status_code for each in answers] == [503, 202, 429, 202]
    assert answers[2].headers["Retry-After"] == "2"
    counts = api.counts()
    assert (counts.received, counts.accepted, counts.distinct_idempotency_keys) == (4, 2, 1)
    assert counts.repeats == 1
    assert counts.by_environment == {"production": {"received": 4, "accepted": 2}}


def test_hang_never_answers_and_lets_go_of_the_client(api: Sandbox) -> None:
    api.faults = [{"kind": "hang", "count": 1}]
    with connect(api) as sock:
        sock.sendall(raw())
        (request,) = api.wait_for(1)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    assert (request.status, request.processed, request.fault) == (None, False, "hang")
    assert post(api).status_code == 202


@pytest.mark.parametrize(("when", "received", "accepted"), [("before", 0, 0), ("after", 1, 1)])
def test_reset_is_really_a_reset(api: Sandbox, when: str, received: int, accepted: int) -> None:
    api.faults = [{"kind": "reset", "when": when}]
    with connect(api) as sock:
        sock.sendall(raw())
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert (api.counts().received, api.counts().accepted) == (received, accepted)
    assert api.counts().unanswered == received


def test_reset_in_the_middle_of_the_headers(api: Sandbox) -> None:
    api.faults = [{"kind": "reset", "when": "headers"}]
    with connect(api) as sock:
        sock.sendall(raw())
        assert read_until(sock, b"\r\n").startswith(b"HTTP/1.1 202 Accepted\r\n")
        with pytest.raises(ConnectionResetError):
            read_until(sock, b"\r\n\r\n")
    assert api.counts().by_status == {202: 1}


def test_slow_body_drips(api: Sandbox) -> None:
    api.faults = [{"kind": "slow_body", "bytes": 5, "seconds_per_byte": 0.03}]
    host = api.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(host, timeout=DEADLINE_SECONDS)) as client:
        before = time.monotonic()
        client.request("POST", "/", BODY, HEADERS)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (202, b".....")
        assert time.monotonic() - before >= 0.15


def test_huge_body_without_pauses_heeds_a_slow_reader(api: Sandbox) -> None:
    api.faults = [{"kind": "slow_body", "bytes": 20_000_000, "seconds_per_byte": 0}]
    assert len(post(api).content) == 20_000_000


def test_control_over_http(api: Sandbox) -> None:
    rule = {"kind": "status", "status": 503, "count": 1}
    shown = [{"rule": rule, "applied": 0, "active": True}]
    assert ask(api, "PUT", "faults", [rule]) == (200, shown)
    assert post(api).status_code == 503
    assert ask(api, "GET", "faults") == (200, [{"rule": rule, "applied": 1, "active": False}])
    assert ask(api, "DELETE", "faults") == (200, [])
    assert post(api).status_code == 202
    status, found = ask(api, "GET", "requests?offset=1&limit=1&environment=production")
    assert (status, [each["sequence"] for each in found]) == (200, [2])
    assert ask(api, "GET", "requests?environment=other") == (200, [])
    assert ask(api, "GET", "counts")[1]["by_status"] == {"202": 1, "503": 1}
    assert ask(api, "POST", "reset")[1]["received"] == 0
    assert ask(api, "GET", "healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("method", "path", "document", "status"),
    [
        ("PUT", "faults", [{"kind": "flood"}], 422),
        ("PUT", "faults", {"kind": "hang"}, 422),
        ("POST", "counts", None, 405),
        ("GET", "nothing", None, 404),
        ("GET", "requests?limit=all", None, 422),
        ("GET", "requests?offset=-1", None, 422),
        ("GET", "requests?colour=red", None, 422),
    ],
)
def test_control_refuses_with_a_message(api: Sandbox, method: str, path: str, document: Any, status: int) -> None:
    answered, message = ask(api, method, path, document)
    assert (answered, bool(message["error"])) == (status, True)


def test_only_the_newest_are_kept_and_the_counts_go_on() -> None:
    with Sandbox(keep=3) as api:
        for number in range(5):
            post(api, Idempotency_Key=str(number))
        assert [each.sequence for each in api.requests] == [3, 4, 5]
        assert api.counts().received == api.counts().distinct_idempotency_keys == 5
    assert api.counts().accepted == 5, "what was received can be read after the end"


def test_wait_for_gives_up_in_time(api: Sandbox) -> None:
    with pytest.raises(TimeoutError, match="1 requests did not come"):
        api.wait_for(1, 0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_tidily_with_its_record_complete(tmp_path: Path, number: signal.Signals) -> None:
    record, token = tmp_path / "requests.jsonl", tmp_path / "token"
    token.write_text("secret\n")
    command = [sys.executable, "-m", "relay.sandbox", "--port", "0", "--record", str(record)]
    command += ["--token-file", str(token), "--fault", '{"kind":"status","sequence":[503]}']
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            for key in range(3):
                requests.post(url, data=BODY, headers=HEADERS | {"Idempotency-Key": str(key)}, timeout=5)
            requests.post(url, data=b"\xff", headers=HEADERS, timeout=5)
            process.send_signal(number)
            assert process.wait(DEADLINE_SECONDS) == 0
        finally:
            process.kill()
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(line["sequence"], line["status"]) for line in lines] == [(1, 503), (2, 202), (3, 202), (4, 400)]
    assert [line["idempotency_key"] for line in lines] == ["0", "1", "2", None]
    assert json.loads(lines[0]["body"]) == json.loads(BODY)
    assert lines[3]["body_base64"] == "/w=="


def test_process_refuses_a_bad_fault_with_exit_code_2() -> None:
    command = [sys.executable, "-m", "relay.sandbox", "--port", "0", "--fault", '{"kind":"flood"}']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, "flood" in ended.stderr) == (2, True)
