"""One drain and what follows it: what a Celery task does, and the poller's inline_fallback alike.

Each drain has one line in the log, with what it did; one that found nothing to do has it at DEBUG.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.logs import get_logger
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake
from workers.scheduling.wakeups import ENVIRONMENTS_PER_WAKEUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.delivery.run import DeliveryReport
    from workers.intake.run import IntakeReport
    from workers.runtime import Runtime

#: Environments that a line names; of more than these it only tells the number.
NAMED = 3

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What was done, in words, and whether an outage kept it from being more."""

    summary: str
    met_outage: bool = False

    def __str__(self) -> str:
        return self.summary


def take_in(runtime: Runtime, *, wakeup: str = "") -> Drained:
    """Drain the inbox into the outboxes, and deliver what came last; say what was done. Redis may be away.

    `wakeup` is the id of the message that called for it, for the log.
    """
    try:
        started = time.monotonic()
        done = run_intake(runtime)
        if done is None:
            return _others_are_at_it("another drain is at it", wakeup)
        _log_intake(done, wakeup, time.monotonic() - started)
        if done.more:
            runtime.wakeups.wake_intake()
        if not done.to_deliver:
            return Drained(summary=str(done))
        delivered = _deliver(runtime, done.to_deliver, wakeup)
        return Drained(summary=f"{done}; {delivered}", met_outage=delivered.met_outage)
    except RedisError as error:
        return redis_away(error)


def deliver(runtime: Runtime, environments: Sequence[str], *, wakeup: str = "") -> Drained:
    """Drain these environments' outboxes to the API; say what was done. Redis may be away."""
    try:
        return _deliver(runtime, environments, wakeup)
    except RedisError as error:
        return redis_away(error)


def redis_away(error: RedisError) -> Drained:
    """Say that Redis ended a drain."""
    _log.warning("Redis failed a drain; the sweep rings again: %s", error)
    return Drained(summary=f"Redis failed: {type(error).__name__}", met_outage=True)


def _deliver(runtime: Runtime, environments: Sequence[str], wakeup: str) -> Drained:
    mine, others = environments[:ENVIRONMENTS_PER_WAKEUP], environments[ENVIRONMENTS_PER_WAKEUP:]
    runtime.wakeups.wake_delivery(others)
    done = run_delivery(runtime, mine)
    if done is None:
        return _others_are_at_it("other drains are at it", wakeup)
    _log_delivery(done, wakeup)
    runtime.wakeups.wake_delivery(done.to_deliver)
    return Drained(summary=str(done), met_outage=bool(done.held))


def _others_are_at_it(summary: str, wakeup: str) -> Drained:
    _log.debug(summary, **_wakeup(wakeup))
    return Drained(summary=summary)


def _log_intake(done: IntakeReport, wakeup: str, seconds: float) -> None:
    _log.log(
        logging.INFO if done.taken or done.lease_lost else logging.DEBUG,
        f"inbox drained{_how(wakeup)}",
        taken=done.taken,
        **_only_true(more_wait=done.more, lease_lost=done.lease_lost),
        seconds=round(seconds, 3),
        **_wakeup(wakeup),
    )


def _log_delivery(done: DeliveryReport, wakeup: str) -> None:
    _log.log(
        _level_of(done),
        f"outboxes drained{_how(wakeup)}",
        environments=len(done.environments),
        **({"names": list(done.environments)} if len(done.environments) <= NAMED else {}),
        delivered=done.delivered,
        **_only_true(
            retrying=done.retrying,
            dead=done.dead,
            held=done.held,
            leases_lost=done.leases_lost,
            more_wait=len(done.to_deliver),
        ),
        seconds=round(done.seconds, 3),
        **_wakeup(wakeup),
    )


def _level_of(done: DeliveryReport) -> int:
    """Return a line's level: a dead letter waits for a person, and that there was nothing to do interests nobody."""
    if done.dead:
        return logging.WARNING
    return logging.INFO if done.delivered or done.retrying or done.held or done.leases_lost else logging.DEBUG


def _how(wakeup: str) -> str:
    return "" if wakeup else " without a wakeup"


def _wakeup(wakeup: str) -> dict[str, str]:
    return {"wakeup": wakeup} if wakeup else {}


def _only_true(**fields: float | str) -> dict[str, float | str]:
    return {name: value for name, value in fields.items() if value}
