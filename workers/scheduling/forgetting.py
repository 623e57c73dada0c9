"""Walking over all that is remembered, to let go of what was not seen for `delivery.forget_after`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from relay.queue import epoch, forgetting
from relay.queue.forgetting import START, Position
from relay.queue.state import SEEN_STEP_MS
from relay.settings import DEFAULT_DESTINATION
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from relay.queue.keys import Keys
    from workers.runtime import Runtime

#: A walk is made so many times within `forget_after`, but not more often than the first, nor less than the second.
WALKS = 30
SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 86_400.0


def every_seconds(forget_after: float) -> float:
    """Return the time between two walks."""
    return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, forget_after / WALKS))


def seen_before(now_ms: int, forget_after: float) -> int:
    """Return the time, in milliseconds, before which an instance must be noted as seen to be forgotten.

    Duplicates are noted only every `SEEN_STEP_MS`, so that one may have been seen that much later than it is noted:
    nothing is forgotten early, and all of it at most a step and a walk late, however short `forget_after` is.
    """
    return now_ms - round(forget_after * 1000) - SEEN_STEP_MS


def walk(runtime: Runtime) -> str:
    """Walk on from where the last walk ended, until the end or the budget is over; then call for the rest.

    Each walk does at least one step. Its position outlives it, so a call that gets lost costs nothing but time.
    """
    client, keys, forget_after = runtime.client, runtime.keys, runtime.settings.delivery.forget_after
    now = forgetting.now_ms(client)
    if not epoch.is_steady(client, keys, now=now, seconds=forget_after):
        return f"nothing forgotten: within {forget_after:g} s Redis's clock was stepped, or no worker ran for long"
    deadline = time.monotonic() + runtime.settings.worker.budget
    instances = environments = 0
    begun = forgetting.position(client, keys)
    for at, step in _steps(client, keys, begun, seen_before(now, forget_after)):
        instances += step.instances
        environments += step.environments
        if at != START and _is_over(deadline):
            forgetting.note_position(client, keys, at)
            runtime.wakeups.ring_forget()
            return f"{_forgotten(instances, environments)}, more to look at"
        if at.page != begun.page or at == START:  # should this process die
            forgetting.note_position(client, keys, at)
            begun = at
    return _forgotten(instances, environments)


class Step(NamedTuple):
    """What one step of a walk forgot."""

    instances: int = 0
    environments: int = 0


def _steps(client: Redis, keys: Keys, at: Position, threshold: int) -> Iterator[tuple[Position, Step]]:
    """Walk on from a position; yield after each step where to go on, `START` for at the end, and what it forgot."""
    while True:
        following, names = forgetting.environments(client, keys, DEFAULT_DESTINATION, at.page)
        for name in (name for name in names if name >= at.environment):
            outbox = keys.of_outbox(DEFAULT_DESTINATION, name)
            cursor = at.instances if name == at.environment else 0
            while True:
                cursor, count = forgetting.forget_page(client, outbox, cursor, threshold)
                if not cursor:
                    break
                yield Position(at.page, name, cursor), Step(count)
            gone = forgetting.forget_environment(client, keys, outbox, threshold)
            yield Position(at.page, f"{name}\0"), Step(count, int(gone))
        at = Position(following)
        yield at, Step()
        if not following:
            return


def _is_over(deadline: float) -> bool:
    return time.monotonic() > deadline or is_stopping()


def _forgotten(instances: int, environments: int) -> str:
    return f"instances forgotten: {instances}, environments: {environments}"
