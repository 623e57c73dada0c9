"""Logging of a worker: Celery's lines have the relay's format, without those that repeat the line of a run.

Celery sets up logging in the main process, and again in each process of its pool.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from billiard.util import get_logger as get_multiprocessing_logger
from celery.app.log import Logging
from celery.signals import celeryd_init
from celery.utils.log import mlevel, reset_multiprocessing_logger
from celery.utils.nodenames import node_format

from relay import logs

if TYPE_CHECKING:
    from celery.apps.worker import Worker

    from relay.settings import Settings

#: Loggers with lines for every message, which at INFO only repeat the line of a run.
VERBOSE = ("celery.worker.strategy", "celery.app.trace")


class WorkerLogging(Logging):  # type: ignore[misc]  # Celery ships no types
    """Replaces Celery's set-up of logging."""

    def setup_logging_subsystem(
        self, loglevel: int | str | None = None, logfile: str | None = None, *_: Any, hostname: str = "", **__: Any
    ) -> bool:
        """Set logging up with the level and file of Celery's command line; return true, as Celery expects."""
        if not Logging._setup:  # noqa: SLF001 - like the replaced method
            Logging._setup = True  # noqa: SLF001 - the same
            level = mlevel(loglevel or self.app.relay_settings.log.level)
            configure(self.app.relay_settings, hostname, level, self._handler(logfile, hostname))
        return True

    def _handler(self, logfile: str | None, hostname: str) -> logging.StreamHandler[Any]:
        """Return a handler for standard error, or for a file that may be rotated."""
        handler: logging.StreamHandler[Any] = self._detect_handler(logfile and node_format(logfile, hostname))
        return handler


def configure(settings: Settings, hostname: str, level: int, handler: logging.StreamHandler[Any]) -> None:
    """Configure the loggers of one process of a worker."""
    logs.configure(settings, role="worker", worker=hostname, level=level, handler=handler)
    for name in VERBOSE:
        logging.getLogger(name).setLevel(logging.NOTSET if level <= logging.DEBUG else logging.WARNING)
    reset_multiprocessing_logger()
    processes = get_multiprocessing_logger()
    processes.handlers = [handler]
    processes.setLevel(logging.ERROR)  # the ends of processes; lower levels are about their starts


def begin_with_worker() -> None:
    """Have Celery workers log in the relay's format from their start, and print a banner only on a terminal."""
    celeryd_init.connect(_begin, weak=False)


def _begin(instance: Worker, options: dict[str, Any], **_: Any) -> None:
    """Set logging up earlier than Celery does, because it logs before that."""
    instance.app.log.setup(options.get("loglevel"), options.get("logfile"), hostname=instance.hostname)
    instance.quiet = instance.quiet or not sys.stdout.isatty()
