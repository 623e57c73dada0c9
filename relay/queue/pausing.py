"""Pausing: an operator holds single environments' deliveries, for all workers, while their events keep queueing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from relay.queue import scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from relay.queue.keys import Keys

_PAUSE = scripts.load("pause")
_RESUME = scripts.load("resume")


class Paused(NamedTuple):
    """An environment is paused, since this time (Redis milliseconds); `newly` if it was not before."""

    newly: bool
    since: int


def pause(client: Redis, keys: Keys, destination: str, environments: Sequence[str]) -> list[Paused]:
    """Pause environments, whether they ever got an event or not; what is in flight is finished."""
    reply = scripts.run(client, scripts.Call(_PAUSE, (keys.paused(destination),), environments))
    return [Paused(bool(newly), since) for newly, since in zip(reply[::2], reply[1::2], strict=True)]


def resume(client: Redis, keys: Keys, destination: str, environments: Sequence[str]) -> list[int | None]:
    """Resume environments; return since when each was paused (Redis milliseconds), None for one that was not."""
    outboxes = [keys.of_outbox(destination, name).outbox for name in environments]
    call = scripts.Call(_RESUME, (keys.paused(destination), keys.schedule(destination), *outboxes), environments)
    return [since or None for since in scripts.run(client, call)]


def paused(client: Redis, keys: Keys, destination: str) -> dict[str, int]:
    """Return the paused environments, and since when each is, in Redis milliseconds."""
    found = cast("dict[bytes, bytes]", client.hgetall(keys.paused(destination)))
    return {name.decode(): int(since) for name, since in found.items()}
