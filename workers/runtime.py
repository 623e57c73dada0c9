"""What a process that runs drains works with, wired in one place, once, after the fork."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.errors import ConfigurationError
from relay.operations.settings_report import defaults_of
from relay.queue.contested import ChangeSample
from relay.queue.keys import Keys
from workers.delivery.transport.curl import CurlTransport
from workers.scheduling.wakeups import Wakeups

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

    from relay.events.event import Defaults
    from relay.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The connections and settings of one process."""

    settings: Settings
    keys: Keys
    client: Redis
    defaults: Defaults
    wakeups: Wakeups
    transport: CurlTransport
    random: Random
    changes: ChangeSample = field(default_factory=ChangeSample)

    def reload_token(self) -> None:
        """Read the API's token again, so that a rotated one needs no restart; count it if that changed something."""
        try:
            outcome = "changed" if self.transport.reload_token() else ""
        except ConfigurationError as error:
            _log.warning("the token stays the one that was read before: %s", error)
            outcome = "failed"
        if outcome:
            with contextlib.suppress(RedisError):  # a Redis that is away, or full, is told of elsewhere
                self.client.hincrby(self.keys.counts, f"token:{outcome}", 1)

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()
        self.client.close()


def make_runtime(settings: Settings, app: Celery) -> Runtime:
    """Wire a process, or raise `ConfigurationError` for what it cannot work with."""
    return Runtime(
        settings=settings,
        keys=Keys(settings.queue.namespace),
        client=connect(settings.redis),
        defaults=defaults_of(settings),
        wakeups=Wakeups(app),
        transport=CurlTransport(settings.require_api(), connections=settings.delivery.max_in_flight),
        random=SystemRandom(),
    )
