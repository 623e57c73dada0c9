"""What a check comes to: how it is, in a sentence, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How good or bad it is. Only a fault makes `relay doctor` end with 1."""

    OK = "ok"
    #: As well to know, or could not be looked at.
    NOTE = "note"
    #: Works, and will not always.
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one check found. `check` is its name, for scripts; `do` is empty where nothing is to be done."""

    check: str
    grade: Grade
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.do}" if self.do else self.what


def ok(check: str, what: str) -> Result:
    """Return that it is well."""
    return Result(check=check, grade=Grade.OK, what=what)


def note(check: str, what: str, do: str = "") -> Result:
    """Return what is as well to know."""
    return Result(check=check, grade=Grade.NOTE, what=what, do=do)


def warning(check: str, what: str, do: str) -> Result:
    """Return what works for now."""
    return Result(check=check, grade=Grade.WARNING, what=what, do=do)


def fault(check: str, what: str, do: str) -> Result:
    """Return what is broken."""
    return Result(check=check, grade=Grade.FAULT, what=what, do=do)
