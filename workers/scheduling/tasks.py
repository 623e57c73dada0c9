"""The Celery tasks that answer wake-ups. Each makes one run and logs it, and so does the inline fallback.

Each run has one line in the log; a run that found nothing to do has it at DEBUG.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery.exceptions import Retry
from redis.exceptions import RedisError

from relay.logs import get_logger
from workers.delivery.run import run_delivery
from workers.forgetting import walk
from workers.intake.run import run_intake
from workers.scheduling.broker_probe import PROBE, probe
from workers.scheduling.report_task import report
from workers.scheduling.wakeups import DELIVER, ENVIRONMENTS_PER_WAKEUP, FORGET, INTAKE, REPORT, CeleryWakeups
from workers.wiring import make_runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery, Task

    from workers.delivery.report import DeliveryReport
    from workers.delivery.runtime import DeliveryRuntime

#: Maximum environments that a log line names; of more it only has the number.
NAMED = 3

_of_thread = threading.local()

_log = get_logger(__name__)


class Outage(Exception):  # noqa: N818 - the name that Flower shows
    """The outage that kept a run from doing all of its work."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A run's result in words, and whether an outage ended it early."""

    summary: str
    met_outage: bool = False


def register(app: Celery) -> None:
    """Add the tasks to the app."""
    app.task(intake, name=INTAKE, bind=True)
    app.task(deliver, name=DELIVER, bind=True)
    app.task(forget, name=FORGET, bind=True)
    app.task(probe, name=PROBE, bind=True, Strategy="workers.scheduling.broker_probe:strategy")
    # One message an event: Celery's own events about each would double the load on the broker.
    quiet = {"send_events": False}
    app.task(report, name=REPORT, bind=True, acks_late=True, reject_on_worker_lost=True, max_retries=None, **quiet)


def intake(task: Task) -> str:
    """Answer a wake-up for intake."""
    return _shown(take_in_and_deliver(runtime_of(task.app), wakeup=task.request.id))


def deliver(task: Task, *environments: str) -> str:
    """Answer a wake-up for delivery from these environments' outboxes."""
    return _shown(deliver_outboxes(runtime_of(task.app), environments, wakeup=task.request.id))


def forget(task: Task, *_: object) -> str:
    """Walk over the state, and send the wake-up for the rest. Older versions sent a position as arguments."""
    runtime = runtime_of(task.app)
    try:
        done = walk(runtime)
    except RedisError as error:
        return _shown(Done(summary=f"Redis failed, so the rest waits: {type(error).__name__}", met_outage=True))
    if not done.is_finished:
        CeleryWakeups(task.app).send(FORGET)
    return done.summary


def runtime_of(app: Celery) -> DeliveryRuntime:
    """Return this thread's runtime, made by its first task: after the fork, and one for each thread of a pool."""
    if not hasattr(_of_thread, "runtime"):
        _of_thread.runtime = make_runtime(app.relay_settings, CeleryWakeups(app))
    runtime: DeliveryRuntime = _of_thread.runtime
    return runtime


def take_in_and_deliver(runtime: DeliveryRuntime, *, wakeup: str = "") -> Done:
    """Run intake, then delivery of the last batch, and log both. Never raises `RedisError`.

    `wakeup` is the id of the message that asked for it, for the log.
    """
    started = time.monotonic()
    try:
        report = run_intake(runtime)
        if report is None:
            return _others_hold("another run has the lease", wakeup)
        _log.log(
            logging.INFO if report.taken or report.lease_lost else logging.DEBUG,
            "intake run",
            taken=report.taken,
            **_true_only(more_wait=report.more, lease_lost=report.lease_lost),
            seconds=round(time.monotonic() - started, 3),
            **_origin(wakeup),
        )
        if report.more:
            runtime.wakeups.wake_intake()
        if not report.to_deliver:
            return Done(summary=str(report))
        delivered = _deliver(runtime, report.to_deliver, wakeup)
    except RedisError as error:
        return _redis_failed(error)
    return Done(summary=f"{report}; {delivered.summary}", met_outage=delivered.met_outage)


def deliver_outboxes(runtime: DeliveryRuntime, environments: Sequence[str], *, wakeup: str = "") -> Done:
    """Run delivery on these environments' outboxes, and log it. Never raises `RedisError`."""
    try:
        return _deliver(runtime, environments, wakeup)
    except RedisError as error:
        return _redis_failed(error)


def _deliver(runtime: DeliveryRuntime, environments: Sequence[str], wakeup: str) -> Done:
    """Run delivery on as many outboxes as one wake-up can name, and wake others for the rest."""
    runtime.wakeups.wake_delivery(environments[ENVIRONMENTS_PER_WAKEUP:])
    report = run_delivery(runtime, environments[:ENVIRONMENTS_PER_WAKEUP])
    if report is None:
        return _others_hold("other runs have the leases", wakeup)
    _log.log(
        _level_of(report),
        "delivery run",
        environments=len(report.environments),
        **({"names": list(report.environments)} if len(report.environments) <= NAMED else {}),
        delivered=report.delivered,
        **_true_only(
            retrying=report.retrying,
            dead=report.dead,
            health=report.health,
            leases_lost=report.leases_lost,
            more_wait=len(report.to_deliver),
        ),
        seconds=round(report.seconds, 3),
        **_origin(wakeup),
    )
    runtime.wakeups.wake_delivery(report.to_deliver)
    return Done(summary=str(report), met_outage=bool(report.health))


def _level_of(report: DeliveryReport) -> int:
    """Return the level of a run's line: a dead letter needs a person, a run without work is for debugging."""
    if report.dead:
        return logging.WARNING
    return (
        logging.INFO if report.delivered or report.retrying or report.health or report.leases_lost else logging.DEBUG
    )


def _others_hold(summary: str, wakeup: str) -> Done:
    _log.debug(summary, **_origin(wakeup))
    return Done(summary=summary)


def _redis_failed(error: RedisError) -> Done:
    _log.warning("Redis failed during a run; the sweep repeats its wake-up: %s", error)
    return Done(summary=f"Redis failed: {type(error).__name__}", met_outage=True)


def _shown(done: Done) -> str:
    """Return a run's summary, which Flower shows as the result; raise it after an outage, to be shown as a retry.

    Raising changes only what is shown. Celery's own `Task.retry` would send a message, and none is needed: wake-ups
    and the sweep ask for the next run.
    """
    if done.met_outage:
        raise Retry(done.summary, exc=Outage(done.summary))
    return done.summary


def _origin(wakeup: str) -> dict[str, str | bool]:
    """Return the field that says how a run was started: the wake-up's id, or `inline` for the fallback."""
    return {"wakeup": wakeup} if wakeup else {"inline": True}


def _true_only(**fields: float | str) -> dict[str, float | str]:
    return {name: value for name, value in fields.items() if value}
