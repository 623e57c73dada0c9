"""Messages on the broker that are not reports: each becomes a dead letter, and the worker survives."""

from __future__ import annotations

import base64
import datetime as dt
import json
import pickle
import zlib
from itertools import count
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu import Connection
from rig import pool_processes, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from rig import Estate

_numbers = count(1)


def event(name: str) -> dict[str, Any]:
    return {"image": {"url": f"ghcr.io/acme/{name}@sha256:{next(_numbers):064x}"}}


def message(body: Any = None, *, headers: Any = None, without: str = "", **other: Any) -> bytes:
    """Return a report as kombu puts it into a list, with faulty parts, or without a property."""
    whole = [[event("wrong")], {}, {}] if body is None else body
    raw = whole if isinstance(whole, bytes) else json.dumps(whole).encode()
    properties = {
        "delivery_tag": f"tag-{next(_numbers)}",
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "body_encoding": "base64",
    }
    properties.pop(without, None)
    made = {
        "body": base64.b64encode(raw).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "relay.report", "id": "some-id"} if headers is None else headers,
        "properties": properties,
    }
    return json.dumps({**made, **other}).encode()


def headers(**other: Any) -> dict[str, Any]:
    return {"task": "relay.report", "id": "some-id", **other}


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self._path), "w")


#: A message, and a part of its dead letter's detail.
UNREADABLE = [
    (b"not json", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"[]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"5", "not a JSON object"),
    (b"{}", "no properties"),
    (message(properties=[]), "no properties"),
    (message(without="delivery_tag"), "delivery_tag"),
    (message(without="delivery_info"), "delivery_info"),
    (message(properties={"delivery_tag": "t", "delivery_info": {}}), "delivery_info"),
    (message(headers=[1]), "headers"),
    (json.dumps({**json.loads(message()), "body": {}}).encode(), "not a string"),
    (json.dumps({**json.loads(message()), "body": "a"}).encode(), "cannot be decoded"),
    (message(properties={**json.loads(message())["properties"], "body_encoding": "rot13"}), "cannot be decoded"),
    (message(headers={}), "no task"),
    (message(headers={"task": 5, "id": "i"}), "no task '5' here"),
    (message(headers={"task": {}, "id": "i"}), "no task '{}' here"),
    (message(headers={"task": "relay.reprot", "id": "i"}), "relay.reprot"),
    (message(headers={"task": "relay.report"}), "no task id"),
    (message(headers={"task": "relay.report", "id": 7}), "no task id"),
    (message([1, 2]), "no task"),
    (message(b"{"), "cannot be read"),
    (message(b"[" * 100_000), "cannot be read"),
    (message(["text", {}, {}]), "arguments"),
    (message([[], [], {}]), "arguments"),
    (message([[], {}, "text"]), "options"),
    (message(**{"content-type": "application/x-yaml"}), "yaml"),
    (message(**{"content-type": "application/x-msgpack", "content-encoding": "binary"}), "msgpack"),
    (message(**{"content-type": "application/data"}), "no task"),
    (message(headers=headers(compression="application/x-unknown")), "decompressed"),
    (message(headers=headers(compression="application/x-gzip")), "decompressed"),
    (message(zlib.compress(b" " * 100_000_000), headers=headers(compression="application/x-gzip")), "decompressed"),
    (message(headers=headers(eta="yesterday")), "ETA"),
    (message(headers=headers(expires="never")), "expires"),
    (message(headers=headers(timelimit="soon")), "timelimit"),
    (message(headers=headers(timelimit=["a", "b"])), "timelimit"),
    (message([[event("wrong"), "more"], {}, {}]), "image"),
    (message([[event("wrong")], {"task": 1, "body": 3}, {}]), "image"),
    (message([[event("wrong")], {"self": 2}, {}]), "`self`"),
    (message([[], {}, {}]), "must be"),
]

#: Reports shaped by the defaults of their senders.
READABLE: list[dict[str, Any]] = [
    *({"priority": priority} for priority in range(10)),
    {"compression": "gzip"},
    {"compression": "bzip2"},
    {"compression": "zlib"},
    {"compression": "lzma"},
    {"kwargs": {"time": dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)}},
    {"expires": 600},
    {"queue": "relay.deliver"},
]


def dead_letters(estate: Estate) -> list[dict[str, str]]:
    found = estate.client.xrange(estate.keys.dead)
    return [{key.decode(): value.decode(errors="replace") for key, value in fields.items()} for _, fields in found]


def test_unreadable_message_becomes_a_dead_letter_and_the_worker_survives(estate: Estate, tmp_path: Path) -> None:
    worker = estate.start_worker(concurrency=1)
    processes = pool_processes(worker.pid)
    exploded = tmp_path / "exploded"
    bomb = message(
        pickle.dumps([[Bomb(exploded)], {}, {}]),
        **{"content-type": "application/x-python-serialize", "content-encoding": "binary"},
    )
    wrong = [*UNREADABLE, (bomb, "pickle"), (b"x" * 100_000, "16384 of 100000")]
    for number, (raw, _) in enumerate(wrong):
        estate.client.lpush(("celery", "celery\x06\x169", "relay.intake")[number % 3], raw)
    with Connection(estate.stack.redis_url) as connection:
        connection.Producer().publish(
            ([event("yaml")], {}, {}), serializer="yaml", routing_key="celery", headers=headers()
        )

    def are_all_dead() -> bool:
        assert worker.poll() is None, estate.log()[-3000:]
        return estate.counters().dead_by_reason.get("invalid", 0) == len(wrong) + 1

    def seen() -> str:
        return f"{estate.counters()} {[letter['detail'] for letter in dead_letters(estate)]}"

    wait_for(are_all_dead, 30, seen)
    dead = dead_letters(estate)
    for raw, detail in wrong:
        assert any(detail in letter["detail"] for letter in dead), (raw[:100], detail)
    assert not any(len(letter["event"]) > 20_000 for letter in dead)
    assert not exploded.exists()
    assert pool_processes(worker.pid) == processes

    with Celery(broker=estate.stack.redis_url, set_as_current=False) as app:
        for number, options in enumerate(READABLE):
            kwargs = {"id": f"readable-{number}", **options.pop("kwargs", {})}
            app.send_task("relay.report", [event(f"app-{number}")], kwargs, **options)
    counters = estate.wait_until_done(len(wrong) + 1 + len(READABLE))
    assert (counters.delivered, counters.dead) == (len(READABLE), len(wrong) + 1)
    assert estate.client.hlen("unacked") == 0
