"""Everything the relay raises on purpose.

RelayError
├── ConfigurationError      a setting is missing, unreadable or unsafe; says which and what to do
├── InvalidEvent            an event cannot be accepted as it is; `.field` and `.reason` name the fault
│   └── InvalidImage        its image reference is at fault
├── QueueFull               enough is waiting, or Redis is short of memory; try again later (exit code 75, HTTP 429)
├── QueueUnavailable        Redis did not take the event, or its answer was lost (exit code 69, HTTP 503)
│   └── SpoolUnavailable    nor did the spool take it: it is full, or the disk refuses
├── GatewayRefused          the gateway does not take reports from us like this: its token, its URL (exit code 1)
├── ClusterUnavailable      Kubernetes' API server did not answer, or would not; `.status` is HTTP's (exit code 69)
├── LeaseLost               another drain holds the lease; what was not committed is not ours any more
└── ChildFailed             a process that we started ended early, or was not ready in time
"""

from __future__ import annotations


class RelayError(Exception):
    """The root of the tree."""


class ConfigurationError(RelayError):
    """A setting is missing, unreadable or unsafe."""


class InvalidEvent(RelayError, ValueError):  # noqa: N818 - the contract's name
    """An event cannot be accepted as it is.

    `field` is the dotted path of the wrong field ("image.url"; "" for the whole event),
    `reason` a sentence without a full stop that names the fault.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason

    def __reduce__(self) -> tuple[type[InvalidEvent], tuple[str, str]]:
        return InvalidEvent, (self.field, self.reason)


class InvalidImage(InvalidEvent):
    """The image reference names no manifest by digest, or is no reference at all."""

    def __init__(self, reason: str) -> None:
        super().__init__("image.url", reason)


class QueueFull(RelayError):  # noqa: N818 - the contract's name
    """There is no room: `queue.max_backlog` events wait, or Redis is past `queue.memory_watermark`.

    Of this call only `enqueued` was taken.
    """

    #: Ids of the call's events that were enqueued before.
    enqueued: tuple[str, ...] = ()


class QueueUnavailable(RelayError):  # noqa: N818 - the contract's name
    """Redis, or the gateway before it, could not be asked, or its answer did not come.

    The event may or may not have been enqueued. Report it again with the same `id`:
    the relay takes it once.
    """

    #: Ids of the call's events that were enqueued before, for certain.
    enqueued: tuple[str, ...] = ()


class GatewayRefused(RelayError):  # noqa: N818 - says what happened
    """The gateway will not take the report however often it is sent: a wrong token, or no gateway at that URL."""


class SpoolUnavailable(QueueUnavailable):
    """Neither did the spool take the event: it is full, or its directory cannot be used."""


class ClusterUnavailable(RelayError):  # noqa: N818 - says what happened
    """Kubernetes' API server did not answer, or what it answered is no answer to the question."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        #: HTTP's, or that of an ERROR within a watch; None if it came to none.
        self.status = status
        #: What its `Retry-After` asks for; 0 for nothing.
        self.retry_after_seconds = retry_after_seconds


class LeaseLost(RelayError):  # noqa: N818 - says what happened
    """The drain's lease is gone: it was paused past it, or the data set was flushed."""


class ChildFailed(RelayError):  # noqa: N818 - says what happened
    """A child ended before it was ready, or was not ready in time; the message quotes the end of its log."""
