"""Findings: what `relay status` and `relay doctor` report, how severe it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Severity(StrEnum):
    """How severe a finding is. Only a fault makes `relay doctor` exit with 1."""

    OK = "ok"
    #: Information, or something that could not be checked.
    NOTE = "note"
    #: Works now, but may fail later.
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. `check` is its stable name, for scripts; `do` is empty if there is nothing to do."""

    check: str
    severity: Severity
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.do}" if self.do else self.what


class Check(NamedTuple):
    """A check of `relay doctor`. The name is for the finding that reports that it did not finish."""

    name: str
    run: Callable[[], Iterable[Finding]]


def ok(check: str, what: str) -> Finding:
    """Return a finding that reports no problem."""
    return Finding(check=check, severity=Severity.OK, what=what)


def note(check: str, what: str, do: str = "") -> Finding:
    """Return a finding that is information."""
    return Finding(check=check, severity=Severity.NOTE, what=what, do=do)


def warning(check: str, what: str, do: str) -> Finding:
    """Return a finding that works now, but may fail later."""
    return Finding(check=check, severity=Severity.WARNING, what=what, do=do)


def fault(check: str, what: str, do: str) -> Finding:
    """Return a finding that is broken."""
    return Finding(check=check, severity=Severity.FAULT, what=what, do=do)
