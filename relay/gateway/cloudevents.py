"""Which deployment does a CloudEvent report?

In structured mode (CloudEvents 1.0, JSON event format) everything stands in one document:

    specversion, type       "1.0"; dev.cdevents.* carries a CDEvent (cdevents.py), any other the reporting API's body
    source, id              the event's source; both make its id (attributes.py)
    time                    when the deployment happened, as the event's time
    data, data_base64       a CDEvent or the body: a JSON object, or the base64 of one's text

In binary mode these stand in headers with `ce-` and the data are the request's body. That is the same as reporting
with an envelope, and reports.py reads it, with one difference: **there the id of a plain body is `ce-id` alone**, as
of `Idempotency-Key` and of the queue's own `id`, because headers with `ce-` are how any sender names its event. A
sender that changes from one mode to the other changes its ids with it. A CDEvent's id is the same in both modes.

Other attributes and extensions are not looked at.
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

#: The version that is taken; 0.3 encodes data in another way.
SPECVERSION = "1.0"


def read(document: object, *, registry: str = "") -> DeploymentEvent | cdevents.Ignored:
    """Read a CloudEvent in structured mode; else raise `InvalidEvent` with the path in the document at fault.

    A CDEvent's artifact without a registry is of `registry`.
    """
    if not isinstance(document, Mapping):
        raise InvalidEvent("", "a CloudEvent must be a JSON object")
    if required(document.get("specversion"), "specversion") != SPECVERSION:
        raise InvalidEvent("specversion", f'must be "{SPECVERSION}"')
    kind, source, own_id = (required(document.get(name), name) for name in ("type", "source", "id"))
    time, data = document.get("time"), _data(document)
    try:
        if cdevents.is_cdevent(kind):
            return cdevents.read(data, type=kind, source=source, id=own_id, time=time, registry=registry)
        return _plain(data, id=event_id(source, own_id), source=source, time=time)
    except InvalidEvent as error:
        raise InvalidEvent(_path(error.field, kind), error.reason) from None


def is_json(content_type: str) -> bool:
    """Whether data of this type are JSON: `*/json` and `*/*+json` (JSON event format, section 3.1)."""
    subtype = content_type.partition(";")[0].strip().lower().partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def _plain(data: object, **envelope: Any) -> DeploymentEvent:
    """Read the reporting API's body; what the CloudEvent says of the envelope wins over what stands in it."""
    if not isinstance(data, Mapping):
        raise InvalidEvent("", "must be a JSON object, as the reporting API takes it")
    return DeploymentEvent.from_body({**data, **{name: told for name, told in envelope.items() if told is not None}})


def _path(field: str, kind: str) -> str:
    """Tell faults of attributes, which both readers see too, from those of the data."""
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
