"""Letting go of what was not seen for long: of instances, a page at a time, and of environments without any."""

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

#: Instances that are read in one step, about.
PAGE = 500

#: Environments that are read in one step, about, and how long the position of a walk is kept.
ENVIRONMENTS_PAGE = 100
POSITION_MILLISECONDS = 30 * 86_400_000

#: The most entries of an outbox, and bytes, that are read to learn which instances have an event waiting. Redis does
#: nothing else meanwhile; of an environment with more, nothing is forgotten until a later walk.
MAX_WAITING, MAX_WAITING_BYTES = 1000, 524_288

_FORGET = scripts.load("forget")
_FORGET_ENVIRONMENT = scripts.load("forget_environment")


class Page(NamedTuple):
    """What one step did; the next starts at `cursor`, and 0 is the end."""

    cursor: int
    forgotten: int


def claim(client: Redis, keys: Keys, every_seconds: float) -> bool:
    """Tell whether a walk is due, and leave the mark that keeps others from one for so long.

    A Redis without memory takes no mark: then none is due.
    """
    try:
        return bool(client.set(keys.forgetting, "1", nx=True, px=round(every_seconds * 1000)))
    except OutOfMemoryError:
        return False


def unclaim(client: Redis, keys: Keys) -> None:
    """Take the mark back: nobody was called to walk."""
    client.delete(keys.forgetting)


class Position(NamedTuple):
    """Where a walk goes on: a page of environments, the first of its names not done yet, and a page of its instances.

    Both pages are Redis's cursors, which a restart or a growing set does not make wrong. Where so many environments
    are forgotten that Redis shrinks the set, one may change its page and be met by the next walk only.
    """

    page: int = 0
    environment: str = ""
    instances: int = 0


START = Position()


def position(client: Redis, keys: Keys) -> Position:
    """Return where the last walk ended, `START` for at the end."""
    found = cast("bytes | None", client.get(keys.forget_position))
    if found is None:
        return START
    page, instances, name = found.decode(errors="replace").split(" ", 2)
    return Position(int(page), name, int(instances))


def note_position(client: Redis, keys: Keys, at: Position) -> None:
    """Note where a walk goes on, so that it does not begin again. A Redis without memory takes no note."""
    if at == START:
        client.delete(keys.forget_position)
        return
    with contextlib.suppress(OutOfMemoryError):
        client.set(keys.forget_position, f"{at.page} {at.instances} {at.environment}", px=POSITION_MILLISECONDS)


def environments(client: Redis, keys: Keys, destination: str, page: int) -> tuple[int, list[str]]:
    """Return the next cursor (0 for the end) and the environments at a cursor, in the order of their names."""
    reply: Any = client.zscan(keys.environments(destination), page, count=ENVIRONMENTS_PAGE)
    following, found = reply
    return int(following), sorted(name.decode() for name, _ in found)


def forget_page(client: Redis, outbox: OutboxKeys, cursor: int, seen_before: int) -> Page:
    """Forget those of a page of instances that were last seen before then, in milliseconds since the epoch."""
    reply: Any = client.hscan(outbox.accepted, cursor, count=PAGE)
    following, states = reply
    args: list[scripts.Argument] = [MAX_WAITING, MAX_WAITING_BYTES]
    for instance, state in states.items():
        if Accepted.decode(state.decode()).seen < seen_before:
            args += (instance, state)
    if len(args) == 2:  # noqa: PLR2004 - nothing but the bounds
        return Page(cursor=int(following), forgotten=0)
    call = scripts.Call(_FORGET, (outbox.outbox, outbox.accepted, outbox.delivered, outbox.gone), args)
    return Page(cursor=int(following), forgotten=int(scripts.run(client, call)))


def forget_environment(client: Redis, keys: Keys, outbox: OutboxKeys, seen_before: int) -> bool:
    """Forget an environment and its counts, if nothing is left of it and nothing happened there since then.

    It stays with an instance, an event on its way, a drain or a wakeup, and while it is paused.
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
    """Count what a deliberate forgetting has done so far, in instances."""

    looked_at: int = 0
    forgotten: int = 0
    #: Meant, and not forgotten: an event of theirs waits in the outbox, or was accepted at this very moment.
    kept: int = 0


def forget_some(
    client: Redis,
    outbox: OutboxKeys,
    *,
    is_meant: Callable[[str], bool],
    seen_before: int | None = None,
    dry_run: bool = False,
) -> Forgotten:
    """Forget an environment's instances whose keys are meant, a page at a time, and return how many.

    With `seen_before`, only those that were not seen since then. In a dry run `forgotten` are those that are meant,
    whether or not an event of theirs waits.
    """
    done = Forgotten()
    cursor = 0
    while True:
        reply: Any = client.hscan(outbox.accepted, cursor, count=PAGE)
        cursor, states = int(reply[0]), reply[1]
        args: list[scripts.Argument] = [MAX_WAITING, MAX_WAITING_BYTES]
        for instance, state in states.items():
            seen_until = Accepted.decode(state.decode()).seen + SEEN_STEP_MS
            if is_meant(instance.decode()) and (seen_before is None or seen_until < seen_before):
                args += (instance, state)
        meant = forgotten = len(args) // 2 - 1
        if meant and not dry_run:
            call = scripts.Call(_FORGET, (outbox.outbox, outbox.accepted, outbox.delivered, outbox.gone), args)
            forgotten = int(scripts.run(client, call))
        done = Forgotten(done.looked_at + len(states), done.forgotten + forgotten, done.kept + meant - forgotten)
        if not cursor:
            return done


def now_ms(client: Redis) -> int:
    """Return Redis's time in milliseconds: the clock that `seen` is of."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
