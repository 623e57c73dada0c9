"""One drain and what follows it: what a Celery task does, and the doorman's understudy alike.

Each drain has one line in the log, with what it did; one that found nothing to do has it at DEBUG.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.logs import get_logger
from workers.delivery.run import drain_outboxes
from workers.intake.run import drain_inbox
from workers.scheduling.wakeups import ENVIRONMENTS_PER_BELL

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


def take_in(runtime: Runtime, *, bell: str = "") -> Drained:
    """Drain the inbox into the outboxes, and deliver what came last; say what was done. Redis may be away.

    `bell` is the id of the message that called for it, for the log.
    """
    try:
        started = time.monotonic()
        done = drain_inbox(runtime)
        if done is None:
            return _others_are_at_it("another drain is at it", bell)
        _log_intake(done, bell, time.monotonic() - started)
        if done.more:
            runtime.bells.ring_intake()
        if not done.to_deliver:
            return Drained(summary=str(done))
        delivered = _deliver(runtime, done.to_deliver, bell)
        return Drained(summary=f"{done}; {delivered}", met_outage=delivered.met_outage)
    except RedisError as error:
        return redis_away(error)


def deliver(runtime: Runtime, environments: Sequence[str], *, bell: str = "") -> Drained:
    """Drain these environments' outboxes to the API; say what was done. Redis may be away."""
    try:
        return _deliver(runtime, environments, bell)
    except RedisError as error:
        return redis_away(error)


def redis_away(error: RedisError) -> Drained:
    """Say that Redis ended a drain."""
    _log.warning("Redis failed a drain; the sweep rings again: %s", error)
    return Drained(summary=f"Redis failed: {type(error).__name__}", met_outage=True)


def _deliver(runtime: Runtime, environments: Sequence[str], bell: str) -> Drained:
    mine, others = environments[:ENVIRONMENTS_PER_BELL], environments[ENVIRONMENTS_PER_BELL:]
    runtime.bells.ring_delivery(others)
    done = drain_outboxes(runtime, mine)
    if done is None:
        return _others_are_at_it("other drains are at it", bell)
    _log_delivery(done, bell)
    runtime.bells.ring_delivery(done.to_deliver)
    return Drained(summary=str(done), met_outage=bool(done.held))


def _others_are_at_it(summary: str, bell: str) -> Drained:
    _log.debug(summary, **_bell(bell))
    return Drained(summary=summary)


def _log_intake(done: IntakeReport, bell: str, seconds: float) -> None:
    _log.log(
        logging.INFO if done.taken or done.lease_lost else logging.DEBUG,
        f"inbox drained{_how(bell)}",
        taken=done.taken,
        **_only_true(more_wait=done.more, lease_lost=done.lease_lost),
        seconds=round(seconds, 3),
        **_bell(bell),
    )


def _log_delivery(done: DeliveryReport, bell: str) -> None:
    _log.log(
        _level_of(done),
        f"outboxes drained{_how(bell)}",
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
        **_bell(bell),
    )


def _level_of(done: DeliveryReport) -> int:
    """Return a line's level: a dead letter waits for a person, and that there was nothing to do interests nobody."""
    if done.dead:
        return logging.WARNING
    return logging.INFO if done.delivered or done.retrying or done.held or done.leases_lost else logging.DEBUG


def _how(bell: str) -> str:
    return "" if bell else " without a bell"


def _bell(bell: str) -> dict[str, str]:
    return {"bell": bell} if bell else {}


def _only_true(**fields: float | str) -> dict[str, float | str]:
    return {name: value for name, value in fields.items() if value}
