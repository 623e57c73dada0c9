"""The deployment API: one event a request, and a table of what its statuses mean.

The body of a request is the event as the queue has it (`DeploymentEvent.body`). The API documents no answer body, so
any 2xx is a success.
"""

from __future__ import annotations

from enum import Enum, auto

from relay.destinations.answer import Answer, Failure
from relay.destinations.outcome import DELIVERED, Outcome, Refused, Retry, Unauthorized
from relay.errors import ConfigurationError


class _Class(Enum):
    DELIVERED = auto()
    RETRY = auto()
    RETRY_SLOWLY = auto()  # may be an image that is not known yet
    UNAUTHORIZED = auto()
    REFUSED = auto()
    REDIRECT = auto()  # refused, and not followed: the token must not reach another host


#: What each final status means; the first row that has it counts.
STATUSES = (
    (range(200, 300), _Class.DELIVERED),
    (range(300, 400), _Class.REDIRECT),
    ((401, 403), _Class.UNAUTHORIZED),  # a 403 that asks for a pause is a retry
    ((404, 405, 410), _Class.RETRY_SLOWLY),
    ((408, 425, 429), _Class.RETRY),
    (range(400, 500), _Class.REFUSED),
    (range(500, 600), _Class.RETRY),
)
_CLASS_OF = {status: meaning for statuses, meaning in reversed(STATUSES) for status in statuses}

#: Signs of an overloaded API: fewer requests at once would help.
PUSHBACK = frozenset({408, 429, 503, 504})
PUSHBACK_FAILURES = frozenset({Failure.TIMEOUT, Failure.RESET, Failure.CONNECT})

#: Failures that are the same for every event. They use up no attempt.
DESTINATION_FAILURES = frozenset({Failure.DNS, Failure.CONNECT, Failure.TLS})

_FORBIDDEN = 403
_TOO_MANY_REQUESTS = 429

#: The header with an event's key, the same at each attempt.
IDEMPOTENCY_KEY = "Idempotency-Key"


def headers(token: str) -> dict[str, str]:
    """Return the headers of every request; raise `ConfigurationError` for a token that no header can carry."""
    if not token:
        raise ConfigurationError("the API's token is empty")
    if not token.isascii() or not token.isprintable():
        raise ConfigurationError("the API's token has characters that no HTTP header can carry")
    return {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "deployment-relay",
        "Authorization": f"Bearer {token}",
    }


def header_text(value: str) -> str:
    """Return text as a header can carry it, with all but printable ASCII escaped."""
    return value if value.isascii() and value.isprintable() else value.encode("unicode_escape").decode("ascii")


def outcome_of(answer: Answer) -> Outcome:
    """Return what an answer means."""
    status = answer.status
    if status is None:
        failure = answer.failure or Failure.PROTOCOL
        return Retry(
            _because(failure, answer.excerpt),
            uses_attempt=failure not in DESTINATION_FAILURES,
            is_pushback=failure in PUSHBACK_FAILURES,
        )
    because = _because(f"HTTP {status}", answer.excerpt)
    asked = answer.used_up_seconds if answer.retry_after_seconds is None else answer.retry_after_seconds
    match _CLASS_OF.get(status):
        case _Class.DELIVERED:
            return DELIVERED
        case _Class.REDIRECT:
            where = f" (it points to {answer.redirects_to})" if answer.redirects_to else ""
            return Refused(_because(f"HTTP {status}, and redirects are not followed{where}", answer.excerpt), status)
        case _Class.RETRY_SLOWLY:
            return Retry(because, status, slowly=True)
        case _Class.UNAUTHORIZED if status != _FORBIDDEN or asked is None:
            return Unauthorized(because, status)
        case _Class.RETRY | _Class.UNAUTHORIZED:
            return Retry(
                because,
                status,
                throttle_seconds=asked,
                uses_attempt=status != _TOO_MANY_REQUESTS and asked is None,
                is_pushback=status in PUSHBACK,
            )
        case _Class.REFUSED:
            return Refused(because, status)
    return Retry(_because(f"{Failure.PROTOCOL}: HTTP {status} is no final status", answer.excerpt), status)


def code_of(answer: Answer) -> str:
    """Return what an answer is counted by: its status, or the failure that it stands for."""
    if answer.status is None:
        return answer.failure or Failure.PROTOCOL
    return str(answer.status) if answer.status in _CLASS_OF else Failure.PROTOCOL


def _because(what: str, detail: str) -> str:
    return f"{what}: {detail}" if detail else what
