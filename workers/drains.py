"""One drain and what follows it: what a Celery task does, and the doorman's understudy alike."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from workers.bells import ENVIRONMENTS_PER_BELL
from workers.deliver import drain_outboxes
from workers.intake import drain_inbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.runtime import Runtime

_log = logging.getLogger(__name__)


def take_in(runtime: Runtime) -> str:
    """Drain the inbox into the outboxes, and deliver what came last; say what was done. Redis may be away."""
    try:
        done = drain_inbox(runtime)
        if done is None:
            return "another drain is at it"
        if done.more:
            runtime.bells.ring_intake()
        if not done.to_deliver:
            return str(done)
        return f"{done}; {_deliver(runtime, done.to_deliver)}"
    except RedisError as error:
        return _redis_away(error)


def deliver(runtime: Runtime, environments: Sequence[str]) -> str:
    """Drain these environments' outboxes to the API; say what was done. Redis may be away."""
    try:
        return _deliver(runtime, environments)
    except RedisError as error:
        return _redis_away(error)


def _deliver(runtime: Runtime, environments: Sequence[str]) -> str:
    mine, others = environments[:ENVIRONMENTS_PER_BELL], environments[ENVIRONMENTS_PER_BELL:]
    runtime.bells.ring_delivery(others)
    done = drain_outboxes(runtime, mine)
    if done is None:
        return "other drains are at it"
    runtime.bells.ring_delivery(done.more)
    return str(done)


def _redis_away(error: RedisError) -> str:
    _log.warning("Redis failed a drain; the sweep rings again: %s", error)
    return f"Redis failed: {type(error).__name__}"
