"""Inventory: an environment's instances, each with its last accepted digest and whether that was delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from relay.events.event import Instance
from relay.queue.state import SEEN_STEP_MS, Accepted, Delivered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.queue.keys import Keys

#: Instances that one round trip reads, approximately.
STEP = 200

#: Maximum number of instances scanned for one page, approximately: bounds a search in a large environment.
MAX_SCANNED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An instance and its last reported digest; times in milliseconds since the epoch."""

    instance: Instance
    digest: str
    #: When the digest was deployed: the event's `time`, or else when it was accepted.
    since: int
    #: When it was last reported, also as a duplicate; up to `SEEN_STEP_MS` earlier than the actual time.
    last_seen_at: int
    #: The last delivery; None if there was none.
    last_delivered: Delivered | None
    #: Since when a cluster's watcher no longer sees it; None if it is seen, never was, or was reported later.
    gone_since: int | None = None

    def was_seen_since(self, moment_ms: int) -> bool:
        """Return whether it may have been reported since then, given the precision of `last_seen_at`."""
        return self.last_seen_at + SEEN_STEP_MS >= moment_ms

    @property
    def is_delivered(self) -> bool:
        """Whether the current digest is the last delivered one."""
        return self.last_delivered is not None and self.last_delivered.digest == self.digest

    def contains(self, text: str) -> bool:
        """Return whether its name or one of its digests contains a text, ignoring case."""
        delivered = self.last_delivered.digest if self.last_delivered else ""
        return text.casefold() in f"{self.instance.key} {self.digest} {delivered}".casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some of an environment's instances, sorted, and the cursor of the next page; `after` is 0 at the end."""

    running: list[Running]
    scanned: int
    after: int


def count(client: Redis, keys: Keys, destination: str, environment: str) -> int:
    """Return the number of instances of an environment."""
    return int(client.hlen(keys.of_outbox(destination, environment).accepted))


def read_page(
    client: Redis, keys: Keys, destination: str, environment: str, *,
    text: str = "", after: int = 0, limit: int = STEP, max_scanned: int = MAX_SCANNED,
) -> Page:  # fmt: skip
    """Return the next page: `limit` instances that contain `text`, or up to a step more.

    HSCAN guarantees that an instance that exists throughout is on at least one page. It may be on two while others
    are added or removed.
    """
    found: dict[str, Running] = {}
    scanned = 0
    while True:
        after, step = _step(client, keys, destination, environment, after=after)
        scanned += len(step)
        found.update((each.instance.key, each) for each in step if each.contains(text))
        if not after or len(found) >= limit or scanned >= max_scanned:
            return Page(running=[found[key] for key in sorted(found)], scanned=scanned, after=after)


def pages(
    client: Redis, keys: Keys, destination: str, environment: str, *, text: str = ""
) -> Iterator[list[Running]]:
    """Yield all instances that contain `text`, a page at a time; some may repeat if others are added or removed."""
    after = 0
    while True:
        page = read_page(client, keys, destination, environment, text=text, after=after)
        yield page.running
        after = page.after
        if not after:
            return


def _step(client: Redis, keys: Keys, destination: str, environment: str, *, after: int) -> tuple[int, list[Running]]:
    outbox = keys.of_outbox(destination, environment)
    reply = client.hscan(outbox.accepted, cursor=after, count=STEP)
    cursor, accepted = cast("tuple[int, dict[bytes, bytes]]", reply)
    # Without a digest: its first event became a dead letter, and only the newest time of its reports is known.
    accepted = {key: value for key, value in accepted.items() if not value.startswith(b"\n")}
    if not accepted:
        return cursor, []
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(outbox.delivered, list(accepted))
    pipeline.hmget(outbox.gone, list(accepted))
    delivered, gone = cast("list[list[bytes | None]]", pipeline.execute())
    return cursor, [
        _running(environment, key.decode(), Accepted.decode(value.decode()), last_delivered, since)
        for (key, value), last_delivered, since in zip(accepted.items(), delivered, gone, strict=True)
    ]


def _running(environment: str, key: str, accepted: Accepted, delivered: bytes | None, gone: bytes | None) -> Running:
    gone_since = int(gone) if gone and gone.isdigit() else 0
    return Running(
        instance=Instance.from_key(environment, key),
        digest=accepted.digest,
        since=accepted.at if accepted.time is None else accepted.time,
        last_seen_at=accepted.seen,
        last_delivered=Delivered.decode(delivered.decode()) if delivered else None,
        gone_since=gone_since if gone_since > accepted.seen else None,
    )
