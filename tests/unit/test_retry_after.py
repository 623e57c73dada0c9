"""What a `Retry-After` asks for: seconds or a date, of which anything else is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.destinations.retry_after import MAX_SECONDS, retry_after_seconds

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def read(*lines: str, date: str | None = None) -> float | None:
    return retry_after_seconds(lines, date=date, now=NOW)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("  30 ", 30.0),
        ("007", 7.0),
        ("1" + "0" * 30, MAX_SECONDS),
        ("Mon, 23 Nov 2026 12:01:30 GMT", 90.0),
        ("Monday, 23-Nov-26 12:01:30 GMT", 90.0),
        ("Mon Nov 23 12:01:30 2026", 90.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_SECONDS),
    ],
)
def test_seconds_and_the_three_forms_of_a_date(value: str, seconds: float) -> None:
    assert read(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", ",", "0", "00", "-5", "+5", "1.5", "1e3", "0x10", "soon", "5 s", "٣", "1_000", "9" * 5000),
        *(
            "Mon, 23 Nov 2026 12:00:00 GMT",
            "Wed, 21 Oct 2015 07:28:00 GMT",
            "Mon, 99 Nov 2026 12:01:30 GMT",
            "12:01:30",
        ),
    ],
)
def test_past_or_unreadable_value_asks_for_no_pause(value: str) -> None:
    assert read(value) is None


@pytest.mark.parametrize(
    "lines",
    [
        ("5", "60"),
        ("60", "5"),
        ("5, 60",),
        ("60,60",),
        ("60", "soon"),
        ("-1, 60",),
        ("30, Mon, 23 Nov 2026 12:01:00 GMT",),
        ("Mon, 23 Nov 2026 12:01:00 GMT, Monday, 23-Nov-26 12:00:01 GMT",),
    ],
)
def test_of_two_values_the_longest_counts(lines: tuple[str, ...]) -> None:
    assert read(*lines) == 60.0


def test_no_header_asks_for_no_pause() -> None:
    assert read() is None


@pytest.mark.parametrize(
    "date", ["Mon, 23 Nov 2026 11:00:00 GMT", "Monday, 23-Nov-26 11:00:00 GMT", "Mon Nov 23 11:00:00 2026"]
)
def test_date_counts_from_the_answers_own(date: str) -> None:
    assert read("Mon, 23 Nov 2026 11:00:30 GMT", date=date) == 30.0
    assert read("30", date=date) == 30.0


@pytest.mark.parametrize("date", ["", "today", "Mon, 99 Nov 2026 11:00:00 GMT", "x" * 10_000])
def test_date_counts_from_our_clock_if_the_answers_own_cannot_be_read(date: str) -> None:
    assert read("Mon, 23 Nov 2026 12:00:30 GMT", date=date) == 30.0


@given(st.lists(st.text(), max_size=3), st.none() | st.text())
def test_no_text_is_an_error_and_none_asks_for_less_than_nothing(lines: list[str], date: str | None) -> None:
    seconds = read(*lines, date=date)

    assert seconds is None or 0 < seconds <= MAX_SECONDS


@given(st.text(alphabet="0123456789 :-+,GMTSunNovFri./", max_size=60))
def test_nothing_like_a_date_is_an_error(text: str) -> None:
    seconds = read(text, date=text)

    assert seconds is None or 0 < seconds <= MAX_SECONDS


@given(st.integers(1, 10**7), st.integers(-(10**5), 10**5))
def test_a_clock_that_is_off_does_not_change_the_wait(seconds: int, off: int) -> None:
    theirs = NOW + timedelta(seconds=off)
    until = format_datetime(theirs + timedelta(seconds=seconds), usegmt=True)

    assert read(until, date=format_datetime(theirs, usegmt=True)) == seconds
