"""A request's head through the gateway: bounded in bytes and in time, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest
from gateways import BODY, TOKEN, Running, running, status_of
from rig import wait_for

from relay.gateway import http_limits
from relay.queue.keys import Keys

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    import redis

    from relay.processes.embedded_redis import EmbeddedRedis

BEGIN = f"POST / HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
START = BEGIN + b"Content-Type: application/json\r\n"
MOST = http_limits.MAX_HEAD_BYTES + http_limits.PIECE_BYTES


@pytest.fixture
def hasty(redis_server: EmbeddedRedis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """One that waits a moment for a head."""
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.3)
    with running(redis_server.url) as gateway:
        yield gateway


def request(*lines: bytes, body: bytes = BODY, start: bytes = START) -> bytes:
    return b"".join([start, *(line + b"\r\n" for line in lines), b"Content-Length: %d\r\n\r\n" % len(body), body])


def sent(connection: socket.socket, pieces: Iterable[bytes]) -> int:
    """Send until it is refused, a hundred times as much as may be at the most; return how much it was."""
    number = 0
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
            number += len(piece)
            if number > 100 * MOST:
                break
    return number


ENDLESS = [b"GET /" + b"x" * 1000, START + b"X-Long: " + b"x" * 1000, START + b"X: y\r\n" * 200]


@pytest.mark.parametrize("begun", ENDLESS)
def test_a_head_that_is_too_large_is_431(gateway: Running, begun: bytes) -> None:
    more = begun[-6:]
    with gateway.connect() as connection:
        connection.sendall((begun + more * MOST)[:MOST])
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            assert (answer.status, answer.headers["Connection"]) == (431, "close")
            assert b'"error":"the request\'s head has more than 65536 bytes"' in answer.read()
        assert connection.recv(1) == b""


@pytest.mark.parametrize("begun", ENDLESS)
def test_a_head_without_an_end_is_not_kept(gateway: Running, begun: bytes) -> None:
    with gateway.connect() as connection:
        assert sent(connection, itertools.chain([begun], itertools.repeat(begun[-6:] * 1000))) < 100 * MOST


@pytest.mark.parametrize("size", [0, 1000, http_limits.MAX_HEAD_BYTES - 1000])
def test_a_head_within_bounds_is_taken_as_it_comes(gateway: Running, client: redis.Redis, size: int) -> None:
    whole = request(b"X-Long: " + b"x" * size)
    step = max(1, len(whole) // 50)
    with gateway.connect() as connection:
        for number in range(3):
            for start in range(0, len(whole), len(whole) if number == 0 else step):
                connection.sendall(whole[start : start + (len(whole) if number == 0 else step)])
            assert status_of(connection) == 202
    assert client.xlen(Keys().inbox) == 3


def test_what_follows_a_request_is_not_its_head(gateway: Running, client: redis.Redis) -> None:
    number = 2 * http_limits.MAX_HEAD_BYTES // len(request())
    with gateway.connect() as connection:
        connection.sendall(request() * number)
        answers = b""
        wait_until = time.monotonic() + 20
        while answers.count(b"HTTP/1.1 202") < number and time.monotonic() < wait_until:
            answers += connection.recv(100_000)
    assert answers.count(b"HTTP/1.1 ") == number
    assert client.xlen(Keys().inbox) == number


def test_a_client_that_sends_and_never_listens_is_closed(gateway: Running) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
    with gateway.connect() as connection:
        assert sent(connection, itertools.repeat(one * 100)) < 100 * MOST


def test_what_waits_behind_requests_is_bounded(gateway: Running) -> None:
    """Each answer has the server read on, whatever waits already."""
    begun = b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n" * 500 + START + b"Content-Length: 1000000000\r\n\r\n"
    taken = 0
    with gateway.connect() as connection:
        connection.sendall(begun)
        reader = threading.Thread(target=until_closed, args=(connection,))
        reader.start()
        with contextlib.suppress(ConnectionError):
            while taken < 64 * http_limits.MAX_PIPELINED_BYTES:
                taken += connection.send(b" " * http_limits.PIECE_BYTES)
        reader.join()
    assert taken < 16 * http_limits.MAX_PIPELINED_BYTES  # and what the kernel had room for


def until_closed(connection: socket.socket) -> None:
    """Read and forget."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(100_000):
            pass


def test_a_body_is_no_head(gateway: Running, client: redis.Redis) -> None:
    number = 2 * http_limits.MAX_HEAD_BYTES // len(BODY)
    lines = (BODY + b"\n") * number
    with gateway.connect() as connection:
        kind = b"Content-Type: application/x-ndjson"
        connection.sendall(request(kind, body=lines, start=BEGIN))
        assert status_of(connection) == 202
        connection.sendall(BEGIN + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(number):
            connection.sendall(b"%x\r\n" % (len(BODY) + 1) + BODY + b"\n\r\n")
        connection.sendall(b"0\r\nX-Trailer: short\r\n\r\n")
        assert status_of(connection) == 202
    assert client.xlen(Keys().inbox) == 2 * number


@pytest.mark.parametrize("begun", [b"0\r\nX-Trailer: ", b"1;x="])
def test_a_body_in_chunks_has_no_endless_trailers_or_extensions(
    gateway: Running, client: redis.Redis, begun: bytes
) -> None:
    with gateway.connect() as connection:
        connection.sendall(START + b"Transfer-Encoding: chunked\r\n\r\n" + begun)
        assert sent(connection, itertools.repeat(b"x" * 5000)) < 100 * MOST
    assert client.xlen(Keys().inbox) == 0


def test_a_head_that_does_not_arrive_is_408(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(START)
        assert status_of(connection) == 408
        assert connection.recv(1) == b""


def test_a_head_that_comes_byte_for_byte_is_not_waited_for(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(START + b"X: ")

        def is_refused() -> bool:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x")
                return False
            return True

        wait_for(is_refused, 20)


@pytest.mark.parametrize("begun", [b"", b"\r\n"])
def test_a_connection_that_sends_nothing_is_closed(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http_limits, "IDLE_SECONDS", 0.3)
    with running(redis_server.url) as gateway, gateway.connect() as connection:
        connection.sendall(begun)
        assert connection.recv(1) == b""


def test_a_connection_that_waits_for_its_answer_is_not_closed(
    redis_server: EmbeddedRedis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_limits, "IDLE_SECONDS", 0.2)
    patient = {"url": redis_server.url, "timeout": 20}
    with running(redis_server.url, redis=patient) as gateway, gateway.connect() as connection:
        client.execute_command("CLIENT", "PAUSE", "1000", "ALL")
        connection.sendall(request())
        assert status_of(connection) == 202


def test_the_rest_of_a_body_after_its_answer_is_bounded(hasty: Running) -> None:
    """No reader bounds it; each byte would keep the connection."""
    with hasty.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\n\r\n")
        assert status_of(connection) == 200

        def is_closed() -> bool:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x")
                return False
            return True

        wait_for(is_closed, 20)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
)
def test_unreadable_requests_are_one_line_a_second_with_their_number(
    gateway: Running, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    number = 50

    def counted() -> list[int]:
        return [record.msg["count"] for record in caplog.records if "unreadable requests" in str(record.msg)]

    with caplog.at_level("INFO"):
        began = time.monotonic()
        for _ in range(number):
            with gateway.connect() as connection:
                connection.sendall(request_)
                assert status_of(connection) == 400
        wait_for(lambda: sum(counted()) >= number, 20)
        took = time.monotonic() - began
    assert sum(counted()) == number
    assert len(counted()) <= took + 2
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == len(counted())


def test_the_end_of_the_gateway_leaves_no_unreadable_request_uncounted(
    redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), running(redis_server.url) as gateway:
        for _ in range(3):
            with gateway.connect() as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                assert status_of(connection) == 400
    lines = [record.msg for record in caplog.records if "unreadable requests" in str(record.msg)]
    assert sum(line["count"] for line in lines) == 3


def test_upgrades_to_other_protocols_are_counted_too(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with caplog.at_level("INFO"):
        for _ in range(20):
            with gateway.connect() as connection:
                connection.sendall(upgrade)
                assert status_of(connection) == 200
        wait_for(lambda: "unreadable requests" in caplog.text, 20)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) < 10


def test_connections_that_send_nothing_stay(hasty: Running) -> None:
    with hasty.connect() as connection:
        for _ in range(2):
            time.sleep(3 * http_limits.HEAD_SECONDS)  # nothing happens: that is what is tried
            connection.sendall(request()[:20])
            connection.sendall(request()[20:])
            assert status_of(connection) == 202


def test_a_body_has_longer_than_a_head(hasty: Running) -> None:
    with hasty.connect() as connection:
        connection.sendall(START + b"Transfer-Encoding: chunked\r\n\r\n%x" % len(BODY))
        time.sleep(3 * http_limits.HEAD_SECONDS)  # as above
        connection.sendall(b"\r\n" + BODY + b"\r\n0\r\n\r\n")
        assert status_of(connection) == 202
