"""How a dead letter is shown: as JSON, as a line, as a row of a table, or whole."""

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

#: The columns of a table, each with two lines, so that it fits on eighty characters.
COLUMNS = ("letter\ndied", "reason\nstatus", "environment\nevent id", "image\ndetail")

#: Characters of an RFC 3339 time to the second.
_TO_SECONDS = 19


def as_json_line(letter: DeadLetter) -> str:
    """Write a letter as one line of JSON, all of it, without loss.

    In ASCII: an event that is not valid may name half a surrogate pair, which no other encoding can carry.
    """
    death, redriven = letter.death, letter.redriven
    return json.dumps(
        {
            "letter": letter.letter_id,
            "died": moment(letter.died),
            "reason": letter.reason,
            "detail": death.get("detail", ""),
            "status": _number(death.get("status", "")),
            "attempts": _number(death.get("attempts", "")),
            "first_attempt": _moment(death.get("first", "")),
            "last_attempt": _moment(death.get("last", "")),
            "destination": death.get("destination") or None,
            "environment": letter.environment or None,
            "image": letter.image or None,
            "event_id": letter.event_id,
            "source": letter.source or None,
            "redriven": redriven.times if redriven else 0,
            "first_arrived": moment(redriven.arrived if redriven else letter.arrival[0]),
            "entry": death.get("entry") or None,
            "fields": [[_text(name), _text(value)] for name, value in letter.fields],
        }
    )


def json_line(letter: DeadLetter) -> bytes:
    """Write a letter as a line of a JSON lines file."""
    return as_json_line(letter).encode() + b"\n"


def plain_row(letter: DeadLetter) -> str:
    """Write a letter's columns with tabs between; what would break the line is a question mark."""
    return "\t".join(_columns(letter))


def show_table(letters: Sequence[DeadLetter]) -> None:
    """Draw a table."""
    from rich.console import Console  # noqa: PLC0415 - rich is for terminals only
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, padding=(0, 2, 1, 0))
    for number, column in enumerate(COLUMNS):
        table.add_column(column, overflow="fold", no_wrap=number < len(COLUMNS) // 2)
    for letter in letters:
        letter_id, died, reason, status, _, environment, image, event_id, detail = _columns(letter)
        pairs = ((letter_id, died[:_TO_SECONDS]), (reason, status), (environment, event_id), (image, detail))
        table.add_row(*(Text("\n".join(pair)) for pair in pairs))
    Console().print(table)


def show_letter(letter: DeadLetter) -> None:
    """Write a letter whole: what is known of its death, then the event's own fields."""
    death, redriven = letter.death, letter.redriven
    lines = [("letter", letter.letter_id), ("died", moment(letter.died)), ("reason", letter.reason)]
    lines += [(name, death[name]) for name in ("detail", "status", "attempts") if death.get(name)]
    for name in ("first", "last"):
        tried = _moment(death.get(name, ""))
        if tried:
            lines.append((f"{name} attempt", tried))
    lines += [("environment", letter.environment), ("image", letter.image), ("event id", letter.event_id)]
    if redriven:
        lines.append(("redriven", f"{redriven.times} times, first arrived {moment(redriven.arrived)}"))
    lines += [(f"  {_shown(name)}", _shown(value)) for name, value in letter.fields]
    for name, value in lines:
        if value:
            typer.echo(f"{printable(name):<14} {printable(value)}")
    typer.echo()


def _columns(letter: DeadLetter) -> list[str]:
    death = letter.death
    return [
        printable(text)
        for text in (
            letter.letter_id,
            moment(letter.died),
            letter.reason,
            death.get("status", ""),
            death.get("attempts", ""),
            letter.environment,
            letter.image,
            letter.event_id,
            death.get("detail", ""),
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
    """Leave nothing in a text from outside that a terminal would obey, or that would break the line."""
    if text.isascii() and text.isprintable():
        return text
    encoding = sys.stdout.encoding or "utf-8"
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean.encode(encoding, "replace").decode(encoding)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _moment(milliseconds: str) -> str | None:
    return moment(int(milliseconds)) if milliseconds.isdecimal() else None
