"""Standard output and error that ignore write errors: a full disk, or a closed pipe, must stop no delivery.

Celery prints while it starts and stops, and Python turns a failure of the last flush into the exit code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from relay.logs import open_closed_descriptors


class ErrorIgnoringStream:
    """A text stream that drops text it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if possible; return the full length in any case."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def ignore_write_errors() -> None:
    """Have nothing in this process fail because its output cannot be written."""
    open_closed_descriptors()
    logging.raiseExceptions = False
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open until the process ends
        if not isinstance(stream, ErrorIgnoringStream):
            setattr(sys, name, ErrorIgnoringStream(stream))
