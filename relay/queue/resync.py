"""Resyncing: what an environment runs is put on its way to the API once more, as far as the API was told it before.

Each instance becomes an entry of the inbox like any other, with a field `resync`. Whether it is still what runs is
judged when it is taken in (workers/intake/deduplication.py), so nothing that is reported
meanwhile is undone, and a resync that is stopped anywhere, or made twice, does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from relay.events.event import DeploymentEvent
from relay.queue import inbox, inventory, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from relay.queue.inventory import Running
    from relay.queue.keys import Keys


class Progress(NamedTuple):
    """How far a resync is, in instances. `full` says why the queue took no more; going on tries again."""

    looked_at: int = 0
    added: int = 0
    #: Accepted and not delivered yet: there is nothing to repeat.
    on_their_way: int = 0
    full: str = ""
    #: Left out, because they were not seen for as long as was given.
    not_seen: int = 0
    #: Left out, because the watcher of their cluster no longer sees them.
    gone: int = 0


def rehearse(
    client: Redis, keys: Keys, destination: str, environment: str, *, seen_since: int | None = None
) -> Iterator[Progress]:
    """Go through an environment's instances and add nothing; `added` are those that would be."""
    done = Progress()
    for running in inventory.pages(client, keys, destination, environment):
        done = _after(done, running, seen_since)
        yield done


def resync_all(
    client: Redis, keys: Keys, destination: str, environment: str, *,
    max_backlog: int, memory_watermark: float, seen_since: int | None = None,
) -> Iterator[Progress]:  # fmt: skip
    """Add an entry for each of an environment's instances that was delivered; yield how far it is after each page.

    Left out is what the watcher of a cluster no longer sees, and with `seen_since`, in milliseconds of Redis's clock,
    what was not reported since then.
    """
    done = Progress()
    for running in inventory.pages(client, keys, destination, environment):
        entries = [_entry(each) for each in running if each.delivered and _is_there(each, seen_since)]
        call = inbox.append_call(keys, entries, max_backlog, memory_watermark, internal=True)
        while entries and (why := _full(client, call)):
            yield done._replace(full=why)
        done = _after(done, running, seen_since)
        yield done


def _is_there(running: Running, seen_since: int | None) -> bool:
    """Return whether an instance may still run; the API must not be told again of one that does not."""
    if running.gone_since is not None:
        return False
    return seen_since is None or running.was_seen_since(seen_since)


def _after(done: Progress, running: Sequence[Running], seen_since: int | None) -> Progress:
    gone = sum(each.gone_since is not None for each in running)
    there = [each for each in running if _is_there(each, seen_since)]
    delivered = sum(each.delivered for each in there)
    return Progress(
        looked_at=done.looked_at + len(running),
        added=done.added + delivered,
        on_their_way=done.on_their_way + len(there) - delivered,
        not_seen=done.not_seen + len(running) - len(there) - gone,
        gone=done.gone + gone,
    )


def _entry(running: Running) -> dict[str, bytes | str]:
    instance = running.instance
    event = DeploymentEvent.of(
        f"{instance.repository}@{running.digest}",
        environment=instance.environment,
        name=instance.name or None,
        platform=instance.platform,
    )
    return {"event": event.body(), "resync": "1"}


def _full(client: Redis, call: scripts.Call) -> str:
    """Add the entries, or say why there is no room for them."""
    try:
        scripts.run(client, call)
    except RedisError as error:
        why = inbox.full_because(error)
        if why is None:
            raise
        return why
    return ""
