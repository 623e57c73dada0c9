"""Which fault befalls a request, with the clock and the dice in hand."""

from __future__ import annotations

from typing import Any

import pytest

from relay.errors import ConfigurationError
from relay.sandbox.contract import Ruling
from relay.sandbox.faults import Answer, Delay, Drip, FaultPlan, Hang, Reset, parse_rules
from relay.sandbox.script import write_script


class Dice:
    """Gives the numbers it was handed, then 0."""

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


def effects(plan: FaultPlan, times: int, environment: str = "production", image: str = "r.io/a") -> list[Any]:
    faults = [plan.befall(environment=environment, image=image) for _ in range(times)]
    return [fault and fault.effect for fault in faults]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"kind": "latency", "seconds": 0.2}, Delay(0.2)),
        ({"kind": "latency", "seconds": 1, "jitter_seconds": 4}, Delay(3)),
        ({"kind": "status", "status": 503}, Answer(503)),
        (
            {"kind": "status", "status": 429, "headers": {"Retry-After": ["2", "9"]}},
            Answer(429, (("Retry-After", "2"), ("Retry-After", "9"))),
        ),
        ({"kind": "hang"}, Hang()),
        ({"kind": "reset"}, Reset("after")),
        ({"kind": "reset", "when": "headers"}, Reset("headers")),
        ({"kind": "slow_body", "bytes": 9, "seconds_per_byte": 0.1}, Drip(9, 0.1)),
    ],
)
def test_effects(rule: dict[str, Any], expected: object) -> None:
    assert effects(plan_of(rule, dice=Dice(0.5)), 1) == [expected]


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
    found = effects(plan_of({"kind": "status", **extra}), 5)
    assert [each and each.status for each in found] == expected


@pytest.mark.parametrize(
    ("matcher", "befalls"),
    [
        ({"environment": "prod*"}, True),
        ({"environment": "staging"}, False),
        ({"image": "r.io/*"}, True),
        ({"image": "r.io"}, False),
        ({"environment": "production", "image": "*/b"}, False),
    ],
)
def test_matchers(matcher: dict[str, str], befalls: bool) -> None:  # noqa: FBT001 - a column of the table
    assert (effects(plan_of({"kind": "hang", **matcher}), 1) == [Hang()]) is befalls


def test_a_request_that_names_nothing_matches_no_glob() -> None:
    assert plan_of({"kind": "hang", "environment": "*"}).befall(environment=None, image=None) is None


def test_first_matching_rule_wins_and_the_next_takes_over() -> None:
    plan = plan_of({"kind": "hang", "count": 1}, {"kind": "reset"})
    assert effects(plan, 2) == [Hang(), Reset("after")]


def test_probability_is_drawn() -> None:
    plan = plan_of({"kind": "hang", "probability": 0.3}, dice=Dice(0.29, 0.3, 0.1))
    assert effects(plan, 3) == [Hang(), None, Hang()]


def test_rules_expire() -> None:
    clock = Clock()
    plan = plan_of({"kind": "hang", "for_seconds": 2}, clock=clock)
    clock.now += 1.9
    assert effects(plan, 1) == [Hang()]
    clock.now += 0.1
    assert effects(plan, 1) == [None]
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
    ("ruled", "effect", "status", "processed", "recorded"),
    [
        (202, None, 202, True, True),
        (422, None, 422, False, True),
        (202, Delay(1), 202, True, True),
        (422, Delay(1), 422, False, True),
        (202, Answer(503), 503, False, True),
        (202, Answer(200), 200, True, True),
        (422, Answer(200), 422, False, True),
        (422, Answer(503), 503, False, True),
        (202, Hang(), None, False, True),
        (202, Drip(3, 1), 202, True, True),
        (202, Reset("before"), None, False, False),
        (202, Reset("after"), None, True, True),
        (422, Reset("after"), None, False, True),
        (202, Reset("headers"), 202, True, True),
    ],
)
def test_what_is_recorded(ruled: int, effect: Any, status: int | None, processed: object, recorded: object) -> None:
    script = write_script(Ruling(ruled, "" if ruled == 202 else "wrong"), effect, keep_alive=True)
    assert (script.status, script.processed, script.recorded) == (status, processed, recorded)
