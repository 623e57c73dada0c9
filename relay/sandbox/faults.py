"""Which fault befalls a request, and what it does.

A *rule* is what the tester asked for, an *effect* is what it does to one request. Rules are tried in
order and the first that matches wins; a rule whose `count`, `for_seconds` or `sequence` is used up
matches nothing any more. Clock and randomness are passed in.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from relay.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The most rules that can be set at once.
MAX_RULES: Final = 1_000
#: The longest body that `slow_body` sends, in bytes.
MAX_SLOW_BODY_BYTES: Final = 2**30

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection"})

Status = Annotated[int, Field(ge=200, le=599)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class Randomness(Protocol):
    """As much of `random.Random` as faults need."""

    def random(self) -> float:
        """Give a number from 0 up to, but not including, 1."""
        ...


class _Rule(BaseModel):
    """What every rule may say: whom it befalls, how often, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probability: float = Field(default=1.0, ge=0, le=1)
    environment: str | None = Field(default=None, description="glob on environment.name")
    image: str | None = Field(default=None, description="glob on image.url")
    count: int | None = Field(default=None, ge=1, description="applies to so many requests, then is spent")
    for_seconds: Seconds | None = Field(default=None, description="expires so long after it was set")

    def used_up(self, applied: int) -> bool:
        """Say whether the rule is spent once it has befallen `applied` requests."""
        return self.count is not None and applied >= self.count


class LatencyRule(_Rule):
    """The API's own answer, late: after `seconds` and up to `jitter_seconds` more."""

    kind: Literal["latency"]
    seconds: Seconds
    jitter_seconds: Seconds = 0.0


class StatusRule(_Rule):
    """Another status: always `status`, or those of `sequence` in turn, once or over and over.

    A 2xx stands only for a request that the contract accepts too; the others get the contract's refusal.
    A header given a list goes out once for each value.
    """

    kind: Literal["status"]
    status: Status | None = None
    sequence: tuple[Status, ...] = ()
    repeat: bool = False
    headers: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_status_and_sequence(self) -> Self:
        if (self.status is None) == (not self.sequence):
            raise ValueError("give either status or a sequence that is not empty")
        return self

    @model_validator(mode="after")
    def _headers_that_leave_the_framing_alone(self) -> Self:
        for name, value in self.header_lines():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"{name!r} is not a header that can be sent")
            if name.lower() in _FRAMING:
                raise ValueError(f"{name} is the stand-in's to set")
        return self

    def header_lines(self) -> tuple[tuple[str, str], ...]:
        """Give the headers as they go out, one pair for each line."""
        return tuple(
            (name, line)
            for name, value in self.headers.items()
            for line in ((value,) if isinstance(value, str) else value)
        )

    def used_up(self, applied: int) -> bool:
        """Say the same, and count a sequence that does not repeat."""
        played = bool(self.sequence) and not self.repeat and applied >= len(self.sequence)
        return played or super().used_up(applied)


class HangRule(_Rule):
    """No answer, ever; the connection stays open until the client leaves."""

    kind: Literal["hang"]


class ResetRule(_Rule):
    """The connection is reset (RST).

    `before`: the request was neither recorded nor processed. `after`: it was both, and nothing was
    answered. `headers`: it was both, and the status line and some of the headers went out.
    """

    kind: Literal["reset"]
    when: Literal["before", "after", "headers"] = "after"


class SlowBodyRule(_Rule):
    """The API's own status, at once, with a body of so many bytes, each `seconds_per_byte` after the last."""

    kind: Literal["slow_body"]
    bytes: int = Field(ge=1, le=MAX_SLOW_BODY_BYTES)
    seconds_per_byte: Seconds


FaultRule = Annotated[LatencyRule | StatusRule | HangRule | ResetRule | SlowBodyRule, Field(discriminator="kind")]

_RULES: Final[TypeAdapter[tuple[FaultRule, ...]]] = TypeAdapter(
    Annotated[tuple[FaultRule, ...], Field(max_length=MAX_RULES)]
)


class Delay(NamedTuple):
    """Give the API's own answer after so many seconds."""

    seconds: float


class Answer(NamedTuple):
    """Give this status with these headers instead."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


class Hang(NamedTuple):
    """Give no answer."""


class Reset(NamedTuple):
    """Reset the connection."""

    when: Literal["before", "after", "headers"]


class Drip(NamedTuple):
    """Give the API's own status and a body, byte by byte."""

    length_bytes: int
    seconds_per_byte: float


Effect = Delay | Answer | Hang | Reset | Drip


@dataclass(frozen=True, kw_only=True)
class ArmedRule:
    """A rule that was set at `since` (seconds on the plan's clock) and has befallen `applied` requests."""

    rule: FaultRule
    since: float
    applied: int = 0

    def active(self, now: float) -> bool:
        """Say whether the rule can still befall a request."""
        expired = self.rule.for_seconds is not None and now - self.since >= self.rule.for_seconds
        return not expired and not self.rule.used_up(self.applied)


class Fault(NamedTuple):
    """A fault that befalls one request: the rule's kind, and what it does."""

    kind: str
    effect: Effect


def parse_rules(document: object) -> tuple[FaultRule, ...]:
    """Read a list of rules as it comes from JSON; ConfigurationError says which one is wrong and why."""
    try:
        return _RULES.validate_python(document)
    except ValidationError as error:
        complaints = (f"fault {'.'.join(map(str, each['loc'])) or 'rules'}: {each['msg']}" for each in error.errors())
        raise ConfigurationError("; ".join(complaints)) from error


def choose(
    armed: Sequence[ArmedRule], *, environment: str | None, image: str | None, now: float, rng: Randomness
) -> int | None:
    """Give the position of the first rule that befalls the request, None if none does."""
    for position, each in enumerate(armed):
        if each.active(now) and _matches(each.rule, environment, image) and _drawn(each.rule, rng):
            return position
    return None


def effect_of(rule: FaultRule, *, applied: int, rng: Randomness) -> Effect:
    """Say what a rule does to the request it befalls after `applied` others."""
    match rule:
        case LatencyRule():
            return Delay(rule.seconds + rule.jitter_seconds * rng.random())
        case StatusRule():
            return Answer(_status_of(rule, applied), rule.header_lines())
        case HangRule():
            return Hang()
        case ResetRule():
            return Reset(rule.when)
        case SlowBodyRule():
            return Drip(rule.bytes, rule.seconds_per_byte)


def _status_of(rule: StatusRule, applied: int) -> int:
    return rule.sequence[applied % len(rule.sequence)] if rule.status is None else rule.status


def _matches(rule: FaultRule, environment: str | None, image: str | None) -> bool:
    return _globbed(rule.environment, environment) and _globbed(rule.image, image)


def _globbed(pattern: str | None, text: str | None) -> bool:
    return pattern is None or (text is not None and fnmatch.fnmatchcase(text, pattern))


def _drawn(rule: FaultRule, rng: Randomness) -> bool:
    return rule.probability >= 1 or rng.random() < rule.probability


class FaultPlan:
    """The rules in force, and how often each has befallen a request."""

    def __init__(self, *, clock: Callable[[], float], rng: Randomness) -> None:
        self._clock = clock
        self._rng = rng
        self._armed: list[ArmedRule] = []

    def __bool__(self) -> bool:
        return bool(self._armed)

    def replace(self, rules: Sequence[FaultRule]) -> None:
        """Put these rules in place of all others; their time starts now."""
        now = self._clock()
        self._armed = [ArmedRule(rule=rule, since=now) for rule in rules]

    def rules(self) -> tuple[FaultRule, ...]:
        """Give the rules, spent ones too, in order."""
        return tuple(each.rule for each in self._armed)

    def describe(self) -> list[dict[str, object]]:
        """Give each rule with what has come of it, as JSON takes it."""
        now = self._clock()
        return [
            {
                "rule": each.rule.model_dump(mode="json", exclude_unset=True),
                "applied": each.applied,
                "active": each.active(now),
            }
            for each in self._armed
        ]

    def befall(self, *, environment: str | None, image: str | None) -> Fault | None:
        """Choose the request's fault and count it."""
        position = choose(self._armed, environment=environment, image=image, now=self._clock(), rng=self._rng)
        if position is None:
            return None
        each = self._armed[position]
        self._armed[position] = ArmedRule(rule=each.rule, since=each.since, applied=each.applied + 1)
        return Fault(each.rule.kind, effect_of(each.rule, applied=each.applied, rng=self._rng))
