"""Dead letters as the commit scripts write them, for tests that need many or particular ones."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from relay.queue.keys import Keys

if TYPE_CHECKING:
    from redis import Redis

KEYS = Keys()
REPOSITORY = "docker.io/library/nginx"
ARRIVED = 1_750_000_000_000


def digest(version: str) -> str:
    return f"sha256:{sha256(version.encode()).hexdigest()}"


def body(version: str, environment: str = "production", repository: str = REPOSITORY) -> str:
    return json.dumps({"image": {"url": f"{repository}@{digest(version)}"}, "environment": {"name": environment}})


def refused(version: str, *, environment: str = "production", **fields: Any) -> dict[Any, Any]:
    """The fields of an event that died in an outbox."""
    repository = fields.pop("repository", REPOSITORY)
    event = {
        "event": body(version, environment, repository),
        "id": f"job-{version}",
        "source": "ci",
        "time": "",
        "digest": digest(version),
        "instance": f"{repository} linux/amd64 ",
        "arrived": ARRIVED,
    }
    death = {
        "reason": "refused",
        "detail": "HTTP 422: no",
        "status": 422,
        "attempts": 1,
        "first": ARRIVED + 5,
        "last": ARRIVED + 9,
        "destination": "default",
        "environment": environment,
        "entry": f"{ARRIVED + 3}-0",
    }
    own = {name: value for name, value in fields.items() if name not in death}
    return {**event, **own, **death, **{name: value for name, value in fields.items() if name in death}}


def invalid(fields: dict[Any, Any], detail: str = "no JSON") -> dict[Any, Any]:
    """The fields of an entry that intake could not read."""
    return {**fields, "reason": "invalid", "detail": detail, "entry": f"{ARRIVED}-2"}


def bury(client: Redis, *letters: dict[Any, Any], died: int | None = None) -> list[str]:
    """Add letters as if they had died, and count them so; `died` is when the first did, in milliseconds."""
    pipeline = client.pipeline(transaction=False)
    for number, letter in enumerate(letters):
        pipeline.xadd(KEYS.dead, letter, id="*" if died is None else f"{died + number}-0")
    ids = [letter_id.decode() for letter_id in pipeline.execute()]
    for name in ("taken", "dead"):
        client.hincrby(KEYS.counts, name, len(letters))
    return ids
