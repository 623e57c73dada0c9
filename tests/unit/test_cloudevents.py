"""Which deployment a CloudEvent reports, in each of its modes, and which of its fields is at fault."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("packageurl")

from relay.errors import InvalidEvent
from relay.events.event import MAX_ID_BYTES, DeploymentEvent
from relay.gateway import cloudevents, report_parsing
from relay.gateway.cdevents import Ignored
from relay.gateway.cloudevent_ids import event_id
from relay.gateway.report_parsing import Envelope, Fault, Limits, Media
from relay.http.refused import Refused

DIGEST = "0123456789abcdef" * 4
URL = f"registry.example.com/app@sha256:{DIGEST}"
DATA = {
    "image": {"url": URL, "name": "app"},
    "environment": {"name": "production"},
    "platform": {"os": "linux", "architecture": "arm64"},
}
PLAIN = {
    "specversion": "1.0",
    "type": "com.example.deployed",
    "source": "/ci/7",
    "id": "4711",
    "time": "2025-01-31T12:00:00Z",
    "datacontenttype": "application/json",
    "subject": "app",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "data": DATA,
}
EVENT = DeploymentEvent.of(
    URL,
    name="app",
    environment="production",
    platform="linux/arm64",
    id="/ci/7#4711",
    source="/ci/7",
    time="2025-01-31T12:00:00Z",
)
CDEVENT = {
    "context": {
        "specversion": "0.5.0",
        "type": "dev.cdevents.service.deployed.0.3.0",
        "source": "/ci/7",
        "id": "4711",
        "timestamp": "2025-01-31T12:00:00Z",
    },
    "subject": {
        "id": "app",
        "content": {
            "environment": {"id": "production"},
            "artifactId": f"pkg:oci/app@sha256%3A{DIGEST}?repository_url=registry.example.com&arch=arm64&os=linux",
        },
    },
}
CARRIER = {
    **PLAIN,
    "type": "dev.cdevents.service.deployed.0.3.0",
    "datacontenttype": "application/cdevents+json",
    "data": CDEVENT,
}
LIMITS = Limits(one=2000, many=10_000)


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def base64(data: object) -> str:
    return b64encode(json.dumps(data).encode()).decode()


def test_a_plain_cloudevent_is_the_body_in_its_envelope() -> None:
    assert cloudevents.parse(PLAIN) == EVENT


def test_a_cdevent_in_a_cloudevent_is_the_same_deployment() -> None:
    assert cloudevents.parse(CARRIER) == EVENT


@pytest.mark.parametrize("document", [PLAIN, CARRIER], ids=["plain", "CDEvent"])
def test_data_may_be_in_base64(document: dict[str, Any]) -> None:
    encoded = {**without(document, "data"), "data_base64": base64(document["data"])}
    assert cloudevents.parse(encoded) == EVENT
    assert cloudevents.parse({**encoded, "data": None}) == EVENT


@pytest.mark.parametrize(
    "kind", [None, "application/json", "Application/JSON; charset=utf-8", "text/json", "application/vnd.acme+json"]
)
def test_data_may_be_any_json(kind: str | None) -> None:
    assert cloudevents.parse({**PLAIN, "datacontenttype": kind}) == EVENT


def test_the_envelope_around_wins_over_the_one_in_the_data() -> None:
    inner = {**DATA, "id": 7, "source": "inner", "time": "2020-01-01T00:00:00Z"}
    assert cloudevents.parse({**PLAIN, "data": inner}) == EVENT
    untimed = cloudevents.parse({**without(PLAIN, "time"), "data": inner})
    assert isinstance(untimed, DeploymentEvent)
    assert untimed == DeploymentEvent.from_body({**DATA, "id": EVENT.id, "source": "/ci/7", "time": inner["time"]})


def test_a_time_is_not_needed() -> None:
    event = cloudevents.parse(without(PLAIN, "time"))
    assert isinstance(event, DeploymentEvent)
    assert event.time is None


@pytest.mark.parametrize("predicate", ["published", "removed"])
def test_what_has_nothing_to_deliver_is_ignored_with_its_id(predicate: str) -> None:
    document = deepcopy(CARRIER)
    document["type"] = document["data"]["context"]["type"] = f"dev.cdevents.service.{predicate}.0.3.0"
    ignored = cloudevents.parse(document)
    assert isinstance(ignored, Ignored)
    assert (ignored.id, ignored.type) == ("/ci/7#4711", document["type"])


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], ""),
        ("text", ""),
        ({}, "specversion"),
        ({**PLAIN, "specversion": 1.0}, "specversion"),
        ({**PLAIN, "specversion": "0.3"}, "specversion"),
        (without(PLAIN, "type"), "type"),
        (without(PLAIN, "source"), "source"),
        (without(PLAIN, "id"), "id"),
        ({**PLAIN, "id": ""}, "id"),
        ({**PLAIN, "id": 4711}, "id"),
        ({**PLAIN, "id": "47\u00001"}, "id"),
        ({**PLAIN, "source": None}, "source"),
        ({**PLAIN, "source": "/" + "a" * 255}, "source"),
        ({**PLAIN, "time": "yesterday"}, "time"),
        ({**PLAIN, "time": 1738324800}, "time"),
        ({**PLAIN, "datacontenttype": "application/xml"}, "datacontenttype"),
        ({**PLAIN, "datacontenttype": "json"}, "datacontenttype"),
        ({**PLAIN, "datacontenttype": 5}, "datacontenttype"),
        (without(PLAIN, "data"), "data"),
        ({**PLAIN, "data": [DATA]}, "data"),
        ({**PLAIN, "data": json.dumps(DATA)}, "data"),
        ({**PLAIN, "data_base64": base64(DATA)}, "data_base64"),
        ({**without(PLAIN, "data"), "data_base64": "é"}, "data_base64"),
        ({**without(PLAIN, "data"), "data_base64": "e30"}, "data_base64"),
        ({**without(PLAIN, "data"), "data_base64": "eyA="}, "data_base64"),
        ({**without(PLAIN, "data"), "data_base64": "e*30="}, "data_base64"),
        ({**without(PLAIN, "data"), "data_base64": {}}, "data_base64"),
        ({**PLAIN, "data": {}}, "data.image"),
        ({**PLAIN, "data": {"image": {}}}, "data.image.url"),
        ({**PLAIN, "data": {"image": {"url": "app:latest"}}}, "data.image.url"),
        ({**PLAIN, "data": {**DATA, "environment": {"name": 5}}}, "data.environment.name"),
        ({**PLAIN, "data": {**DATA, "platform": {"os": "a b"}}}, "data.platform.os"),
        ({**PLAIN, "data": {**DATA, "type": "extra"}}, "data.type"),
        ({**CARRIER, "type": "dev.cdevents.build.finished.0.3.0", "data": {}}, "type"),
        ({**CARRIER, "type": "dev.cdevents.service.removed.0.3.0"}, "data.context.type"),
        ({**CARRIER, "data": [CDEVENT]}, "data"),
        (without(CARRIER, "data"), "data"),
        ({**CARRIER, "data": {**CDEVENT, "subject": {}}}, "data.subject.content"),
        ({**CARRIER, "data": {"subject": CDEVENT["subject"]}, "time": "yesterday"}, "time"),
        ({**CARRIER, "data": {**CDEVENT, "subject": {"id": "app", "content": {"environment": {"id": "e"}}}}},
         "data.subject.content.artifactId"),
    ],
)  # fmt: skip
def test_faults_name_the_field_that_the_sender_knows(document: object, field: str) -> None:
    with pytest.raises(InvalidEvent) as invalid:
        cloudevents.parse(document)
    assert invalid.value.field == field
    assert invalid.value.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a good document with some part of it replaced by any JSON."""
    document = deepcopy(draw(st.sampled_from([PLAIN, CARRIER])))
    parent: dict[str, Any] = document
    while True:
        name = draw(st.sampled_from([*sorted(parent), "data_base64"]))
        if isinstance(parent.get(name), dict) and draw(st.booleans()):
            parent = parent[name]
            continue
        parent[name] = draw(JSON | st.text().map(lambda text: f"pkg:oci/{text}"))
        return document


@given(JSON | damaged())
def test_any_json_is_an_event_or_invalid(document: object) -> None:
    with contextlib.suppress(InvalidEvent):
        assert isinstance(cloudevents.parse(document), DeploymentEvent | Ignored)


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(
    lambda text: text.strip()
)


@given(TEXT, TEXT, TEXT, TEXT)
@example("/ci", "7#1", "/ci#7", "1")
@example("/ci#7", "11", "/ci#71", "1")
def test_two_sources_and_ids_never_share_an_id(source: str, own_id: str, other_source: str, other_id: str) -> None:
    one, other = event_id(source, own_id), event_id(other_source, other_id)
    assert (one == other) is ((source, own_id) == (other_source, other_id))
    assert len(one.encode()) <= MAX_ID_BYTES


@pytest.mark.parametrize(
    ("source", "own_id", "readable"),
    [
        ("/ci/7", "4711", True),
        ("/ci/7", "47#11", True),
        ("/ci#7", "4711", False),
        ("a" * 100, "b" * 27, True),
        ("a" * 100, "b" * 28, False),
        ("é" * 50, "b" * 28, False),
    ],
)
def test_ids_are_readable_where_they_can_be(source: str, own_id: str, *, readable: bool) -> None:
    made = event_id(source, own_id)
    assert (made == f"{source}#{own_id}") is readable
    assert made.startswith("sha256:") is not readable
    assert cloudevents.parse({**PLAIN, "source": source, "id": own_id}).id == made


def text(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("media", "document", "envelope"),
    [
        (Media.CLOUDEVENT, PLAIN, Envelope()),
        (Media.CLOUDEVENT, CARRIER, Envelope(type="com.example.other", id="header", source="header")),
        (Media.CDEVENT, CDEVENT, Envelope()),
        (Media.CDEVENT, CDEVENT, Envelope(type=CARRIER["type"], id="4711", source="/ci/7")),
        (Media.JSON, CDEVENT, Envelope(type=CARRIER["type"], id="4711", source="/ci/7")),
        (Media.JSON, without(CDEVENT, "context"),
         Envelope(type=CARRIER["type"], id="4711", source="/ci/7", time="2025-01-31T12:00:00Z")),
    ],
)  # fmt: skip
def test_one_deployment_in_every_mode(media: Media, document: object, envelope: Envelope) -> None:
    body = text(document)
    assert not report_parsing.is_many(media, body)
    assert report_parsing.parse(media, body, envelope) == EVENT


def test_in_binary_mode_the_id_of_a_plain_body_is_its_header_alone() -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-type": "com.example.deployed",
        "ce-source": "/ci/7",
        "ce-id": "4711",
        "ce-time": "2025-01-31T12:00:00Z",
    }
    event = report_parsing.parse(Media.JSON, text(DATA), report_parsing.envelope_of(headers))
    assert event == EVENT.model_copy(update={"id": "4711"})


@pytest.mark.parametrize("media", [Media.CLOUDEVENT, Media.CDEVENT])
def test_one_that_is_not_json_is_400(media: Media) -> None:
    with pytest.raises(Refused):
        report_parsing.parse(media, b"{", Envelope())


def test_a_batch_that_is_not_json_is_400() -> None:
    with pytest.raises(Refused):
        report_parsing.split(Media.CLOUDEVENTS, b"[1,")


def test_one_of_many_that_is_no_event_does_not_stop_the_others() -> None:
    removed = {**CARRIER, "type": "dev.cdevents.service.removed.0.3.0", "data": {}}
    batch = [PLAIN, {**PLAIN, "data": {}}, CARRIER, 7, removed, {**PLAIN, "comment": "x" * LIMITS.one}]
    texts = report_parsing.split(Media.CLOUDEVENTS, text(batch))
    read = report_parsing.parse_many(Media.CLOUDEVENTS, texts, 10, Envelope(id="header"), LIMITS)
    assert [type(each) for each in read] == [DeploymentEvent, Fault, DeploymentEvent, Fault, Ignored, Fault]
    assert [read[0], read[2]] == [EVENT, EVENT]
    assert [(each.index, each.field) for each in read if isinstance(each, Fault)] == [
        (11, "data.image"), (13, ""), (15, "")
    ]  # fmt: skip


@pytest.mark.parametrize(("body", "number"), [(b"[]", 0), (b"[7]", 1)])
def test_a_batch_is_many_whatever_is_in_it(body: bytes, number: int) -> None:
    assert report_parsing.is_many(Media.CLOUDEVENTS, body)
    assert len(report_parsing.split(Media.CLOUDEVENTS, body)) == number


def test_numbers_that_are_none_do_not_stop_a_batch() -> None:
    body = text([{**PLAIN, "extension": float("nan")}, {**PLAIN, "time": 10**400}])
    read = report_parsing.parse_many(
        Media.CLOUDEVENTS, report_parsing.split(Media.CLOUDEVENTS, body), 0, Envelope(), LIMITS
    )
    assert [type(each) for each in read] == [DeploymentEvent, Fault]


def test_a_batch_is_an_array() -> None:
    with pytest.raises(InvalidEvent):
        report_parsing.split(Media.CLOUDEVENTS, text(PLAIN))
