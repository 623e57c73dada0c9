"""What the headers and the body of an answer say of a rate limit that is used up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest

from relay.destinations.answer import read_answer
from relay.destinations.deployment_api import outcome_of
from relay.destinations.outcome import Retry, Unauthorized
from relay.destinations.rate_limit import UNSAID_RESET_SECONDS, UNSAID_SECONDS, says_used_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.destinations.outcome import Outcome

#: The answers' `Date`: the APIs' clock is not ours.
DATE = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
UNIX = int(DATE.timestamp())


def outcome(status: int, headers: dict[str, str], body: bytes = b"") -> Outcome:
    lines = {"date": format_datetime(DATE, usegmt=True), **{name.lower(): value for name, value in headers.items()}}

    def values(name: str) -> Sequence[str]:
        return [lines[name.lower()]] if name.lower() in lines else []

    return outcome_of(read_answer(status, values, body, "secret"))


def held_seconds(status: int, headers: dict[str, str], body: bytes = b"") -> float | None:
    found = outcome(status, headers, body)
    assert isinstance(found, Retry)
    assert found.uses_attempt is False or found.throttle_seconds is None
    return found.throttle_seconds


@pytest.mark.parametrize("status", [403, 429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(UNIX + 30)}, 30.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str((UNIX + 30) * 1000)}, 30.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}, 30.0),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": f"{UNIX + 2.5}", "X-RateLimit-Reset-After": "2.5"}, 2.5),
        ({"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "30"}, 30.0),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "30"}, 30.0),
        ({"RateLimit": "limit=100, remaining=0, reset=30"}, 30.0),
        ({"RateLimit": "limit=100,remaining=0,reset=30"}, 30.0),
        ({"RateLimit": '"hour";r=12;t=900, "minute";r=0;t=30'}, 30.0),
        ({"RateLimit": '"minute";t=30;r=0'}, 30.0),
        ({"x-ratelimit-remaining": "0"}, UNSAID_RESET_SECONDS),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "soon"}, UNSAID_RESET_SECONDS),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(UNIX - 30)}, UNSAID_RESET_SECONDS),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30", "Retry-After": "7"}, 7.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30", "Retry-After": "-7"}, 30.0),
    ],
)
def test_no_request_left_throttles_until_the_reset(status: int, headers: dict[str, str], seconds: float) -> None:
    assert held_seconds(status, headers) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset": str(UNIX + 30)}, 30.0),
        ({"RateLimit-Reset": "30"}, 30.0),
        ({"x-ratelimit-remaining": "4", "x-ratelimit-reset": "30"}, None),
        ({"x-ratelimit-reset": str(UNIX - 30)}, None),
        ({"x-ratelimit-reset": "-1"}, None),
        ({}, None),
    ],
)
def test_429_without_the_number_left_waits_for_the_reset(headers: dict[str, str], seconds: float | None) -> None:
    assert held_seconds(429, headers) == seconds


@pytest.mark.parametrize(
    "body",
    [
        b'{"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}',
        b'{"message": "API rate limit exceeded for installation ID 1"}',
        b'{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}',
        b'{"reason": "quotaExceeded"}',
        b"Too many requests",
        b" " * 60_000 + b"secondary rate limit",
    ],
)
def test_403_whose_body_names_the_limit_throttles(body: bytes) -> None:
    assert held_seconds(403, {}, body) == UNSAID_SECONDS
    assert held_seconds(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}, body) == 30.0
    assert held_seconds(403, {"Retry-After": "7"}, body) == 7.0


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"forbidden"),
        ({"x-ratelimit-remaining": "57", "x-ratelimit-reset": str(UNIX + 30)}, b"no access to this environment"),
        ({"x-ratelimit-remaining": "none"}, b"the token is not allowed to change the rate limit"),
        ({"RateLimit": "limit=0, remaining=9, reset=30"}, b""),
        ({"RateLimit": '"minute";r=10;t=30'}, b""),
    ],
)
def test_other_403_is_about_the_token(headers: dict[str, str], body: bytes) -> None:
    assert isinstance(outcome(403, headers, body), Unauthorized)


def test_401_and_404_are_about_no_limit() -> None:
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}
    assert isinstance(outcome(401, headers), Unauthorized)
    assert outcome(404, headers) == Retry("HTTP 404", 404, slowly=True)


def test_body_is_searched_in_linear_time() -> None:
    started = datetime.now(UTC)
    assert not says_used_up(b"exceed " * 9_000)
    assert datetime.now(UTC) - started < timedelta(seconds=1)
