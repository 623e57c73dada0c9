"""What a request reports and is answered, in tables."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from redis import exceptions as redis_errors

pytest.importorskip("packageurl")

from relay.connections.failover import WrongServer
from relay.errors import ConfigurationError, InvalidEvent, QueueFull, QueueUnavailable
from relay.events.event import DeploymentEvent
from relay.gateway import cloudevents, report_parsing, responses
from relay.gateway.auth import Principal, Rejection, Tokens
from relay.gateway.report_parsing import Envelope, Fault, Limits, Media
from relay.http.refused import Refused

if TYPE_CHECKING:
    from relay.errors import RelayError

URL = "registry.example.com/app@sha256:" + "0123456789abcdef" * 4
LIMITS = Limits(one=300, many=1000)


def event(**more: object) -> bytes:
    return json.dumps({"image": {"url": URL}, **more}).encode()


@pytest.mark.parametrize(
    ("authorization", "token", "who"),
    [
        (None, "", "anonymous"),
        ("Bearer whatever", "", "anonymous"),
        ("Bearer secret", "secret", "gateway.token"),
        ("bearer  secret ", "secret", "gateway.token"),
        ("Bearer g\xc3\xbcltig", "gültig", "gateway.token"),
        (None, "secret", Rejection.MISSING_TOKEN),
        ("", "secret", Rejection.MISSING_TOKEN),
        ("Bearer", "secret", Rejection.MISSING_TOKEN),
        ("Bearer  ", "secret", Rejection.MISSING_TOKEN),
        ("Basic c2VjcmV0", "secret", Rejection.MISSING_TOKEN),
        ("secret", "secret", Rejection.MISSING_TOKEN),
        ("Bearer secre", "secret", Rejection.WRONG_TOKEN),
        ("Bearer secrets", "secret", Rejection.WRONG_TOKEN),
        ("Bearer Secret", "secret", Rejection.WRONG_TOKEN),
        ("Bearer \xff", "secret", Rejection.WRONG_TOKEN),
    ],
)
def test_tokens_are_identified(authorization: str | None, token: str, who: str | Rejection) -> None:
    found = Tokens.single(token).identify(authorization)
    assert (found.name if isinstance(found, Principal) else found) == who


@pytest.mark.parametrize(
    ("headers", "media"),
    [
        ({"content-type": "application/json"}, Media.JSON),
        ({"content-type": "Application/JSON; charset=utf-8"}, Media.JSON),
        ({"content-type": "application/x-ndjson"}, Media.LINES),
        ({"content-type": "application/json", "content-encoding": "identity"}, Media.JSON),
        ({"content-type": "application/vnd.acme.deployment+json"}, Media.JSON),
        ({"ce-type": "com.acme.deployed"}, Media.JSON),
        ({"content-type": "application/ndjson"}, Media.LINES),
        ({"content-type": "application/jsonl; charset=utf-8"}, Media.LINES),
        ({"content-type": "Application/X-JSONLines"}, Media.LINES),
        ({"content-type": "text/x-ndjson"}, Media.LINES),
        ({"content-type": "text/jsonl; charset=utf-8"}, Media.LINES),
        ({"content-type": "application/json; charset=iso-8859-1"}, Media.JSON),
        ({"content-type": "application/cloudevents+json; charset=UTF-8"}, Media.CLOUDEVENT),
        ({"content-type": "application/cloudevents-batch+json"}, Media.CLOUDEVENTS),
        ({"content-type": "application/cdevents+json"}, Media.CDEVENT),
        ({"content-type": "application/vnd.acme.deployment+json", "ce-type": "com.acme.deployed"}, Media.JSON),
        ({"content-type": "text/json", "ce-type": "com.acme.deployed"}, Media.JSON),
        ({"content-type": "application/cloudevents+json", "ce-type": "com.acme.deployed"}, Media.CLOUDEVENT),
    ],
)
def test_accepted_content_types(headers: dict[str, str], media: Media) -> None:
    assert report_parsing.media_of(headers) is media


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {},
        {"content-type": ""},
        {"content-type": "; charset=application/json"},
        {"content-type": "text/plain, application/json"},
        {"content-type": "text/plain; a=application/json"},
        {"content-type": "multipart/form-data; boundary=application/json"},
        {"content-type": "application/cloudevents+avro"},
        {"content-type": "application/avro", "ce-type": "com.acme.deployed"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": 'application/json;Charset = "UTF-32BE"'},
    ],
)
def test_other_content_types_are_415(headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        report_parsing.media_of(headers)
    assert refused.value.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("given", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_a_missing_json_content_type_is_refused_with_the_header_to_add(given: dict[str, str]) -> None:
    with pytest.raises(Refused, match="add the header 'Content-Type: application/json'"):
        report_parsing.media_of(given)


@pytest.mark.parametrize(
    ("headers", "envelope"),
    [
        ({}, Envelope()),
        ({"ce-id": "", "idempotency-key": ""}, Envelope()),
        ({"idempotency-key": "key%20"}, Envelope(id="key%20")),
        ({"idempotency-key": "key", "ce-id": "id"}, Envelope(id="id")),
        ({"ce-source": "/east%201/%C3%A9", "ce-time": "2025-01-31T12:00:00+01:00"},
         Envelope(source="/east 1/é", time="2025-01-31T12:00:00+01:00")),
        ({"ce-source": "\xc3\xa9"}, Envelope(source="é")),
        ({"ce-id": '"q-2"', "ce-source": '"/a b"', "ce-time": '"2026-04-05T03:56:24Z"', "ce-type": '"com.acme.x"'},
         Envelope(id="q-2", source="/a b", time="2026-04-05T03:56:24Z", type="com.acme.x")),
        ({"ce-id": r'"a \"b\" \\ c\d"'}, Envelope(id=r'a "b" \ cd')),
        ({"ce-id": '"%22q%22%2520"'}, Envelope(id='"q"%20')),
        ({"ce-id": "%22q%22"}, Envelope(id='"q"')),
        ({"ce-id": '"'}, Envelope(id='"')),
        ({"ce-id": '"a" b'}, Envelope(id='"a" b')),
        ({"ce-id": r'"a\"'}, Envelope(id=r'"a\"')),
        ({"ce-id": '""', "idempotency-key": "key"}, Envelope(id="key")),
        ({"ce-id": ' "q-2"\t'}, Envelope(id="q-2")),
        ({"idempotency-key": '"key"'}, Envelope(id='"key"')),
        ({"ce-type": "com.acme.deployed", "ce-specversion": "1.0"}, Envelope(type="com.acme.deployed")),
    ],
)  # fmt: skip
def test_envelope_of_headers(headers: dict[str, str], envelope: Envelope) -> None:
    assert report_parsing.envelope_of(headers) == envelope


@pytest.mark.parametrize(
    ("headers", "field"),
    [({"ce-id": "%FF"}, "id"), ({"idempotency-key": "\xff"}, "id"), ({"ce-source": "\xe9"}, "source")],
)
def test_headers_that_are_not_utf8_name_their_field(headers: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidEvent) as invalid:
        report_parsing.envelope_of(headers)
    assert invalid.value.field == field


@pytest.mark.parametrize(
    ("media", "start", "bound"),
    [
        (Media.JSON, b"", LIMITS.many),
        (Media.JSON, b" \n\t", LIMITS.many),
        (Media.JSON, b" " * (LIMITS.one - 1) + b"[", LIMITS.many),
        (Media.JSON, b" " * LIMITS.one, LIMITS.one),
        (Media.JSON, b" " * LIMITS.one + b"[", LIMITS.one),
        (Media.JSON, b" [", LIMITS.many),
        (Media.JSON, b"\xef\xbb\xbf", LIMITS.many),
        (Media.JSON, b"\xef\xbb\xbf [", LIMITS.many),
        (Media.JSON, b"\xef\xbb\xbf{", LIMITS.one),
        (Media.JSON, b'\r\n{"', LIMITS.one),
        (Media.JSON, b"nonsense", LIMITS.one),
        (Media.LINES, b"{", LIMITS.many),
        (Media.CLOUDEVENT, b"", LIMITS.one),
        (Media.CLOUDEVENT, b"[", LIMITS.one),
        (Media.CDEVENT, b"", LIMITS.one),
        (Media.CLOUDEVENTS, b"", LIMITS.many),
        (Media.CLOUDEVENTS, b"{", LIMITS.many),
    ],
)
def test_a_body_is_bounded_as_its_kind(media: Media, start: bytes, bound: int) -> None:
    report_parsing.check_size(bound, media, start, LIMITS)
    with pytest.raises(Refused) as refused:
        report_parsing.check_size(bound + 1, media, start, LIMITS)
    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_many_may_always_be_as_large_as_one() -> None:
    assert Limits.of(10) == Limits(one=10, many=report_parsing.MAX_MANY_BYTES)
    assert Limits.of(10**9) == Limits(one=10**9, many=10**9)


@pytest.mark.parametrize(
    ("given", "size"),
    [(None, 0), ("12", 12), ("0" * 5000 + "12", 12), ("0" * 5000, 0), ("-1", 0), ("x", 0), ("\xb2", 0)],
)
def test_declared_size(given: str | None, size: int) -> None:
    assert report_parsing.declared_size({} if given is None else {"content-length": given}) == size


def test_one_event_with_its_envelope() -> None:
    envelope = Envelope(id="7", source="east", time="2025-01-31T12:00:00Z")
    assert report_parsing.parse(Media.JSON, event(id="in the body"), envelope) == DeploymentEvent.of(
        URL, id="7", source="east", time=datetime(2025, 1, 31, 12, tzinfo=UTC)
    )


@pytest.mark.parametrize("body", [b"", b"{", b"image=app", b'{"image": {}} {}', b"\xff", b'"\\ud800"'])
def test_a_body_that_is_not_json_is_400(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        report_parsing.parse(Media.JSON, body, Envelope())
    assert refused.value.status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("body", "envelope", "field"),
    [
        (b"{}", Envelope(), "image"),
        (b'{"image": {}}', Envelope(), "image.url"),
        (b'{"image": {"url": "app:latest"}}', Envelope(), "image.url"),
        (b'"text"', Envelope(), ""),
        (event(extra=1), Envelope(), "extra"),
        (event(), Envelope(time="yesterday"), "time"),
        (event(), Envelope(id="x" * 129), "id"),
    ],
)
def test_json_that_is_no_event_names_the_field(body: bytes, envelope: Envelope, field: str) -> None:
    with pytest.raises(InvalidEvent) as invalid:
        report_parsing.parse(Media.JSON, body, envelope)
    assert invalid.value.field == field


@pytest.mark.parametrize(
    ("media", "body", "texts"),
    [
        (Media.LINES, b"\xef\xbb\xbf\r\n{}\n", [b"{}"]),
        (Media.JSON, b"[]", []),
        (Media.JSON, b' [{"a": 1}, "b", null] ', [b'{"a":1}', b'"b"', b"null"]),
        (Media.LINES, b"", []),
        (Media.LINES, b'{"a": 1}\r\n\n  \nnonsense', [b'{"a": 1}\r', b"nonsense"]),
    ],
)
def test_many_are_split(media: Media, body: bytes, texts: list[bytes]) -> None:
    assert report_parsing.split(media, body) == texts


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        (Media.JSON, b"[1,", HTTPStatus.BAD_REQUEST),
        (Media.JSON, b"[" * 10_000, HTTPStatus.BAD_REQUEST),
        (Media.JSON, b"[" + b"0," * report_parsing.MAX_MANY_EVENTS + b"0]", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        (Media.LINES, b"\n" * (report_parsing.MAX_MANY_EVENTS + 1), HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    ],
    ids=["cut short", "too deep", "too many elements", "too many lines"],
)
def test_bodies_of_many_that_are_refused_as_a_whole(media: Media, body: bytes, status: HTTPStatus) -> None:
    with pytest.raises(Refused) as refused:
        report_parsing.split(media, body)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("text", "envelope", "field"),
    [
        (b"nonsense", Envelope(), ""),
        (b"[]", Envelope(), ""),
        (b'{"image": {}}', Envelope(), "image.url"),
        (event() + b" " * LIMITS.one, Envelope(), ""),
        (event(), Envelope(time="yesterday"), "time"),
        (event(), Envelope(id="x" * 128), "id"),
    ],
)
def test_one_of_many_that_is_no_event(text: bytes, envelope: Envelope, field: str) -> None:
    _, fault = report_parsing.parse_many(
        Media.LINES, [event(id="0", time="2025-01-31T12:00:00Z"), text], 5, envelope, LIMITS
    )
    assert isinstance(fault, Fault)
    assert (fault.index, fault.field) == (6, field)


def test_headers_fill_in_missing_fields_of_many() -> None:
    envelope = Envelope(id="key", source="east", time="2025-01-31T12:00:00Z")
    own, filled = report_parsing.parse_many(
        Media.LINES, [event(id="own", source="west", time="2024-01-31T12:00:00Z"), event()], 8, envelope, LIMITS
    )
    assert own == DeploymentEvent.of(URL, id="own", source="west", time="2024-01-31T12:00:00Z")
    assert filled == DeploymentEvent.of(URL, id="key:9", source="east", time="2025-01-31T12:00:00Z")


FAULT = Fault(index=1, field="image.url", reason="is missing")
TOLD = {"index": 1, "field": "image.url", "reason": "is missing"}


def test_responses_to_many_have_a_place_for_each() -> None:
    assert responses.accepted_many([], []).document == {"ids": []}
    assert responses.accepted_many(["a", "b"], []).document == {"ids": ["a", "b"]}
    partly = responses.accepted_many(["a", None], [FAULT])
    assert (partly.status, partly.document) == (202, {"ids": ["a", None], "errors": [TOLD]})


def test_many_without_a_valid_event_are_422() -> None:
    answer = responses.accepted_many([None, None], [Fault(index=0, field="", reason="no"), FAULT])
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert answer.document["field"] == ""
    assert "none of the 2" in answer.document["error"]
    assert answer.document["errors"][1] == TOLD


def test_a_response_to_many_that_stopped_names_the_enqueued() -> None:
    answer = responses.accepted_many(["a", None, None], [FAULT], QueueFull("the queue is full"))
    assert (answer.status, answer.headers) == (429, {"Retry-After": "5"})
    assert answer.document == {
        "error": "the queue is full", "field": "", "ids": ["a", None, None], "errors": [TOLD]
    }  # fmt: skip


def caused_by(cause: BaseException | None) -> QueueUnavailable:
    error = QueueUnavailable("Redis at redis://host/?password=hunter2 did not take it: AUTH hunter2")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "says", "headers"),
    [
        (Refused(HTTPStatus.BAD_REQUEST, "the body"), 400, "the body", {}),
        (InvalidEvent("image.url", "is missing"), 422, "is missing", {}),
        (QueueFull("the queue is full"), 429, "the queue is full", {"Retry-After": "5"}),
        (caused_by(redis_errors.AuthenticationError("hunter2")), 503, "credentials", {"Retry-After": "2"}),
        (caused_by(redis_errors.NoPermissionError("hunter2")), 503, "permit", {"Retry-After": "2"}),
        (caused_by(redis_errors.BusyLoadingError("hunter2")), 503, "loading", {"Retry-After": "2"}),
        (caused_by(redis_errors.OutOfMemoryError("hunter2")), 503, "memory", {"Retry-After": "2"}),
        (caused_by(WrongServer("hunter2")), 503, "read-only", {"Retry-After": "2"}),
        (caused_by(redis_errors.TimeoutError("hunter2")), 503, "in time", {"Retry-After": "2"}),
        (caused_by(TimeoutError()), 503, "in time", {"Retry-After": "2"}),
        (caused_by(redis_errors.ConnectionError("hunter2")), 503, "reached", {"Retry-After": "2"}),
        (caused_by(redis_errors.ResponseError("ERR args: AUTH hunter2")), 503, "refused", {"Retry-After": "2"}),
        (caused_by(None), 503, "refused", {"Retry-After": "2"}),
        (ConfigurationError("hunter2"), 500, "failed", {}),
    ],
    ids=repr,
)
def test_every_error_has_its_response_without_secrets(
    error: RelayError, status: int, says: str, headers: dict[str, str]
) -> None:
    answer = responses.of_error(error)
    assert (answer.status, dict(answer.headers)) == (status, headers)
    assert says in answer.document["error"]
    assert answer.document["field"] == (error.field if isinstance(error, InvalidEvent) else "")
    assert "hunter2" not in str(answer)


@pytest.mark.parametrize(("rejection", "status"), [(Rejection.MISSING_TOKEN, 401), (Rejection.WRONG_TOKEN, 403)])
def test_unauthenticated_requests_are_refused(rejection: Rejection, status: int) -> None:
    with pytest.raises(Refused) as refused:
        report_parsing.admitted(rejection)
    assert refused.value.status == status


def test_a_known_principal_is_admitted() -> None:
    caller = Principal(name="x")
    assert report_parsing.admitted(caller) is caller


def test_an_environment_of_other_tokens_is_403_with_the_field() -> None:
    caller = Principal(name="payments", environments=("payments-*",))
    report_parsing.check_environment(DeploymentEvent.of(URL, environment="payments-eu"), caller, "deployed")
    for given in (DeploymentEvent.of(URL, environment="production"), DeploymentEvent.of(URL)):
        with pytest.raises(report_parsing.NotPermitted) as refused:
            report_parsing.check_environment(given, caller, "deployed")
        answer = responses.of_error(refused.value)
        assert (answer.status, answer.document["field"]) == (HTTPStatus.FORBIDDEN, "environment.name")
        assert "payments" in answer.document["error"]


@pytest.mark.parametrize("media", [Media.JSON, Media.LINES, Media.CLOUDEVENTS])
def test_an_event_of_many_that_is_too_large_is_not_read(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its faults would take time and memory: thousands of unknown fields do for seconds."""
    large = b'{"specversion":"1.0",' + b",".join(b'"%d":0' % number for number in range(LIMITS.one)) + b"}"
    monkeypatch.setattr(DeploymentEvent, "parse", None)
    monkeypatch.setattr(cloudevents, "parse", None)
    [fault] = report_parsing.parse_many(media, [large], 3, Envelope(), LIMITS)
    assert fault == Fault(index=3, field="", reason=f"the event is {len(large)} bytes, more than the 300 allowed")
