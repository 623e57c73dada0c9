"""Resync: delivers the current, already delivered state of an environment once more.

Each instance becomes an inbox entry with a field `resync`. Intake decides whether it is still the current state
(workers/intake/deduplication.py), so a resync undoes no report that arrives meanwhile, and one that is stopped or
repeated does no harm.
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
    """Progress of a resync in instances. `full` is why the queue refused more; continuing tries again."""

    scanned: int = 0
    added: int = 0
    #: Accepted and not delivered yet: there is nothing to repeat.
    undelivered: int = 0
    full: str = ""
    #: Left out, because they were not seen within the given time.
    not_seen: int = 0
    #: Left out, because the watcher of their cluster no longer sees them.
    gone: int = 0


def rehearse(
    client: Redis, keys: Keys, destination: str, environment: str, *, seen_since: int | None = None
) -> Iterator[Progress]:
    """Yield the progress of a dry run, which adds nothing; `added` counts what would be added."""
    done = Progress()
    for running in inventory.pages(client, keys, destination, environment):
        done = _after(done, running, seen_since)
        yield done


def resync_all(
    client: Redis, keys: Keys, destination: str, environment: str, *,
    max_backlog: int, memory_watermark: float, seen_since: int | None = None,
) -> Iterator[Progress]:  # fmt: skip
    """Add an entry for each delivered instance of an environment, and yield the progress after each page.

    Instances that the watcher of their cluster no longer sees are left out. With `seen_since`, in milliseconds of
    Redis's clock, so are those that were not reported since then.
    """
    done = Progress()
    for running in inventory.pages(client, keys, destination, environment):
        entries = [_entry(each) for each in running if each.is_delivered and _is_present(each, seen_since)]
        call = inbox.append_call(keys, entries, max_backlog, memory_watermark, internal=True)
        while entries and (why := _full(client, call)):
            yield done._replace(full=why)
        done = _after(done, running, seen_since)
        yield done


def _is_present(running: Running, seen_since: int | None) -> bool:
    """Return whether an instance may still run; one that does not must not be delivered again."""
    if running.gone_since is not None:
        return False
    return seen_since is None or running.was_seen_since(seen_since)


def _after(done: Progress, running: Sequence[Running], seen_since: int | None) -> Progress:
    gone = sum(each.gone_since is not None for each in running)
    present = [each for each in running if _is_present(each, seen_since)]
    delivered = sum(each.is_delivered for each in present)
    return Progress(
        scanned=done.scanned + len(running),
        added=done.added + delivered,
        undelivered=done.undelivered + len(present) - delivered,
        not_seen=done.not_seen + len(running) - len(present) - gone,
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
    """Add the entries, and return why the queue refused them, if it did."""
    try:
        scripts.run(client, call)
    except RedisError as error:
        why = inbox.full_because(error)
        if why is None:
            raise
        return why
    return ""
