"""The deployment API: what each status means, the table of design.md whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from relay.destinations.answer import Answer, Failure
from relay.destinations.deployment_api import code_of, outcome_of
from relay.destinations.outcome import Delivered, Outcome, Refused, Retry, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable

STATUSES = range(100, 600)

#: Retry-After of the answers that have one.
SECONDS = 30.0

#: Status → class, the first row that has it: without Retry-After, and with it.
TABLE = [
    ("no HTTP", "no HTTP", range(100, 200)),
    ("delivered", "delivered", range(200, 300)),
    ("refused, not followed", "refused, not followed", range(300, 400)),
    ("hold", "hold", (401,)),
    ("hold", "hold until", (403,)),
    ("retry slowly", "retry slowly", (404, 405, 410)),
    ("retry, pushed back", "hold until, pushed back", (408, 503, 504)),
    ("retry", "hold until", (425,)),
    ("retry for nothing, pushed back", "hold until, pushed back", (429,)),
    ("refused", "refused", range(400, 500)),
    ("retry", "hold until", range(500, 600)),
]

FAILURES = {
    Failure.DNS: Retry("dns", uses_attempt=False),
    Failure.CONNECT: Retry("connect", uses_attempt=False, is_pushback=True),
    Failure.TLS: Retry("tls", uses_attempt=False),
    Failure.TIMEOUT: Retry("timeout", is_pushback=True),
    Failure.RESET: Retry("reset", is_pushback=True),
    Failure.PROTOCOL: Retry("protocol"),
}


def retry(status: int, **meaning: Any) -> Retry:
    return Retry(f"HTTP {status}", status, **meaning)


#: Class → the outcome of a status in it.
MEANING: dict[str, Callable[[int], Outcome]] = {
    "delivered": lambda _: Delivered(),
    "refused": lambda status: Refused(f"HTTP {status}", status),
    "refused, not followed": lambda status: Refused(f"HTTP {status}, and redirects are not followed", status),
    "hold": lambda status: Unauthorized(f"HTTP {status}", status),
    "no HTTP": lambda status: Retry(f"protocol: HTTP {status} is no final status", status),
    "retry": retry,
    "retry, pushed back": lambda status: retry(status, is_pushback=True),
    "retry for nothing, pushed back": lambda status: retry(status, uses_attempt=False, is_pushback=True),
    "retry slowly": lambda status: retry(status, slowly=True),
    "hold until": lambda status: retry(status, throttle_seconds=SECONDS, uses_attempt=False),
    "hold until, pushed back": lambda status: retry(
        status, throttle_seconds=SECONDS, uses_attempt=False, is_pushback=True
    ),
}


def row(status: int) -> tuple[str, str]:
    return next((without, with_it) for without, with_it, statuses in TABLE if status in statuses)


def test_every_status_has_its_outcome() -> None:
    assert {status: outcome_of(Answer(status)) for status in STATUSES} == {
        status: MEANING[row(status)[0]](status) for status in STATUSES
    }


def test_every_status_has_its_outcome_with_retry_after() -> None:
    assert {status: outcome_of(Answer(status, retry_after_seconds=SECONDS)) for status in STATUSES} == {
        status: MEANING[row(status)[1]](status) for status in STATUSES
    }


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_number_that_is_no_status_refuses_no_event_and_throttles_nothing(status: int) -> None:
    expected = Retry(f"protocol: HTTP {status} is no final status", status)

    assert outcome_of(Answer(status)) == outcome_of(Answer(status, retry_after_seconds=SECONDS)) == expected


def test_every_failure_has_its_outcome() -> None:
    assert {failure: outcome_of(Answer(failure=failure)) for failure in Failure} == FAILURES


@pytest.mark.parametrize("failure", list(Failure))
def test_failure_says_what_the_transport_saw(failure: Failure) -> None:
    outcome = outcome_of(Answer(failure=failure, excerpt="no route"))

    assert getattr(outcome, "because", "") == f"{failure}: no route"


@pytest.mark.parametrize(
    ("answer", "because"),
    [
        (Answer(422, excerpt="no digest"), "HTTP 422: no digest"),
        (Answer(302), "HTTP 302, and redirects are not followed"),
        (
            Answer(307, excerpt="moved", redirects_to="login.example.com"),
            "HTTP 307, and redirects are not followed (it points to login.example.com): moved",
        ),
        (Answer(401, excerpt="expired"), "HTTP 401: expired"),
        (Answer(403, None, SECONDS, "slow down"), "HTTP 403: slow down"),
        (Answer(404, excerpt="who?"), "HTTP 404: who?"),
        (Answer(503, excerpt="later"), "HTTP 503: later"),
        (Answer(101, excerpt="h2c"), "protocol: HTTP 101 is no final status: h2c"),
    ],
)
def test_outcome_says_why(answer: Answer, because: str) -> None:
    assert getattr(outcome_of(answer), "because", "") == because


@pytest.mark.parametrize("status", STATUSES)
def test_answer_is_counted_by_its_status_if_that_is_one(status: int) -> None:
    assert code_of(Answer(status=status)) == (str(status) if status >= 200 else "protocol")


@pytest.mark.parametrize("failure", [*Failure, None])
def test_answer_without_a_status_is_counted_by_its_failure(failure: Failure | None) -> None:
    assert code_of(Answer(failure=failure)) == (failure or "protocol")


def test_codes_are_bounded_whatever_an_api_answers() -> None:
    assert {code_of(Answer(status=status)) for status in range(1000)} == {*map(str, range(200, 600)), "protocol"}
