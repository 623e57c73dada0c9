"""CloudEvents as deployment events.

In structured mode (CloudEvents 1.0, JSON event format) one document has everything:

    specversion, type       "1.0"; dev.cdevents.* carries a CDEvent (`cdevents`), any other the deployment API's body
    source, id              the event's source; together its id (`cloudevent_ids`)
    time                    when the deployment happened, as the event's time
    data, data_base64       a CDEvent or the body: a JSON object, or its text in base64

In binary mode the attributes are headers with `ce-`, and the request's body is the data. That is a report with an
envelope, parsed by `report_parsing`, with one difference: **the id of a plain body is `ce-id` alone**, like
`Idempotency-Key` and the queue's own `id`, because any sender may name its event by headers with `ce-`. A sender that
changes the mode thereby changes its ids. A CDEvent's id is the same in both modes.

Other attributes and extensions are ignored.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from relay.encoding import without_mark
from relay.errors import InvalidEvent
from relay.events.event import DeploymentEvent
from relay.gateway import cdevents
from relay.gateway.cloudevent_ids import event_id, required

#: The accepted version; 0.3 encodes data differently.
SPECVERSION = "1.0"


def parse(document: object, *, registry: str = "") -> DeploymentEvent | cdevents.Ignored:
    """Parse a CloudEvent in structured mode, or raise `InvalidEvent` with the path in the document at fault.

    `registry` is that of a CDEvent's artifact that names none.
    """
    if not isinstance(document, Mapping):
        raise InvalidEvent("", "a CloudEvent must be a JSON object")
    if required(document.get("specversion"), "specversion") != SPECVERSION:
        raise InvalidEvent("specversion", f'must be "{SPECVERSION}"')
    kind, source, own_id = (required(document.get(name), name) for name in ("type", "source", "id"))
    time, data = document.get("time"), _data(document)
    try:
        if cdevents.is_cdevent(kind):
            return cdevents.parse(data, type=kind, source=source, id=own_id, time=time, registry=registry)
        return _plain(data, id=event_id(source, own_id), source=source, time=time)
    except InvalidEvent as error:
        raise InvalidEvent(_path(error.field, kind), error.reason) from None


def is_json(content_type: str) -> bool:
    """Return whether data of this type are JSON: `*/json` and `*/*+json` (JSON event format, section 3.1)."""
    subtype = content_type.partition(";")[0].strip().lower().partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def _plain(data: object, **envelope: Any) -> DeploymentEvent:
    """Parse the deployment API's body; the CloudEvent's attributes take precedence over the body's envelope."""
    if not isinstance(data, Mapping):
        raise InvalidEvent("", "must be a JSON object in the form of the deployment API")
    return DeploymentEvent.from_body(
        {**data, **{name: value for name, value in envelope.items() if value is not None}}
    )


def _path(field: str, kind: str) -> str:
    """Return the path in the document of a field at fault: an attribute, or else below `data`."""
    attributes = ("type", "source", "id", "time") if cdevents.is_cdevent(kind) else ("source", "time")
    if field in attributes:
        return field
    return f"data.{field}" if field else "data"


def _data(document: Mapping[str, Any]) -> object:
    kind = document.get("datacontenttype")
    if kind is not None and not is_json(required(kind, "datacontenttype")):
        raise InvalidEvent("datacontenttype", "must be application/json, or another type of JSON")
    data, encoded = document.get("data"), document.get("data_base64")
    if encoded is None:
        return data
    if data is not None:
        raise InvalidEvent("data_base64", "must not stand beside data")
    text = required(encoded, "data_base64")
    try:
        return from_json(without_mark(b64decode(text, validate=True)))
    except ValueError:
        raise InvalidEvent("data_base64", "must be the base64 of a JSON text") from None
