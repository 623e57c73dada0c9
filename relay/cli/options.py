"""Options shared by commands, and the parsers of their values."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from relay.encoding import restored
from relay.settings import Duration, PositiveDuration

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def can_prompt() -> bool:
    """Return whether standard input is a terminal; a closed one is not."""
    return sys.stdin is not None and sys.stdin.isatty()


def filled(text: str) -> str:
    """Refuse an empty value: it is most often an unset variable of a script."""
    if not text.strip():
        raise typer.BadParameter("is empty; check that the variable it comes from is set")
    return text


def name_or_id(text: str) -> str:
    """Parse an environment's name or an event's id, which are UTF-8."""
    try:
        text = restored(text)
        text.encode()
    except ValueError:
        raise typer.BadParameter("is not UTF-8") from None
    return filled(text)


def duration(text: str) -> float:
    """Parse a duration, which may be zero, in seconds."""
    return _read(text, TypeAdapter(Duration))


def positive_duration(text: str) -> float:
    """Parse a duration greater than zero, in seconds."""
    return _read(text, TypeAdapter(PositiveDuration))


def _read(text: str, adapter: TypeAdapter[float]) -> float:
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
