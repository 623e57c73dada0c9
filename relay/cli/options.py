"""Options that more than one command has, and how their values are read."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from relay.encoding import restored
from relay.settings import Duration, PositiveDuration

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def somebody_can_answer() -> bool:
    """Tell whether standard input is a terminal; closed, it is none."""
    return sys.stdin is not None and sys.stdin.isatty()


def filled(text: str) -> str:
    """Read what must not be empty, for an empty one is most often a variable of a script that was never set."""
    if not text.strip():
        raise typer.BadParameter("is empty; see whether what it should have come from was set")
    return text


def name_or_id(text: str) -> str:
    """Read an environment's name or an event's id; what is not UTF-8 is nobody's."""
    try:
        text = restored(text)
        text.encode()
    except ValueError:
        raise typer.BadParameter("is not UTF-8") from None
    return filled(text)


def duration(text: str) -> float:
    """Read a duration of any length, zero too, in seconds."""
    return _read(text, TypeAdapter(Duration))


def positive_duration(text: str) -> float:
    """Read a duration that is not zero, in seconds."""
    return _read(text, TypeAdapter(PositiveDuration))


def _read(text: str, adapter: TypeAdapter[float]) -> float:
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
