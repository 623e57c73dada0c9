"""The fault suite's tools do their work, and the oracle finds each breach."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from faults.api import GARBAGE, OK, STALL, TWICE, Api, interim_flood
from faults.oracle import Oracle, Outcomes, Report
from faults.proxy import Proxy, Way
from rig import wait_for

from relay.sandbox.response import ResetAt, Response

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with Api(tmp_path / "api.txt") as api:
        yield api


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        yield link


def request(event_id: str = "one", digest: str = A) -> bytes:
    event = {
        "image": {"url": f"ghcr.io/acme/app@{digest}"},
        "environment": {"name": "env"},
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    body = json.dumps(event).encode()
    head = f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\nIdempotency-Key: {event_id}\r\n\r\n"
    return head.encode() + body


def ask(port: int, text: bytes, until: bytes = b"\r\n\r\n", patience_seconds: float = 5) -> bytes:
    """Send, and return the bytes up to these, the end of the connection, or the time-out."""
    got = b""
    with connected(port) as link:
        link.settimeout(patience_seconds)
        try:
            link.sendall(text)
            while until not in got and (data := link.recv(65_536)):
                got += data
        except (ConnectionError, TimeoutError):
            pass
    return got


def exchange(port: int) -> None:
    with connected(port) as link:
        link.sendall(request())
        while link.recv(1000):
            pass


def report(event_id: str = "one", digest: str = A, time: float | None = None) -> Report:
    return Report(event_id=event_id, instance="env|ghcr.io/acme/app||linux/amd64", digest=digest, time=time)


def outcomes(*, dead_ids: Sequence[str] = (), **counts: int) -> Outcomes:
    """Return counters that add up, unless `added` says otherwise."""
    names = ("redriven", "dropped", "delivered", "duplicate", "stale", "superseded", "waiting")
    each = dict.fromkeys(names, 0) | {"dead": len(dead_ids), "added": sum(counts.values()) + len(dead_ids)} | counts
    return Outcomes(**each, dead_ids=dead_ids)


class TestApi:
    def test_the_journal_has_a_request_before_its_answer(self, api: Api, tmp_path: Path) -> None:
        seen = []
        api.behave(lambda _: seen.append((tmp_path / "api.txt").read_text()) or Response(status=503))  # type: ignore[func-returns-value]
        assert ask(api.port, request()).startswith(b"HTTP/1.1 503 ")
        assert seen[0].startswith(">\t1\tone\t")
        assert "<\t1\t503\tanswered\t" in (tmp_path / "api.txt").read_text()
        [attempt] = api.attempts
        assert (attempt.instance, attempt.digest) == (report().instance, A)
        assert not attempt.processed

    def test_a_behaviour_may_change_between_requests_of_a_connection(self, api: Api) -> None:
        with connected(api.port) as link:
            for status in (202, 422, 500):
                api.behave(Response(status=status))
                link.sendall(request())
                assert link.recv(1000).startswith(f"HTTP/1.1 {status}".encode())
        assert [attempt.earlier for attempt in api.attempts] == [0, 1, 2]
        assert api.accepted_connections == 1

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (GARBAGE, b"\x16\x03\x01"),
            (TWICE, OK.head() + Response(status=500).head()),
            (interim_flood(3), b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + OK.head()),
            (Response(status=200, body=b"x", content_length=9), b"Content-Length: 9\r\n\r\nx"),
            (Response(status=302, headers={"Location": "http://elsewhere/"}), b"Location: http://elsewhere/\r\n"),
            (Response(body=b"slow", drip_seconds=0.001, drips_head=True), b"\r\n\r\nslow"),
            (Response(body=b"slow", drip_seconds=0.001), b"\r\n\r\nslow"),
            (Response(body=b"late", delay_seconds=0.05), b"late"),
            (Response(reset=ResetAt.STATUS_LINE), b"HTTP/1.1 202 Accepted\r\n"),
            (Response(body=b"half a body!", reset=ResetAt.BODY), b"\r\n\r\nhalf a"),
        ],
    )
    def test_responds_as_told(self, api: Api, answer: Response, expected: bytes) -> None:
        api.behave(answer)
        assert expected in ask(api.port, request(), expected)

    def test_a_filler_body_has_its_length(self, api: Api) -> None:
        answer = Response(filler_bytes=3_000_000, closes=True)
        api.behave(answer)
        assert len(ask(api.port, request(), b"no such thing")) == len(answer.head()) + 3_000_000

    @pytest.mark.parametrize("where", list(ResetAt))
    def test_a_reset_is_counted(self, api: Api, where: ResetAt) -> None:
        if where in {ResetAt.ACCEPT, ResetAt.HEADERS}:
            api.reset_next(where)
        else:
            api.behave(Response(reset=where, body=b"body"))
        with pytest.raises(ConnectionError):  # not the orderly end of a close
            exchange(api.port)
        assert api.resets == {where: 1}
        assert api.unknowable() == (where is ResetAt.REQUEST)
        assert len(api.attempts) == (where not in {ResetAt.ACCEPT, ResetAt.HEADERS})

    def test_the_end_is_unknowable_if_the_client_leaves_first(self, api: Api) -> None:
        api.behave(STALL)
        assert ask(api.port, request(), patience_seconds=0.2) == b""
        wait_for(lambda: not api.connections)
        assert (api.attempts[0].ended, api.unknowable(), api.in_flight) == ("left", 1, 0)

    def test_a_behaviour_that_raises_is_recorded(self, api: Api) -> None:
        api.behave(lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        assert ask(api.port, request()).startswith(b"HTTP/1.1 500")
        assert isinstance(api.errors[0], ZeroDivisionError)

    def test_a_second_port_is_recorded(self, api: Api) -> None:
        second = api.listen("127.0.0.2")
        with socket.create_connection(("127.0.0.2", second), timeout=5) as link:
            link.sendall(request())
            link.recv(1000)
        assert [attempt.port for attempt in api.attempts] == [second]


class TestProxy:
    def test_passes_on_and_counts(self, api: Api) -> None:
        with Proxy(api.port) as link:
            assert ask(link.port, request()) == OK.head()
            assert link.accepted == 1
            assert link.passed == {Way.REQUESTS: len(request()), Way.REPLIES: len(OK.head())}

    def test_a_stalled_reply_passes_once_the_stall_ends(self, api: Api) -> None:
        with Proxy(api.port) as link, connected(link.port) as client:
            client.sendall(request())
            client.recv(1000)
            link.stall(Way.REPLIES, new=False)
            client.sendall(request())
            wait_for(lambda: link.held == 1)
            assert len(api.attempts) == 2
            assert ask(link.port, request()) == OK.head(), "only old connections stall"
            link.resume()
            assert client.recv(1000) == OK.head()

    def test_a_black_hole_takes_new_connections_and_says_nothing(self, api: Api) -> None:
        with Proxy(api.port) as link:
            link.stall()
            assert ask(link.port, request(), patience_seconds=0.2) == b""
            assert link.accepted == 1
            assert not api.attempts

    def test_resets_all_even_in_a_stall(self, api: Api) -> None:
        with Proxy(api.port) as link, connected(link.port) as client:
            client.sendall(request())
            client.recv(1000)
            link.stall()
            assert link.reset_all() == link.cuts == 1
            with pytest.raises(ConnectionResetError):
                client.recv(1000)
            wait_for(lambda: not link.open_connections + len(api.connections))

    def test_refuses_and_listens_again(self, api: Api) -> None:
        with Proxy(api.port) as link:
            link.refuse()
            with pytest.raises(ConnectionRefusedError):
                ask(link.port, request())
            link.listen()
            assert ask(link.port, request()) == OK.head()

    def test_cuts_after_so_many_bytes(self, api: Api) -> None:
        with Proxy(api.port) as link:
            link.cut_after(7)
            assert ask(link.port, request()) == b"HTTP/1."
            assert link.cuts == 1

    def test_cuts_the_reply_of_the_nth_command_that_matches(self, api: Api) -> None:
        with Proxy(api.port) as link:
            link.cut_reply(b"Idempotency-Key: two", nth=2)
            answers = [ask(link.port, request(name)) for name in ("one", "two", "two", "two")]
            assert [bool(answer) for answer in answers] == [True, True, False, True]
            assert [attempt.event_id for attempt in api.attempts] == ["one", "two", "two", "two"]
            assert (link.matched, link.cuts) == (2, 1)

    def test_adds_latency(self, api: Api) -> None:
        with Proxy(api.port) as link, connected(link.port) as client:
            link.latency(0.1)
            began = time.monotonic()
            client.sendall(request())
            client.recv(1000)
            assert time.monotonic() - began >= 0.2


class TestOracle:
    @pytest.fixture
    def oracle(self, tmp_path: Path) -> Oracle:
        return Oracle(tmp_path / "producers.txt")

    def test_a_run_without_breach_passes(self, api: Api, oracle: Oracle) -> None:
        reports = [report("one"), report("two", B), report("two", B), report("three", B), report("four")]
        oracle.note([*reports, report("five", B, time=5), report("six", A, time=4)])
        for name, version in (("one", A), ("two", B), ("four", A), ("five", B)):
            ask(api.port, request(name, version))
        told = outcomes(delivered=4, duplicate=2, stale=1)
        oracle.check_conservation(api, told)
        oracle.check_bodies(api)
        oracle.check_repeats(api, 0)
        oracle.check_order(api)
        oracle.check_truth(told)

    def test_a_lost_event_is_seen(self, api: Api, oracle: Oracle) -> None:
        oracle.note([report()])
        with pytest.raises(AssertionError, match=r"are lost.*one"):
            oracle.check_conservation(api, outcomes())
        oracle.check_conservation(api, outcomes(dead_ids=["one"]))

    def test_a_rejected_event_has_not_arrived(self, api: Api, oracle: Oracle) -> None:
        oracle.note([report()])
        api.behave(Response(status=503))
        ask(api.port, request())
        with pytest.raises(AssertionError, match="are lost"):
            oracle.check_conservation(api, outcomes())

    def test_an_unreported_event_is_seen(self, api: Api, oracle: Oracle) -> None:
        ask(api.port, request())
        with pytest.raises(AssertionError, match="no producer reported"):
            oracle.check_conservation(api, outcomes())
        oracle.note([report()], acknowledged=False)
        oracle.check_conservation(api, outcomes())

    def test_a_delivered_duplicate_is_seen(self, api: Api, oracle: Oracle) -> None:
        oracle.note([report("one"), report("two")])
        for name in ("one", "two"):
            ask(api.port, request(name))
        with pytest.raises(AssertionError, match="duplicate or stale"):
            oracle.check_conservation(api, outcomes())

    def test_a_changed_body_is_seen(self, api: Api, oracle: Oracle) -> None:
        oracle.note([report()])
        ask(api.port, request("one", B))
        with pytest.raises(AssertionError, match="another event's body"):
            oracle.check_bodies(api)
        ask(api.port, request("one", A))
        with pytest.raises(AssertionError, match="several bodies"):
            oracle.check_bodies(api)

    def test_a_repeat_beyond_the_bound_is_seen(self, api: Api, oracle: Oracle) -> None:
        for _ in range(3):
            ask(api.port, request())
        oracle.check_repeats(api, 2)
        with pytest.raises(AssertionError, match="2 repeats, and 1 is the bound"):
            oracle.check_repeats(api, 1)

    def test_a_return_to_an_older_event_is_seen(self, api: Api, oracle: Oracle) -> None:
        oracle.note([report("one"), report("two", B)])
        for name in ("one", "two", "one"):
            ask(api.port, request(name))
        with pytest.raises(AssertionError, match="one was tried after its successor two"):
            oracle.check_order(api)

    def test_two_events_of_an_instance_in_flight_at_once_are_seen(self, api: Api, oracle: Oracle) -> None:
        oracle.note([report("one"), report("two", B)])
        api.behave(Response(delay_seconds=0.2))
        with connected(api.port) as first, connected(api.port) as second:
            first.sendall(request("one"))
            wait_for(lambda: api.in_flight == 1)
            second.sendall(request("two", B))
            first.recv(1000)
            second.recv(1000)
        with pytest.raises(AssertionError, match="two was tried while one was under way"):
            oracle.check_order(api)

    @pytest.mark.parametrize(
        "wrong", [{"delivered": 0}, {"delivered": 2}, {"duplicate": 1}, {"waiting": 1}, {"added": 2}, {"dead": 1}]
    )
    def test_wrong_counters_are_seen(self, oracle: Oracle, wrong: dict[str, int]) -> None:
        oracle.note([report()])
        oracle.check_truth(outcomes(delivered=1))
        with pytest.raises(AssertionError, match="counters"):
            oracle.check_truth(outcomes(**{"delivered": 1, **wrong}))
