"""The delivery transport against servers that behave and misbehave on real sockets."""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from servers import (
    DEADLINE_SECONDS,
    Authority,
    Server,
    after,
    answer,
    byte_by_byte,
    endless,
    endless_body,
    half_a_body,
    hang,
    head,
    later,
    reset,
    reset_unread,
    says,
)

from relay.destinations.answer import EXCERPT_BYTES, MAX_BODY_BYTES, Answer, Failure
from relay.errors import ConfigurationError
from relay.processes.embedded_redis import free_port
from relay.sandbox.response import Hang, Write
from relay.settings import ApiSettings
from workers.delivery.transport import CurlTransport, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from servers import Action, Received

    Serve = Callable[..., Server]
    Connect = Callable[..., CurlTransport]

TOKEN = "canary-t0ken"

#: What `api.timeout` is where it is to be reached, and how much later than that an answer is still in time:
#: the margin that a lease has over a request.
TIMEOUT_SECONDS = 0.5
SLACK_SECONDS = 1.0


PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

#: A beginning of a body that promises more.
HALF_A_BODY = {"Content-Length": "100"}


def half(status: int, **headers: str) -> bytes:
    return (
        head(status, HALF_A_BODY | {name.replace("_", "-"): value for name, value in headers.items()}) + b"0123456789"
    )


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connect() -> Iterator[Connect]:
    made: list[CurlTransport] = []

    def make(url: str, *, connections: int = 4, **api: Any) -> CurlTransport:
        transport = CurlTransport(ApiSettings(url=url, **{"token": TOKEN, **api}), connections=connections)
        made.append(transport)
        return transport

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def serve(connect: Connect) -> Iterator[Serve]:
    """Stopped before the transports are closed, so that none of their threads waits for an answer."""
    started: list[Server] = []

    def start(*steps: Any, **options: Any) -> Server:
        server = Server(*steps, **options)
        started.append(server)
        return server.__enter__()

    yield start
    for server in started:
        server.stop()


def answers(transport: CurlTransport, count: int, within_seconds: float = DEADLINE_SECONDS) -> dict[Any, Answer]:
    """Wait for that many answers, by their requests' tags."""
    deadline = time.monotonic() + within_seconds
    found: dict[Any, Answer] = {}
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} answers of {count} in {within_seconds} s"
        found.update(transport.wait(0.02))
    return found


def post(
    transport: CurlTransport, body: bytes = b"{}", key: str = "k1", within_seconds: float = DEADLINE_SECONDS
) -> Answer:
    transport.send(Request("tag", body, key))
    return answers(transport, 1, within_seconds)["tag"]


# What is sent


def test_request_is_the_apis(serve: Serve, connect: Connect) -> None:
    server = serve(answer(200))
    body = '{"image":{"name":"wéb\\u0000"}}'.encode() + b"\x00\xff\r\n\r\n"

    assert post(connect(server.url), body, "key-42") == Answer(200)

    (request,) = server.received
    assert request.line == "POST /v1/deployments HTTP/1.1"
    assert request.body == body
    sent = {name: request.headers.get(name) for name in ("authorization", "content-type", "idempotency-key")}
    assert sent == {
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "idempotency-key": "key-42",
    }
    assert request.headers["content-length"] == str(len(body))
    assert "expect" not in request.headers


def test_large_body_is_sent_whole_without_asking_first(serve: Serve, connect: Connect) -> None:
    server = serve(answer(200))
    body = b"x" * 1_000_000
    post(connect(server.url), body)

    assert server.received[0].body == body
    assert "expect" not in server.received[0].headers


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("plain-42", "plain-42"),
        ("a b", "a b"),
        ("1-0/é", "1-0/\\xe9"),
        ("\u2603", "\\u2603"),
        ("a\r\nX-Other: 1", "a\\r\\nX-Other: 1"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_idempotency_key_is_escaped_where_a_header_cannot_carry_it(
    key: str, sent: str, serve: Serve, connect: Connect
) -> None:
    server = serve(answer(200))
    post(connect(server.url), key=key)

    assert server.received[0].headers["idempotency-key"] == sent
    assert "x-other" not in server.received[0].headers


def test_netrc_does_not_replace_the_token(
    serve: Serve, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(answer(200))
    post(connect(server.url))

    assert server.received[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_token_that_changed_in_its_file_is_sent_once_reloaded(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    server = serve(answer(200))
    transport = connect(server.url, token_file=file)
    post(transport)
    assert transport.reload_token() is False
    file.write_text("second\n")
    post(transport)
    assert transport.reload_token() is True
    assert transport.reload_token() is False
    post(transport)

    sent = [request.headers["authorization"] for request in server.received]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"\xff", "cannot be read"), (b"\n", "empty"), (b"a\x00b", "header")],
)
def test_token_that_cannot_be_reloaded_leaves_the_one_from_before(
    content: bytes | None, said: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    server = serve(answer(200))
    transport = connect(server.url, token_file=file)
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=said):
        transport.reload_token()
    post(transport)

    assert server.received[0].headers["authorization"] == "Bearer first"


@pytest.mark.parametrize("token", ["two\nlines", "tökén", "a\x00b"])
def test_token_that_no_header_can_carry_is_refused_at_once(token: str, connect: Connect) -> None:
    with pytest.raises(ConfigurationError, match="token") as refused:
        connect("http://127.0.0.1:1/", token=token)
    assert token not in str(refused.value)


# What comes back


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_needs_no_body(status: int, serve: Serve, connect: Connect) -> None:
    server = serve(answer(status) if status != 204 else says(head(204)))

    assert post(connect(server.url)) == Answer(status)


@pytest.mark.parametrize("status", [300, 400, 401, 403, 404, 422, 429, 500, 503, 599])
def test_status_comes_with_the_beginning_of_the_body(status: int, serve: Serve, connect: Connect) -> None:
    server = serve(answer(status, b"no digest: " + b"x" * 1000))
    found = post(connect(server.url))

    assert found == Answer(status, excerpt="no digest: " + "x" * (EXCERPT_BYTES - 11))


def test_body_that_is_not_utf8_is_shown_all_the_same(serve: Serve, connect: Connect) -> None:
    server = serve(answer(400, b"caf\xe9"))

    assert post(connect(server.url)).excerpt == "caf\ufffd"


def test_interim_answer_is_not_the_answer(serve: Serve, connect: Connect) -> None:
    server = serve(says(head(100) + head(422, {"Content-Length": "2"}) + b"no"))

    assert post(connect(server.url)) == Answer(422, excerpt="no")


@pytest.mark.parametrize("status", [429, 403, 503])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Retry-After: 30"], 30.0),
        (["retry-after:30"], 30.0),
        (["Retry-After: 0"], None),
        (["Retry-After: -5"], None),
        (["Retry-After: soon"], None),
        (["Retry-After: "], None),
        (["Retry-After: 5", "Retry-After: 60"], 60.0),
        (["Retry-After: 60, 5"], 60.0),
        (["Retry-After: 1" + "0" * 30], 1e9),
        (["Retry-After: " + "9" * 5000], None),
        (["Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"], None),
        (["Date: Wed, 21 Oct 2015 07:27:00 GMT", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"], 60.0),
        (["Retry-After: Wednesday, 21-Oct-15 07:28:00 GMT", "Date: Wed Oct 21 07:27:00 2015"], 60.0),
    ],
)
def test_retry_after_is_read(
    lines: list[str], expected: float | None, status: int, serve: Serve, connect: Connect
) -> None:
    server = serve(says("\r\n".join([f"HTTP/1.1 {status} No", *lines, "Content-Length: 0", "", ""]).encode()))
    found = post(connect(server.url))

    assert (found.status, found.retry_after_seconds) == (status, expected)


def test_retry_after_as_a_date_counts_from_our_clock_if_the_answer_has_none(serve: Serve, connect: Connect) -> None:
    server = serve(answer(429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)))

    assert post(connect(server.url)).retry_after_seconds == pytest.approx(3600, abs=60)


def test_retry_after_of_an_interim_answer_is_not_the_answers(serve: Serve, connect: Connect) -> None:
    server = serve(says(head(103, {"Retry-After": "30"}) + head(503, {"Content-Length": "0"})))

    assert post(connect(server.url)) == Answer(503)


def test_retry_after_of_a_trailer_is_no_header(serve: Serve, connect: Connect) -> None:
    chunked = head(503, {"Transfer-Encoding": "chunked"})
    server = serve(says(chunked + b"2\r\nno\r\n0\r\nRetry-After: 30\r\n\r\n"))

    assert post(connect(server.url)) == Answer(503, excerpt="no")


def test_retry_after_of_one_answer_is_not_the_nexts(serve: Serve, connect: Connect) -> None:
    server = serve(answer(503, b"first", Retry_After="30"), answer(503))
    transport = connect(server.url)

    assert post(transport) == Answer(503, retry_after_seconds=30.0, excerpt="first")
    assert post(transport) == Answer(503)


# What keeps an answer away


def test_refused_connection(connect: Connect) -> None:
    assert post(connect(f"http://127.0.0.1:{free_port()}/")).failure is Failure.CONNECT


def test_unknown_host(connect: Connect) -> None:
    found = post(connect("http://unknown.invalid/", allow_insecure=True, connect_timeout=5.0), within_seconds=15)

    assert found.failure is Failure.DNS


def test_no_tls_where_https_is_expected(serve: Serve, connect: Connect) -> None:
    server = serve(at_once=says(head(400)))

    assert post(connect(server.url.replace("http://", "https://"))).failure is Failure.TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    return Authority(tmp_path_factory.mktemp("tls"))


def test_certificate_of_a_known_authority_is_trusted(authority: Authority, serve: Serve, connect: Connect) -> None:
    server = serve(answer(201), tls=authority.server("good"))
    transport = connect(server.url, ca_file=authority.file)

    assert [post(transport), post(transport)] == [Answer(201)] * 2
    assert server.connections == 1


@pytest.mark.parametrize("fault", ["expired", "wrong host", "self-signed", "unknown authority"])
def test_certificate_that_proves_nothing_gets_no_request(
    fault: str, authority: Authority, serve: Serve, connect: Connect
) -> None:
    context = {
        "expired": lambda: authority.server("expired", days=-1),
        "wrong host": lambda: authority.server("other", san="DNS:other.example.com"),
        "self-signed": authority.self_signed,
        "unknown authority": lambda: authority.server("unknown"),
    }[fault]()
    server = serve(answer(200), tls=context)
    api = {} if fault == "unknown authority" else {"ca_file": authority.file}
    transport = connect(server.url, **api)

    assert [post(transport).failure for _ in range(3)] == [Failure.TLS] * 3, "never downgraded"
    assert server.received == []


@pytest.mark.parametrize("connect_timeout", [TIMEOUT_SECONDS, DEADLINE_SECONDS])
def test_tls_that_is_never_agreed_on_is_a_failure_to_connect(
    connect_timeout: float, serve: Serve, connect: Connect
) -> None:
    server = serve(at_once=hang)
    url = server.url.replace("http://", "https://")
    found, seconds = timed(connect(url, connect_timeout=connect_timeout, timeout=2 * TIMEOUT_SECONDS))

    assert found.failure is Failure.CONNECT, "nothing has gone out, so no event is to blame"
    assert seconds < 2 * TIMEOUT_SECONDS + SLACK_SECONDS


def test_connection_that_is_ready_too_late_is_not_used(authority: Authority, connect: Connect) -> None:
    context = authority.server("late")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        transport = connect(url, ca_file=authority.file, timeout=TIMEOUT_SECONDS, connect_timeout=DEADLINE_SECONDS)
        assert post(transport).failure is Failure.CONNECT
        connection, _ = listener.accept()
        connection.settimeout(DEADLINE_SECONDS)
        received = b""
        with suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as secured:
            received = secured.recv(1)  # unless the client has gone, and agrees on nothing

    assert received == b"", "nothing goes out once its time is over"


def test_proxy_from_the_environment_sees_no_token(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(says(head(403, {"Content-Length": "0"})))
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    found = post(connect("https://api.invalid/v1"))

    assert found.failure is Failure.CONNECT, "what a proxy says is not the API's answer"
    assert proxy.received[0].line.startswith("CONNECT api.invalid:443 ")
    assert "authorization" not in proxy.received[0].headers


def test_proxy_from_the_environment_is_not_for_what_is_not_encrypted(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = serve(answer(200)), serve(answer(201))
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")

    assert post(connect(server.url)) == Answer(201)
    assert proxy.connections == 0


@pytest.mark.parametrize("body", [b"{}", b"x" * 5_000_000], ids=["small", "large"])
def test_connection_reset_before_the_request_is_read(body: bytes, serve: Serve, connect: Connect) -> None:
    server = serve(at_once=reset_unread)

    assert post(connect(server.url), body).failure is Failure.RESET


def test_connection_reset_once_the_request_is_read(serve: Serve, connect: Connect) -> None:
    server = serve(reset)
    found = post(connect(server.url))

    assert (found.status, found.failure) == (None, Failure.RESET)
    assert len(server.received) == 1, "a transport repeats nothing"


def test_connection_closed_without_an_answer(serve: Serve, connect: Connect) -> None:
    server = serve(says(b""))

    assert post(connect(server.url)).failure is Failure.RESET
    assert len(server.received) == 1, "a transport repeats nothing"


@pytest.mark.parametrize("data", [b"220 smtp.example.com ESMTP\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00" * 100])
def test_bytes_that_are_no_http_are_no_answer(data: bytes, serve: Serve, connect: Connect) -> None:
    server = serve(says(data))
    found = post(connect(server.url))

    assert found.status is None
    assert found.failure in {Failure.PROTOCOL, Failure.RESET}


def test_failure_does_not_show_the_token(serve: Serve, connect: Connect) -> None:
    server = serve(reset)

    assert TOKEN not in post(connect(server.url)).excerpt


# Time-outs


def timed(transport: CurlTransport) -> tuple[Answer, float]:
    started = time.monotonic()
    found = post(transport, within_seconds=TIMEOUT_SECONDS + 4 * SLACK_SECONDS)
    return found, time.monotonic() - started


def test_silent_api_times_out(serve: Serve, connect: Connect) -> None:
    server = serve(hang)
    found, seconds = timed(connect(server.url, timeout=TIMEOUT_SECONDS))

    assert (found.status, found.failure) == (None, Failure.TIMEOUT)
    assert TIMEOUT_SECONDS <= seconds < TIMEOUT_SECONDS + SLACK_SECONDS


def test_connection_that_is_never_taken_up_times_out(connect: Connect) -> None:
    # Addresses for documentation lead nowhere; where the network says so at once, that is a failure to connect.
    transport = connect("http://192.0.2.1:9/", allow_insecure=True, connect_timeout=TIMEOUT_SECONDS)
    found, seconds = timed(transport)

    assert found.failure is Failure.CONNECT
    assert seconds < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("status", [400, 503])
def test_refusal_whose_body_hangs_is_a_refusal_once_the_time_is_over(
    status: int, serve: Serve, connect: Connect
) -> None:
    server = serve(after(half(status, Retry_After="7"), hang))
    found, seconds = timed(connect(server.url, timeout=TIMEOUT_SECONDS))

    assert (found.status, found.failure, found.retry_after_seconds) == (status, None, 7.0)
    assert TIMEOUT_SECONDS <= seconds < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("status", [200, 400, 503])
def test_body_that_comes_byte_by_byte_is_not_waited_for_beyond_the_time_out(
    status: int, serve: Serve, connect: Connect
) -> None:
    begun = head(status, {"Content-Length": "4096"})
    server = serve(byte_by_byte(b"x" * 4096, every_seconds=0.02, at_once=begun))
    found, seconds = timed(connect(server.url, timeout=TIMEOUT_SECONDS))

    assert found.status == status
    assert seconds < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 102 Processing\r\n\r\n"], ids=["the first", "after an interim one"]
)
def test_headers_that_come_byte_by_byte_time_out(begun: bytes, serve: Serve, connect: Connect) -> None:
    server = serve(byte_by_byte(head(200, {"Content-Length": "0"}), every_seconds=0.1, at_once=begun))
    found, seconds = timed(connect(server.url, timeout=TIMEOUT_SECONDS))

    assert (found.status, found.failure) == (None, Failure.TIMEOUT)
    assert seconds < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("wait_seconds", [0.01, 60.0])
def test_time_out_is_kept_however_long_the_caller_would_wait(
    wait_seconds: float, serve: Serve, connect: Connect
) -> None:
    server = serve(hang)
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)
    started = time.monotonic()
    transport.send(Request("tag", b"", "k1"))
    while not (answered := transport.wait(wait_seconds)):
        assert time.monotonic() - started < TIMEOUT_SECONDS + SLACK_SECONDS

    assert [found.failure for _, found in answered] == [Failure.TIMEOUT]
    assert time.monotonic() - started < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("status", [201, 400, 503])
def test_answer_that_came_between_two_waits_counts(status: int, serve: Serve, connect: Connect) -> None:
    """As when a run waits for Redis longer than a request may take, or its process is stopped."""
    server = serve(answer(200), answer(status, b"said"))
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)
    assert post(transport).status == 200, "the connection is made"
    transport.send(Request("tag", b"", "k2"))
    transport.flush()
    time.sleep(2 * TIMEOUT_SECONDS)

    assert answers(transport, 1)["tag"].status == status
    assert post(transport).status == status, "the transport goes on as before"


def test_request_without_an_answer_between_two_waits_times_out_at_once(serve: Serve, connect: Connect) -> None:
    server = serve(answer(200), hang)
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)
    post(transport)
    transport.send(Request("tag", b"", "k2"))
    transport.flush()
    time.sleep(2 * TIMEOUT_SECONDS)
    started = time.monotonic()

    assert answers(transport, 1)["tag"].failure is Failure.TIMEOUT
    assert time.monotonic() - started < TIMEOUT_SECONDS


def test_request_whose_kept_connection_had_ended_is_not_sent_after_its_time(serve: Serve, connect: Connect) -> None:
    """The caller's right to send it has ended by then, too."""
    server = serve(says(head(200, {"Content-Length": "0"})))
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)
    assert post(transport) == Answer(200)
    server.await_closed(1)
    transport.send(Request("tag", b"", "k2"))
    transport.flush()
    arrived = len(server.received)
    time.sleep(2 * TIMEOUT_SECONDS)
    found = answers(transport, 1)["tag"]

    assert (found.failure, arrived) == (Failure.CONNECT, 1)
    assert len(server.received) == 1, "it went out late"
    assert post(transport) == Answer(200)


def test_request_whose_kept_connection_had_ended_has_what_is_left_of_its_time(serve: Serve, connect: Connect) -> None:
    server = serve(says(head(200, {"Content-Length": "0"})), hang)
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)
    assert post(transport) == Answer(200)
    server.await_closed(1)
    started = time.monotonic()
    transport.send(Request("tag", b"", "k2"))
    time.sleep(TIMEOUT_SECONDS / 2)

    assert answers(transport, 1)["tag"].failure is Failure.TIMEOUT
    assert time.monotonic() - started < 1.5 * TIMEOUT_SECONDS


def test_answer_that_a_flush_found_is_returned_by_the_next_wait(serve: Serve, connect: Connect) -> None:
    transport = connect(serve(answer(200)).url)
    post(transport)
    transport.send(Request("tag", b"", "k2"))
    transport.flush()
    time.sleep(0.05)
    transport.flush()

    assert transport.in_flight == 1
    assert answers(transport, 1)["tag"] == Answer(200)
    assert transport.in_flight == 0


def test_dripping_answers_take_no_connection_beyond_their_time(serve: Serve, connect: Connect) -> None:
    dripping = byte_by_byte(head(200, {"X": "y" * 1000}), every_seconds=0.05)
    server = serve(*[dripping] * 4, answer(201))
    transport = connect(server.url, connections=4, timeout=TIMEOUT_SECONDS)
    for number in range(4):
        transport.send(Request(number, b"", f"k{number}"))
    assert {found.failure for found in answers(transport, 4).values()} == {Failure.TIMEOUT}

    assert post(transport) == Answer(201), "there is room again"


def test_five_hundred_hanging_requests_leave_nothing_behind(connect: Connect) -> None:
    gc.collect()
    before = open_descriptors()
    with socket.create_server(("127.0.0.1", 0), backlog=600) as silent:  # connects, as the kernel does, and no more
        transport = connect(f"http://127.0.0.1:{silent.getsockname()[1]}/", connections=50, timeout=TIMEOUT_SECONDS)
        for begin in range(0, 500, 50):
            for number in range(begin, begin + 50):
                transport.send(Request(number, b"", f"k{number}"))
            failures = {found.failure for found in answers(transport, 50).values()}
            assert failures <= {Failure.TIMEOUT, Failure.CONNECT}
        assert transport.in_flight == 0
        assert accepted(silent) > 450, "each began, save where the machine was too busy"
        transport.close()

    assert open_descriptors() <= before


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would be made for each


def accepted(listener: socket.socket) -> int:
    listener.settimeout(0)
    count = 0
    try:
        while True:
            listener.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count


# Broken and endless bodies


@pytest.mark.parametrize(
    "step",
    [half_a_body(200), after(half(200), reset), after(half(200), hang), endless_body(200)],
    ids=["cut off", "reset", "hangs", "endless"],
)
def test_success_is_success_even_if_its_body_breaks_off(step: Any, serve: Serve, connect: Connect) -> None:
    server = serve(step, answer(201))
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)

    assert post(transport) == Answer(200)
    assert post(transport) == Answer(201), "the connection is not used again"


@pytest.mark.parametrize("status", [200, 422, 503])
@pytest.mark.parametrize("begun", [b"", b"Content-Le"], ids=["status line", "half a header"])
@pytest.mark.parametrize("step", [says(b""), reset, hang], ids=["closed", "reset", "hangs"])
def test_status_line_is_enough(step: Any, begun: bytes, status: int, serve: Serve, connect: Connect) -> None:
    server = serve(after(f"HTTP/1.1 {status} Said So\r\n".encode() + begun, step), answer(201))
    transport = connect(server.url, timeout=TIMEOUT_SECONDS)
    found = post(transport)

    assert (found.status, found.failure) == (status, None)
    assert post(transport) == Answer(201)


@pytest.mark.parametrize("length", ["5", "abc", "-1", "99999999999999999999999", "5, 6"])
def test_wrong_length_spoils_neither_the_status_nor_the_next_answer(
    length: str, serve: Serve, connect: Connect
) -> None:
    server = serve(says(head(422, {"Content-Length": length}) + b"0123456789"), answer(201))
    transport = connect(server.url)

    assert post(transport).status == 422
    server.await_closed(1)
    assert post(transport) == Answer(201)


@pytest.mark.parametrize("status", [400, 503])
def test_status_counts_when_its_body_is_cut_off(status: int, serve: Serve, connect: Connect) -> None:
    server = serve(half_a_body(status, Retry_After="7"))

    assert post(connect(server.url)) == Answer(status, retry_after_seconds=7.0, excerpt="0123456789")


@pytest.mark.parametrize("status", [400, 503])
def test_endless_body_is_read_to_its_bound(status: int, serve: Serve, connect: Connect) -> None:
    server = serve(endless_body(status), answer(200))
    transport = connect(server.url)
    found = post(transport)

    assert found == Answer(status, excerpt="x" * EXCERPT_BYTES)
    assert post(transport) == Answer(200)


def test_body_up_to_the_bound_is_read_and_the_connection_kept(serve: Serve, connect: Connect) -> None:
    server = serve(answer(400, b"x" * (MAX_BODY_BYTES - 1)))
    transport = connect(server.url)
    post(transport)
    post(transport)

    assert server.connections == 1


def hostile() -> dict[str, Any]:
    a_lot = b"x" * 65_536
    bomb = gzip.compress(b"x" * 200_000_000)
    unpacked = {"Content-Encoding": "gzip", "Content-Length": str(len(bomb))}
    return {
        "a gigabyte": endless(head(422, {"Content-Length": str(2**30)}), a_lot),
        "a gigabyte of success": endless(head(200, {"Content-Length": str(2**30)}), a_lot),
        "endless": endless_body(503),
        "endless chunk": endless(head(503, {"Transfer-Encoding": "chunked"}) + b"7fffffff\r\n", a_lot),
        "gzip bomb": says(head(422, unpacked) + bomb),
        "100,000 headers": says(b"HTTP/1.1 503 No\r\n" + b"X-Y: z\r\n" * 100_000 + b"\r\n"),
        "a huge header": endless(b"HTTP/1.1 503 No\r\nX: ", a_lot),
        "a huge status line": endless(b"HTTP/1.1 503 ", a_lot),
        "interim answers": endless(b"", b"HTTP/1.1 102 Wait\r\n\r\n" * 1000),
        "no HTTP": endless(b"", b"\x00\xff" * 32_768),
    }


#: Posts to each address and prints what came of it; last, how many bytes more than at first it took at its most.
HOSTILE_CLIENT = """
import resource, sys
from relay.settings import ApiSettings
from workers.delivery.transport import Request
from workers.delivery.transport import CurlTransport

def post(url):
    transport = CurlTransport(ApiSettings(url=url, token="t", timeout=5), connections=4)
    for number in range(4):
        transport.send(Request(number, b"{}", "k"))
    found = []
    while len(found) < 4:
        found += transport.wait(0.05)
    transport.close()
    return {str(answer.status or answer.failure) for _, answer in found}

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

post(sys.argv[1])
before = most()
for url in sys.argv[2:]:
    print(*post(url))
print(most() - before)
"""


def test_memory_is_bounded_whatever_the_api_sends(serve: Serve) -> None:
    steps = hostile()
    urls = [serve(answer(200, b"well")).url, *(serve(step).url for step in steps.values())]
    command = [sys.executable, "-c", HOSTILE_CLIENT, *urls]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    *came, more = done.stdout.splitlines()
    found = dict(zip(steps, came, strict=True))

    assert int(more) < 20_000_000
    unreadable = found.pop("a huge status line"), found.pop("interim answers"), found.pop("no HTTP")
    assert set(unreadable) <= {"protocol", "reset", "503"}
    assert found == {
        name: {"a gigabyte of success": "200", "a gigabyte": "422", "gzip bomb": "422"}.get(name, "503")
        for name in found
    }


# Unasked bytes


@pytest.mark.parametrize("pause_seconds", [0.0, 0.05], ids=["together", "a little later"])
@pytest.mark.parametrize("first", [200, 422])
def test_second_answer_to_one_request_is_not_the_answer_to_the_next(
    first: int, pause_seconds: float, serve: Serve, connect: Connect
) -> None:
    said: list[bool] = []

    def again(_: Received) -> Iterator[Action]:
        yield Write(head(503, {"Content-Length": "5"}) + b"str")
        said.append(True)
        yield Hang()  # does not close, as that would give it away

    server = serve(after(head(first, {"Content-Length": "0"}), later(pause_seconds, again)), answer(201))
    transport = connect(server.url)
    assert post(transport).status == first
    wait_until(lambda: bool(said))

    assert [post(transport) for _ in range(3)] == [Answer(201)] * 3
    assert (server.connections, len(server.received)) == (2, 4)


@pytest.mark.parametrize("status", [102, 103, 199])
def test_answer_after_an_interim_one_is_not_left_for_the_next(status: int, serve: Serve, connect: Connect) -> None:
    server = serve(after(head(status), answer(422, b"no")), answer(201))
    transport = connect(server.url)

    assert [post(transport), post(transport)] == [Answer(422, excerpt="no"), Answer(201)]


def test_switched_protocol_is_no_success(serve: Serve, connect: Connect) -> None:
    server = serve(says(head(101) + b"anything"), answer(201))
    transport = connect(server.url)
    found = post(transport)

    assert found.status == 101 or found.failure in {Failure.PROTOCOL, Failure.RESET}
    server.await_closed(1)
    assert post(transport) == Answer(201)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed_and_no_token_goes_there(status: int, serve: Serve, connect: Connect) -> None:
    other = serve(answer(200))
    server = serve(answer(status, b"over there", Location=other.url.replace("127.0.0.1", "localhost")))

    assert post(connect(server.url)) == Answer(status, excerpt="over there", redirects_to="localhost")
    assert (other.connections, other.received) == (0, [])


def test_redirect_to_the_same_host_is_not_followed_either(serve: Serve, connect: Connect) -> None:
    server = serve(answer(307, Location="/elsewhere"))

    assert post(connect(server.url)).status == 307
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [401, 422, 503])
def test_token_that_the_answer_echoes_is_not_kept(status: int, serve: Serve, connect: Connect) -> None:
    server = serve(answer(status, f"your token {TOKEN} is wrong".encode()))

    assert post(connect(server.url)).excerpt == "your token *** is wrong"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://login.example.com:8443/a?code=s3cret", "login.example.com"),
        ("//other.example.com/x", "other.example.com"),
        (f"https://{TOKEN}.example.com/", ""),
        ("https://user:s3cret@example.com/", "example.com"),
        ("/elsewhere?code=s3cret", ""),
        ("http://[bad", ""),
        ("https://ex\x1bample.com/", ""),
    ],
)
def test_redirect_shows_the_host_alone(location: str, told: str, serve: Serve, connect: Connect) -> None:
    server = serve(answer(302, Location=location))
    found = post(connect(server.url))

    assert (found.status, found.redirects_to) == (302, told)
    assert "s3cret" not in str(found)


@pytest.mark.parametrize("length", range(1, len(TOKEN) + 1, 3))
@pytest.mark.parametrize("before", [EXCERPT_BYTES - 5, MAX_BODY_BYTES - 5, 10])
def test_token_is_not_shown_in_parts(before: int, length: int, serve: Serve, connect: Connect) -> None:
    echoed = b"x" * before + TOKEN[:length].encode()
    server = serve(says(head(422, {"Content-Length": str(len(echoed) + 9)}) + echoed))

    assert TOKEN[:5] not in str(post(connect(server.url)))


@pytest.mark.parametrize(
    "said",
    [
        f"HTTP/1.1 422 {TOKEN}\r\nX-Echo: Bearer {TOKEN}\r\nRetry-After: {TOKEN}\r\n\r\n",
        f"HTTP/1.1 {TOKEN} No\r\n\r\n",
        f"{TOKEN}\r\n\r\n",
        f"HTTP/1.1 503 No\r\nContent-Length: {TOKEN}\r\n\r\n",
        f"HTTP/1.1 503 No\r\nTransfer-Encoding: {TOKEN}\r\n\r\n",
        f"HTTP/1.1 503 No\r\n{TOKEN}\r\n\r\n",
    ],
)
def test_token_that_is_echoed_anywhere_is_not_shown(said: str, serve: Serve, connect: Connect) -> None:
    server = serve(says(said.encode()))

    assert TOKEN not in str(post(connect(server.url)))


def test_token_that_is_echoed_after_a_new_one_was_read_is_not_shown(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    server = serve(answer(401, f"{TOKEN} has expired".encode()))
    transport = connect(server.url, token_file=file)
    transport.send(Request("tag", b"{}", "k1"))
    file.write_text("another")
    transport.reload_token()

    assert answers(transport, 1)["tag"].excerpt == "*** has expired"


# Connections


@pytest.mark.parametrize(
    "step",
    [answer(200), answer(202, b'{"id":1}'), says(head(204)), answer(400, b"no"), answer(503)],
    ids=["200", "202 with a body", "204 closed", "400", "503"],
)
def test_connection_is_used_again(step: Any, serve: Serve, connect: Connect, request: pytest.FixtureRequest) -> None:
    server = serve(step)
    transport = connect(server.url)
    for number in range(5):
        post(transport)
        if "closed" in request.node.name:
            server.await_closed(number + 1)

    assert len(server.received) == 5
    assert server.connections == (5 if "closed" in request.node.name else 1)


def test_requests_are_sent_side_by_side_and_answered_by_their_tags(serve: Serve, connect: Connect) -> None:
    server = serve(answer(200))
    transport = connect(server.url, connections=8)
    for number in range(8):
        transport.send(Request(number, str(number).encode(), f"k{number}"))
    assert transport.in_flight == 8

    assert answers(transport, 8) == {number: Answer(200) for number in range(8)}
    assert transport.in_flight == 0
    assert server.connections <= 8
    assert {request.headers["idempotency-key"]: request.body for request in server.received} == {
        f"k{number}": str(number).encode() for number in range(8)
    }


def test_hanging_request_delays_no_other(serve: Serve, connect: Connect) -> None:
    server = serve(hang, answer(200))
    transport = connect(server.url)
    transport.send(Request("hangs", b"", "k1"))
    while not server.received:
        assert transport.wait(0.01) == []
    transport.send(Request("quick", b"", "k2"))

    assert answers(transport, 1) == {"quick": Answer(200)}
    assert transport.in_flight == 1


def test_api_that_closed_an_idle_connection_is_connected_to_again(serve: Serve, connect: Connect) -> None:
    server = serve(says(head(200, {"Content-Length": "0"})))  # without `Connection: close`
    transport = connect(server.url)

    for number in range(1, 5):
        assert post(transport) == Answer(200)
        server.await_closed(number)

    assert server.connections == len(server.received) == 4


@pytest.mark.parametrize("step", [reset, says(b"")], ids=["reset", "closed"])
def test_kept_connection_that_ends_under_a_request_is_not_a_reason_to_send_it_twice(
    step: Any, serve: Serve, connect: Connect
) -> None:
    server = serve(answer(200), step, answer(201))
    transport = connect(server.url)

    assert post(transport) == Answer(200)
    assert post(transport, b"x" * 100_000, "k2").failure is Failure.RESET
    assert [request.headers["idempotency-key"] for request in server.received] == ["k1", "k2"]
    assert post(transport) == Answer(201)


# Waiting and abandoning


def test_wait_with_nothing_in_flight_returns_at_once(connect: Connect) -> None:
    transport = connect("http://127.0.0.1:1/")
    started = time.monotonic()

    assert list(transport.wait(DEADLINE_SECONDS)) == []
    assert time.monotonic() - started < 1.0


def test_wait_ends_when_its_time_is_over(serve: Serve, connect: Connect) -> None:
    server = serve(hang)
    transport = connect(server.url)
    transport.send(Request("tag", b"", "k1"))
    started = time.monotonic()
    while not server.received:
        assert transport.wait(0.05) == []

    assert time.monotonic() - started < DEADLINE_SECONDS
    assert transport.in_flight == 1


def test_abandoned_request_is_not_answered(serve: Serve, connect: Connect) -> None:
    server = serve(hang, answer(200))
    transport = connect(server.url)
    transport.send(Request("abandoned", b"", "k1"))
    while not server.received:
        transport.wait(0.01)

    transport.abandon()

    assert transport.in_flight == 0
    transport.send(Request("next", b"", "k2"))
    assert answers(transport, 1) == {"next": Answer(200)}


def test_closing_drops_the_requests_in_flight(serve: Serve, connect: Connect) -> None:
    server = serve(hang)
    transport = connect(server.url)
    transport.send(Request("tag", b"", "k1"))
    while not server.received:
        transport.wait(0.01)
    started = time.monotonic()

    transport.close()

    assert time.monotonic() - started < 1.0
