"""CDEvents (https://cdevents.dev) as deployment events.

    context.type                      dev.cdevents.service.<predicate>.<version>
    context.source, context.id        the event's source; together its id (`cloudevent_ids`)
    context.timestamp                 its time
    subject.id                        image.name
    subject.content.environment.id    environment.name
    subject.content.artifactId        image.url, and the platform if the purl has one (`purl`)

`deployed`, `upgraded` and `rolledback` are reported. `published` and `removed` are accepted and counted, and nothing
is delivered: the deployment API has no removal. The versions 0.1.1, 0.2.0 and 0.3.0 have these fields in these
places, so any 0.x.y that has them is accepted, drafts included. The version of CDEvents itself (`context.version`,
`context.specversion` since 0.5) is not read.

The CloudEvent around a CDEvent must repeat the context's id, source, type and time (CloudEvents binding). SDKs set an
id and a time of their own, which differ when an event is sent again. So the context's values count, and the
CloudEvent's are used only for missing ones. Two different types are refused, because one of them must be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.errors import InvalidEvent
from relay.events.event import DeploymentEvent
from relay.gateway.cloudevent_ids import event_id, required
from relay.gateway.purl import parse_purl

_TYPES = "dev.cdevents."
_SERVICE = re.compile(r"dev\.cdevents\.service\.([a-z]+)\.0\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]+)?")
_REPORTED = ("deployed", "upgraded", "rolledback")
_IGNORED = {
    "published": "publishing a service does not change which image runs",
    "removed": "the deployment API has no removal",
}
_TAKEN = f"{_TYPES}service.{{{','.join((*_REPORTED, *_IGNORED))}}}.0.x.y are taken"

_ARTIFACT = "subject.content.artifactId"
_ENVIRONMENT = "subject.content.environment"

#: The CDEvent's path of each field of an event, without the envelope's (`_Context`).
_FIELDS = {
    "image.url": _ARTIFACT,
    "image.name": "subject.id",
    "environment.name": f"{_ENVIRONMENT}.id",
    "platform.os": _ARTIFACT,
    "platform.architecture": _ARTIFACT,
    "platform.variant": _ARTIFACT,
}


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A CDEvent that is accepted and counted, and not delivered."""

    id: str
    #: For example `dev.cdevents.service.removed.0.3.0`.
    type: str
    #: A sentence for operators, without a full stop.
    why: str


def is_cdevent(type: str | None) -> bool:  # noqa: A002 - CloudEvents' name
    """Return whether a CloudEvent of this type carries a CDEvent."""
    return type is not None and type.startswith(_TYPES)


def parse(
    document: object,
    *,
    type: str | None = None,  # noqa: A002 - CloudEvents' name
    id: str | None = None,  # noqa: A002 - the same
    source: str | None = None,
    time: Any = None,
    registry: str = "",
) -> DeploymentEvent | Ignored:
    """Parse a CDEvent, or raise `InvalidEvent` with the path in the document at fault.

    `type`, `id`, `source` and `time` are the CloudEvent's; `registry` is that of a purl that names none.
    """
    if not isinstance(document, Mapping):
        raise InvalidEvent("", "a CDEvent must be a JSON object")
    given = _object(document, "context") if document.get("context") is not None else {}
    context = _Context.of(given, type=type, id=id, source=source, time=time)
    if why := _IGNORED.get(context.predicate):
        return Ignored(id=context.id, type=context.type, why=why)
    return _deployment(_object(document, "subject"), context, registry)


@dataclass(frozen=True, kw_only=True)
class _Context:
    """The attributes of a CDEvent, from its context or the CloudEvent around it."""

    type: str
    predicate: str
    #: The relay's id, made of the source and the CDEvent's id.
    id: str
    source: str
    time: Any
    #: The path in the request of the event's source and time.
    fields: Mapping[str, str]

    @classmethod
    def of(cls, context: Mapping[str, Any], *, type: Any, id: Any, source: Any, time: Any) -> _Context:  # noqa: A002 - as above
        type_field, kind = _either(context, "type", "type", type)
        kind = required(kind, type_field)
        if type and type.strip() != kind:
            raise InvalidEvent(type_field, "differs from the CloudEvent's type")
        predicate = _predicate(kind, type_field)
        id_field, own_id = _either(context, "id", "id", id)
        source_field, source = _either(context, "source", "source", source)
        source = required(source, source_field)
        time_field, time = _either(context, "timestamp", "time", time)
        return cls(
            type=kind,
            predicate=predicate,
            id=event_id(source, required(own_id, id_field)),
            source=source,
            time=time,
            fields={"source": source_field, "time": time_field},
        )


def _either(context: Mapping[str, Any], name: str, outer_name: str, outer: Any) -> tuple[str, Any]:
    """Return the path and value of the context's attribute, or of the CloudEvent's if the context has none."""
    own = context.get(name)
    if own is None and outer is not None:
        return outer_name, outer
    return f"context.{name}", own


def _predicate(kind: str, field: str) -> str:
    found = _SERVICE.fullmatch(kind)
    if found is None or found[1] not in (*_REPORTED, *_IGNORED):
        raise InvalidEvent(field, f"is not one that is taken: of CDEvents, {_TAKEN}")
    return found[1]


def _deployment(subject: Mapping[str, Any], context: _Context, registry: str) -> DeploymentEvent:
    content = _object(subject, "content", "subject.content")
    environment = _object(content, "environment", _ENVIRONMENT)
    purl = required(content.get("artifactId"), _ARTIFACT)
    try:
        artifact = parse_purl(purl, registry=registry)
    except ValueError as error:
        raise InvalidEvent(_ARTIFACT, str(error)) from None
    report = {
        "image": {"url": artifact.reference, "name": required(subject.get("id"), "subject.id")},
        "environment": {"name": required(environment.get("id"), f"{_ENVIRONMENT}.id")},
        "platform": {"os": artifact.os, "architecture": artifact.architecture, "variant": artifact.variant},
        "id": context.id,
        "source": context.source,
        "time": context.time,
    }
    try:
        return DeploymentEvent.from_body(report)
    except InvalidEvent as error:
        raise InvalidEvent({**_FIELDS, **context.fields}.get(error.field, error.field), error.reason) from None


def _object(parent: Mapping[str, Any], name: str, field: str | None = None) -> Mapping[str, Any]:
    found = parent.get(name)
    if found is None:
        raise InvalidEvent(field or name, "is missing")
    if not isinstance(found, Mapping):
        raise InvalidEvent(field or name, "must be a JSON object")
    return found
