"""Entries in other programs' spellings: byte order marks, times, unset digests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from runs import KEYS, TOKEN, dead_letters, delivered_images, image_of, run_once, running

from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime


@pytest.fixture
def api() -> Iterator[Sandbox]:
    with Sandbox(token=TOKEN) as sandbox:
        yield sandbox


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis, api: Sandbox) -> Iterator[Runtime]:
    client.ping()
    with running(redis_server, api) as made:
        yield made


def event(image: str) -> bytes:
    return json.dumps({"image": {"url": image}, "environment": {"name": "production"}}).encode()


def test_byte_order_mark_is_skipped_and_times_are_parsed(runtime: Runtime, client: Redis, api: Sandbox) -> None:
    times = [
        "2025-01-31 12:00:00 +0000",
        "2025-01-31 13:00:01 +01",
        "2025-01-31 12:00:02 UTC",
        "2025-01-31T12:00:03,5+00:00",
    ]
    images = [image_of("app", time) for time in times]
    for image, time in zip(images, times, strict=True):
        client.xadd(KEYS.inbox, {"event": b"\xef\xbb\xbf" + event(image), "time": time})
    run_intake(runtime)
    run_once(runtime)
    assert delivered_images(api) == images
    client.xadd(KEYS.inbox, {"event": event(image_of("app", "older")), "time": "2025-01-31 13:00:03 +0100"})
    run_intake(runtime)
    assert not client.xlen(KEYS.of_outbox(DEFAULT_DESTINATION, "production").outbox)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (event("ghcr.io/acme/api@"), "image.url: the digest is empty: was the output it comes from set?"),
        (event("ghcr.io/acme/api@${DIGEST}"), "the output it comes from set? It reads '${DIGEST}'"),
        (event(image_of("app")).decode().encode("utf-16"), "it is UTF-16: write it in UTF-8"),
        (event(image_of("app"))[:-2] + b"\xf6", "it is not UTF-8"),
    ],
)
def test_dead_letter_says_what_is_wrong(runtime: Runtime, client: Redis, content: bytes, detail: str) -> None:
    client.xadd(KEYS.inbox, {"event": content})
    run_intake(runtime)
    (letter,) = dead_letters(client)
    assert letter["reason"] == "invalid"
    assert detail in letter["detail"]
