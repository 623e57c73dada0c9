"""`relay worker`: a Celery worker with the relay's queues and poller."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from relay.errors import ConfigurationError
from relay.settings import Settings


def worker(
    context: typer.Context,
    *,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default: worker.concurrency.")
    ] = None,
    name: Annotated[str, typer.Option(help="The worker's name in Flower and logs; %h is the host.")] = "relay@%h",
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR; default: log.level.")] = None,
) -> None:
    """Run a Celery worker for intake and delivery.

    Executes `celery -A workers worker`, with the arguments after --. SIGTERM or Ctrl-C stops it with exit code 0 once
    the requests in flight are done. A second one, or SIGQUIT, stops it at once. It exits with 70 if it must be
    restarted.

    \b
    Examples:
      RELAY_API_URL=https://… RELAY_API_TOKEN_FILE=token relay worker
      relay worker --concurrency 8 --name relay-2@%h
      relay worker -- --max-tasks-per-child 1000
    """  # noqa: D301 - \b keeps typer from joining the lines
    if find_spec("celery") is None or find_spec("pycurl") is None:
        raise ConfigurationError("a worker needs the extra `workers`: pip install 'deployment-relay[workers]'")
    from relay.logs import open_closed_descriptors  # noqa: PLC0415 - needs the extra

    settings = Settings.load()
    settings.require_api()
    argv = [sys.executable, "-m", "celery", "-A", "workers", "worker", "--hostname", name]
    argv += ["--loglevel", log_level or settings.log.level]
    argv += ["--without-mingle"]  # takes a second to read revoked tasks, and none is ever revoked
    if concurrency is not None:
        argv += ["--concurrency", str(concurrency)]
    open_closed_descriptors()  # Celery prints
    os.execv(sys.executable, [*argv, *context.args])  # noqa: S606 - Celery takes this process over


worker.context_settings = {"allow_extra_args": True, "ignore_unknown_options": True}  # type: ignore[attr-defined]
