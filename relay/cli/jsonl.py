"""Reads a file of JSON lines as events, in bounded memory."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from relay.encoding import other_encoding, without_mark
from relay.errors import ConfigurationError, InvalidEvent
from relay.events.event import DeploymentEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

#: Suffixes of files of events; no image without a digest ends like this.
FILE_SUFFIXES = {".json", ".jsonl", ".ndjson", ".txt"}

#: Maximum bytes of a line; a longer one is refused and skipped.
MAX_LINE_BYTES = 1_048_576


class Line(NamedTuple):
    """A line's number, from 1, and its event or fault."""

    number: int
    event: DeploymentEvent | InvalidEvent


def means_file(image: str) -> bool:
    """Return whether the argument means a file or standard input, not an image; also if the file does not exist.

    A directory is no file here: an image may have its name, and an empty image is `Path("")`.
    """
    if image == "-":
        return True
    is_there = os.path.exists(image) and not os.path.isdir(image)  # noqa: PTH110, PTH112 - pathlib's raise for long ones
    return "@" not in image and (Path(image).suffix in FILE_SUFFIXES or is_there)


@contextmanager
def open_lines(image: str) -> Iterator[BinaryIO]:
    """Open a file or standard input, or raise `ConfigurationError`."""
    if image == "-":
        if sys.stdin is None:
            raise ConfigurationError("standard input is closed")
        yield sys.stdin.buffer
        return
    path = Path(image)
    if not path.exists() or path.is_dir():
        raise ConfigurationError(f"{image} is {'a directory' if path.is_dir() else 'no file'}")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{image} cannot be read: {error.strerror}") from error
    with file:
        yield file


def read_lines(
    lines: BinaryIO,
    advance: Callable[[int], object],
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Line]:
    """Yield the lines that are not blank; call `advance` with the bytes of each line.

    Each wait for a line is in the context `waiting`.
    """
    number = 0
    while True:
        with waiting():
            line = lines.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        number += 1
        advance(len(line))
        if len(line) > MAX_LINE_BYTES:
            yield Line(number, InvalidEvent("", f"longer than {MAX_LINE_BYTES} bytes"))
            _skip_to_line_end(lines, line)
        elif without_mark(line).strip():
            yield Line(number, _event(line))
            if number == 1 and other_encoding(line):
                return  # line breaks are different there


def _event(line: bytes) -> DeploymentEvent | InvalidEvent:
    try:
        return DeploymentEvent.parse(line)
    except InvalidEvent as error:
        return error


def _skip_to_line_end(lines: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = lines.readline(MAX_LINE_BYTES)
