"""Faults that a user sets: which rule applies to a request, and how it changes the response.

Rules are tried in order and the first that matches is applied. A rule whose `count`, `for_seconds` or `sequence` is
used up matches nothing any more. Clock and randomness are passed in.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from relay.errors import ConfigurationError
from relay.sandbox.response import ResetAt, Response, is_success

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Maximum rules set at once.
MAX_RULES: Final = 1_000
#: Maximum body of `slow_body`, in bytes.
MAX_SLOW_BODY_BYTES: Final = 2**30

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection"})

Status = Annotated[int, Field(ge=200, le=599)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class Randomness(Protocol):
    """The part of `random.Random` that faults use."""

    def random(self) -> float:
        """Return a number from 0 up to, but not including, 1."""
        ...


class _Rule(BaseModel):
    """The fields of every rule: which requests it applies to, how often, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probability: float = Field(default=1.0, ge=0, le=1)
    environment: str | None = Field(default=None, description="glob on environment.name")
    image: str | None = Field(default=None, description="glob on image.url")
    count: int | None = Field(default=None, ge=1, description="maximum requests that it applies to")
    for_seconds: Seconds | None = Field(default=None, description="expires this long after it was set")

    def used_up(self, applied: int) -> bool:
        """Return whether the rule is used up once it was applied to `applied` requests."""
        return self.count is not None and applied >= self.count

    def apply(self, own: Response, *, applied: int, rng: Randomness) -> Response:
        """Return the response instead of the API's own, after `applied` earlier requests."""
        raise NotImplementedError


class LatencyRule(_Rule):
    """The API's own response, late: after `seconds` and up to `jitter_seconds` more."""

    kind: Literal["latency"]
    seconds: Seconds
    jitter_seconds: Seconds = 0.0

    def apply(self, own: Response, *, applied: int, rng: Randomness) -> Response:  # noqa: ARG002 - of every rule
        """Delay the response."""
        return replace(own, delay_seconds=self.seconds + self.jitter_seconds * rng.random())


class StatusRule(_Rule):
    """Another status: always `status`, or those of `sequence` in turn, once or repeatedly.

    A 2xx applies only to requests that the contract accepts, too; the others get the contract's refusal.
    A header with a list of values is sent once for each.
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
        for name, value in self.headers.items():
            values = (value,) if isinstance(value, str) else value
            if not _HEADER_NAME.fullmatch(name) or not all(map(_HEADER_VALUE.fullmatch, values)):
                raise ValueError(f"{name!r} is not a header that can be sent")
            if name.lower() in _FRAMING:
                raise ValueError(f"{name} is set by the sandbox")
        return self

    def used_up(self, applied: int) -> bool:
        """Return the same, and True after a sequence that does not repeat."""
        played = bool(self.sequence) and not self.repeat and applied >= len(self.sequence)
        return played or super().used_up(applied)

    def apply(self, own: Response, *, applied: int, rng: Randomness) -> Response:  # noqa: ARG002 - of every rule
        """Respond with the status."""
        status = self.sequence[applied % len(self.sequence)] if self.status is None else self.status
        if is_success(status) and not own.is_processed:
            return own
        return Response(status=status, headers=self.headers)


class HangRule(_Rule):
    """No response; the connection stays open until the client leaves."""

    kind: Literal["hang"]

    def apply(self, own: Response, *, applied: int, rng: Randomness) -> Response:  # noqa: ARG002 - of every rule
        """Do not respond."""
        return replace(own, hangs=True, processed=False)


class ResetRule(_Rule):
    """The connection is reset (RST).

    `before`: the request is neither recorded nor processed. `after`: it is both, and there is no
    response. `headers`: it is both, and the status line and some of the headers are sent.
    """

    kind: Literal["reset"]
    when: Literal["before", "after", "headers"] = "after"

    def apply(self, own: Response, *, applied: int, rng: Randomness) -> Response:  # noqa: ARG002 - of every rule
        """Reset the connection."""
        if self.when == "before":
            return replace(own, reset=ResetAt.REQUEST, processed=False)
        return replace(own, reset=ResetAt.STATUS_LINE if self.when == "headers" else ResetAt.REQUEST)


class SlowBodyRule(_Rule):
    """The API's own status, at once, with a body of `bytes` bytes, each `seconds_per_byte` after the last."""

    kind: Literal["slow_body"]
    bytes: int = Field(ge=1, le=MAX_SLOW_BODY_BYTES)
    seconds_per_byte: Seconds

    def apply(self, own: Response, *, applied: int, rng: Randomness) -> Response:  # noqa: ARG002 - of every rule
        """Replace the body."""
        return replace(own, filler_bytes=self.bytes, drip_seconds=self.seconds_per_byte)


FaultRule = Annotated[LatencyRule | StatusRule | HangRule | ResetRule | SlowBodyRule, Field(discriminator="kind")]

_RULES: Final[TypeAdapter[tuple[FaultRule, ...]]] = TypeAdapter(
    Annotated[tuple[FaultRule, ...], Field(max_length=MAX_RULES)]
)


@dataclass(frozen=True, kw_only=True)
class ArmedRule:
    """A rule that was set at `since` (seconds on the plan's clock) and was applied to `applied` requests."""

    rule: FaultRule
    since: float
    applied: int = 0

    def is_active(self, now: float) -> bool:
        """Return whether the rule can still apply."""
        expired = self.rule.for_seconds is not None and now - self.since >= self.rule.for_seconds
        return not expired and not self.rule.used_up(self.applied)


class Fault(NamedTuple):
    """A rule applied to one request: its kind, the response, and whether the request is recorded."""

    kind: str
    response: Response
    is_recorded: bool


def parse_rules(document: object) -> tuple[FaultRule, ...]:
    """Parse a list of rules from JSON; raise ConfigurationError with the wrong one and the reason."""
    try:
        return _RULES.validate_python(document)
    except ValidationError as error:
        complaints = (f"fault {'.'.join(map(str, each['loc'])) or 'rules'}: {each['msg']}" for each in error.errors())
        raise ConfigurationError("; ".join(complaints)) from error


def _matches(rule: FaultRule, environment: str | None, image: str | None) -> bool:
    return _globbed(rule.environment, environment) and _globbed(rule.image, image)


def _globbed(pattern: str | None, text: str | None) -> bool:
    return pattern is None or (text is not None and fnmatch.fnmatchcase(text, pattern))


def _drawn(rule: FaultRule, rng: Randomness) -> bool:
    return rule.probability >= 1 or rng.random() < rule.probability


class FaultPlan:
    """The rules in force, and how often each was applied."""

    def __init__(self, *, clock: Callable[[], float], rng: Randomness) -> None:
        self._clock = clock
        self._rng = rng
        self._armed: list[ArmedRule] = []

    def __bool__(self) -> bool:
        return bool(self._armed)

    def replace(self, rules: Sequence[FaultRule]) -> None:
        """Replace all rules; the time of the new ones starts now."""
        now = self._clock()
        self._armed = [ArmedRule(rule=rule, since=now) for rule in rules]

    def rules(self) -> tuple[FaultRule, ...]:
        """Return the rules in order, those used up included."""
        return tuple(each.rule for each in self._armed)

    def describe(self) -> list[dict[str, object]]:
        """Return each rule and its state as a JSON document."""
        now = self._clock()
        return [
            {
                "rule": each.rule.model_dump(mode="json", exclude_unset=True),
                "applied": each.applied,
                "active": each.is_active(now),
            }
            for each in self._armed
        ]

    def apply(self, own: Response, *, environment: str | None, image: str | None) -> Fault | None:
        """Apply the first rule that matches a request, given the API's own response; return None if none does."""
        now = self._clock()
        for position, each in enumerate(self._armed):
            rule = each.rule
            if each.is_active(now) and _matches(rule, environment, image) and _drawn(rule, self._rng):
                self._armed[position] = replace(each, applied=each.applied + 1)
                response = rule.apply(own, applied=each.applied, rng=self._rng)
                is_recorded = not (isinstance(rule, ResetRule) and rule.when == "before")
                return Fault(rule.kind, response, is_recorded)
        return None
