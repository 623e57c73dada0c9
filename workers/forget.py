"""Walking over all that is remembered, to let go of what was not seen for `delivery.forget_after`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from relay.keys import DEFAULT_ENDPOINT
from relay.store import forgetting
from relay.store.state import SEEN_STEP_MS
from workers.stopping import is_stopping

if TYPE_CHECKING:
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


def walk(runtime: Runtime, after: str, cursor: int) -> str:
    """Walk on from a place in an environment, until the end or the budget is over; then ring for the rest.

    A ring that gets lost leaves the rest to the next walk.
    """
    client, keys, settings = runtime.client, runtime.keys, runtime.settings
    threshold = seen_before(forgetting.now_ms(client), settings.delivery.forget_after)
    deadline = time.monotonic() + settings.worker.budget
    instances = environments = 0
    for name in forgetting.environments(client, keys, DEFAULT_ENDPOINT):
        if name < after:
            continue
        outbox = keys.of_outbox(DEFAULT_ENDPOINT, name)
        at = cursor if name == after else 0
        while True:
            if time.monotonic() > deadline or is_stopping():
                runtime.bells.ring_forget(name, at)
                return f"{_forgotten(instances, environments)}, more to look at"
            at, count = forgetting.forget_page(client, outbox, at, threshold)
            instances += count
            if not at:
                break
        environments += forgetting.forget_environment(client, keys, outbox, threshold)
    return _forgotten(instances, environments)


def _forgotten(instances: int, environments: int) -> str:
    return f"instances forgotten: {instances}, environments: {environments}"
