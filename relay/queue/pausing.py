"""Pausing: an operator stops single environments' deliveries, for all workers, while their events keep queueing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from relay.queue import scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from relay.queue.keys import Keys

_PAUSE = scripts.declare("pause", keys=("paused",), lists={"environments": ()})
_RESUME = scripts.declare("resume", keys=("paused", "schedule"), lists={"environments": ()})


class Paused(NamedTuple):
    """An environment is paused, since this time (Redis milliseconds); `newly` if it was not before."""

    newly: bool
    since: int


def pause(client: Redis, keys: Keys, destination: str, environments: Sequence[str]) -> list[Paused]:
    """Pause environments, also those that never had an event; requests in flight are finished."""
    call = _PAUSE.call({"paused": keys.paused(destination)}, lists={"environments": environments})
    reply = scripts.run(client, call)
    return [Paused(bool(newly), since) for newly, since in zip(reply[::2], reply[1::2], strict=True)]


def resume(client: Redis, keys: Keys, destination: str, environments: Sequence[str]) -> list[int | None]:
    """Resume environments; return since when each was paused (Redis milliseconds), None for one that was not."""
    call = _RESUME.call(
        {"paused": keys.paused(destination), "schedule": keys.schedule(destination)},
        lists={"environments": environments},
        more_keys=[keys.of_outbox(destination, name).outbox for name in environments],
    )
    return [since or None for since in scripts.run(client, call)]


def paused(client: Redis, keys: Keys, destination: str) -> dict[str, int]:
    """Return the paused environments, and since when each is, in Redis milliseconds."""
    found = cast("dict[bytes, bytes]", client.hgetall(keys.paused(destination)))
    return {name.decode(): int(since) for name, since in found.items()}
