"""The sandbox's contract, as tables."""

from __future__ import annotations

import json

import pytest

from relay.sandbox.contract import MAX_BODY_BYTES, Request, check_request

HEX = "0123456789abcdef" * 4
URL = f"registry.example.com/team/app@sha256:{HEX}"


def request_with(body: object = None, **changes: object) -> Request:
    document = {"image": {"url": URL}} if body is None else body
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {"authorization": b"Bearer secret", "content_type": b"application/json"}
    headers |= {name: changes.pop(name) for name in ("authorization", "content_type") if name in changes}  # type: ignore[misc]
    sent = {name.replace("_", "-").encode(): value for name, value in headers.items() if value is not None}
    return Request(b"POST", b"/", sent, raw)._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"registry.example.com:5000/app@sha256:{HEX}",
        f"localhost/app@sha256:{HEX}",
        f"registry:5000/a/b/c_d/e__f/g-h.i@sha256:{HEX}",
        f"[::1]:5000/app@sha256:{HEX}",
        f"ghcr.io/app@sha512:{HEX}{HEX}",
    ],
)
def test_fully_qualified_digests_are_taken(url: str) -> None:
    assert check_request(request_with({"image": {"url": url}}), b"secret").status == 202


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry.example.com/team/app",
        "registry.example.com/team/app:1.0",
        f"registry.example.com/team/app:1.0@sha256:{HEX}",
        f"team/app@sha256:{HEX}",
        f"app@sha256:{HEX}",
        f"registry.example.com@sha256:{HEX}",
        f"registry.example.com/App@sha256:{HEX}",
        f"registry.example.com/app@sha256:{HEX.upper()}",
        f"registry.example.com/app@sha256:{HEX[1:]}",
        f"registry.example.com/app@sha256:{HEX}0",
        f"registry.example.com/app@sha512:{HEX}",
        f"registry.example.com/app@md5:{HEX[:32]}",
        f"https://registry.example.com/app@sha256:{HEX}",
        f"docker-pullable://registry.example.com/app@sha256:{HEX}",
        f"{URL}\n",
        f" {URL}",
    ],
)
def test_other_references_are_refused(url: str) -> None:
    ruling = check_request(request_with({"image": {"url": url}}), b"secret")
    assert (ruling.status, ruling.field) == (422, "image.url")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, ""),
        (b"{", 400, ""),
        (b"\xff", 400, ""),
        (b"NaN", 400, ""),
        (b"[" * 5_000, 400, ""),
        ([], 400, ""),
        ("text", 400, ""),
        ({}, 422, "image.url"),
        ({"image": {}}, 422, "image.url"),
        ({"image": {"url": None}}, 422, "image.url"),
        ({"image": {"url": 5}}, 422, "image.url"),
        ({"image": None}, 422, "image"),
        ({"image": URL}, 422, "image"),
        ({"image": {"url": URL, "tag": "1"}}, 422, "image.tag"),
        ({"image": {"url": URL, "name": ""}}, 422, "image.name"),
        ({"image": {"url": URL}, "environment": "production"}, 422, "environment"),
        ({"image": {"url": URL}, "environment": {"name": ""}}, 422, "environment.name"),
        ({"image": {"url": URL}, "environment": {"name": " "}}, 422, "environment.name"),
        ({"image": {"url": URL}, "environment": {"id": "1"}}, 422, "environment.id"),
        ({"image": {"url": URL}, "platform": {"os": 1}}, 422, "platform.os"),
        ({"image": {"url": URL}, "platform": {"architecture": ""}}, 422, "platform.architecture"),
        ({"image": {"url": URL}, "platform": {"variant": None}}, 422, "platform.variant"),
        ({"image": {"url": URL}, "id": "1"}, 422, "id"),
        ({"image": {"url": URL}, "environment": {}, "platform": {}}, 202, ""),
        (
            {
                "image": {"url": URL, "name": "a"},
                "environment": {"name": "production"},
                "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
            },
            202,
            "",
        ),
    ],
)
def test_bodies(body: object, status: int, field: str) -> None:
    ruling = check_request(request_with(body), b"secret")
    assert (ruling.status, ruling.field) == (status, field)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 202),
        ({"method": b"GET"}, 405),
        ({"method": b"HEAD"}, 405),
        ({"method": b"PUT", "authorization": None}, 405),
        ({"authorization": None}, 401),
        ({"authorization": b"Basic c2VjcmV0"}, 401),
        ({"authorization": b"Bearer"}, 401),
        ({"authorization": b"Bearer  "}, 401),
        ({"authorization": b"bearer secret"}, 202),
        ({"authorization": b"Bearer wrong"}, 403),
        ({"authorization": b"Bearer wrong", "content_type": None}, 403),
        ({"content_type": None}, 415),
        ({"content_type": b"text/plain"}, 415),
        ({"content_type": b"Application/JSON; charset=utf-8"}, 202),
        ({"content_type": b"text/plain", "too_large": True}, 415),
        ({"too_large": True}, 413),
        ({"body": b" " * (MAX_BODY_BYTES + 1)}, 413),
    ],
)
def test_everything_but_the_body(changes: dict[str, object], status: int) -> None:
    assert check_request(request_with(**changes), b"secret").status == status


@pytest.mark.parametrize(("authorization", "status"), [(b"Bearer anything", 202), (b"Bearer ", 401)])
def test_any_token_passes_if_none_is_configured(authorization: bytes, status: int) -> None:
    assert check_request(request_with(authorization=authorization), None).status == status


def test_body_of_exactly_the_limit_is_read() -> None:
    body = json.dumps({"image": {"url": URL}}).encode().ljust(MAX_BODY_BYTES)
    assert check_request(request_with(body), b"secret").status == 202


def test_refused_requests_still_name_their_environment() -> None:
    body = {"image": {"url": URL}, "environment": {"name": "production"}}
    ruling = check_request(request_with(body, authorization=None), b"secret")
    assert (ruling.environment, ruling.image) == ("production", URL)


def test_environment_defaults_to_deployed() -> None:
    assert check_request(request_with(), b"secret").environment == "deployed"
