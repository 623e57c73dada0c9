"""Parsing of reports, with the responses to them (`responses`).

One event is a JSON object in the deployment API's form, a CloudEvent (`cloudevents`) or a CDEvent (`cdevents`), as
the content type and the header `ce-type` say:

    202 {"id": "…"}                                         Redis has it

Many are a JSON array, an array of CloudEvents (their batch), or a line each of application/x-ndjson (blank lines do
not count). The valid ones are enqueued in their order, whatever else the request has:

    202 {"ids": ["…", "…"]}                                 Redis has all
    202 {"ids": ["…", null], "errors": [{"index": 1, "field": "image.url", "reason": "…"}]}
                                                            Redis has those with an id
    422 {"error": "…", "field": "", "ids": [null], "errors": […]}
                                                            none was valid, Redis has none
    429, 503 {"error": "…", "field": "", "ids": ["…", null], …}
                                                            Redis has those with an id, and stopped there

    403 {"error": "…", "field": "environment.name"}         the token is not for that environment; of many, the
                                                            others are accepted

`ids` has one place for each event of the request; `index` counts from 0. Every other response is
`{"error": "…", "field": "…"}`, where `field` is the event's field at fault, "" if it is none. After a 503, an event
without an id may be enqueued nevertheless: reported again with the same id, it counts once.

The envelope of one event is in headers: `ce-id` (or `Idempotency-Key`), `ce-source`, `ce-time`. Of many, each event
has its own envelope in it. The headers fill in missing fields, an id as the header's with `:` and the event's index,
so that a request sent again with the same `Idempotency-Key` counts once. A CloudEvent in structured mode, alone or in
a batch, has its envelope in its document, and these headers do not count.

A CDEvent may be `Ignored`: accepted with its id, like all others, and not enqueued.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from pydantic_core import from_json, to_json

from relay.encoding import is_utf8, other_encoding, without_mark
from relay.errors import InvalidEvent
from relay.events.event import DeploymentEvent
from relay.gateway import cdevents, cloudevents
from relay.gateway.auth import Principal, Rejection
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from relay.gateway.cdevents import Ignored

#: Maximum body with many events, in bytes, read into memory whole; larger only if one event may be larger.
MAX_MANY_BYTES = 4 * 1024 * 1024

#: Maximum events, or lines, of one request; with the bytes above it bounds the memory of parsing and response.
MAX_MANY_EVENTS = 10_000

#: JSON's white space.
_BLANK = b" \t\r\n"


class Media(Enum):
    """The accepted content types."""

    JSON = "application/json"
    LINES = "application/x-ndjson"
    #: One CloudEvent in structured mode.
    CLOUDEVENT = "application/cloudevents+json"
    #: An array of CloudEvents.
    CLOUDEVENTS = "application/cloudevents-batch+json"
    #: One CDEvent, whose CloudEvent may be in headers.
    CDEVENT = "application/cdevents+json"


_MEDIA = {media.value: media for media in Media}

#: Advice in the refusal of a content type. For a page of any site, a browser sends other types without a preflight
#: (CORS), so none of them may be read as JSON.
_ADD_A_CONTENT_TYPE = (
    "add the header 'Content-Type: application/json' for one event or an array "
    f"(with curl: -H 'Content-Type: application/json'); the other types are {', '.join(list(_MEDIA)[1:])}"
)

#: Other names of JSON lines: none is registered (https://github.com/ndjson, https://jsonlines.org).
_LINES = ("ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines", "x-json-lines")
_OTHER_NAMES = dict.fromkeys(
    (f"{kind}/{name}" for kind in ("application", "text") for name in ("x-ndjson", *_LINES)), Media.LINES
)

#: A charset other than UTF-8 in a content type.
_OTHER_CHARSET = re.compile(r";\s*charset\s*=\s*\"?(utf-?(?:16|32)[a-z-]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Maximum sizes in bytes: of one event, and of a body with many."""

    one: int
    many: int

    @classmethod
    def of(cls, max_event_bytes: int) -> Limits:
        """Derive both from the setting `queue.max_event_bytes`."""
        return cls(one=max_event_bytes, many=max(MAX_MANY_BYTES, max_event_bytes))


class Envelope(NamedTuple):
    """The envelope of an event in headers, not validated yet."""

    id: str | None = None
    source: str | None = None
    time: str | None = None
    #: The CloudEvent's type, in binary mode; not part of an event.
    type: str | None = None


_NO_ENVELOPE = Envelope()

_ENVELOPE_HEADERS = frozenset({"idempotency-key", "ce-id", "ce-source", "ce-time", "ce-type"})

#: A quoted string of HTTP (RFC 7230, section 3.2.6), and an escaped character in it.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why the event at this index, counted from 0, is refused."""

    index: int
    field: str
    reason: str


class NotPermitted(InvalidEvent):
    """The token may not report for that environment."""

    def __init__(self, principal: Principal, environment: str) -> None:
        super().__init__(
            "environment.name", f"the token of {principal.name} may not report for the environment {environment}"
        )


def admitted(identified: Principal | Rejection) -> Principal:
    """Return the principal; raise 401 without a token (RFC 6750, section 3), 403 with a wrong one."""
    if identified is Rejection.MISSING_TOKEN:
        raise Refused(HTTPStatus.UNAUTHORIZED, "a bearer token is missing", {"WWW-Authenticate": "Bearer"})
    if isinstance(identified, Rejection):
        raise Refused(HTTPStatus.FORBIDDEN, "the bearer token is wrong")
    return identified


def check_environment(item: DeploymentEvent | Ignored, principal: Principal, default: str) -> None:
    """Raise `NotPermitted` if the token may not report for the event's environment (`default` if it has none)."""
    if isinstance(item, DeploymentEvent):
        environment = item.environment.name or default
        if not principal.may_report_for(environment):
            raise NotPermitted(principal, environment)


def media_of(headers: Mapping[str, str]) -> Media:
    """Parse the content type; raise 415 for none, for others than JSON, and for UTF-16.

    Other parameters are ignored. A CloudEvent in binary mode may have any type of JSON, as its data's own, or none.
    """
    given = headers.get("content-type", "")
    media = _MEDIA.get(given)  # mostly spelled like this
    if media is not None:
        return media
    if charset := _OTHER_CHARSET.search(given):
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be in UTF-8, not in {charset[1]}")
    given = given.partition(";")[0].strip().lower()
    media = _MEDIA.get(given) or _OTHER_NAMES.get(given)
    if media is not None:
        return media
    if cloudevents.is_json(given) or ("ce-type" in headers and not given):
        return Media.JSON
    fault = f"Content-Type {given[:100]} is not taken" if given else "Content-Type is missing"
    raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{fault}: {_ADD_A_CONTENT_TYPE}")


def envelope_of(headers: Mapping[str, str]) -> Envelope:
    """Parse the envelope in headers with lower-case names; `ce-id` takes precedence over `Idempotency-Key`.

    Values with `ce-` are percent-encoded UTF-8, in double quotes or not (CloudEvents' HTTP binding, section 3.1.3.2);
    a key is not encoded.
    """
    if _ENVELOPE_HEADERS.isdisjoint(headers):
        return _NO_ENVELOPE
    key = _utf8(headers.get("idempotency-key", "").encode("latin-1"), "id")
    return Envelope(
        id=_attribute(headers, "id") or key,
        source=_attribute(headers, "source"),
        time=_attribute(headers, "time"),
        type=_attribute(headers, "type"),
    )


def declared_size(headers: Mapping[str, str]) -> int:
    """Return the body's declared size in bytes, 0 for a body in chunks."""
    given = headers.get("content-length", "")
    # The server's parser accepts any number of leading zeros, and Python parses no number of thousands of digits.
    return int(given.lstrip("0")[:20] or 0) if given.isascii() and given.isdigit() else 0


def check_size(size: int, media: Media, start: bytes | bytearray, limits: Limits) -> None:
    """Raise 413 for a body that is, or is declared, larger than its kind may be; `start` is its known beginning.

    The bound is that of many events until the beginning shows one event. White space as large as one event shows
    that, too.
    """
    if size <= limits.one:  # as nearly all are, and no kind has a lower bound
        return
    begun = without_mark(bytes(start[: limits.one]))
    many = is_many(media, begun) or (media is Media.JSON and not begun.strip(_BLANK) and len(start) < limits.one)
    limit = limits.many if many else limits.one
    if size > limit:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than the {limit} bytes allowed for {'many events' if many else 'one event'}",
        )


def is_many(media: Media, body: bytes) -> bool:
    """Return whether a body has the form of many events, even if it has one or none."""
    if media is not Media.JSON:
        return media in (Media.LINES, Media.CLOUDEVENTS)
    return without_mark(body).lstrip(_BLANK).startswith(b"[")


def parse(media: Media, body: bytes, envelope: Envelope, registry: str = "") -> DeploymentEvent | Ignored:
    """Parse a body of one event; raise 400 if it is not JSON, `InvalidEvent` if it is not an event.

    `registry` is that of a CDEvent's artifact that names none.
    """
    if media is Media.CLOUDEVENT:
        return cloudevents.parse(_json(body), registry=registry)
    if media is Media.CDEVENT or cdevents.is_cdevent(envelope.type):
        around = {"type": envelope.type, "id": envelope.id, "source": envelope.source, "time": envelope.time}
        return cdevents.parse(_json(body), **around, registry=registry)
    try:
        return DeploymentEvent.parse(body, id=envelope.id, source=envelope.source, time=envelope.time)
    except InvalidEvent as error:
        if not error.field:
            _json(body)
        raise


def split(media: Media, body: bytes) -> list[bytes]:
    """Split a body of many into the events' JSON; raise 400 if an array is not JSON, 413 for too many events."""
    if media is Media.LINES:
        if encoding := other_encoding(body):
            raise Refused(HTTPStatus.BAD_REQUEST, f"the lines are not JSON: they are {encoding}, send them in UTF-8")
        _check_number(body.count(b"\n"))
        return [line for line in without_mark(body).split(b"\n") if line.strip()]
    documents = _json(body)
    if not isinstance(documents, list):
        raise InvalidEvent("", "a batch must be a JSON array")
    _check_number(len(documents))
    return [to_json(document) for document in documents]


def parse_many(
    media: Media, texts: Sequence[bytes], first: int, envelope: Envelope, limits: Limits, *, registry: str = ""
) -> list[DeploymentEvent | Ignored | Fault]:
    """Parse some of many events; `first` is the index in the request of the first of them."""

    def parse_item(text: bytes, index: int) -> DeploymentEvent | Ignored | Fault:
        size = len(text)
        if size <= limits.one:  # checked before parsing: each fault found in it takes time and memory
            item: DeploymentEvent | Ignored
            try:
                if media is Media.CLOUDEVENTS:
                    item = cloudevents.parse(from_json(text), registry=registry)
                else:
                    item = _with_envelope(DeploymentEvent.parse(text), text, index, envelope)
            except InvalidEvent as error:
                return Fault(index=index, field=error.field, reason=error.reason)
            size = len(item.body()) if isinstance(item, DeploymentEvent) else 0
            if size <= limits.one:
                return item
        return Fault(index=index, field="", reason=f"the event is {size} bytes, more than the {limits.one} allowed")

    return [parse_item(text, index) for index, text in enumerate(texts, first)]


def check_environments(
    items: Iterable[DeploymentEvent | Ignored | Fault], first: int, principal: Principal, default: str
) -> list[DeploymentEvent | Ignored | Fault]:
    """Return the items, a `Fault` in place of those whose environment the token may not report for."""
    checked: list[DeploymentEvent | Ignored | Fault] = []
    for index, item in enumerate(items, first):
        try:
            if not isinstance(item, Fault):
                check_environment(item, principal, default)
        except NotPermitted as error:
            checked.append(Fault(index=index, field=error.field, reason=error.reason))
        else:
            checked.append(item)
    return checked


def _attribute(headers: Mapping[str, str], name: str) -> str | None:
    given = headers.get(f"ce-{name}", "").strip()
    if not given:
        return None
    if given[0] == '"' and (quoted := _QUOTED.fullmatch(given)):
        given = _ESCAPE.sub(r"\1", quoted[1])
    return _utf8(unquote_to_bytes(given.encode("latin-1")), name)


def _utf8(value: bytes, field: str) -> str | None:
    try:
        return value.decode() or None
    except UnicodeDecodeError:
        raise InvalidEvent(field, "its header is not UTF-8") from None


def _json(body: bytes) -> Any:
    try:
        return from_json(without_mark(body))
    except ValueError:
        encoding = other_encoding(body) or (None if is_utf8(body) else "not UTF-8")
        why = f": it is {encoding}, send it in UTF-8" if encoding else ""
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is not valid JSON{why}") from None


def _check_number(number: int) -> None:
    if number > MAX_MANY_EVENTS:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"one request may have {MAX_MANY_EVENTS} events at most")


def _with_envelope(event: DeploymentEvent, text: bytes, index: int, envelope: Envelope) -> DeploymentEvent:
    """Return the event with missing fields filled in from the headers, validated like its own."""
    missing = {
        "id": f"{envelope.id}:{index}" if envelope.id and not event.id else None,
        "source": None if event.source else envelope.source,
        "time": None if event.time else envelope.time,
    }
    return DeploymentEvent.parse(text, **missing) if any(missing.values()) else event
