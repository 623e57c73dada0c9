"""A walk over the state that forgets instances not seen for `delivery.forget_after`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from relay.queue import epoch, forgetting
from relay.queue.forgetting import START, Position
from relay.queue.state import SEEN_STEP_MS
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.runtime import Runtime

#: Walks within one `forget_after`, and the bounds of the time between two walks in seconds.
WALKS = 30
SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The result of one walk. An unfinished one continues from its saved position."""

    summary: str
    is_finished: bool = True


class Step(NamedTuple):
    """The numbers that one step of a walk forgot."""

    instances: int = 0
    environments: int = 0


def every_seconds(forget_after: float) -> float:
    """Return the time between two walks."""
    return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, forget_after / WALKS))


def seen_before(now_ms: int, forget_after: float) -> int:
    """Return the time, in milliseconds, before which an instance was last noted as seen if it is to be forgotten.

    Duplicates update that note only every `SEEN_STEP_MS`, so an instance may have been seen that much later. With
    this margin none is forgotten early, and each at most one step and one walk late, however short `forget_after` is.
    """
    return now_ms - round(forget_after * 1000) - SEEN_STEP_MS


def walk(runtime: Runtime) -> Walk:
    """Continue from the saved position until the end, or until the run's budget is over.

    Each walk makes at least one step. The position is saved in Redis, so a lost wake-up costs only time.
    """
    client, keys, forget_after = runtime.client, runtime.keys, runtime.settings.delivery.forget_after
    now = forgetting.now_ms(client)
    if not epoch.is_steady(client, keys, now=now, seconds=forget_after):
        why = f"within {forget_after:g} s Redis's clock was stepped, or no worker ran for long"
        return Walk(summary=f"nothing forgotten: {why}")
    deadline = time.monotonic() + runtime.settings.worker.budget
    instances = environments = 0
    saved = forgetting.read_position(client, keys)
    for at, step in _steps(runtime, saved, seen_before(now, forget_after)):
        instances += step.instances
        environments += step.environments
        is_over = at != START and (time.monotonic() > deadline or is_stopping())
        if is_over or at.page != saved.page or at == START:  # each page, in case this process is killed
            forgetting.write_position(client, keys, at)
            saved = at
        if is_over:
            return Walk(
                summary=f"instances forgotten: {instances}, environments: {environments}, more to look at",
                is_finished=False,
            )
    return Walk(summary=f"instances forgotten: {instances}, environments: {environments}")


def _steps(runtime: Runtime, at: Position, threshold: int) -> Iterator[tuple[Position, Step]]:
    """Walk on from a position. After each step yield the next position, `START` at the end, and what it forgot."""
    client, keys, destination = runtime.client, runtime.keys, runtime.settings.destination
    while True:
        next_page, names = forgetting.read_environments(client, keys, destination, at.page)
        for name in (name for name in names if name >= at.environment):
            outbox = keys.of_outbox(destination, name)
            cursor = at.instances if name == at.environment else 0
            while True:
                cursor, count = forgetting.forget_page(client, outbox, cursor, threshold)
                if not cursor:
                    break
                yield Position(at.page, name, cursor), Step(count)
            is_forgotten = forgetting.forget_environment(client, keys, outbox, threshold)
            yield Position(at.page, f"{name}\0"), Step(count, int(is_forgotten))
        at = Position(next_page)
        yield at, Step()
        if not next_page:
            return
