"""Options that more than one command has, and how their values are read."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from relay.settings import Duration, PositiveDuration

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
