"""Producers that retry, roll back or crash, and malformed entries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from faults.ground import digest, report_of, scenario

from relay import DeploymentEvent

if TYPE_CHECKING:
    from faults.ground import Ground

REPORTERS = Path(__file__).with_name("reporters.py")


def report_from_processes(ground: Ground, count: int, event: DeploymentEvent, **environment: str) -> int:
    """Report one event from this many processes at once; return how many got an acknowledgement."""
    argv = [str(count), event.image.url, event.environment.name or "", event.id or ""]
    done = subprocess.run(
        [sys.executable, str(REPORTERS), *argv],
        env={**os.environ, **ground.environment, **environment},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    acknowledged = len(done.stdout.splitlines())
    report = report_of(event)
    ground.oracle.note([report] * acknowledged)
    ground.oracle.note([report] * (count - acknowledged), acknowledged=False)
    return acknowledged


@scenario(10, "malformed entries: no field, bad JSON, bad UTF-8, empty, 1 MiB, unknown fields",
          bound="each dead with its bytes and the reason; the rest delivered")  # fmt: skip
def test_malformed_entries_become_dead_letters_and_delay_no_others(ground: Ground) -> None:
    image = {"url": f"ghcr.io/acme/app@{digest('x')}"}
    bodies = {
        "no JSON": b'{"image":',
        "no UTF-8": b'{"image":{"url":"\xff\xfe"}}',
        "empty": b"",
        "a mebibyte": json.dumps({"image": image, "environment": {"name": "e" * 2**20}}).encode(),
        "unknown field": json.dumps({"image": image, "imagination": 1}).encode(),
        "no object": b"[1, 2]",
        "no digest": b'{"image":{"url":"nginx:latest"}}',
        "too deep": b'{"image":' + b"[" * 10_000,
        "absurd number": b'{"image":1e999999}',
    }
    malformed = {ground.xadd({"event": body}, malformed=True): body for body in bodies.values()}
    malformed[ground.xadd({"evnt": "misspelt"}, malformed=True)] = b"misspelt"
    malformed[ground.xadd({"event": json.dumps({"image": image}), "id": b"\xff"}, malformed=True)] = b"\xff"
    ground.report(20)
    ground.start_workers(1)
    ground.rest()
    letters = {fields[b"entry"].decode(): fields for _, fields in ground.client.xrange(ground.keys.dead)}
    ground.bit(letters, "the entries could not be read")
    assert letters.keys() == malformed.keys()
    for entry, raw in malformed.items():
        assert raw in letters[entry].values(), f"its bytes are lost: {str(letters[entry])[:500]}"
        assert letters[entry][b"reason"] == b"invalid"
        assert letters[entry][b"detail"]
    ground.check()
    ground.observed(f"{len(letters)} entries dead, each with its bytes; 20 good ones delivered")


@scenario(26, "one id reported by 50 processes; A→B→A; a producer is killed between its attempts",
          bound="one POST; three POSTs; one POST")  # fmt: skip
def test_an_id_counts_once_and_a_rollback_is_delivered(ground: Ground) -> None:
    ground.start_workers(1)

    crowd = DeploymentEvent.of(f"ghcr.io/acme/crowd@{digest(1)}", environment="production", id="crowd")
    assert report_from_processes(ground, 50, crowd) == 50

    versions = [
        DeploymentEvent.of(f"ghcr.io/acme/rollback@{digest(n % 2)}", environment="production", id=f"rollback-{n}")
        for n in range(3)
    ]
    ground.report_events(versions)

    for point in ("before:append:1", "after:append:1"):
        event = DeploymentEvent.of(f"ghcr.io/acme/crash@{digest(point)}", environment="production", id=point)
        died = report_from_processes(ground, 1, event, RELAY_TEST_CRASH=point) == 0
        ground.bit(died, f"a producer was killed at {point}")
        ground.report_events([event])

    counters = ground.rest()
    got = ground.api.processed_ids()
    ground.bit(
        counters.duplicate == 49 + 1, "the queue got the same event from many producers, and from the killed one"
    )
    assert got == dict.fromkeys(
        ["crowd", "rollback-0", "rollback-1", "rollback-2", "before:append:1", "after:append:1"], 1
    )
    ground.check()
    ground.observed(f"{counters.added} reports of 6 events, {ground.api.processed_ids().total() - 1} POSTs")
