"""CloudEvents' web hooks, and bodies with a Content-Encoding: decisions without a socket."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from http import HTTPStatus
from typing import Any

import pytest

pytest.importorskip("starlette")

from relay.gateway import compression, responses, webhook
from relay.gateway.report_parsing import Fault
from relay.gateway.responses import Response
from relay.http.refused import Refused

TEXT = b'{"image": {}}' * 10


@pytest.mark.parametrize(
    ("headers", "query", "authorization"),
    [
        ({}, b"", None),
        ({}, b"access_tokens=a&xaccess_token=b&access_token", None),
        ({"authorization": "Bearer a"}, b"access_token=c", "Bearer a"),
        ({"authorization": "bearer a", "x-relay-token": "b"}, b"", "bearer a"),
        ({"authorization": "Basic a", "x-relay-token": "b"}, b"", "Bearer b"),
        ({"authorization": "Basic a"}, b"", "Basic a"),
        ({"x-relay-token": "b"}, b"access_token=c", "Bearer b"),
        ({}, b"a=1&access_token=c%2Bd%20+/=&access_token=e", "Bearer c+d +/="),
        ({}, b"access_token=%C3%A9", "Bearer \xc3\xa9"),
    ],
)
def test_the_places_of_a_token(headers: dict[str, str], query: bytes, authorization: str | None) -> None:
    assert webhook.authorization_of(headers, query) == authorization


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-type": "com.acme.deployed"},
        {"ce-specversion": "1.0"},
        {"content-type": "application/cloudevents+json"},
        {"content-type": "Application/CloudEvents-Batch+JSON; charset=UTF-8"},
        {"prefer": "reply"},
        {"prefer": 'respond-async, Reply ; x="y", wait=10'},
        {"prefer": 'wait=10, reply=""'},
    ],
)
def test_cloudevents_and_prefer_reply_get_no_body(headers: dict[str, str]) -> None:
    assert webhook.wants_no_body(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json", "ce-id": "7", "ce-source": "/a", "ce-time": "2025-01-31T12:00:00Z"},
        {"content-type": "application/cdevents+json"},
        {"prefer": "return=minimal, replying, wait=reply"},
    ],
)
def test_plain_reports_get_a_body(headers: dict[str, str]) -> None:
    assert not webhook.wants_no_body(headers)


@pytest.mark.parametrize(
    ("answer", "headers"),
    [
        (responses.accepted("/ci/7#1"), {"X-Relay-Event-Id": "/ci/7#1"}),
        (responses.accepted('a b"%ö'), {"X-Relay-Event-Id": "a%20b%22%25%C3%B6"}),
        (responses.accepted_many(["1", "2"], []), {}),
    ],
)
def test_answer_without_a_body_has_the_id_in_a_header(answer: Response, headers: dict[str, str]) -> None:
    assert webhook.without_body(answer) == Response(HTTPStatus.ACCEPTED, None, headers)


@pytest.mark.parametrize(
    "answer",
    [
        responses.accepted_many(["1", None], [Fault(index=1, field="source", reason="is missing")]),
        responses.refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "is missing", field="source"),
    ],
)
def test_answer_that_names_faults_keeps_its_body(answer: Response) -> None:
    assert webhook.without_body(answer) == answer


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate", "identity, gzip", " gzip "])
def test_encodings_that_are_accepted(encoding: str) -> None:
    assert compression.is_compressed({"content-encoding": encoding})


@pytest.mark.parametrize("headers", [{}, {"content-encoding": ""}, {"content-encoding": "Identity"}])
def test_bodies_that_have_no_encoding(headers: dict[str, str]) -> None:
    assert not compression.is_compressed(headers)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "aws-chunked", "gzip;q=1"])
def test_other_encodings_are_415_with_those_that_are_accepted(encoding: str) -> None:
    with pytest.raises(Refused, match="gzip, deflate") as refused:
        compression.is_compressed({"content-encoding": encoding})
    assert refused.value.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert refused.value.headers == {"Accept-Encoding": "gzip, deflate"}


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(TEXT),
        zlib.compress(TEXT),
        zlib.compress(TEXT, wbits=-zlib.MAX_WBITS),
        zlib.compress(TEXT, 1, wbits=9),
        gzip.compress(TEXT[:50]) + gzip.compress(TEXT[50:]),
        gzip.compress(TEXT) + bytes(512),
    ],
    ids=["gzip", "deflate", "raw deflate", "a small window", "two members", "padding"],
)
def test_body_is_decompressed_up_to_the_last_byte_that_is_allowed(body: bytes) -> None:
    assert compression.decompress(body, len(TEXT)) == TEXT
    with pytest.raises(Refused) as refused:
        compression.decompress(body, len(TEXT) - 1)
    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        TEXT,
        gzip.compress(TEXT)[:-1],
        gzip.compress(TEXT)[:20],
        gzip.compress(TEXT) + b"garbage",
        gzip.compress(TEXT)[:-8] + bytes(8),
        gzip.compress(b"") * 10_000,
    ],
    ids=["empty", "plain", "cut", "cut early", "garbage after it", "wrong checksum", "many members"],
)
def test_body_that_is_damaged_is_400(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        compression.decompress(body, 1_000_000)
    assert refused.value.status == HTTPStatus.BAD_REQUEST


def test_a_compression_bomb_takes_bounded_memory() -> None:
    allowed = 100_000
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            compression.decompress(bomb, allowed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert peak < 5 * allowed


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 405), ({"webhook-request-origin": " "}, 405), ({"webhook-request-origin": "a" * 254}, 400)],
)
def test_other_options_requests_are_refused(headers: dict[str, Any], status: int) -> None:
    with pytest.raises(Refused) as refused:
        webhook.consent(headers)
    assert refused.value.status == status
