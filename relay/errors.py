"""The relay's exceptions.

RelayError
├── ConfigurationError      a setting is missing, unreadable or unsafe; names it and what to do
├── InvalidEvent            an event cannot be accepted; `.field` and `.reason` name the fault
│   └── InvalidImage        because of its image reference
├── QueueFull               the backlog is full, or Redis is short of memory; try again later (exit code 75, HTTP 429)
├── QueueUnavailable        Redis did not take the event, or its answer was lost (exit code 69, HTTP 503)
│   └── SpoolUnavailable    nor did the spool take it: it is full, or the disk refuses
├── GatewayRefused          the gateway refuses the report: wrong token, wrong URL (exit code 1)
├── ClusterUnavailable      Kubernetes' API server did not answer, or refused; `.status` is HTTP's (exit code 69)
├── LeaseLost               another run holds the lease; entries that were not committed are its own
└── ChildFailed             a child process ended early, or was not ready in time
"""

from __future__ import annotations


class RelayError(Exception):
    """Base of all exceptions of the relay."""


class ConfigurationError(RelayError):
    """A setting is missing, unreadable or unsafe."""


class InvalidEvent(RelayError, ValueError):  # noqa: N818 - the contract's name
    """An event cannot be accepted.

    `field` is the dotted path of the wrong field ("image.url"; "" for the whole event), `reason` a sentence without a
    full stop.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason

    def __reduce__(self) -> tuple[type[InvalidEvent], tuple[str, str]]:
        return InvalidEvent, (self.field, self.reason)


class InvalidImage(InvalidEvent):
    """The image reference has no digest, or is malformed."""

    def __init__(self, reason: str) -> None:
        super().__init__("image.url", reason)


class QueueFull(RelayError):  # noqa: N818 - the contract's name
    """`queue.max_backlog` events wait, or Redis is past `queue.memory_watermark`.

    Of this call only the events of `enqueued` are enqueued.
    """

    #: Ids of the call's events that are enqueued.
    enqueued: tuple[str, ...] = ()


class QueueUnavailable(RelayError):  # noqa: N818 - the contract's name
    """Redis, or the gateway before it, is not reachable, or its answer did not come.

    The event may or may not be enqueued. Report it again with the same `id`: it counts once.
    """

    #: Ids of the call's events that are certainly enqueued.
    enqueued: tuple[str, ...] = ()


class GatewayRefused(RelayError):  # noqa: N818 - says what happened
    """The gateway refuses the report, and would again: a wrong token, or no gateway at that URL."""


class SpoolUnavailable(QueueUnavailable):
    """Redis is unavailable, and the spool is full or its directory cannot be used."""


class ClusterUnavailable(RelayError):  # noqa: N818 - says what happened
    """Kubernetes' API server did not answer, or not as expected."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        #: HTTP status, or that of an ERROR within a watch; None without a response.
        self.status = status
        #: Its `Retry-After`, or 0.
        self.retry_after_seconds = retry_after_seconds


class LeaseLost(RelayError):  # noqa: N818 - says what happened
    """The run's lease is gone: the run was paused past it, or Redis was flushed."""


class ChildFailed(RelayError):  # noqa: N818 - says what happened
    """A child process ended before it was ready, or was not ready in time; quotes the end of its log."""
