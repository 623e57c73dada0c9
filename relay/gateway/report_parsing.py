"""What a request reports, with the answers (answers.py) beside it.

One event is a JSON object, as the reporting API takes it, a CloudEvent (cloudevents.py) or a CDEvent (cdevents.py),
as the content type and the header `ce-type` say:

    202 {"id": "…"}                                         Redis has it

Many are a JSON array, an array of CloudEvents (their batch), or a line each of application/x-ndjson (blank lines do
not count). What is valid is enqueued in its order, whatever stands beside it:

    202 {"ids": ["…", "…"]}                                 Redis has all
    202 {"ids": ["…", null], "errors": [{"index": 1, "field": "image.url", "reason": "…"}]}
                                                            Redis has those with an id
    422 {"error": "…", "field": "", "ids": [null], "errors": […]}
                                                            none was valid, Redis has none
    429, 503 {"error": "…", "field": "", "ids": ["…", null], …}
                                                            Redis has those with an id, and stopped there

    403 {"error": "…", "field": "environment.name"}         the token is not for that environment; of many, the
                                                            others are taken

`ids` has one place for each event of the request; `index` counts from 0. Every other answer is
`{"error": "…", "field": "…"}`, where `field` is the event's field at fault, "" if it is none. After a 503, what
has no id may be enqueued nevertheless: report it again with the same id, and it counts once.

The envelope of one event stands in headers: `ce-id` (or `Idempotency-Key`), `ce-source`, `ce-time`. For many, each
event has its own, in it; the headers fill in what an event leaves out, and its id is then the header's with `:` and
its index: a request sent again with the same `Idempotency-Key` counts once. A CloudEvent in a document of its own, be
it one or in a batch, has its envelope there, and these headers do not count.

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
from relay.gateway.auth import Caller, Stranger
from relay.gateway.cdevents import Ignored
from relay.http.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: The largest body with many events, in bytes; larger only if one event may be. Read into memory whole.
MAX_MANY_BYTES = 4 * 1024 * 1024

#: Events, or lines, of one request: with the bytes above it bounds what parsing and the answer take.
MAX_MANY_EVENTS = 10_000

#: JSON's white space.
_BLANK = b" \t\r\n"


class Media(Enum):
    """The content types that are taken."""

    JSON = "application/json"
    LINES = "application/x-ndjson"
    #: One in structured mode.
    CLOUDEVENT = "application/cloudevents+json"
    #: An array of them.
    CLOUDEVENTS = "application/cloudevents-batch+json"
    #: One, whose CloudEvent may stand in headers.
    CDEVENT = "application/cdevents+json"


_MEDIA = {media.value: media for media in Media}

#: Advice in the refusal of a content type. A browser sends other types for a page of any site without
#: asking first (CORS), so none of them may be read as JSON.
_ADD_A_CONTENT_TYPE = (
    "add the header 'Content-Type: application/json' for one event or an array "
    f"(with curl: -H 'Content-Type: application/json'); the other types are {', '.join(list(_MEDIA)[1:])}"
)

#: Other names of JSON lines: none is registered (https://github.com/ndjson, https://jsonlines.org).
_LINES = ("ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines", "x-json-lines")
_OTHER_NAMES = dict.fromkeys(
    (f"{kind}/{name}" for kind in ("application", "text") for name in ("x-ndjson", *_LINES)), Media.LINES
)

#: The parameter of a content type that says that a body is not UTF-8.
_OTHER_CHARSET = re.compile(r";\s*charset\s*=\s*\"?(utf-?(?:16|32)[a-z-]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes: of one event, and of a body with many."""

    one: int
    many: int

    @classmethod
    def of(cls, max_event_bytes: int) -> Limits:
        """Derive both from the setting `queue.max_event_bytes`."""
        return cls(one=max_event_bytes, many=max(MAX_MANY_BYTES, max_event_bytes))


class Envelope(NamedTuple):
    """What headers say beside the body; unchecked until it is an event's."""

    id: str | None = None
    source: str | None = None
    time: str | None = None
    #: The CloudEvent's, in binary mode; no event has it.
    type: str | None = None


_NO_ENVELOPE = Envelope()

#: The headers that it stands in.
_ENVELOPE = frozenset({"idempotency-key", "ce-id", "ce-source", "ce-time", "ce-type"})


#: A quoted string of HTTP (RFC 7230, section 3.2.6), and what is escaped in it.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why the event in this place, counted from 0, is not taken."""

    index: int
    field: str
    reason: str


class NotPermitted(InvalidEvent):
    """The caller's token is not for that environment."""

    def __init__(self, caller: Caller, environment: str) -> None:
        super().__init__(
            "environment.name", f"the token of {caller.name} may not report for the environment {environment}"
        )


def admitted(who: Caller | Stranger) -> Caller:
    """Refuse who may not report: 401 without a token (RFC 6750, section 3), 403 with a wrong one."""
    if who is Stranger.WITHOUT_TOKEN:
        raise Refused(HTTPStatus.UNAUTHORIZED, "a bearer token is missing", {"WWW-Authenticate": "Bearer"})
    if isinstance(who, Stranger):
        raise Refused(HTTPStatus.FORBIDDEN, "the bearer token is wrong")
    return who


def checked_environment(item: DeploymentEvent | Ignored, caller: Caller, default: str) -> DeploymentEvent | Ignored:
    """Return it, or raise `NotPermitted` if its environment (`default` if it has none) is not the caller's."""
    if isinstance(item, DeploymentEvent):
        environment = item.environment.name or default
        if not caller.may_report_for(environment):
            raise NotPermitted(caller, environment)
    return item


def media_of(headers: Mapping[str, str]) -> Media:
    """Read the content type. 415 for none, for others than JSON, and for UTF-16; other parameters are ignored.

    A CloudEvent in headers may have any type of JSON, as its data's own, or none.
    """
    given = headers.get("content-type", "")
    media = _MEDIA.get(given)  # as it stands, as it mostly does
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
    what = f"Content-Type {given[:100]} is not taken" if given else "Content-Type is missing"
    raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{what}: {_ADD_A_CONTENT_TYPE}")


def envelope_of(headers: Mapping[str, str]) -> Envelope:
    """Read the envelope from headers with lower-case names; `ce-id` wins over `Idempotency-Key`.

    Values with `ce-` are percent-encoded UTF-8, in double quotes or not (CloudEvents' HTTP binding, section 3.1.3.2);
    a key is as it is.
    """
    if _ENVELOPE.isdisjoint(headers):
        return _NO_ENVELOPE
    key = _utf8(headers.get("idempotency-key", "").encode("latin-1"), "id")
    return Envelope(
        id=_attribute(headers, "id") or key,
        source=_attribute(headers, "source"),
        time=_attribute(headers, "time"),
        type=_attribute(headers, "type"),
    )


def declared_size(headers: Mapping[str, str]) -> int:
    """Return the body's size as declared, in bytes; 0 for one that tells as it comes."""
    given = headers.get("content-length", "")
    # The server's parser takes any number of zeros before it, and Python reads no number of thousands of digits.
    return int(given.lstrip("0")[:20] or 0) if given.isascii() and given.isdigit() else 0


def check_size(size: int, media: Media, start: bytes | bytearray, limits: Limits) -> None:
    """Refuse a body that is, or is declared, larger than its kind may be; `start` is what is known of it so far.

    As long as nothing tells one event from many, the bound is that of many; white space as large as one event tells
    that it is not many.
    """
    if size <= limits.one:  # as nearly all are, and no kind may be less
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
    """Whether a body reports many events, be it none or one of them."""
    if media is not Media.JSON:
        return media in (Media.LINES, Media.CLOUDEVENTS)
    return without_mark(body).lstrip(_BLANK).startswith(b"[")


def read(media: Media, body: bytes, envelope: Envelope, registry: str = "") -> DeploymentEvent | Ignored:
    """Read a body of one event in any form; 400 if it is not JSON, `InvalidEvent` if it is no event.

    A CDEvent's artifact without a registry is of `registry`.
    """
    if media is Media.CLOUDEVENT:
        return cloudevents.read(_json(body), registry=registry)
    if media is Media.CDEVENT or cdevents.is_cdevent(envelope.type):
        around = {"type": envelope.type, "id": envelope.id, "source": envelope.source, "time": envelope.time}
        return cdevents.read(_json(body), **around, registry=registry)
    return read_one(body, envelope)


def read_one(body: bytes, envelope: Envelope) -> DeploymentEvent:
    """Read the reporting API's body; 400 if it is not JSON, `InvalidEvent` if it is no event."""
    try:
        return DeploymentEvent.parse(body, id=envelope.id, source=envelope.source, time=envelope.time)
    except InvalidEvent as error:
        if not error.field:
            _json(body)
        raise


def split(media: Media, body: bytes) -> list[bytes]:
    """Split a body of many into the events' JSON texts; 400 if an array is not JSON, 413 if there are too many."""
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


def read_many(
    media: Media, texts: Sequence[bytes], first: int, envelope: Envelope, limits: Limits, *, registry: str = ""
) -> list[DeploymentEvent | Ignored | Fault]:
    """Read the texts of many's events in any form, of which the first is in this place of the request."""
    if media is Media.CLOUDEVENTS:
        return [_read_cloudevent(text, first + place, limits.one, registry) for place, text in enumerate(texts)]
    return [*read_each(texts, first, envelope, limits)]


def read_each(
    texts: Sequence[bytes], first: int, envelope: Envelope, limits: Limits
) -> list[DeploymentEvent | Fault]:
    """Read many of the reporting API's bodies, of which the first is in this place of the request."""
    return [_read_item(text, first + place, envelope, limits.one) for place, text in enumerate(texts)]


def checked_environments(
    items: Iterable[DeploymentEvent | Ignored | Fault], first: int, caller: Caller, default: str
) -> list[DeploymentEvent | Ignored | Fault]:
    """`checked_environment` for many, of which the first is in this place of the request."""
    return [_item_checked(item, first + at, caller, default) for at, item in enumerate(items)]


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


def _read_item(text: bytes, index: int, envelope: Envelope, max_bytes: int) -> DeploymentEvent | Fault:
    if len(text) > max_bytes:  # before it is read: each of its faults takes time and memory
        return _too_large(len(text), index, max_bytes)
    try:
        event = _with_envelope(DeploymentEvent.parse(text), text, index, envelope)
    except InvalidEvent as error:
        return Fault(index=index, field=error.field, reason=error.reason)
    size = len(event.body())
    return event if size <= max_bytes else _too_large(size, index, max_bytes)


def _read_cloudevent(text: bytes, index: int, max_bytes: int, registry: str) -> DeploymentEvent | Ignored | Fault:
    if len(text) > max_bytes:  # as above
        return _too_large(len(text), index, max_bytes)
    try:
        event = cloudevents.read(from_json(text), registry=registry)
    except InvalidEvent as error:
        return Fault(index=index, field=error.field, reason=error.reason)
    size = 0 if isinstance(event, Ignored) else len(event.body())
    return event if size <= max_bytes else _too_large(size, index, max_bytes)


def _too_large(size: int, index: int, max_bytes: int) -> Fault:
    return Fault(index=index, field="", reason=f"the event is {size} bytes, more than the {max_bytes} allowed")


def _with_envelope(event: DeploymentEvent, text: bytes, index: int, envelope: Envelope) -> DeploymentEvent:
    """Fill in from the headers what the event leaves out, checked as if it had said so itself."""
    missing = {
        "id": f"{envelope.id}:{index}" if envelope.id and not event.id else None,
        "source": None if event.source else envelope.source,
        "time": None if event.time else envelope.time,
    }
    return DeploymentEvent.parse(text, **missing) if any(missing.values()) else event


def _item_checked(
    item: DeploymentEvent | Ignored | Fault, index: int, caller: Caller, default: str
) -> DeploymentEvent | Ignored | Fault:
    if isinstance(item, Fault):
        return item
    try:
        return checked_environment(item, caller, default)
    except NotPermitted as error:
        return Fault(index=index, field=error.field, reason=error.reason)
