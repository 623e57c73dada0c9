"""Wiring of one thread that runs stages: its connections, made from the settings."""

from __future__ import annotations

from random import SystemRandom
from typing import TYPE_CHECKING

from relay.connections.clients import connect
from relay.operations.settings_report import defaults_of
from relay.queue.keys import Keys
from relay.queue.shard import Shard
from workers.delivery.runtime import DeliveryRuntime
from workers.delivery.transport import CurlTransport

if TYPE_CHECKING:
    from relay.settings import Settings
    from workers.runtime import Wakeups


def make_runtime(settings: Settings, wakeups: Wakeups) -> DeliveryRuntime:
    """Return a runtime for both stages. Raise `ConfigurationError` for settings that cannot work."""
    return DeliveryRuntime(
        settings=settings,
        shard=Shard(client=connect(settings.redis), keys=Keys(settings.queue.namespace)),
        defaults=defaults_of(settings),
        wakeups=wakeups,
        transport=CurlTransport(settings.require_api(), connections=settings.delivery.max_in_flight),
        random=SystemRandom(),
    )
