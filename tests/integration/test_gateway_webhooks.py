"""What brokers and web hooks send: CloudEvents' handshake and answers, tokens, compressed and marked bodies."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gateways import BODY, IMAGE, TOKEN, Running, inbox

from relay.gateway.report_parsing import MAX_MANY_BYTES

if TYPE_CHECKING:
    from redis import Redis


PATHS = ("/", "/v1/deployments")
CLOUDEVENT = {
    "specversion": "1.0",
    "type": "com.acme.deployed",
    "source": "/ci/7",
    "id": "q 2",
    "data": json.loads(BODY),
}
BINARY = {
    "ce-specversion": "1.0",
    "ce-type": '"com.acme.deployed"',
    "ce-source": "/ci/7",
    "ce-id": '"q-2"',
    "ce-time": '"2026-04-05T03:56:24Z"',
    "Content-Type": "application/json",
}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "reply"}])
def test_cloudevent_in_binary_mode_is_answered_without_a_body(
    gateway: Running, client: Redis, prefer: dict[str, str]
) -> None:
    answer = gateway.post(BODY, **BINARY, **prefer)

    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["X-Relay-Event-Id"] == "q-2"
    assert answer.headers["Content-Length"] == "0"
    assert not [name for name in answer.headers if name.lower().startswith(("ce-", "content-type"))]
    (entry,) = inbox(client)
    assert (entry[b"id"], entry[b"time"]) == (b"q-2", b"2026-04-05T03:56:24+00:00")


def test_preferences_may_be_in_several_headers(gateway: Running) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    preferences = b"Prefer: respond-async, wait=10\r\nPrefer: reply\r\n"
    token = f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head + preferences + token + BODY)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert answer.endswith(b"\r\n\r\n")


def test_structured_cloudevents_are_answered_without_a_body(gateway: Running, client: Redis) -> None:
    one = gateway.post(json.dumps(CLOUDEVENT), **{"Content-Type": "application/cloudevents+json; charset=UTF-8"})
    batch = [{**CLOUDEVENT, "id": str(number)} for number in range(3)]
    many = gateway.post(json.dumps(batch), **{"Content-Type": "application/cloudevents-batch+json"})
    none = gateway.post(b"[]", **{"Content-Type": "application/cloudevents-batch+json"})

    assert [(each.status_code, each.content) for each in (one, many, none)] == [(202, b"")] * 3
    assert one.headers["X-Relay-Event-Id"] == "/ci/7#q%202"
    assert len(inbox(client)) == 4


def test_refusals_of_cloudevents_say_why(gateway: Running, client: Redis) -> None:
    refused = gateway.post(b"{}", **BINARY)
    batch = json.dumps([CLOUDEVENT, {**CLOUDEVENT, "data": None}])
    partly = gateway.post(batch, **{"Content-Type": "application/cloudevents-batch+json"})

    assert (refused.status_code, refused.json()["field"]) == (422, "image")
    assert (partly.status_code, partly.json()["ids"]) == (202, ["/ci/7#q 2", None])
    assert partly.json()["errors"][0]["index"] == 1
    assert len(inbox(client)) == 1


@pytest.mark.parametrize("headers", [{}, {"ce-id": "7"}, {"Prefer": "return=representation"}])
def test_plain_report_is_answered_with_its_id(gateway: Running, headers: dict[str, str]) -> None:
    answer = gateway.post(BODY, **JSON, **headers)
    assert (answer.status_code, answer.headers["Content-Type"], [*answer.json()]) == (202, "application/json", ["id"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"X-Relay-Token": TOKEN}, "", 202),
        ({"X-Relay-Token": "guessed"}, "", 403),
        ({}, f"?access_token={TOKEN}", 202),
        ({}, "?access_token=guessed", 403),
        ({"Authorization": "Basic Zm9vOmJhcg=="}, f"?api-version=1&access_token={TOKEN}", 202),
        ({"Authorization": "Bearer guessed"}, f"?access_token={TOKEN}", 403),
    ],
)
def test_a_token_may_be_in_other_places(
    gateway: Running, client: Redis, *, path: str, headers: dict[str, str], query: str, status: int
) -> None:
    answer = gateway.ask("POST", f"{path}{query}", data=BODY, headers={**JSON, **headers})
    assert answer.status_code == status
    assert len(inbox(client)) == (status == 202)
    assert answer.headers.get("Cache-Control") == ("private" if "access_token" in query else None)


@pytest.mark.parametrize("path", ["/events/unknown", "/metrics"])
def test_header_counts_everywhere_and_the_query_for_reports_only(gateway: Running, path: str) -> None:
    assert gateway.ask("GET", path, headers={"X-Relay-Token": TOKEN}).status_code in {200, 404}
    assert gateway.ask("GET", f"{path}?access_token={TOKEN}").status_code == 401


def test_token_of_a_query_is_in_no_log_and_no_answer(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answers = [
            gateway.ask(method, f"{path}?access_token={token}", data=b"{", headers=JSON)
            for token in (TOKEN, "canary-guessed")
            for method in ("POST", "GET", "OPTIONS", "DELETE")
            for path in (*PATHS, "/events/x", "/nowhere", "/readyz", "/admission")
        ]
    # urllib3's own lines are the sender's.
    said = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("urllib3"))
    said += "".join(f"{answer.text}{answer.headers}" for answer in answers)
    assert TOKEN not in said
    assert "canary-guessed" not in said


@pytest.mark.parametrize("path", PATHS)
def test_handshake_allows_its_sender(gateway: Running, path: str) -> None:
    headers = {"WebHook-Request-Origin": "eventgrid.azure.net", "WebHook-Request-Rate": "120"}
    answers = [
        gateway.ask("OPTIONS", f"{path}?access_token={TOKEN}", headers=headers),
        gateway.ask("OPTIONS", path, headers={**headers, "Authorization": f"Bearer {TOKEN}"}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["WebHook-Allowed-Origin"] == "eventgrid.azure.net"
        assert answer.headers["WebHook-Allowed-Rate"] == "*"
        assert answer.headers["Allow"] == "POST, OPTIONS"


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"WebHook-Request-Origin": "a.example"}, "", 401),
        ({"WebHook-Request-Origin": "a.example"}, "?access_token=guessed", 403),
        ({"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}, f"?access_token={TOKEN}", 405),
    ],
)
def test_handshake_of_others_is_refused(gateway: Running, headers: dict[str, str], query: str, status: int) -> None:
    answer = gateway.ask("OPTIONS", f"/{query}", headers=headers)
    assert (answer.status_code, [*answer.json()]) == (status, ["error", "field"])
    assert "WebHook-Allowed-Origin" not in answer.headers
    assert (answer.headers.get("Allow") == "POST") is (status == 405)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_body_is_as_the_plain_one(gateway: Running, client: Redis, encoding: str) -> None:
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    headers = {"Content-Encoding": encoding}
    one = gateway.post(compress(BODY), **JSON, **headers)
    many = gateway.post(compress(BODY + b"\n" + BODY), **{"Content-Type": "application/x-ndjson"}, **headers)
    chunked = gateway.post(iter([compress(BODY)]), **JSON, **headers)

    assert [each.status_code for each in (one, many, chunked)] == [202, 202, 202]
    assert [entry[b"event"] for entry in inbox(client)] == [BODY] * 4


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (BODY, "br", 415),
        (BODY, "gzip", 400),
        (gzip.compress(BODY)[:-4], "gzip", 400),
        (gzip.compress(b" " * 100_000_000), "gzip", 413),
        (gzip.compress(b'{"' + b"a" * 1_000_000), "gzip", 413),
        (gzip.compress(b"[" + b"1," * (MAX_MANY_BYTES // 2) + b"1]"), "gzip", 413),
        (gzip.compress(b"{"), "gzip", 400),
    ],
    ids=["br", "plain", "cut", "bomb", "one too large", "many too large", "no JSON"],
)
def test_compressed_bodies_that_are_refused(
    gateway: Running, client: Redis, *, body: bytes, encoding: str, status: int
) -> None:
    answer = gateway.post(body, **JSON, **{"Content-Encoding": encoding})
    assert (answer.status_code, [*answer.json()]) == (status, ["error", "field"])
    assert status != 415 or "gzip" in answer.json()["error"]
    assert inbox(client) == []


@pytest.mark.parametrize(
    "name",
    ["application/ndjson", "application/jsonl", "application/x-jsonlines", "Application/JSONLines; charset=utf-8"],
)
def test_json_lines_have_many_names(gateway: Running, client: Redis, name: str) -> None:
    answer = gateway.post(BODY + b"\n" + BODY, **{"Content-Type": name})
    assert (answer.status_code, len(answer.json()["ids"]), len(inbox(client))) == (202, 2, 2)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", BODY),
        ("application/json", b"[" + BODY + b"]"),
        ("application/json", b" \n[" + BODY + b"]"),
        ("application/x-ndjson", BODY),
        ("application/cloudevents+json", json.dumps(CLOUDEVENT).encode()),
        ("application/cloudevents-batch+json", json.dumps([CLOUDEVENT]).encode()),
    ],
)
def test_byte_order_mark_before_a_body_is_skipped(
    gateway: Running, client: Redis, content_type: str, body: bytes
) -> None:
    answer = gateway.post(b"\xef\xbb\xbf" + body, **{"Content-Type": content_type})
    assert answer.status_code == 202
    assert [json.loads(entry[b"event"])["image"]["url"] for entry in inbox(client)] == [IMAGE]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 400),
        ({"Content-Type": "application/x-ndjson"}, 400),
        ({"Content-Type": "application/cloudevents+json"}, 400),
        ({"Content-Type": "application/cloudevents-batch+json"}, 400),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
        ({"Content-Type": 'application/x-ndjson; charset="UTF-16LE"'}, 415),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_refused_by_name(gateway: Running, headers: dict[str, str], status: int, encoding: str) -> None:
    answer = gateway.post(BODY.decode().encode(encoding), **headers)
    assert answer.status_code == status
    assert "UTF-16" in answer.json()["error"].upper()
    assert "UTF-8" in answer.json()["error"]


def test_latin_1_is_refused_as_not_utf_8(gateway: Running) -> None:
    body = '{"environment": {"name": "produktion-ö"}}'.encode("latin-1")
    said = gateway.post(body, **{"Content-Type": "application/json; charset=iso-8859-1"}).json()["error"]
    assert said == "the body is not valid JSON: it is not UTF-8, send it in UTF-8"


@pytest.mark.parametrize(
    "digest", ["", "null", "undefined", "<no value>", "$(tasks.build.results.DIGEST)", "${DIGEST}", "sha256:"]
)
def test_an_unset_digest_is_refused_as_empty(gateway: Running, digest: str) -> None:
    said: Any = gateway.post(json.dumps({"image": {"url": f"ghcr.io/acme/api@{digest}"}}), **JSON).json()
    assert said["field"] == "image.url"
    assert said["error"].startswith("the digest is empty: was the output it comes from set?")
