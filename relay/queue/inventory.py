"""What runs where: an environment's instances, each with the digest last accepted, and whether that was delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from relay.events.event import Instance
from relay.queue.state import SEEN_STEP_MS, Accepted, Delivered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.queue.keys import Keys

#: Instances that one round trip reads, about.
STEP = 200

#: Instances that are looked at for one page at most, about: what a search in a large environment may cost.
LOOK_AT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An instance and the digest that runs, as far as anybody reported; times in milliseconds since the epoch."""

    instance: Instance
    digest: str
    #: When that was deployed, if its producer said so, else when it was accepted.
    since: int
    #: When it was reported last, as a duplicate or not; up to `SEEN_STEP_MS` earlier than that was.
    last_seen_at: int
    #: What the API was last told; None if nothing yet.
    told: Delivered | None
    #: Since when a cluster's watcher no longer sees it; None if it does, never did, or it was seen later.
    gone_since: int | None = None

    def was_seen_since(self, moment_ms: int) -> bool:
        """Return whether it may have been reported since then: what its state does not say exactly counts for it."""
        return self.last_seen_at + SEEN_STEP_MS >= moment_ms

    @property
    def delivered(self) -> bool:
        """Tell whether the API believes what runs."""
        return self.told is not None and self.told.digest == self.digest

    def is_like(self, wanted: str) -> bool:
        """Tell whether a text is part of its name or of a digest, in any case."""
        told = self.told.digest if self.told else ""
        return wanted.casefold() in f"{self.instance.key} {self.digest} {told}".casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some of an environment's instances, ordered among themselves, and where to go on; `after` is 0 at the end."""

    running: list[Running]
    looked_at: int
    after: int


def count(client: Redis, keys: Keys, destination: str, environment: str) -> int:
    """Return how many instances an environment has."""
    return int(client.hlen(keys.of_outbox(destination, environment).accepted))


def read(
    client: Redis, keys: Keys, destination: str, environment: str, *,
    wanted: str = "", after: int = 0, limit: int = STEP, look_at: int = LOOK_AT,
) -> Page:  # fmt: skip
    """Read `limit` instances that are like `wanted` or up to a step more, from where the last page ended.

    An instance that is there all the while is on at least one page, as HSCAN has it; on two, if many come or go.
    """
    found: dict[str, Running] = {}
    looked_at = 0
    while True:
        after, step = _step(client, keys, destination, environment, after=after)
        looked_at += len(step)
        found.update((each.instance.key, each) for each in step if each.is_like(wanted))
        if not after or len(found) >= limit or looked_at >= look_at:
            return Page(running=[found[key] for key in sorted(found)], looked_at=looked_at, after=after)


def pages(
    client: Redis, keys: Keys, destination: str, environment: str, *, wanted: str = ""
) -> Iterator[list[Running]]:
    """Yield every instance that is like `wanted`, a page at a time; one may come twice while others come and go."""
    after = 0
    while True:
        page = read(client, keys, destination, environment, wanted=wanted, after=after)
        yield page.running
        after = page.after
        if not after:
            return


def _step(client: Redis, keys: Keys, destination: str, environment: str, *, after: int) -> tuple[int, list[Running]]:
    outbox = keys.of_outbox(destination, environment)
    reply = client.hscan(outbox.accepted, cursor=after, count=STEP)
    cursor, accepted = cast("tuple[int, dict[bytes, bytes]]", reply)
    # Without a digest: its first event died, and only the newest time of its reports is known.
    accepted = {key: value for key, value in accepted.items() if not value.startswith(b"\n")}
    if not accepted:
        return cursor, []
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(outbox.delivered, list(accepted))
    pipeline.hmget(outbox.gone, list(accepted))
    told, gone = cast("list[list[bytes | None]]", pipeline.execute())
    return cursor, [
        _running(environment, key.decode(), Accepted.decode(value.decode()), value_told, since)
        for (key, value), value_told, since in zip(accepted.items(), told, gone, strict=True)
    ]


def _running(environment: str, key: str, accepted: Accepted, told: bytes | None, gone: bytes | None) -> Running:
    gone_since = int(gone) if gone and gone.isdigit() else 0
    return Running(
        instance=Instance.from_key(environment, key),
        digest=accepted.digest,
        since=accepted.at if accepted.time is None else accepted.time,
        last_seen_at=accepted.seen,
        told=Delivered.decode(told.decode()) if told else None,
        gone_since=gone_since if gone_since > accepted.seen else None,
    )
