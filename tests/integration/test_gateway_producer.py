"""`GatewayProducer` against servers with faults on real sockets."""

from __future__ import annotations

import json
import shutil
import threading
import time
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import servers
from rig import wait_for
from servers import Authority, Server, answer, byte_by_byte, endless_body, half_a_body, hang, head, reset

from relay import ConfigurationError, DeploymentEvent, GatewayProducer, GatewayRefused, QueueFull, QueueUnavailable
from relay.backoff import pause_seconds
from relay.producer import gateway_producer
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from random import Random

    from servers import Action, Received, Step

TOKEN = "canary-token-of-the-gateway"
IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'a').hexdigest()}"

#: Longer than a test takes, and shorter than the libraries' time-outs.
PATIENCE_SECONDS = 30.0


def producer(server: Server, timeout: float = PATIENCE_SECONDS, **settings: object) -> GatewayProducer:
    given = {"gateway_url": server.url, "gateway_token": TOKEN, "gateway_timeout": timeout, **settings}
    return GatewayProducer(settings=Settings.load(producer=given))


def take_all(request: Received) -> Iterable[Action]:
    """Respond as a gateway that accepts each line, with their ids."""
    ids = [each["id"] for each in lines(request)]
    return answer(202, json.dumps({"ids": ids}).encode())(request)


def serving(*steps: Step) -> Server:
    """Serve these responses, and then a gateway's own."""
    return Server(*steps, take_all)


def lines(request: Received) -> list[dict[str, str]]:
    return [json.loads(line) for line in request.body.splitlines()]


@pytest.mark.parametrize(
    "mishap",
    [
        reset,
        half_a_body(202),
        answer(503, b"<html>"),
        answer(500),
        answer(408),
        answer(429, b'{"error": "full"}', Retry_After="0"),
        answer(502, b"{" + b"[" * 1000),
        servers.says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    ],
)
def test_temporary_failures_are_retried_with_the_same_id(mishap: Step) -> None:
    with serving(mishap, mishap) as server, producer(server) as reports:
        event_id = reports.report(IMAGE, environment="production", source="ci")
        requests = server.await_requests(3)
        assert [lines(request)[0]["id"] for request in requests] == [event_id] * 3
        assert {request.headers["authorization"] for request in requests} == {f"Bearer {TOKEN}"}
        assert requests[0].line == "POST / HTTP/1.1"


def test_enqueued_events_of_many_are_not_sent_again() -> None:
    partly = {"error": "full", "ids": ["a", None, None], "errors": [{"index": 1, "field": "x", "reason": "no"}]}
    with serving(answer(429, json.dumps(partly).encode())) as server, producer(server) as reports:
        outcomes = reports.report_many([DeploymentEvent.of(IMAGE, id=name) for name in "abc"])
        assert [str(outcome) for outcome in outcomes] == ["a", "x: no", "c"]
        assert [each["id"] for each in lines(server.await_requests(2)[1])] == ["c"]


def test_retry_after_is_waited_for() -> None:
    with serving(answer(503, Retry_After="2")) as server, producer(server) as reports:
        begun = time.monotonic()
        reports.report(IMAGE)
        assert time.monotonic() - begun >= 2


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    with serving(answer(429, Retry_After="3600")) as server, producer(server, timeout=10) as reports:
        begun = time.monotonic()
        with pytest.raises(QueueFull):
            reports.report(IMAGE)
        assert time.monotonic() - begun < 9
        assert len(server.received) == 1


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (answer(429, b'{"error": "the queue is full"}'), QueueFull),
        (answer(503), QueueUnavailable),
        (reset, QueueUnavailable),
    ],
)
def test_retries_end_with_the_deadline(step: Step, error: type[Exception]) -> None:
    with Server(step) as server, producer(server, timeout=1.5) as reports, pytest.raises(error):
        reports.report(IMAGE)
    assert len(server.received) > 1


@pytest.mark.parametrize(
    "step",
    [
        hang,
        byte_by_byte(head(202, {"Content-Length": "20"}), every_seconds=0.2),
        byte_by_byte(
            b'{"ids": ["a"]}' + b" " * 1000, every_seconds=0.2, at_once=head(202, {"Content-Length": "1014"})
        ),
    ],
)
def test_an_answer_without_end_ends_with_the_deadline(step: Step) -> None:
    """A socket's time-out begins anew with each byte: the deadline must not."""
    begun = time.monotonic()
    with Server(step) as server, producer(server, timeout=1.0) as reports:
        with pytest.raises(QueueUnavailable, match=r"no whole answer|Read timed out"):  # the first of two time-outs
            reports.report(IMAGE)
        assert time.monotonic() - begun < servers.DEADLINE_SECONDS / 2
    for thread in threading.enumerate():
        if thread.name == "gateway":
            thread.join(PATIENCE_SECONDS)  # its server is gone, so that it ends


def test_an_endless_answer_is_not_read() -> None:
    with Server(endless_body(202)) as server, producer(server) as reports, pytest.raises(GatewayRefused, match="URL"):
        reports.report(IMAGE)


def test_a_redirect_is_not_followed_with_the_token() -> None:
    with Server(answer(202)) as elsewhere, Server(answer(307, Location=elsewhere.url)) as server:
        with producer(server) as reports, pytest.raises(GatewayRefused, match="redirects"):
            reports.report(IMAGE)
        assert not elsewhere.received


def test_a_netrc_file_does_not_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for token in (TOKEN, ""):
        with serving() as server, producer(server, gateway_token=token) as reports:
            reports.report(IMAGE)
            [request] = server.received
            assert request.headers.get("authorization") == (f"Bearer {TOKEN}" if token else None)


def test_a_proxy_of_the_environment_makes_a_tunnel_for_https(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(answer(403)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        given = {"gateway_url": "https://relay.invalid", "gateway_timeout": 1, "gateway_token": TOKEN}
        with GatewayProducer(settings=Settings.load(producer=given)) as reports, pytest.raises(QueueUnavailable):
            reports.report(IMAGE)
    assert {request.line.rpartition(" ")[0] for request in proxy.received} == {"CONNECT relay.invalid:443"}
    assert not any("authorization" in request.headers for request in proxy.received)


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_no_proxy_of_the_environment_gets_plain_http(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server, serving() as proxy, producer(server) as reports:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        reports.report(IMAGE)
        assert not proxy.received
        assert [request.headers["authorization"] for request in server.received] == [f"Bearer {TOKEN}"]


def test_connections_are_kept() -> None:
    with serving() as server, producer(server) as reports:
        for _ in range(3):
            reports.report(IMAGE)
        assert server.connections == 1


def test_many_events_go_in_bounded_requests() -> None:
    with serving() as server, producer(server) as reports:
        events = [DeploymentEvent.of(IMAGE, id=str(number)) for number in range(2_500)]
        assert reports.report_many(events) == [str(number) for number in range(2_500)]
        assert [len(lines(request)) for request in server.received] == [1_000, 1_000, 500]


def test_events_are_sent_while_the_iterator_pauses() -> None:
    """A generator waits until each event has arrived: with requests cut by number alone it would wait without end."""
    with serving() as server, producer(server) as reports:

        def pausing() -> Iterator[DeploymentEvent]:
            for number in range(2):
                yield DeploymentEvent.of(IMAGE, id=f"e{number}")
                wait_for(lambda: len(server.received) > number, PATIENCE_SECONDS)  # noqa: B023 - called at once

        assert list(reports.report_stream(pausing())) == ["e0", "e1"]
        assert list(reports.report_stream(DeploymentEvent.of(IMAGE, id=f"s{each}") for each in range(3))) == [
            "s0",
            "s1",
            "s2",
        ]
        assert [len(lines(request)) for request in server.received] == [1, 1, 3]


def test_error_of_a_later_request_has_the_ids_that_are_enqueued() -> None:
    taken = json.dumps({"ids": [str(number) for number in range(1_000)]}).encode()
    partly = json.dumps({"ids": ["1000", None]}).encode()
    events = [DeploymentEvent.of(IMAGE, id=str(number)) for number in range(1_002)]
    with (
        Server(answer(202, taken), answer(429, partly)) as server,
        producer(server, timeout=1) as reports,
        pytest.raises(QueueFull) as full,
    ):
        reports.report_many(events)
    assert full.value.enqueued == tuple(str(number) for number in range(1_001))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    return Authority(tmp_path_factory.mktemp("tls"))


def test_configured_authority_takes_precedence_over_the_environment(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    ids = json.dumps({"ids": ["a"]}).encode()
    with (
        Server(answer(202, ids), tls=authority.server("good")) as server,
        producer(server, gateway_ca_file=authority.file) as reports,
    ):
        assert reports.report(IMAGE, id="a") == "a"


@pytest.mark.parametrize("variable", ["RELAY_PRODUCER__GATEWAY_CA_FILE", "REQUESTS_CA_BUNDLE"])
def test_authorities_that_are_missing_are_named(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "missing.pem"))
    with GatewayProducer("https://127.0.0.1:1") as reports, pytest.raises(ConfigurationError) as refused:
        reports.report(IMAGE)
    assert str(tmp_path / "missing.pem") in str(refused.value)
    assert variable in str(refused.value)


def test_an_untrusted_certificate_gets_no_token_and_no_retry(authority: Authority) -> None:
    with Server(answer(202), tls=authority.self_signed()) as server, producer(server) as reports:
        begun = time.monotonic()
        with pytest.raises(QueueUnavailable, match="certificate is not trusted"):
            reports.report(IMAGE)
        assert time.monotonic() - begun < PATIENCE_SECONDS / 2
        assert not server.received


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set RELAY_GATEWAY_URL"),
        ({"gateway_url": "https://u:p@relay.example.com"}, "must not carry a user"),
        ({"gateway_url": "relay.example.com"}, "must be http:// or https://"),
        ({"gateway_url": "https://relay.example.com/?token=x"}, "and no query"),
        ({"gateway_url": "http://relay.example.com", "gateway_token": TOKEN}, "in the clear"),
        ({"gateway_url": "https://relay.example.com", "gateway_token": f"{TOKEN}\nX: y"}, "no token has"),
        ({"gateway_url": "https://relay.example.com", "gateway_token": f"{TOKEN}é"}, "no token has"),
        ({"gateway_url": "https://relay.example.com", "gateway_token_file": "/nowhere/token"}, "cannot be read"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_sent(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        GatewayProducer(settings=Settings.load(producer=settings))
    assert TOKEN not in str(refused.value)


def test_the_token_is_in_no_error() -> None:
    for step in (answer(401, b'{"error": "wrong"}'), answer(503), reset):
        with Server(step) as server, producer(server, timeout=0.3) as reports:
            with pytest.raises((GatewayRefused, QueueUnavailable)) as refused:
                reports.report(IMAGE)
            seen = repr(refused.value) + str(refused.value) + repr(refused.value.__cause__) + repr(vars(reports))
            assert TOKEN not in seen


def test_a_pause_that_outlasts_the_time_ends_in_the_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is suspended, or very busy."""
    sleep = time.sleep
    monkeypatch.setattr(gateway_producer.time, "sleep", lambda _: sleep(1.1))
    with Server(answer(503)) as server, producer(server, timeout=1) as reports, pytest.raises(QueueUnavailable):
        reports.report(IMAGE)


def test_pauses_grow_with_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(attempt: int, *, initial: float, maximum: float, random: Random) -> float:
        drawn.append(attempt)
        assert (initial, maximum) == gateway_producer.PAUSE_SECONDS
        return pause_seconds(attempt, initial=initial, maximum=maximum, random=random)

    monkeypatch.setattr(gateway_producer, "pause_seconds", draw)
    with serving(*[answer(503)] * 3) as server, producer(server) as reports:
        reports.report(IMAGE)
    assert drawn == [1, 2, 3]
