"""Deployment relay: accepts which image, by digest, runs in which environment, and delivers it.

Names are imported on first use, so that parsing events or reporting through a gateway does not import redis.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.errors import (
        ConfigurationError,
        GatewayRefused,
        InvalidEvent,
        QueueFull,
        QueueUnavailable,
        RelayError,
        SpoolUnavailable,
    )
    from relay.events.event import DeploymentEvent
    from relay.producer.gateway_producer import GatewayProducer
    from relay.producer.queue_producer import AsyncProducer, Producer

__all__ = [
    "AsyncProducer",
    "ConfigurationError",
    "DeploymentEvent",
    "GatewayProducer",
    "GatewayRefused",
    "InvalidEvent",
    "Producer",
    "QueueFull",
    "QueueUnavailable",
    "RelayError",
    "SpoolUnavailable",
]

#: Public name → its module; the default is relay.errors.
_MODULES = {
    "AsyncProducer": "relay.producer.queue_producer",
    "DeploymentEvent": "relay.events.event",
    "GatewayProducer": "relay.producer.gateway_producer",
    "Producer": "relay.producer.queue_producer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULES.get(name, "relay.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
