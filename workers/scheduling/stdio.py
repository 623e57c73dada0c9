"""Standard output and error that never fail: a full disk, or a reader that is gone, must stop no delivery.

Celery prints while it starts and stops, and Python makes the last flush's failure the exit code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

#: The descriptors of standard input, output and error.
_STANDARD = 3


class Sturdy:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if it can be, and say that it was."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if it can be."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_sturdy() -> None:
    """Have nothing in this process fail for want of a place to write to."""
    _fill_closed()
    logging.raiseExceptions = False
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        if not isinstance(stream, Sturdy):
            setattr(sys, name, Sturdy(stream))


def _fill_closed() -> None:
    """Put something where a standard descriptor is closed: else a socket gets its number, and what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - takes no keyword
    os.close(descriptor)
