"""The end of a run that lost Redis: wait for the answers in flight, and keep trying to commit and release."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay import clock
from relay.logs import get_logger
from workers.shutdown import is_stopping

if TYPE_CHECKING:
    from workers.delivery.attempts import Attempts
    from workers.delivery.health import DestinationHealth
    from workers.delivery.outboxes import LeasedOutboxes

#: How long such a run keeps trying, in a worker that stops too, and the pause between two tries.
RECOVERY_SECONDS = 60.0
RECOVERY_STOPPING_SECONDS = 3.0
RECOVERY_PAUSE_SECONDS = 0.1

#: How long one wait for answers lasts at most.
WAIT_SECONDS = 0.01

_log = get_logger(__name__)


def recover(error: RedisError, health: DestinationHealth, outboxes: LeasedOutboxes, attempts: Attempts) -> None:
    """Commit and release once Redis is back; raise its error if it is not in time.

    No other run can acquire a lease while Redis is away, so the commit is accepted, and no request is repeated.
    """
    _log.warning("Redis failed a delivery run, which now only commits and releases what it has: %s", error)
    health.is_detached = True
    give_up_at = clock.uptime() + RECOVERY_SECONDS
    while True:
        while attempts.in_flight:
            attempts.wait(WAIT_SECONDS)
        try:
            outboxes.commit()
            health.throttle()
            outboxes.release(outboxes.held)
        except RedisError:
            now = clock.uptime()
            if is_stopping():
                give_up_at = min(give_up_at, now + RECOVERY_STOPPING_SECONDS)
            if now > give_up_at:
                raise
            time.sleep(RECOVERY_PAUSE_SECONDS)
        else:
            return
