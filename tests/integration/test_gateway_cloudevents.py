"""CloudEvents and CDEvents through the gateway, on real sockets into a real Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from gateways import IMAGE, TOKEN, Running, inbox, running

from relay.queue.counters import read_counters
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

CDEVENTS = Path(__file__).parents[1] / "data" / "cdevents"


def cdevent(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((CDEVENTS / f"{name}.json").read_text())
    return document


def carrier(document: dict[str, Any]) -> dict[str, Any]:
    """Give the structured CloudEvent of a CDEvent."""
    context = document["context"]
    return {"specversion": "1.0", **{name: context[name] for name in ("id", "source", "type")}, "data": document}


@pytest.mark.parametrize("mode", ["structured", "binary", "bare"])
def test_a_cdevent_is_enqueued_in_every_mode(gateway: Running, client: Redis, mode: str) -> None:
    document = cdevent("deployed-0.3.0")
    context = document["context"]
    if mode == "structured":
        answer = gateway.post(json.dumps(carrier(document)), Content_Type="application/cloudevents+json")
    elif mode == "binary":
        attributes = {f"ce-{name}": context[name] for name in ("id", "source", "type")}
        answer = gateway.post(json.dumps(document), ce_specversion="1.0", **attributes)
    else:
        answer = gateway.post(json.dumps(document), Content_Type="application/cdevents+json")
    event_id = f"{context['source']}#{context['id']}"
    assert answer.status_code == 202
    if mode == "bare":  # which is no CloudEvent
        assert answer.json() == {"id": event_id}
    else:
        assert (answer.content, answer.headers["X-Relay-Event-Id"]) == (b"", event_id)
    (entry,) = inbox(client)
    assert json.loads(entry[b"event"]) == {
        "image": {
            "url": f"registry.example.com/payments/checkout@{IMAGE.partition('@')[2]}",
            "name": "service/checkout",
        },
        "environment": {"name": "production/eu-1"},
        "platform": {"os": "linux", "architecture": "arm64"},
    }
    assert entry[b"id"].decode() == event_id
    assert entry[b"source"].decode() == context["source"]
    assert entry[b"time"] == b"2025-01-31T12:00:04+00:00"


def test_a_removed_service_is_accepted_and_nothing_is_enqueued(gateway: Running, client: Redis) -> None:
    document = cdevent("removed-0.3.0")
    context = document["context"]
    answer = gateway.post(json.dumps(document), Content_Type="application/cdevents+json")
    assert (answer.status_code, answer.json()) == (202, {"id": f"{context['source']}#{context['id']}"})
    assert inbox(client) == []
    assert read_counters(client, Keys()).ignored == 1


def test_a_batch_of_cloudevents_is_many(gateway: Running, client: Redis) -> None:
    removed, deployed = carrier(cdevent("removed-0.3.0")), carrier(cdevent("deployed-0.1.1"))
    batch = [removed, {**deployed, "data": {}}, deployed]
    answer = gateway.post(json.dumps(batch), Content_Type="application/cloudevents-batch+json")
    assert answer.status_code == 202
    ids = [f"{removed['source']}#{removed['id']}", None, f"{deployed['source']}#{deployed['id']}"]
    assert answer.json()["ids"] == ids
    assert [(each["index"], each["field"]) for each in answer.json()["errors"]] == [(1, "data.subject")]
    assert [fields[b"id"].decode() for fields in inbox(client)] == [ids[2]]
    assert read_counters(client, Keys()).ignored == 1


def test_artifact_without_a_registry_is_of_the_tokens_or_the_gateways(
    redis_server: EmbeddedRedis, client: Redis, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[payments]\ntoken = "of-payments"\nregistry = "quay.io/payments"\n')
    document = cdevent("deployed-0.3.0")
    purl = document["subject"]["content"]["artifactId"]
    document["subject"]["content"]["artifactId"] = purl.partition("?")[0]
    bare, structured = json.dumps(document), json.dumps([carrier(document)])
    settings = {"port": 0, "token": TOKEN, "tokens_file": tokens, "default_registry": "ghcr.io/acme"}
    with running(redis_server.url, gateway=settings) as gateway:
        gateway.post(bare, Content_Type="application/cdevents+json")
        batch = "application/cloudevents-batch+json"
        gateway.post(structured, Content_Type=batch, Authorization="Bearer of-payments")
    urls = [json.loads(entry[b"event"])["image"]["url"].partition("@")[0] for entry in inbox(client)]
    assert urls == ["ghcr.io/acme/checkout", "quay.io/payments/checkout"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "field"),
    [
        (b"{", {"Content-Type": "application/cloudevents+json"}, 400, ""),
        (b"{}", {"Content-Type": "application/cloudevents+json"}, 422, "specversion"),
        (b"{}", {"Content-Type": "application/cdevents+json"}, 422, "context.type"),
        (b"{}", {"ce-type": "dev.cdevents.build.queued.0.3.0"}, 422, "type"),
        (b"{}", {"Content-Type": "application/cloudevents-batch+json"}, 422, ""),
        (b"{}", {"Content-Type": "application/cloudevents+avro"}, 415, ""),
    ],
)
def test_refusals_name_the_field(
    gateway: Running, client: Redis, *, body: bytes, headers: dict[str, str], status: int, field: str
) -> None:
    answer = gateway.post(body, **headers)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert inbox(client) == []
