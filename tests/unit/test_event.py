"""Deployment events: parsing, defaults, bodies and instances."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.errors import InvalidEvent, InvalidImage
from relay.events.event import Defaults, DeploymentEvent, Environment, Image, Instance, Platform
from relay.events.platform import parse_platform

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "0123456789abcdef" * 4
APP = f"registry.example.com/team/app@{DIGEST}"


def body(**parts: Any) -> bytes:
    return json.dumps({"image": {"url": APP}} | parts).encode()


def reason(raw: bytes | str, **envelope: Any) -> str:
    with pytest.raises(InvalidEvent) as refused:
        DeploymentEvent.parse(raw, **envelope)
    assert str(refused.value).isprintable()
    return str(refused.value)


# Bodies


def test_every_part_is_read() -> None:
    event = DeploymentEvent.parse(
        body(
            image={"url": APP, "name": "web"},
            environment={"name": "production"},
            platform={"os": "linux", "architecture": "arm", "variant": "v6"},
        ),
        id="42",
        source="cluster-eu-1",
        time="2025-01-31T12:00:00Z",
    )

    assert event == DeploymentEvent(
        image=Image(url=APP, name="web"),
        environment=Environment(name="production"),
        platform=Platform(os="linux", architecture="arm", variant="v6"),
        id="42",
        source="cluster-eu-1",
        time=datetime(2025, 1, 31, 12, tzinfo=UTC),
    )
    assert event == DeploymentEvent.of(
        APP,
        name="web",
        environment="production",
        platform="linux/armel",
        id="42",
        source="cluster-eu-1",
        time="2025-01-31T12:00:00Z",
    )
    assert hash(event) == hash(DeploymentEvent.model_validate(event.model_dump()))


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"environment": None, "platform": None},
        {"environment": {}, "platform": {}},
        {"environment": {"name": None}, "platform": {"os": None, "architecture": None, "variant": None}},
        {"environment": {"name": ""}, "platform": {"os": "", "architecture": "", "variant": ""}},
        {"environment": {"name": " "}, "platform": {"os": " "}},
        {"image": {"url": APP, "name": ""}},
        {"image": {"url": APP, "name": None}},
        {"id": None, "source": "", "time": None},
        {"time": ""},
    ],
)
def test_null_and_empty_are_missing(parts: dict[str, Any]) -> None:
    assert DeploymentEvent.parse(body(**parts)) == DeploymentEvent.of(APP)


def test_empty_arguments_are_missing() -> None:
    assert DeploymentEvent.of(
        APP, environment="", name="", platform="", id="", source="", time=""
    ) == DeploymentEvent.of(APP)
    assert DeploymentEvent.parse(body(), id="", source="", time="") == DeploymentEvent.of(APP)


def test_image_and_platform_are_canonical_once_valid() -> None:
    event = DeploymentEvent.parse(
        body(image={"url": f"nginx:1.27@{DIGEST}"}, platform={"architecture": "aarch64", "variant": "v8"})
    )

    assert event.image.url == f"docker.io/library/nginx@{DIGEST}"
    assert event.image.repository == "docker.io/library/nginx"
    assert event.image.digest == DIGEST
    assert event.platform == Platform(architecture="arm64")


def test_white_space_around_text_is_ignored() -> None:
    event = DeploymentEvent.of(f" {APP}\n", environment=" prod eu ", name="\tweb\n", id=" 42 ", source=" ci ")

    assert event == DeploymentEvent.of(APP, environment="prod eu", name="web", id="42", source="ci")


def test_envelope_beside_the_body_takes_precedence() -> None:
    raw = body(id="in", source="in", time="2025-01-31T12:00:00Z")

    assert DeploymentEvent.parse(raw).id == "in"
    assert DeploymentEvent.parse(raw, id="beside").id == "beside"
    assert DeploymentEvent.parse(raw, id="beside").source == "in"


def test_last_of_repeated_fields_counts() -> None:
    raw = f'{{"image":{{"url":"x","url":"{APP}"}}}}'

    assert DeploymentEvent.parse(raw) == DeploymentEvent.of(APP)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-01-31T12:00:00Z", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31t12:00:00z", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31 12:00:00Z", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31T12:00:00+02:00", datetime(2025, 1, 31, 10, tzinfo=UTC)),
        ("2025-01-31T12:00:00-00:00", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31T12:00:00.5Z", datetime(2025, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2025-01-31T12:00:00.123456789Z", datetime(2025, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)),
        (
            datetime(2025, 1, 31, 12, tzinfo=timezone(timedelta(hours=-3))),
            datetime(2025, 1, 31, 15, tzinfo=UTC),
        ),
        ("2025-01-31T12:00:00+0000", datetime(2025, 1, 31, 12, tzinfo=UTC)),  # date +%FT%T%z
        ("2025-01-31 12:00:00 +0130", datetime(2025, 1, 31, 10, 30, tzinfo=UTC)),  # git log --format=%ci
        ("2025-01-31 12:00:00 -02:00", datetime(2025, 1, 31, 14, tzinfo=UTC)),
        ("2025-01-31 12:00:00 UTC", datetime(2025, 1, 31, 12, tzinfo=UTC)),  # GitLab's web hooks
        ("2025-01-31T12:00:00UTC", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31 12:00:00 GMT", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31 12:00:00 Z", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31 12:00:00.25+01", datetime(2025, 1, 31, 11, 0, 0, 250_000, tzinfo=UTC)),  # PostgreSQL
        ("2025-01-31T12:00:00,123456789+01:00", datetime(2025, 1, 31, 11, 0, 0, 123_456, tzinfo=UTC)),  # date -Ins
        (
            "2025-01-31 12:00:00.123456789 +0100 CET",
            datetime(2025, 1, 31, 11, 0, 0, 123_456, tzinfo=UTC),
        ),  # helm list
        ("2025-01-31 12:00:00 -0300 -03", datetime(2025, 1, 31, 15, tzinfo=UTC)),  # Go, of a zone without a name
    ],
)
def test_time_is_aware_utc(text: str | datetime, moment: datetime) -> None:
    event = DeploymentEvent.of(APP, time=text)

    assert event.time == moment
    assert event.time is not None
    assert event.time.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-01-31T12:00:00", "must have an offset from UTC"),
        (datetime(2025, 1, 31, 12), "must have an offset from UTC"),  # noqa: DTZ001 - the fault under test
        ("2025-01-31", "must be RFC 3339"),
        ("2025-01-31T12:00Z", "must be RFC 3339"),
        ("20250131T120000Z", "must be RFC 3339"),
        ("2025-W05-5T12:00:00Z", "must be RFC 3339"),
        ("yesterday", "must be RFC 3339"),
        ("1738324800", "must be RFC 3339"),
        (1_738_324_800, "must be RFC 3339"),
        ("٢٠٢٥-01-31T12:00:00Z", "must be RFC 3339"),
        ("2025-01-31T12:00:00." + "1" * 100 + "Z", "must be RFC 3339"),
        ("2025-01-31 12:00:00 CET", "must be RFC 3339"),
        ("2025-01-31 12:00:00 +1", "must be RFC 3339"),
        ("2025-01-31 12:00:00  +0100", "must be RFC 3339"),
        ("2025-01-31 12:00:00 +0160", "must be RFC 3339"),
        ("2025-01-31 12:00:00 +2400", "does not exist"),
        ("2025-02-30T12:00:00Z", "does not exist"),
        ("2025-01-31T12:00:60Z", "does not exist"),
        ("2025-01-31T12:00:00+99:00", "does not exist"),
        ("0001-01-01T00:00:00+02:00", "outside the years"),
        ("9999-12-31T23:59:59-02:00", "outside the years"),
    ],
)
def test_malformed_time_is_refused(text: Any, expected: str) -> None:
    with pytest.raises(InvalidEvent, match=f"^time: .*{expected}"):
        DeploymentEvent.of(APP, time=text)


# How text is encoded


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbf" + body(), "\ufeff" + body().decode()])
def test_byte_order_mark_is_skipped(raw: bytes | str) -> None:
    assert DeploymentEvent.parse(raw) == DeploymentEvent.parse(body())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(encoding: str) -> None:
    assert reason(body().decode().encode(encoding)) == (
        f"the event is not valid JSON (it is {encoding[:6].upper()}: write it in UTF-8)"
    )


def test_text_of_an_ascii_locale_is_read_as_utf_8() -> None:
    escaped = "produktion-ö".encode().decode("ascii", errors="surrogateescape")

    event = DeploymentEvent.of(APP, environment=escaped, name=escaped, id=escaped, source=escaped)

    assert event == DeploymentEvent.of(
        APP, environment="produktion-ö", name="produktion-ö", id="produktion-ö", source="produktion-ö"
    )


def test_bytes_that_are_not_utf_8_are_refused_as_such() -> None:
    with pytest.raises(InvalidEvent, match=r"^environment\.name: is not UTF-8$"):
        DeploymentEvent.of(APP, environment="produktion-\udcf6")


# What is refused


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "the event is not valid JSON (EOF"),
        (b"{", "the event is not valid JSON (EOF"),
        (b'{"image": x}', "the event is not valid JSON (expected value at line 1 column 11)"),
        (b"\xff\xfe", "the event is not valid JSON"),
        (b'{"image":{"url":"\xff"}}', "the event is not valid JSON"),
        (b'{"image":{"url":"\\ud800"}}', "the event is not valid JSON"),
        ("\ud800", "the event is not valid JSON (it is not UTF-8)"),
        (b"[" * 100_000, "the event is not valid JSON (recursion limit exceeded"),
        (b"[]", "the event must be a JSON object"),
        (b"null", "the event must be a JSON object"),
        (b'"text"', "the event must be a JSON object"),
        (b"{}", "image: is missing"),
        (b'{"image":null}', "image: must be a JSON object"),
        (b'{"image":"nginx"}', "image: must be a JSON object"),
        (b'{"image":{}}', "image.url: is missing"),
        (b'{"image":{"url":null}}', "image.url: is missing"),
        (b'{"image":{"url":""}}', "image.url: is missing"),
        (b'{"image":{"url":5}}', "image.url: must be a string"),
        (b'{"image":{"url":NaN}}', "image.url: must be a string"),
        (b'{"image":{"url":"nginx:1"}}', "image.url: has a tag but no digest"),
        (body(environment=[]), "environment: must be a JSON object"),
        (body(environment="production"), "environment: must be a JSON object"),
        (body(environment={"name": 5}), "environment.name: must be a string"),
        (
            body(environment={"name": "a\nb"}),
            "environment.name: must not have control characters or line breaks",
        ),
        (body(environment={"name": "a\u2028b"}), "environment.name: must not have control characters"),
        (body(image={"url": APP, "name": "a\u0000b"}), "image.name: must not have control characters"),
        (
            body(image={"url": APP, "name": "é" * 128}),
            "image.name: has 256 bytes in UTF-8, more than the 255 allowed",
        ),
        (
            body(environment={"name": "e" * 256}),
            "environment.name: has 256 bytes in UTF-8, more than the 255",
        ),
        (body(platform=5), "platform: must be a JSON object"),
        (body(platform={"os": 5}), "platform.os: must be a string"),
        (body(platform={"os": "a b"}), "platform.os: may have only ASCII letters"),
        (body(platform={"architecture": "a/b"}), "platform.architecture: may have only ASCII letters"),
        (body(platform={"variant": "v\n8"}), "platform.variant: may have only ASCII letters"),
        (body(id=5), "id: must be a string"),
        (body(id="x" * 129), "id: has 129 bytes in UTF-8, more than the 128 allowed"),
        (body(source="x" * 256), "source: has 256 bytes in UTF-8, more than the 255 allowed"),
        (body(source="x" * 1_000_000 + "\n\u2028x"), "source: has 1000005 bytes in UTF-8, more than the 255 allowed"),
    ],
)
def test_refusal_names_field_and_fault(raw: bytes | str, expected: str) -> None:
    assert reason(raw).startswith(expected)


def test_text_that_is_too_long_is_refused_without_a_scan() -> None:
    with pytest.raises(InvalidEvent, match="has 768 bytes in UTF-8"):
        DeploymentEvent.of(APP, environment="\ud800" * 256)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"colour": "red"}, "colour: is not a field of a deployment event"),
        ({"image": {"url": APP, "tag": "1"}}, "image.tag: is not a field"),
        ({"environment": {"nmae": "x"}}, "environment.nmae: is not a field"),
        ({"platform": {"arch": "arm64"}}, "platform.arch: is not a field"),
        ({"a\nb\u2028": 1}, "a?b?: is not a field"),
        ({"x" * 1000: 1}, "x" * 60 + "...: is not a field"),
    ],
)
def test_unknown_field_is_refused_by_name(parts: dict[str, Any], expected: str) -> None:
    assert reason(body(**parts)).startswith(expected)


@pytest.mark.parametrize("field", ["id", "source"])
@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\x85b", "a\ud800b"])
def test_envelope_has_no_control_characters(field: str, text: str) -> None:
    assert reason(body(), **{field: text}).startswith(f"{field}: must not have control characters")


def test_all_faults_are_named_at_once() -> None:
    raw = body(image={"url": "nginx"}, environment={"name": 5}, colour="red")

    with pytest.raises(InvalidEvent) as refused:
        DeploymentEvent.parse(raw)

    assert refused.value.field == "image.url"
    assert refused.value.reason == (
        "has no digest: write registry.example.com/team/app@sha256:<64 hex digits>; "
        "environment.name: must be a string; colour: is not a field of a deployment event"
    )


def test_many_faults_are_counted() -> None:
    assert reason(body(**{f"x{number}": 1 for number in range(1000)})).endswith("; and 995 more")


def test_image_alone_at_fault_is_an_invalid_image() -> None:
    with pytest.raises(InvalidImage):
        DeploymentEvent.of("nginx")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"image_url": None}, "image.url"),
        ({"image_url": APP, "environment": 5}, "environment.name"),
        ({"image_url": APP, "platform": "linux"}, "platform"),
        ({"image_url": APP, "platform": "linux/a b"}, "platform.architecture"),
        ({"image_url": APP, "id": "x" * 129}, "id"),
    ],
)
def test_of_raises_only_invalid_event(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        DeploymentEvent.of(**arguments)

    assert refused.value.field == field


def test_direct_construction_raises_pydantics_error() -> None:
    assert DeploymentEvent(image={"url": APP}) == DeploymentEvent.of(APP)
    with pytest.raises(ValidationError):
        DeploymentEvent(image={"url": "nginx"})


def test_event_is_frozen() -> None:
    with pytest.raises(ValidationError):
        DeploymentEvent.of(APP).id = "other"  # type: ignore[misc]


# What is sent on


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (DeploymentEvent.of(APP), f'{{"image":{{"url":"{APP}"}}}}'),
        (
            DeploymentEvent.of(APP, platform="linux/arm/v6", environment="prod", name="wéb", id="42", source="ci"),
            (
                f'{{"image":{{"url":"{APP}","name":"wéb"}},"environment":{{"name":"prod"}},'
                '"platform":{"os":"linux","architecture":"arm","variant":"v6"}}'
            ),
        ),
        (
            DeploymentEvent.parse(body(platform={"variant": "v6"})),
            f'{{"image":{{"url":"{APP}"}},"platform":{{"variant":"v6"}}}}',
        ),
    ],
)
def test_body_has_the_given_fields_in_the_apis_order(event: DeploymentEvent, expected: str) -> None:
    assert event.body() == expected.encode()


# What defaults make of it

RULES = Defaults(
    platforms=(
        ("edge-*", parse_platform("linux/arm/v6")),
        ("edge-eu", parse_platform("linux/s390x")),
        ("mac*", Platform(os="darwin")),
    )
)


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ("production", {}, "linux/amd64"),
        ("edge-eu", {}, "linux/arm/v6"),  # the first rule that matches
        ("Edge-eu", {}, "linux/amd64"),  # case and all
        ("mac-mini", {}, "darwin/amd64"),
        ("edge-eu", {"os": "windows"}, "windows/amd64"),
        ("edge-eu", {"architecture": "aarch64"}, "linux/arm64"),
        ("edge-eu", {"architecture": "arm"}, "linux/arm/v7"),
        ("edge-eu", {"architecture": "arm", "variant": "5"}, "linux/arm/v5"),
        ("edge-eu", {"variant": "5"}, "linux/arm/v5"),
        ("production", {"variant": "v3"}, "linux/amd64/v3"),
        ("production", {"variant": "V1"}, "linux/amd64"),
        ("production", {"os": "linux", "variant": "v1"}, "linux/amd64"),
        ("edge-eu", {"os": "linux", "architecture": "x86_64"}, "linux/amd64"),
        ("edge-eu", {"os": "linux", "architecture": "arm64", "variant": "v8"}, "linux/arm64"),
    ],
)
def test_defaults_fill_in_and_change_nothing_given(environment: str, platform: dict[str, str], expected: str) -> None:
    event = DeploymentEvent.parse(body(environment={"name": environment}, platform=platform))

    assert str(event.completed(RULES).platform) == expected


def test_missing_environment_is_the_default_and_takes_its_platform() -> None:
    completed = DeploymentEvent.of(APP, id="42").completed(
        Defaults(environment="edge", platforms=(("edge", parse_platform("linux/arm64")),))
    )

    assert completed == DeploymentEvent.of(APP, environment="edge", platform="linux/arm64", id="42")
    assert DeploymentEvent.of(APP).completed(Defaults()).environment.name == "deployed"


def test_completed_event_stays_as_it_is() -> None:
    event = DeploymentEvent.of(APP, environment="production", platform="linux/arm64")

    assert event.completed(RULES) is event


@pytest.mark.parametrize("environment", ["", " x", "a\nb", "x" * 256])
def test_default_environment_must_be_a_name(environment: str) -> None:
    with pytest.raises(ValueError, match=r"default environment|control characters|256 bytes"):
        Defaults(environment=environment)


# Whose digest it is


def test_instance_is_environment_repository_name_and_platform() -> None:
    event = DeploymentEvent.of(f"nginx:1@{DIGEST}", environment="prod", name="my web", platform="linux/arm64/v8")

    assert event.instance == Instance(
        environment="prod", repository="docker.io/library/nginx", name="my web", platform="linux/arm64"
    )
    assert event.instance.key == "docker.io/library/nginx linux/arm64 my web"


@pytest.mark.parametrize("name", [None, "web", "a  b c", "é/x@y"])
def test_instance_is_read_back_from_its_key(name: str | None) -> None:
    instance = DeploymentEvent.of(APP, name=name).completed(Defaults()).instance

    assert instance.name == (name or "")
    assert Instance.from_key("deployed", instance.key) == instance


@pytest.mark.parametrize(
    "event",
    [
        DeploymentEvent.of(APP),
        DeploymentEvent.of(APP, environment="production"),
        DeploymentEvent.of(APP, platform="linux/amd64"),
        DeploymentEvent.parse(body(environment={"name": "production"}, platform={"os": "linux"})),
    ],
)
def test_only_a_completed_event_has_an_instance(event: DeploymentEvent) -> None:
    with pytest.raises(ValueError, match="completed"):
        _ = event.instance


@pytest.mark.parametrize("key", ["", "repository", "repository linux/amd64"])
def test_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        Instance.from_key("production", key)


# Properties

names = st.one_of(st.none(), st.text(max_size=40).filter(lambda name: name.isprintable()))
parts = st.one_of(st.none(), st.sampled_from(["", "linux", "macOS", "arm", "armhf", "aarch64", "x86_64", "v1", "7"]))


@given(names, names, parts, parts, parts)
def test_body_is_read_back_as_the_same_event(
    name: str | None, environment: str | None, os: str | None, architecture: str | None, variant: str | None
) -> None:
    event = DeploymentEvent.model_validate(
        {
            "image": {"url": APP, "name": name},
            "environment": {"name": environment},
            "platform": {"os": os, "architecture": architecture, "variant": variant},
        }
    )
    completed = event.completed(RULES)

    assert DeploymentEvent.parse(event.body()) == event
    assert DeploymentEvent.parse(event.body()).body() == event.body()
    assert DeploymentEvent.parse(completed.body()).completed(RULES) == completed
    assert Instance.from_key(completed.instance.environment, completed.instance.key) == completed.instance


documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(APP)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(), st.sampled_from(["image", "url", "name", "environment", "platform", "os", "time"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(
    st.one_of(st.binary(), st.text(), documents.map(json.dumps), documents.map(lambda it: json.dumps(it).encode()))
)
@example(b"9" * 10_000)
@example(b"{" * 10_000)
@example(b"\xef\xbb\xbf{}")
@example(b'{"image":{"url":1e999}}')
def test_any_body_is_read_or_refused_on_one_line(raw: bytes | str) -> None:
    try:
        event = DeploymentEvent.parse(raw)
    except InvalidEvent as refused:
        assert not refused.reason.endswith(".")  # noqa: PT017 - both outcomes are right
        assert len(str(refused).splitlines()) == 1  # noqa: PT017 - the same
    else:
        assert DeploymentEvent.parse(event.body()).body() == event.body()


@given(st.text(), st.text(), st.text())
def test_any_envelope_is_read_or_refused_on_one_line(key: str, source: str, time: str) -> None:
    try:
        DeploymentEvent.parse(body(), id=key, source=source, time=time)
    except InvalidEvent as refused:
        assert len(str(refused).splitlines()) == 1  # noqa: PT017 - both outcomes are right


# What others build on


def test_schema_describes_the_body() -> None:
    schema = DeploymentEvent.model_json_schema()

    assert schema["required"] == ["image"]
    assert schema["$defs"]["Image"]["properties"]["url"]["type"] == "string"


def test_importing_the_model_imports_nothing_heavy() -> None:
    heavy = {"celery", "kombu", "redis", "requests", "pydantic_settings", "starlette", "typer", "rich"}
    # A bare package, so that what relay/__init__.py imports beside does not count.
    script = (
        "import sys, types; relay = types.ModuleType('relay'); relay.__path__ = ['relay'];"
        "sys.modules['relay'] = relay; import relay.events.event; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()

    assert "relay.events.event" in loaded
    assert not heavy & set(loaded)
