"""Formats of a dead letter: JSON, a line, a row of a table, or in full."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from typing import TYPE_CHECKING

import typer

from relay.queue.dead_letters import moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.queue.dead_letters import DeadLetter

#: Columns of the table, with two lines each, so that it fits on 80 characters.
COLUMNS = ("letter\ndead since", "reason\nstatus", "environment\nevent id", "image\ndetail")

#: Characters of an RFC 3339 time to the second.
_TO_SECONDS = 19


def as_json_line(letter: DeadLetter) -> str:
    """Format a dead letter as one line of JSON, complete and without loss.

    In ASCII: an invalid event may contain half a surrogate pair, which no other encoding can represent.
    """
    cause, redriven = letter.cause, letter.redriven
    return json.dumps(
        {
            "letter": letter.letter_id,
            "dead_since": moment(letter.dead_since),
            "reason": letter.reason,
            "detail": cause.get("detail", ""),
            "status": _number(cause.get("status", "")),
            "attempts": _number(cause.get("attempts", "")),
            "first_attempt_at": _moment(cause.get("first", "")),
            "last_attempt_at": _moment(cause.get("last", "")),
            "destination": cause.get("destination") or None,
            "environment": letter.environment or None,
            "image": letter.image or None,
            "event_id": letter.event_id,
            "source": letter.source or None,
            "redriven": redriven.times if redriven else 0,
            "first_enqueued_at": moment(redriven.arrived if redriven else letter.arrival[0]),
            "entry": cause.get("entry") or None,
            "fields": [[_text(name), _text(value)] for name, value in letter.fields],
        }
    )


def json_line(letter: DeadLetter) -> bytes:
    """Format a dead letter as a line of a JSON lines file."""
    return as_json_line(letter).encode() + b"\n"


def plain_row(letter: DeadLetter) -> str:
    """Format a dead letter as columns with tabs between; unprintable characters become question marks."""
    return "\t".join(_columns(letter))


def show_table(letters: Sequence[DeadLetter]) -> None:
    """Print a table."""
    from rich.console import Console  # noqa: PLC0415 - rich is for terminals only
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, padding=(0, 2, 1, 0))
    for number, column in enumerate(COLUMNS):
        table.add_column(column, overflow="fold", no_wrap=number < len(COLUMNS) // 2)
    for letter in letters:
        letter_id, dead_since, reason, status, _, environment, image, event_id, detail = _columns(letter)
        pairs = ((letter_id, dead_since[:_TO_SECONDS]), (reason, status), (environment, event_id), (image, detail))
        table.add_row(*(Text("\n".join(pair)) for pair in pairs))
    Console().print(table)


def show_letter(letter: DeadLetter) -> None:
    """Print a dead letter in full: its cause, then the event's own fields."""
    cause, redriven = letter.cause, letter.redriven
    lines = [("letter", letter.letter_id), ("dead since", moment(letter.dead_since)), ("reason", letter.reason)]
    lines += [(name, cause[name]) for name in ("detail", "status", "attempts") if cause.get(name)]
    for name in ("first", "last"):
        if at := _moment(cause.get(name, "")):
            lines.append((f"{name} attempt", at))
    lines += [("environment", letter.environment), ("image", letter.image), ("event id", letter.event_id)]
    if redriven:
        lines.append(("redriven", f"{redriven.times} times, first enqueued {moment(redriven.arrived)}"))
    lines += [(f"  {_shown(name)}", _shown(value)) for name, value in letter.fields]
    for name, value in lines:
        if value:
            typer.echo(f"{printable(name):<14} {printable(value)}")
    typer.echo()


def _columns(letter: DeadLetter) -> list[str]:
    cause = letter.cause
    return [
        printable(text)
        for text in (
            letter.letter_id,
            moment(letter.dead_since),
            letter.reason,
            cause.get("status", ""),
            cause.get("attempts", ""),
            letter.environment,
            letter.image,
            letter.event_id,
            cause.get("detail", ""),
        )
    ]


def _text(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}


def _shown(value: bytes) -> str:
    text = _text(value)
    return text if isinstance(text, str) else f"base64 {text['base64']}"


def printable(text: str) -> str:
    """Replace control characters and line breaks, so that text from outside cannot control the terminal."""
    if text.isascii() and text.isprintable():
        return text
    encoding = sys.stdout.encoding or "utf-8"
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean.encode(encoding, "replace").decode(encoding)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _moment(milliseconds: str) -> str | None:
    return moment(int(milliseconds)) if milliseconds.isdecimal() else None
