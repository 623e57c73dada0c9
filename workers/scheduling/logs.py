"""How a worker logs: Celery's lines go where ours go, and what a drain has a line for needs none of Celery's.

Celery sets logging up in the main process, and once more in each process of its pool.
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

#: Each says a line for every message, which is at INFO what the drain's own line says better.
CHATTY = ("celery.worker.strategy", "celery.app.trace")


class WorkerLogging(Logging):  # type: ignore[misc]  # Celery ships no types
    """What Celery calls to set logging up; nobody else needs to."""

    def setup_logging_subsystem(
        self, loglevel: int | str | None = None, logfile: str | None = None, *_: Any, hostname: str = "", **__: Any
    ) -> bool:
        """Log as the relay does, with the level and the file that Celery was given; true for having done so."""
        if not Logging._setup:  # noqa: SLF001 - as the method that this one replaces
            Logging._setup = True  # noqa: SLF001 - the same
            level = mlevel(loglevel or self.app.relay_settings.log.level)
            configure(self.app.relay_settings, hostname, level, self._handler(logfile, hostname))
        return True

    def _handler(self, logfile: str | None, hostname: str) -> logging.StreamHandler[Any]:
        """Return a handler for standard error, or for a file that something else may rotate."""
        handler: logging.StreamHandler[Any] = self._detect_handler(logfile and node_format(logfile, hostname))
        return handler


def configure(settings: Settings, hostname: str, level: int, handler: logging.StreamHandler[Any]) -> None:
    """Set up the loggers of this process of a worker."""
    logs.configure(settings, role="worker", worker=hostname, level=level, handler=handler)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level <= logging.DEBUG else logging.WARNING)
    reset_multiprocessing_logger()
    processes = get_multiprocessing_logger()
    processes.handlers = [handler]
    processes.setLevel(logging.ERROR)  # how a process ended; below that is how processes are made


def begin_with_worker() -> None:
    """Have a Celery worker log from its first moment, and print its banner only where somebody may look at it."""
    celeryd_init.connect(_begin, weak=False)


def _begin(instance: Worker, options: dict[str, Any], **_: Any) -> None:
    """Set logging up before Celery does, which has things to say by then: they would be no lines of ours."""
    instance.app.log.setup(options.get("loglevel"), options.get("logfile"), hostname=instance.hostname)
    instance.quiet = instance.quiet or not sys.stdout.isatty()
