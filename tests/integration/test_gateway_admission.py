"""Admission reviews through the gateway: always allowed, in time, and what they deploy is in the inbox."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from os import kill
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gateways import DEADLINE_SECONDS, TOKEN, Running, running
from redis import Redis
from rig import wait_for

from relay.errors import ConfigurationError
from relay.events.platform import Platform, parse_platform
from relay.gateway import admission_endpoint, server
from relay.gateway import nodes as gateway_nodes
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue import nodes
from relay.queue.keys import Keys
from relay.settings import GatewaySettings, Settings

if TYPE_CHECKING:
    import requests

REVIEWS = Path(__file__).parents[1] / "data" / "kubernetes"

#: What the design grants a review, and a loaded machine on top.
IN_TIME_SECONDS = 0.2 + 1.0

NAMED = {"cluster": "kind-1"}
BEGIN = b"POST /admission HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

#: A gateway that takes reviews of every client.
OPEN = {"port": 0, "token": TOKEN, "admission": "open"}


def review(name: str, **changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((REVIEWS / f"review-{name}.json").read_text())
    document["request"] |= changes
    return document


def ask(gateway: Running, body: object, **headers: str) -> requests.Response:
    content = body if isinstance(body, bytes | Iterator) else json.dumps(body).encode()
    return gateway.ask("POST", "/admission", data=content, headers={"Content-Type": "application/json", **headers})


def is_allowed(answer: requests.Response, uid: str) -> bool:
    document = answer.json()
    return answer.status_code == 200 and document["response"] == {"uid": uid, "allowed": True}


@pytest.fixture(scope="module")
def serving(redis_server: EmbeddedRedis) -> Iterator[Running]:
    with running(redis_server.url, kubernetes=NAMED, gateway=OPEN) as gateway:
        yield gateway


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A review has as long as a loaded machine needs, where a test is about what is reported and not about time."""
    monkeypatch.setattr(admission_endpoint, "BODY_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(admission_endpoint, "ANSWER_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(gateway_nodes, "FIRST_SECONDS", DEADLINE_SECONDS)


def inbox(client: Redis) -> list[dict[str, Any]]:
    return [json.loads(fields[b"event"]) for _, fields in client.xrange(Keys().inbox)]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", ["create", "status", "ephemeral"])
def test_a_reviews_events_are_enqueued_before_the_response(gateway: Running, client: Redis, name: str) -> None:
    asked = review(name)
    assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
    events = inbox(client)
    assert events
    assert {event["environment"]["name"] for event in events} == {f"kind-1/{asked['request']['namespace']}"}
    [source] = {fields[b"source"] for _, fields in client.xrange(Keys().inbox)}
    assert source == b"kind-1"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"request": 7}', b'{"request": {"uid": 7}}',
        b'{"request": {"uid": "", "object": []}}', b" " * 3_000_000,
    ],
)  # fmt: skip
def test_malformed_reviews_are_allowed(gateway: Running, client: Redis, body: bytes) -> None:
    assert is_allowed(ask(gateway, body), "")
    assert inbox(client) == []


@pytest.mark.parametrize("asked", [review("dry-run"), review("delete"), review("create", resource={"resource": "x"})])
def test_reviews_without_events_are_allowed_and_counted(
    gateway: Running, client: Redis, asked: dict[str, Any]
) -> None:
    assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
    assert inbox(client) == []
    wait_for(lambda: any(name.startswith(b"skipped:") for name in client.hgetall(Keys().counts)), 20)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("is_declared", [True, False])
def test_review_too_large_is_allowed_and_not_read(gateway: Running, client: Redis, *, is_declared: bool) -> None:
    for size, taken in (
        (admission_endpoint.MAX_REVIEW_BYTES, True),
        (admission_endpoint.MAX_REVIEW_BYTES + 1, False),
    ):
        client.flushall()
        asked = review("create")
        body = json.dumps(asked).encode().ljust(size)
        answer = ask(gateway, body if is_declared else iter([body]))
        assert is_allowed(answer, asked["request"]["uid"])
        if taken:  # the gateway may not know the nodes yet: then it reports after its answer
            wait_for(lambda: bool(inbox(client)), 20)
        else:
            assert not inbox(client)


def test_a_review_that_does_not_arrive_is_allowed_with_its_uid(gateway: Running, client: Redis) -> None:
    body = json.dumps(asked := review("create")).encode()
    with gateway.connect() as connection, HTTPResponse(connection) as answer:
        connection.sendall(BEGIN + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        answer.begin()
        assert json.loads(answer.read())["response"] == {"uid": asked["request"]["uid"], "allowed": True}
    assert inbox(client) == []


def test_a_body_that_does_not_arrive_is_allowed_in_time(gateway: Running) -> None:
    with gateway.connect() as connection:
        began = time.monotonic()
        connection.sendall(BEGIN + b"Content-Length: 100\r\n\r\n{")
        answer = connection.recv(10_000)
        assert time.monotonic() - began < IN_TIME_SECONDS
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"allowed":true' in answer


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_an_unavailable_redis_delays_no_review(number: signal.Signals) -> None:
    with EmbeddedRedis(append_only=False) as away, running(away.url, kubernetes=NAMED, gateway=OPEN) as gateway:
        asked = review("create")
        assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
        if number is signal.SIGKILL:
            away.kill()
        else:
            kill(away.pid, number)
        try:
            for _ in range(5):
                began = time.monotonic()
                assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
                assert time.monotonic() - began < IN_TIME_SECONDS
        finally:
            if number is signal.SIGSTOP:
                kill(away.pid, signal.SIGCONT)


def test_a_late_report_is_enqueued_after_the_response(client: Redis, redis_server: EmbeddedRedis) -> None:
    redis = {"url": redis_server.url, "timeout": 20}
    with running(redis_server.url, redis=redis, kubernetes=NAMED, gateway=OPEN) as gateway:
        client.execute_command("CLIENT", "PAUSE", "700", "ALL")
        asked = review("create")
        assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
        client.execute_command("CLIENT", "UNPAUSE")
        wait_for(lambda: bool(inbox(client)), 20)


def test_an_unexpected_error_allows_the_review_and_is_one_log_line(
    gateway: Running, client: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(admission_endpoint, "read_review", broken)
    asked = review("create")
    assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
    assert "an admission review failed, and was allowed: RuntimeError" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.usefixtures("patient")
def test_reports_beyond_the_maximum_are_dropped_and_counted(
    redis_server: EmbeddedRedis, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_endpoint, "MAX_BEHIND", 0)
    with running(redis_server.url, kubernetes=NAMED, gateway=OPEN) as gateway:
        asked = review("create")
        assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
    assert inbox(client) == []
    assert client.hget(Keys().counts, "skipped:not_reported"), "counted at the latest when it ends"


@pytest.mark.usefixtures("patient")
def test_admission_may_require_a_token_or_be_off(redis_server: EmbeddedRedis, client: Redis) -> None:
    asked = review("create")
    uid = asked["request"]["uid"]
    for admission, taken in (("token", True), ("off", False)):
        client.flushall()
        door = {"port": 0, "token": TOKEN, "admission": admission}
        with running(redis_server.url, gateway=door, kubernetes=NAMED) as gateway:
            assert is_allowed(ask(gateway, asked), uid)
            assert is_allowed(ask(gateway, asked, Authorization="Bearer guessed"), uid)
            assert inbox(client) == []
            assert is_allowed(ask(gateway, asked, Authorization=f"Bearer {TOKEN}"), uid)
            assert bool(inbox(client)) is taken


@pytest.mark.parametrize("admission", ["token", "off"])
def test_a_refused_review_is_not_read_to_its_end(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, admission: str
) -> None:
    monkeypatch.setattr(admission_endpoint, "BODY_SECONDS", 60)
    body = json.dumps(asked := review("create")).encode().ljust(admission_endpoint.UID_BYTES)
    sections = {"gateway": {"port": 0, "token": TOKEN, "admission": admission}, "kubernetes": NAMED}
    with running(redis_server.url, **sections) as gateway, gateway.connect() as connection:
        connection.sendall(BEGIN + b"Content-Length: 4000000\r\n\r\n" + body)
        with HTTPResponse(connection) as answer:
            answer.begin()
            assert f'"uid":"{asked["request"]["uid"]}"'.encode() in answer.read1()


def test_token_of_other_environments_reports_nothing(
    redis_server: EmbeddedRedis, client: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text('[one]\ntoken = "of-one"\nenvironments = ["elsewhere"]\n')
    asked = review("create")
    door = {"port": 0, "tokens_file": file, "admission": "token"}
    with running(redis_server.url, gateway=door, kubernetes=NAMED) as gateway:
        assert is_allowed(ask(gateway, asked, Authorization="Bearer of-one"), asked["request"]["uid"])
    assert inbox(client) == []
    assert client.hget(Keys().counts, "skipped:not_permitted")


def test_cluster_without_a_name_is_refused_at_the_start_where_reviews_are_expected() -> None:
    default = GatewaySettings.model_fields["admission"].default
    chosen = "open" if default == "token" else "token"
    for sections in (
        {"kubernetes": {"environment_template": "{cluster}/{namespace}"}},
        {"gateway": {"token": TOKEN, "admission": chosen}},
    ):
        with pytest.raises(ConfigurationError, match="CLUSTER_NAME"):
            server.create_server(Settings.load(**sections))


def test_cluster_without_a_name_is_allowed_and_counted_where_no_reviews_are_expected(
    redis_server: EmbeddedRedis, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with running(redis_server.url) as gateway:
        for _ in range(3):
            answer = ask(gateway, asked := review("create"), Authorization=f"Bearer {TOKEN}")
            assert is_allowed(answer, asked["request"]["uid"])
    assert inbox(client) == []
    assert client.hget(Keys().counts, "skipped:cluster_unnamed") == b"3"
    assert "set CLUSTER_NAME" in caplog.text


@pytest.mark.usefixtures("patient")
def test_cluster_that_has_no_name_on_purpose_reports(redis_server: EmbeddedRedis, client: Redis) -> None:
    with running(redis_server.url, kubernetes={"cluster": "none"}, gateway=OPEN) as gateway:
        assert is_allowed(ask(gateway, asked := review("create")), asked["request"]["uid"])
    assert [event["environment"]["name"] for event in inbox(client)] == [asked["request"]["namespace"]]
    assert [b"source" in fields for _, fields in client.xrange(Keys().inbox)] == [False]


# Platforms


ARM64 = parse_platform("linux/arm64")
#: The node of the recorded status update.
NODE = "ip-10-0-41-17.eu-west-1.compute.internal"


def unpinned(name: str) -> dict[str, Any]:
    """A review of a pod whose specification does not say where it may run."""
    document = review(name)
    document["request"]["object"]["spec"].pop("nodeSelector", None)
    return document


def platforms(client: Redis) -> list[str | None]:
    return [event.get("platform", {}).get("architecture") for event in inbox(client)]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("maps", "name", "expected"),
    [
        ({"kind-1": {NODE: ARM64}}, "status", ["arm64"]),
        ({"kind-1": {"another": ARM64}}, "status", []),  # a new node: the watcher reports it
        ({"kind-1": {NODE: ARM64}}, "create", []),  # not scheduled yet
        ({"kind-1": {}}, "create", []),
        ({"kind-2": {NODE: ARM64}}, "create", [None]),  # another cluster's map
        ({}, "create", [None]),  # no watcher: as the specification says, else the environment's rule
    ],
)
def test_no_platform_is_guessed_while_a_watcher_publishes_them(
    redis_server: EmbeddedRedis,
    client: Redis,
    maps: dict[str, dict[str, Platform]],
    name: str,
    expected: list[str | None],
) -> None:
    for cluster, known in maps.items():
        nodes.publish(client, Keys(), cluster, known)
    with running(redis_server.url, kubernetes=NAMED, gateway=OPEN) as gateway:
        asked = unpinned(name)
        assert is_allowed(ask(gateway, asked), asked["request"]["uid"])
        assert platforms(client) == expected
    if not expected:
        assert client.hget(Keys().counts, "skipped:platform_unknown") == b"1"


@pytest.mark.usefixtures("patient")
def test_platforms_are_read_again_and_not_for_each_review(
    redis_server: EmbeddedRedis, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_nodes, "REFRESH_SECONDS", 0.05)
    nodes.publish(client, Keys(), "kind-1", {})
    with running(redis_server.url, kubernetes=NAMED, gateway=OPEN) as gateway:
        ask(gateway, unpinned("status"))
        assert platforms(client) == []
        nodes.publish(client, Keys(), "kind-1", {NODE: ARM64})
        wait_for(lambda: bool(ask(gateway, unpinned("status"))) and platforms(client)[:1] == ["arm64"], 20)
        client.delete(Keys().nodes("kind-1"))  # it expired
        wait_for(lambda: bool(ask(gateway, unpinned("create"))) and None in platforms(client), 20)
        monkeypatch.setattr(gateway_nodes, "REFRESH_SECONDS", 3600)
        asked_before = client.info("commandstats")["cmdstat_getrange"]["calls"]
        for _ in range(20):
            ask(gateway, unpinned("create"))
        calls = client.info("commandstats")["cmdstat_getrange"]["calls"] - asked_before
        assert calls < 10, "a reading may be under way, but none is made for a review"


def test_platforms_stay_known_while_redis_is_unavailable() -> None:
    """And what was never known is not guessed."""
    with EmbeddedRedis(append_only=False) as away:
        with Redis.from_url(away.url) as client:
            nodes.publish(client, Keys(), "kind-1", {NODE: ARM64})
        with running(away.url, kubernetes=NAMED, gateway=OPEN) as gateway:
            assert is_allowed(ask(gateway, unpinned("status")), unpinned("status")["request"]["uid"])
            away.kill()
            began = time.monotonic()
            assert is_allowed(ask(gateway, unpinned("status")), unpinned("status")["request"]["uid"])
            assert time.monotonic() - began < IN_TIME_SECONDS
        with running(away.url, kubernetes=NAMED, gateway=OPEN) as gateway:
            for _ in range(3):
                began = time.monotonic()
                assert is_allowed(ask(gateway, unpinned("create")), unpinned("create")["request"]["uid"])
                assert time.monotonic() - began < IN_TIME_SECONDS
