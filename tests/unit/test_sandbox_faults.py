"""Which fault rule applies to a request, and the response that it makes, with clock and randomness passed in."""

from __future__ import annotations

from typing import Any

import pytest

from relay.errors import ConfigurationError
from relay.sandbox.api import response_to
from relay.sandbox.contract import Ruling
from relay.sandbox.faults import FaultPlan, parse_rules
from relay.sandbox.response import ResetAt, Response

HANG = Response(hangs=True, processed=False)


class Dice:
    """Returns the given numbers, then 0."""

    def __init__(self, *numbers: float) -> None:
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0) if self._numbers else 0.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plan_of(*rules: dict[str, Any], dice: Dice | None = None, clock: Clock | None = None) -> FaultPlan:
    plan = FaultPlan(clock=clock or Clock(), rng=dice or Dice())
    plan.replace(parse_rules(list(rules)))
    return plan


def responses(plan: FaultPlan, times: int, environment: str = "production", image: str = "r.io/a") -> list[Any]:
    faults = [plan.apply(Response(), environment=environment, image=image) for _ in range(times)]
    return [fault and fault.response for fault in faults]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"sequence": [503, 202]}, [503, 202, None, None, None]),
        ({"sequence": [503, 202], "repeat": True}, [503, 202, 503, 202, 503]),
        ({"sequence": [503, 202], "repeat": True, "count": 3}, [503, 202, 503, None, None]),
        ({"status": 500, "count": 2}, [500, 500, None, None, None]),
    ],
)
def test_rules_are_used_up(extra: dict[str, Any], expected: list[int | None]) -> None:
    found = responses(plan_of({"kind": "status", **extra}), 5)
    assert [each and each.status for each in found] == expected


@pytest.mark.parametrize(
    ("matcher", "matches"),
    [
        ({"environment": "prod*"}, True),
        ({"environment": "staging"}, False),
        ({"image": "r.io/*"}, True),
        ({"image": "r.io"}, False),
        ({"environment": "production", "image": "*/b"}, False),
    ],
)
def test_matchers(matcher: dict[str, str], matches: bool) -> None:  # noqa: FBT001 - a column of the table
    assert (responses(plan_of({"kind": "hang", **matcher}), 1) == [HANG]) is matches


def test_a_request_that_names_nothing_matches_no_glob() -> None:
    assert plan_of({"kind": "hang", "environment": "*"}).apply(Response(), environment=None, image=None) is None


def test_first_matching_rule_wins_and_the_next_takes_over() -> None:
    plan = plan_of({"kind": "hang", "count": 1}, {"kind": "reset"})
    assert responses(plan, 2) == [HANG, Response(reset=ResetAt.REQUEST)]


def test_probability_is_drawn() -> None:
    plan = plan_of({"kind": "hang", "probability": 0.3}, dice=Dice(0.29, 0.3, 0.1))
    assert responses(plan, 3) == [HANG, None, HANG]


def test_rules_expire() -> None:
    clock = Clock()
    plan = plan_of({"kind": "hang", "for_seconds": 2}, clock=clock)
    clock.now += 1.9
    assert responses(plan, 1) == [HANG]
    clock.now += 0.1
    assert responses(plan, 1) == [None]
    assert plan.describe() == [{"rule": {"kind": "hang", "for_seconds": 2.0}, "applied": 1, "active": False}]


@pytest.mark.parametrize(
    "rules",
    [
        {},
        [{}],
        [{"kind": "flood"}],
        [{"kind": "hang", "colour": "red"}],
        [{"kind": "hang", "probability": 1.1}],
        [{"kind": "hang", "count": 0}],
        [{"kind": "latency"}],
        [{"kind": "latency", "seconds": -1}],
        [{"kind": "status"}],
        [{"kind": "status", "status": 99}],
        [{"kind": "status", "status": 503, "sequence": [202]}],
        [{"kind": "status", "sequence": []}],
        [{"kind": "status", "status": 503, "headers": {"A": "b\r\nC: d"}}],
        [{"kind": "status", "status": 503, "headers": {"A b": "c"}}],
        [{"kind": "status", "status": 503, "headers": {"Content-Length": "5"}}],
        [{"kind": "reset", "when": "later"}],
        [{"kind": "slow_body", "bytes": 0, "seconds_per_byte": 1}],
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: object) -> None:
    with pytest.raises(ConfigurationError):
        parse_rules(rules)


@pytest.mark.parametrize(
    ("status", "rule", "expected"),
    [
        (202, {"kind": "latency", "seconds": 0.2}, (202, True, True)),
        (422, {"kind": "latency", "seconds": 0.2}, (422, False, True)),
        (202, {"kind": "status", "status": 503}, (503, False, True)),
        (202, {"kind": "status", "status": 200}, (200, True, True)),
        (422, {"kind": "status", "status": 200}, (422, False, True)),
        (422, {"kind": "status", "status": 503}, (503, False, True)),
        (202, {"kind": "hang"}, (None, False, True)),
        (202, {"kind": "slow_body", "bytes": 3, "seconds_per_byte": 1}, (202, True, True)),
        (202, {"kind": "reset", "when": "before"}, (None, False, False)),
        (202, {"kind": "reset"}, (None, True, True)),
        (422, {"kind": "reset"}, (None, False, True)),
        (202, {"kind": "reset", "when": "headers"}, (202, True, True)),
    ],
)
def test_status_processing_and_recording_of_each_fault(
    status: int, rule: dict[str, Any], expected: tuple[int | None, bool, bool]
) -> None:
    own = response_to(Ruling(status, "" if status == 202 else "wrong"))
    fault = plan_of(rule).apply(own, environment=None, image=None)
    assert fault
    response = fault.response
    recorded = response.status if response.has_status else None
    assert (recorded, response.is_processed, fault.is_recorded) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"kind": "latency", "seconds": 1, "jitter_seconds": 4}, Response(delay_seconds=3)),
        (
            {"kind": "status", "status": 429, "headers": {"Retry-After": ["2", "9"]}},
            Response(status=429, headers={"Retry-After": ("2", "9")}),
        ),
        ({"kind": "reset", "when": "headers"}, Response(reset=ResetAt.STATUS_LINE)),
        ({"kind": "slow_body", "bytes": 9, "seconds_per_byte": 0.1}, Response(filler_bytes=9, drip_seconds=0.1)),
    ],
)
def test_response_of_each_fault(rule: dict[str, Any], expected: Response) -> None:
    assert responses(plan_of(rule, dice=Dice(0.5)), 1) == [expected]
