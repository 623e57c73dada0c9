"""`relay worker`: a Celery worker with the relay's queues and poller."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from relay.errors import ConfigurationError
from relay.settings import Settings

#: The descriptor of standard error, the last of the standard ones.
_STDERR = 2


def worker(
    context: typer.Context,
    *,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Processes that run drains; default: worker.concurrency.")
    ] = None,
    name: Annotated[str, typer.Option(help="The worker's name, for Flower and logs; %h is the host.")] = "relay@%h",
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR; default: log.level.")] = None,
) -> None:
    """Run a Celery worker that takes events in and delivers them.

    Becomes `celery -A workers worker`; what follows -- is passed on to it. SIGTERM or Ctrl-C ends it with 0 once what
    is in flight is done; a second one, or SIGQUIT, ends it at once. It leaves with 70 when only a new process helps.

    \b
    Examples:
      RELAY_API_URL=https://… RELAY_API_TOKEN_FILE=token relay worker
      relay worker --concurrency 8 --name relay-2@%h
      relay worker -- --max-tasks-per-child 1000
    """  # noqa: D301 - \b keeps typer from joining the lines
    if find_spec("celery") is None or find_spec("pycurl") is None:
        raise ConfigurationError("a worker needs the extra `workers`: pip install 'deployment-relay[workers]'")
    settings = Settings.load()
    settings.require_api()
    argv = [sys.executable, "-m", "celery", "-A", "workers", "worker", "--hostname", name]
    argv += ["--loglevel", log_level or settings.log.level]
    argv += ["--without-mingle"]  # a second at each start, to learn of revoked tasks: a wakeup is never revoked
    if concurrency is not None:
        argv += ["--concurrency", str(concurrency)]
    _fill_closed_descriptors()
    os.execv(sys.executable, [*argv, *context.args])  # noqa: S606 - becoming Celery is the point


def _fill_closed_descriptors() -> None:
    """Give Celery an output to print to; where ours is closed, a file or socket would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - takes no keyword
    os.close(descriptor)


worker.context_settings = {"allow_extra_args": True, "ignore_unknown_options": True}  # type: ignore[attr-defined]
