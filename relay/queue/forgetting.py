"""Forgetting: deletes the state of instances that were not seen for long, and of environments without instances."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from redis.exceptions import OutOfMemoryError

from relay.queue import scripts
from relay.queue.state import SEEN_STEP_MS, Accepted

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from relay.queue.keys import Keys, OutboxKeys

#: Instances that one step reads, approximately.
PAGE = 500

#: Environments that one step reads, approximately.
ENVIRONMENTS_PAGE = 100

#: How long the position of a walk is kept.
POSITION_MILLISECONDS = 30 * 86_400_000

#: Maximum entries and bytes of an outbox that a script reads to find the instances with a waiting event, because
#: Redis is blocked meanwhile. In an environment with more, no instance is forgotten until a later walk.
MAX_WAITING, MAX_WAITING_BYTES = 1000, 524_288

_FORGET = scripts.load("forget")
_FORGET_ENVIRONMENT = scripts.load("forget_environment")


class Page(NamedTuple):
    """Result of one step; `cursor` starts the next one, 0 is the end."""

    cursor: int
    forgotten: int


def claim(client: Redis, keys: Keys, every_seconds: float) -> bool:
    """Return whether a walk is due, and set the mark that keeps others from starting one for that long.

    Redis without free memory refuses the mark: then no walk is due.
    """
    try:
        return bool(client.set(keys.forgetting, "1", nx=True, px=round(every_seconds * 1000)))
    except OutOfMemoryError:
        return False


def unclaim(client: Redis, keys: Keys) -> None:
    """Delete the mark, because no walk was started."""
    client.delete(keys.forgetting)


class Position(NamedTuple):
    """Position of a walk: a page of environments, the first of its names to do, and a page of its instances.

    Both pages are Redis's cursors, which stay valid over a restart or a growing set. If so many environments are
    forgotten that Redis shrinks the set, an environment may change its page and be reached by the next walk only.
    """

    page: int = 0
    environment: str = ""
    instances: int = 0


START = Position()


def read_position(client: Redis, keys: Keys) -> Position:
    """Return the position of the last walk, `START` if it came to the end."""
    found = cast("bytes | None", client.get(keys.forget_position))
    if found is None:
        return START
    page, instances, name = found.decode(errors="replace").split(" ", 2)
    return Position(int(page), name, int(instances))


def write_position(client: Redis, keys: Keys, at: Position) -> None:
    """Write the position at which the walk continues. Redis without free memory refuses it."""
    if at == START:
        client.delete(keys.forget_position)
        return
    with contextlib.suppress(OutOfMemoryError):
        client.set(keys.forget_position, f"{at.page} {at.instances} {at.environment}", px=POSITION_MILLISECONDS)


def read_environments(client: Redis, keys: Keys, destination: str, page: int) -> tuple[int, list[str]]:
    """Return the next cursor (0 at the end) and the sorted environments at a cursor."""
    reply: Any = client.zscan(keys.environments(destination), page, count=ENVIRONMENTS_PAGE)
    following, found = reply
    return int(following), sorted(name.decode() for name, _ in found)


def forget_page(client: Redis, outbox: OutboxKeys, cursor: int, seen_before: int) -> Page:
    """Forget the instances of a page that were last seen before then, in milliseconds since the epoch."""
    reply: Any = client.hscan(outbox.accepted, cursor, count=PAGE)
    following, states = reply
    args: list[scripts.Argument] = [MAX_WAITING, MAX_WAITING_BYTES]
    for instance, state in states.items():
        if Accepted.decode(state.decode()).seen < seen_before:
            args += (instance, state)
    if len(args) == 2:  # noqa: PLR2004 - only the bounds
        return Page(cursor=int(following), forgotten=0)
    call = scripts.Call(_FORGET, (outbox.outbox, outbox.accepted, outbox.delivered, outbox.gone), args)
    return Page(cursor=int(following), forgotten=int(scripts.run(client, call)))


def forget_environment(client: Redis, keys: Keys, outbox: OutboxKeys, seen_before: int) -> bool:
    """Forget an environment and its counts, unless it was active since then; return whether it was forgotten.

    An instance, an event in the outbox, a run, a wake-up mark or a pause keeps it.
    """
    destination = outbox.destination
    script_keys = (
        keys.environments(destination), keys.schedule(destination), keys.paused(destination), outbox.counts,
        outbox.outbox, outbox.accepted, outbox.deferred, outbox.lease, outbox.wakeup,
        outbox.delivered, outbox.due, outbox.attempts, outbox.cursor, outbox.run, outbox.gone,
    )  # fmt: skip
    call = scripts.Call(_FORGET_ENVIRONMENT, script_keys, (outbox.environment, seen_before))
    return bool(scripts.run(client, call))


class Forgotten(NamedTuple):
    """Result of `relay forget`, in instances."""

    scanned: int = 0
    forgotten: int = 0
    #: Selected and not forgotten: an event waits in the outbox, or was accepted at the same time.
    kept: int = 0


def forget_some(
    client: Redis,
    outbox: OutboxKeys,
    *,
    is_selected: Callable[[str], bool],
    seen_before: int | None = None,
    dry_run: bool = False,
) -> Forgotten:
    """Forget the selected instances of an environment, a page at a time, and return their number.

    With `seen_before`, only those that were not seen since then. In a dry run `forgotten` counts the selected ones,
    whether or not an event waits.
    """
    done = Forgotten()
    cursor = 0
    while True:
        reply: Any = client.hscan(outbox.accepted, cursor, count=PAGE)
        cursor, states = int(reply[0]), reply[1]
        args: list[scripts.Argument] = [MAX_WAITING, MAX_WAITING_BYTES]
        for instance, state in states.items():
            seen_until = Accepted.decode(state.decode()).seen + SEEN_STEP_MS
            if is_selected(instance.decode()) and (seen_before is None or seen_until < seen_before):
                args += (instance, state)
        selected = forgotten = len(args) // 2 - 1
        if selected and not dry_run:
            call = scripts.Call(_FORGET, (outbox.outbox, outbox.accepted, outbox.delivered, outbox.gone), args)
            forgotten = int(scripts.run(client, call))
        done = Forgotten(done.scanned + len(states), done.forgotten + forgotten, done.kept + selected - forgotten)
        if not cursor:
            return done


def now_ms(client: Redis) -> int:
    """Return Redis's time in milliseconds, the clock of `seen`."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
