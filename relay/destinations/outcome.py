"""The outcomes of an attempt: what its answer means for the event and for the destination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has the event."""

    word: ClassVar = "delivered"
    because: ClassVar = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """The event is to be sent again.

    `throttle_seconds` is the pause that the destination asked for, not capped yet. `uses_attempt` is False for a
    fault of the destination. `is_pushback` is whether fewer requests at once would help.
    """

    word: ClassVar = "retry"

    because: str
    status: int | None = None
    slowly: bool = False
    throttle_seconds: float | None = None
    uses_attempt: bool = True
    is_pushback: bool = False


@dataclass(frozen=True, slots=True)
class Unauthorized:
    """The token is refused; the event uses up no attempt."""

    word: ClassVar = "unauthorized"

    because: str
    status: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination will never take this event."""

    word: ClassVar = "refused"

    because: str
    status: int


#: One of these; its `word` is what the attempt is counted as.
Outcome = Delivered | Retry | Unauthorized | Refused

#: The one value: most attempts have it.
DELIVERED = Delivered()
