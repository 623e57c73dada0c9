"""Which deployment a CDEvent reports, and which of its fields is at fault."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("packageurl")

from relay.errors import InvalidEvent
from relay.events.event import DeploymentEvent
from relay.gateway import cdevents
from relay.gateway.cdevents import Ignored
from relay.gateway.purl import parse_purl

EXAMPLES = {path.stem: path for path in (Path(__file__).parents[1] / "data" / "cdevents").glob("*.json")}
HEX = "0123456789abcdef" * 4
DIGEST = f"sha256%3A{HEX}"
IMAGE = f"registry.example.com/payments/checkout@sha256:{HEX}"
SOURCE = "https://ci.example.com/jobs/payments"


def example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(EXAMPLES[name].read_text())
    return document


def changed(path: str, *value: object) -> dict[str, Any]:
    """Give an example with another value at a path, or without one there."""
    document = example("deployed-0.3.0")
    *parents, last = path.split(".")
    parent = document
    for name in parents:
        parent = parent[name]
    if value:
        (parent[last],) = value
    else:
        del parent[last]
    return document


def event_of(number: int, seconds: str, platform: str | None = None) -> DeploymentEvent:
    return DeploymentEvent.of(
        IMAGE,
        name="service/checkout",
        environment="production/eu-1",
        platform=platform,
        id=f"{SOURCE}#6f1d2c3e-0000-4000-8000-00000000000{number}",
        source=SOURCE,
        time=f"2025-01-31T12:00:{seconds}Z",
    )


EVENTS = {
    "deployed-0.1.1": event_of(1, "00"),
    "upgraded-0.1.1": event_of(2, "01"),
    "deployed-0.2.0": event_of(3, "02"),
    "rolledback-0.2.0": event_of(4, "03.5"),
    "deployed-0.3.0": event_of(5, "04", "linux/arm64"),
    "upgraded-0.3.0-draft": event_of(6, "05"),
}
IGNORED = {"published-0.1.1": 7, "removed-0.3.0": 8}


def test_every_example_is_in_a_table() -> None:
    assert {*EVENTS, *IGNORED} == {*EXAMPLES}


@pytest.mark.parametrize("name", EVENTS)
def test_what_an_example_reports(name: str) -> None:
    assert cdevents.parse(example(name)) == EVENTS[name]


@pytest.mark.parametrize("name", IGNORED)
def test_published_and_removed_are_accepted_under_their_id(name: str) -> None:
    document = example(name)
    ignored = cdevents.parse(document)
    assert isinstance(ignored, Ignored)
    assert ignored.id == f"{SOURCE}#6f1d2c3e-0000-4000-8000-00000000000{IGNORED[name]}"
    assert ignored.type == document["context"]["type"]
    assert ignored.why


@pytest.mark.parametrize("predicate", ["deployed", "upgraded", "rolledback"])
@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "0.3.0", "0.3.0-draft", "0.4.0", "0.10.12"])
@pytest.mark.parametrize("dialect", [{"version": "0.4.1"}, {"specversion": "0.5.0"}, {}])
def test_any_minor_version_in_any_dialect(predicate: str, version: str, dialect: dict[str, str]) -> None:
    document = example("deployed-0.3.0")
    del document["context"]["specversion"]
    document["context"] |= {"type": f"dev.cdevents.service.{predicate}.{version}", **dialect}
    assert cdevents.parse(document) == EVENTS["deployed-0.3.0"]


@pytest.mark.parametrize(
    "given_type",
    [
        "dev.cdevents.service.deployed",
        "dev.cdevents.service.deployed.1.0.0",
        "dev.cdevents.service.deployed.0.3",
        "dev.cdevents.service.restarted.0.3.0",
        "dev.cdevents.build.finished.0.3.0",
        "dev.cdevents.artifact.published.0.3.0",
        "dev.cdevents.service.deployed.0.3.0\ndev.cdevents",
        "dev.cdeventsx.acme-deployed.0.1.0",
    ],
)
def test_other_types_are_told_which_are_taken(given_type: str) -> None:
    with pytest.raises(InvalidEvent) as invalid:
        cdevents.parse(changed("context.type", given_type))
    assert invalid.value.field == "context.type"
    if "\n" not in given_type:
        assert "dev.cdevents.service.{deployed,upgraded,rolledback,published,removed}.0.x.y" in invalid.value.reason


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("context", [5], "context"),
        ("context.type", [], "context.type"),
        ("context.id", [], "context.id"),
        ("context.id", [" "], "context.id"),
        ("context.id", [7], "context.id"),
        ("context.source", [], "context.source"),
        ("context.source", ["/a\nb"], "context.source"),
        ("context.source", ["/" + "a" * 255], "context.source"),
        ("context.timestamp", ["yesterday"], "context.timestamp"),
        ("context.timestamp", [1738324800], "context.timestamp"),
        ("subject", [], "subject"),
        ("subject", ["checkout"], "subject"),
        ("subject.id", [], "subject.id"),
        ("subject.id", [["checkout"]], "subject.id"),
        ("subject.id", ["a" * 256], "subject.id"),
        ("subject.content", [], "subject.content"),
        ("subject.content.environment", [], "subject.content.environment"),
        ("subject.content.environment", ["production"], "subject.content.environment"),
        ("subject.content.environment.id", [], "subject.content.environment.id"),
        ("subject.content.environment.id", ["a" * 256], "subject.content.environment.id"),
        ("subject.content.artifactId", [], "subject.content.artifactId"),
        ("subject.content.artifactId", [{}], "subject.content.artifactId"),
        ("subject.content.artifactId", ["app:v1"], "subject.content.artifactId"),
        (
            "subject.content.artifactId",
            [f"pkg:oci/app@{DIGEST}?repository_url=ghcr.io&arch=a/b"],
            "subject.content.artifactId",
        ),
        (
            "subject.content.artifactId",
            [f"pkg:oci/app@{DIGEST[:-1]}?repository_url=ghcr.io"],
            "subject.content.artifactId",
        ),
    ],
)
def test_faults_name_the_field_that_the_sender_knows(path: str, value: list[object], field: str) -> None:
    with pytest.raises(InvalidEvent) as invalid:
        cdevents.parse(changed(path, *value))
    assert invalid.value.field == field


@pytest.mark.parametrize("document", [None, [], "text", 7])
def test_what_is_no_object_is_no_cdevent(document: object) -> None:
    with pytest.raises(InvalidEvent):
        cdevents.parse(document, type="dev.cdevents.service.deployed.0.3.0", id="1", source="/a")


def test_the_context_counts_before_the_cloudevent_around_it() -> None:
    around = {"id": "made up by an SDK", "source": "/elsewhere", "time": "2030-01-01T00:00:00Z"}
    document = example("deployed-0.3.0")
    assert cdevents.parse(document, type=document["context"]["type"], **around) == EVENTS["deployed-0.3.0"]


def test_the_cloudevent_stands_in_for_a_context() -> None:
    document = changed("context")
    context = example("deployed-0.3.0")["context"]
    around = {name: context[name] for name in ("type", "id", "source")}
    assert cdevents.parse(document, **around, time=context["timestamp"]) == EVENTS["deployed-0.3.0"]


@pytest.mark.parametrize(
    ("around", "field"),
    [
        ({"type": "dev.cdevents.service.removed.0.3.0"}, "context.type"),
        ({"type": ""}, None),
    ],
)
def test_two_types_that_differ_are_refused(around: dict[str, str], field: str | None) -> None:
    if field is None:
        assert cdevents.parse(example("deployed-0.3.0"), **around)
        return
    with pytest.raises(InvalidEvent) as invalid:
        cdevents.parse(example("deployed-0.3.0"), **around)
    assert invalid.value.field == field


@pytest.mark.parametrize(
    ("around", "field"),
    [
        ({}, "context.type"),
        ({"type": "dev.cdevents.build.finished.0.3.0"}, "type"),
        ({"id": "", "source": "/a"}, "id"),
        ({"id": "1"}, "context.source"),
        ({"id": "1", "source": "/" + "a" * 255}, "source"),
        ({"id": "1", "source": "/a", "time": "yesterday"}, "time"),
    ],
)
def test_faults_of_the_cloudevent_around_are_named_as_its_own(around: dict[str, str], field: str) -> None:
    if around:
        around = {"type": "dev.cdevents.service.deployed.0.3.0", **around}
    with pytest.raises(InvalidEvent) as invalid:
        cdevents.parse(changed("context"), **around)
    assert invalid.value.field == field


@pytest.mark.parametrize(
    ("purl", "repository"),
    [
        (f"pkg:oci/app@{DIGEST}?repository_url=ghcr.io/team", "ghcr.io/team/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=ghcr.io/team/app", "ghcr.io/team/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=ghcr.io/team/myapp", "ghcr.io/team/myapp/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=ghcr.io", "ghcr.io/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=app.io", "app.io/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=https%3A%2F%2Fghcr.io%2Fteam%2F", "ghcr.io/team/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=HTTPS://ghcr.io/team/app/", "ghcr.io/team/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=localhost:5000/team", "localhost:5000/team/app"),
        (f"pkg:oci/app@{DIGEST}?repository_url=localhost", "localhost/app"),
        (f"pkg:oci/App@sha256:{HEX.upper()}?repository_url=ghcr.io/team", "ghcr.io/team/app"),
        (f"pkg:oci/ghcr.io/team/app@{DIGEST}", "ghcr.io/team/app"),
        (f"pkg:docker/team/app@{DIGEST}?repository_url=ghcr.io", "ghcr.io/team/app"),
        (f"pkg:docker/team/app@{DIGEST}?repository_url=ghcr.io/team/app", "ghcr.io/team/app"),
        (f"pkg:docker/ghcr.io/team/app@{DIGEST}", "ghcr.io/team/app"),
        (f"pkg:docker/ghcr.io/team/app@{DIGEST}?repository_url=ghcr.io", "ghcr.io/team/app"),
        (f"pkg:docker/localhost:5000/app@sha256:{HEX}", "localhost:5000/app"),
        (f"pkg:docker/team/app@{DIGEST}", "docker.io/team/app"),
        (f"pkg:docker/nginx@{DIGEST}", "docker.io/library/nginx"),
        (f"pkg:docker/nginx@{DIGEST}?repository_url=https://hub.docker.com", "docker.io/library/nginx"),
        (f"pkg:oci/debian@{DIGEST}?repository_url=docker.io/library/debian", "docker.io/library/debian"),
        (f"pkg:oci/debian@{DIGEST}?repository_url=index.docker.io/library/debian", "docker.io/library/debian"),
        (f"pkg:docker/nginx@{DIGEST}?repository_url=https://registry-1.docker.io/v2/", "docker.io/library/nginx"),
        (f"pkg:docker/nginx@{DIGEST}?repository_url=https://index.docker.io/v1/", "docker.io/library/nginx"),
        (f"pkg:oci/nginx@{DIGEST}?repository_url=https://hub.docker.com/_/nginx", "docker.io/library/nginx"),
        (f"pkg:oci/app@{DIGEST}?repository_url=https://hub.docker.com/r/team/app", "docker.io/team/app"),
        (f"pkg:docker/r/app@{DIGEST}?repository_url=https://hub.docker.com", "docker.io/r/app"),
        (f"pkg:docker/ghcr.io/team/app@v2?digest=sha256:{HEX}&platform=linux%2Farm64", "ghcr.io/team/app"),
        (f"pkg:docker/ghcr.io/team/app@v2?platform=linux%2Farm64&digest={DIGEST}", "ghcr.io/team/app"),
        (f"pkg:docker/ghcr.io/team/app?digest={DIGEST}", "ghcr.io/team/app"),
        (f"pkg:docker/alpine@3.20?digest={DIGEST}", "docker.io/library/alpine"),
        (f"pkg:docker/localhost%3A5000/app@v2?digest={DIGEST}", "localhost:5000/app"),
        (f"pkg:oci/app@v2?digest={DIGEST}&repository_url=ghcr.io/team&tag=v2", "ghcr.io/team/app"),
        (f"pkg:oci/app@{DIGEST}?digest={DIGEST}&repository_url=ghcr.io/team", "ghcr.io/team/app"),
    ],
)
def test_which_repository_a_purl_names(purl: str, repository: str) -> None:
    event = cdevents.parse(changed("subject.content.artifactId", purl))
    assert isinstance(event, DeploymentEvent)
    assert event.image.url == f"{repository}@sha256:{HEX}"


@pytest.mark.parametrize(
    ("purl", "says"),
    [
        ("registry.example.com/app:v1", "not a purl"),
        ("pkg:oci", "not a purl"),
        ("pkg:oci/app?repository_url", "not a purl"),
        ("pkg:github/acme/app@abc123", "type 'github'"),
        ("pkg:oci/app?repository_url=ghcr.io", "no digest"),
        ("pkg:oci/app@v1.2.3?repository_url=ghcr.io&tag=v1.2.3", "no digest"),
        (f"pkg:oci/app@{DIGEST}", "no repository_url"),
        (f"pkg:oci/team/app@{DIGEST}", "no repository_url"),
        (f"pkg:oci/app@{DIGEST}?repository_url=team", "no registry"),
        (f"pkg:oci/app@{DIGEST}?repository_url=https://", "no registry"),
        (f"pkg:docker/app@{DIGEST}?repository_url=team", "no registry"),
        (f"pkg:docker/app@{DIGEST}?digest=sha256:{HEX[::-1]}", "one digest as its version and another"),
        (f"pkg:docker/app@v2?digest={DIGEST}&platform=linux", "platform 'linux'"),
        (f"pkg:docker/app@v2?digest={DIGEST}&platform=linux/arm/v7/x", "platform 'linux/arm/v7/x'"),
        (f"pkg:docker/app@v2?digest={DIGEST}&platform=linux/arm64&arch=amd64", "platform and another"),
        (f"pkg:docker/app@v2?digest={DIGEST}&platform=linux/arm64&variant=v7", "platform and another"),
        *(
            (purl, "the digest is empty: was the output it comes from set")
            for purl in (
                "pkg:oci/app@?repository_url=ghcr.io",
                "pkg:oci/app@sha256%3A?repository_url=ghcr.io",
                "pkg:oci/app@sha256:null?repository_url=ghcr.io",
                "pkg:oci/app@undefined?repository_url=ghcr.io",
                "pkg:oci/app@<no value>?repository_url=ghcr.io",
                "pkg:oci/app@$(tasks.build.results.DIGEST)?repository_url=ghcr.io",
                "pkg:oci/app@${DIGEST}?repository_url=ghcr.io",
                "pkg:docker/app@v2?digest=&platform=linux%2Farm64",
                "pkg:docker/app@v2?digest=sha256:",
            )
        ),
    ],
)
def test_purls_that_name_no_image_by_digest_say_what_to_write(purl: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_purl(purl)


def test_a_purl_may_say_the_platform() -> None:
    artifact = parse_purl(f"pkg:oci/app@{DIGEST}?repository_url=ghcr.io&os=windows&arch=amd64&tag=v1")
    assert (artifact.os, artifact.architecture) == ("windows", "amd64")
    assert (parse_purl(f"pkg:docker/app@{DIGEST}").os, parse_purl(f"pkg:docker/app@{DIGEST}").architecture) == (
        None,
        None,
    )


@pytest.mark.parametrize(
    ("qualifiers", "platform"),
    [
        ("platform=linux%2Farm64", ("linux", "arm64", None)),
        ("platform=linux/arm/v7", ("linux", "arm", "v7")),
        ("platform=linux%2Famd64&arch=x86_64&os=linux", ("linux", "amd64", None)),
        ("arch=arm&os=linux&variant=v6", ("linux", "arm", "v6")),
    ],
)
def test_platform_of_a_purl_is_whole_or_in_parts(qualifiers: str, platform: tuple[str | None, ...]) -> None:
    artifact = parse_purl(f"pkg:docker/app@v2?digest={DIGEST}&{qualifiers}")
    assert (artifact.os, artifact.architecture, artifact.variant) == platform


def test_variant_of_a_purl_is_reported() -> None:
    purl = f"pkg:docker/ghcr.io/acme/app@v2?digest={DIGEST}&platform=linux%2Farm%2Fv7"
    event = cdevents.parse(changed("subject.content.artifactId", purl))
    assert isinstance(event, DeploymentEvent)
    assert str(event.platform) == "linux/arm/v7"


@pytest.mark.parametrize("registry", ["ghcr.io", "ghcr.io/team", "localhost:5000"])
@pytest.mark.parametrize("path", ["app", "team/app"])
def test_purl_without_a_registry_is_of_the_default_one(registry: str, path: str) -> None:
    purl = f"pkg:oci/{path}@{DIGEST}"
    event = cdevents.parse(changed("subject.content.artifactId", purl), registry=registry)
    assert isinstance(event, DeploymentEvent)
    assert event.image.url == f"{registry}/{path}@sha256:{HEX}"


@pytest.mark.parametrize(
    ("purl", "repository"),
    [
        (f"pkg:oci/app@{DIGEST}?repository_url=quay.io/other", "quay.io/other/app"),
        (f"pkg:docker/app@{DIGEST}", "docker.io/library/app"),
        (f"pkg:oci/quay.io/other/app@{DIGEST}", "quay.io/other/app"),
    ],
)
def test_the_default_registry_is_for_purls_without_one(purl: str, repository: str) -> None:
    assert parse_purl(purl, registry="ghcr.io/team").reference.startswith(
        f"{repository.removeprefix('docker.io/library/')}@"
    )


@given(st.one_of(st.text(), st.text().map(lambda text: f"pkg:oci/{text}"), st.text().map("pkg:docker/a@b:{}".format)))
def test_any_text_is_a_purl_of_an_image_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert "@" in parse_purl(text).reference
