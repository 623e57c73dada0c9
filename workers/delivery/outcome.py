"""What does one answer mean for the event and for the destination?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from workers.delivery.transport import Failure

if TYPE_CHECKING:
    from workers.delivery.transport import Answer

#: Statuses that say "later": the event is fine, the API is not. Every 5xx says so too.
RETRIED = frozenset({408, 425, 429})

#: Statuses that say "who are you": no event is to blame.
UNAUTHORIZED = frozenset({401, 403})

#: Statuses that may mean an image not known yet.
RETRIED_SLOWLY = frozenset({404, 405, 410})

#: What tells that the API has more to do than it can: fewer requests at once would help.
PUSHBACK = frozenset({408, 429, 503, 504})
PUSHBACK_FAILURES = frozenset({Failure.TIMEOUT, Failure.RESET, Failure.CONNECT})

#: What keeps every request away, whatever event it carries.
DESTINATION_FAILURES = frozenset({Failure.DNS, Failure.CONNECT, Failure.TLS})


@dataclass(frozen=True, slots=True)
class Delivered:
    """The API has it."""

    word: ClassVar = "delivered"
    because: ClassVar = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try this event again.

    `hold_seconds` holds the whole destination, when the API asked for it; not capped yet. `uses_attempt` is False for
    what is the destination's fault and not the event's. `is_pushback` tells that fewer requests at once would help.
    """

    word: ClassVar = "retry"

    because: str
    status: int | None = None
    slowly: bool = False
    hold_seconds: float | None = None
    uses_attempt: bool = True
    is_pushback: bool = False


@dataclass(frozen=True, slots=True)
class Unauthorized:
    """The token is at fault: hold the destination, and count no attempt."""

    word: ClassVar = "unauthorized"

    because: str
    status: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The API will never take this event."""

    word: ClassVar = "refused"

    because: str
    status: int


#: One of these; its `word` is what it is counted as.
Outcome = Delivered | Retry | Unauthorized | Refused


def code_of(answer: Answer) -> str:
    """Return what an answer is counted by: its status, or the failure that it is taken for."""
    if answer.status is None:
        return answer.failure or Failure.PROTOCOL
    return str(answer.status) if 200 <= answer.status < 600 else Failure.PROTOCOL


def outcome_of(answer: Answer) -> Outcome:
    """Map an answer to its outcome; the whole table, in one place."""
    status = answer.status
    if status is None:
        return _failed(answer.failure or Failure.PROTOCOL, answer.excerpt)
    because = _because(f"HTTP {status}", answer.excerpt)
    if not 200 <= status < 600:
        return Retry(_because(f"{Failure.PROTOCOL}: HTTP {status} is no final status", answer.excerpt), status)
    if status < 300:
        return Delivered()
    if status < 400:
        return Refused(_because(_redirect(answer), answer.excerpt), status)
    if status in RETRIED_SLOWLY:
        return Retry(because, status, slowly=True)
    asked = answer.used_up_seconds if answer.retry_after_seconds is None else answer.retry_after_seconds
    if status in RETRIED or status >= 500 or (status == 403 and asked is not None):
        return _later(status, because, asked)
    if status in UNAUTHORIZED:
        return Unauthorized(because, status)
    return Refused(because, status)


def _failed(failure: Failure, detail: str) -> Retry:
    return Retry(
        _because(failure, detail),
        uses_attempt=failure not in DESTINATION_FAILURES,
        is_pushback=failure in PUSHBACK_FAILURES,
    )


def _later(status: int, because: str, hold_seconds: float | None) -> Retry:
    return Retry(
        because,
        status,
        hold_seconds=hold_seconds,
        uses_attempt=status != 429 and hold_seconds is None,
        is_pushback=status in PUSHBACK,
    )


def _redirect(answer: Answer) -> str:
    where = f" (it points to {answer.redirects_to})" if answer.redirects_to else ""
    return f"HTTP {answer.status}, and redirects are not followed{where}"


def _because(what: str, detail: str) -> str:
    return f"{what}: {detail}" if detail else what
