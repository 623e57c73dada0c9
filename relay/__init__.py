"""Report which image, by digest, now runs in which environment; the relay owes the delivery."""

from relay.errors import ConfigurationError, InvalidEvent, QueueFull, QueueUnavailable, RelayError, SpoolUnavailable
from relay.event import DeploymentEvent
from relay.producer import AsyncProducer, Producer

__all__ = [
    "AsyncProducer",
    "ConfigurationError",
    "DeploymentEvent",
    "InvalidEvent",
    "Producer",
    "QueueFull",
    "QueueUnavailable",
    "RelayError",
    "SpoolUnavailable",
]
