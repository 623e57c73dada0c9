"""Logging: lines of JSON, or of text on a terminal, without secrets.

All loggers, also those of Celery, kombu and uvicorn, are the standard library's, with one handler on the root.
`get_logger` adds fields to a line: `_log.info("intake run", taken=480)`.

A line that cannot be written is dropped without an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from structlog.stdlib import BoundLogger, PositionalArgumentsFormatter, ProcessorFormatter

from relay.redaction import Secrets

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from structlog.typing import Processor

    from relay.settings import LogSettings, Settings

#: Fields that cannot hold a secret.
_SAFE = frozenset({"timestamp", "level", "role", "pid"})

_STDERR = 2

_TO_THE_STANDARD_LIBRARY: list[Processor] = [
    structlog.stdlib.filter_by_level,
    PositionalArgumentsFormatter(),
    ProcessorFormatter.wrap_for_formatter,
]


def get_logger(name: str) -> BoundLogger:
    """Return a standard logger whose lines may have fields."""
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name), processors=_TO_THE_STANDARD_LIBRARY, wrapper_class=BoundLogger
    )
    return logger


class LineLimit:
    """Allows one line in so many seconds, and counts those between."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._next_at = 0.0
        self._counted = 0

    def add(self, number: int) -> int:
        """Count; return the number since the last line if a line is due, otherwise 0."""
        self._counted += number
        now = time.monotonic()
        if not self._counted or now < self._next_at:
            return 0
        self._next_at = now + self._seconds
        counted, self._counted = self._counted, 0
        return counted


def configure(
    settings: Settings, *, role: str, worker: str = "", level: int | None = None,
    handler: logging.StreamHandler[Any] | None = None,
) -> None:  # fmt: skip
    """Configure the logging of this process, in place of any earlier configuration.

    Each line has the `role` of its process, and the name of its `worker` if given. `level` overrides the settings,
    and `handler` standard error.
    """
    logging.raiseExceptions = False
    handler = handler or logging.StreamHandler()
    is_terminal = _is_terminal(handler.stream)
    origin = {"role": role, **({"worker": worker} if worker else {}), "pid": os.getpid()}
    renderers = _as_json() if is_json(settings.log, is_terminal=is_terminal) else _as_text(colours=is_terminal)
    handler.setFormatter(_formatter(origin, Secrets.of(settings), renderers))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.getLevelName(settings.log.level) if level is None else level)
    sys.excepthook = _log_uncaught


def is_json(settings: LogSettings, *, is_terminal: bool) -> bool:
    """Return whether lines are JSON."""
    return settings.format == "json" or (settings.format == "auto" and not is_terminal)


def say(settings: LogSettings, event: str, **origin: str) -> None:
    """Write a line to standard error without locks and buffers, for signal handlers."""
    with contextlib.suppress(OSError):
        text = event
        if is_json(settings, is_terminal=os.isatty(_STDERR)):
            line = {"timestamp": _now(), "level": "warning", "event": event, **origin, "pid": os.getpid()}
            text = json.dumps(line, ensure_ascii=False)
        os.write(_STDERR, f"{text}\n".encode())


def open_closed_descriptors() -> None:
    """Open the null device as each closed standard descriptor: otherwise a file or socket gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - takes no keyword
    os.close(descriptor)


def _formatter(origin: dict[str, object], secrets: Secrets, renderers: Sequence[Processor]) -> logging.Formatter:
    def framed(_: Any, method: str, line: MutableMapping[str, Any]) -> dict[str, Any]:
        """Put time, level and event first, and the fields that all lines of a process share last."""
        record: logging.LogRecord = line.pop("_record")
        line.pop("_from_structlog")
        first = {"timestamp": _now(record.created), "level": method, "event": line.pop("event")}
        return {**first, **line, **origin, "logger": record.name}

    def redacted(_: Any, __: str, line: MutableMapping[str, Any]) -> dict[str, Any]:
        return {name: value if name in _SAFE else secrets.mask_in(value) for name, value in line.items()}

    return ProcessorFormatter(processors=[framed, structlog.processors.format_exc_info, redacted, *renderers])


def _as_json() -> list[Processor]:
    return [structlog.processors.JSONRenderer(ensure_ascii=False)]


def _as_text(*, colours: bool) -> list[Processor]:
    plain = structlog.dev.plain_traceback  # a rich traceback shows the values of variables
    return [
        _in_one_line,
        structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, exception_formatter=plain),
    ]


def _in_one_line(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape line breaks and cursor movements: a name in an event must not forge lines."""
    event = str(line["event"]).rstrip()
    line["event"] = "".join(each if each.isprintable() else repr(each)[1:-1] for each in event)
    return line


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False


def _now(seconds: float | None = None) -> str:
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Log the error that ends the process."""
    logging.getLogger("relay").critical("this process ends by an error", exc_info=(kind, error, traceback))
