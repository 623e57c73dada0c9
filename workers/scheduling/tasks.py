"""The Celery tasks: one call each, that a test or a shell can make too."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from celery.exceptions import Reject, Retry
from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.queue import inbox, scripts
from relay.queue.keys import Keys
from workers.runtime import Runtime, make_runtime
from workers.scheduling import runs
from workers.scheduling.broker_probe import ECHO, echo
from workers.scheduling.forgetting import walk
from workers.scheduling.runs import Drained
from workers.scheduling.wakeups import DELIVER, FORGET, INTAKE, REPORT

if TYPE_CHECKING:
    from celery import Celery, Task
    from redis import Redis

#: Seconds until a report that the queue did not take is tried again. Short against the broker's visibility
#: time-out, or the broker would hand the message out twice.
REPORT_RETRY_SECONDS = 5

_of_thread = threading.local()


class Outage(Exception):  # noqa: N818 - says what happened
    """Why a drain could not do all of its work, as Flower shows it."""

    def __repr__(self) -> str:
        return str(self)


def register(app: Celery) -> None:
    """Give the app its tasks."""
    app.task(intake, name=INTAKE, bind=True)
    app.task(deliver, name=DELIVER, bind=True)
    app.task(forget, name=FORGET, bind=True)
    app.task(echo, name=ECHO, bind=True, Strategy="workers.scheduling.broker_probe:hear")
    # It comes once an event, and so would what Celery tells of it to all who listen.
    quiet = {"send_events": False}
    app.task(report, name=REPORT, bind=True, acks_late=True, reject_on_worker_lost=True, max_retries=None, **quiet)


def intake(task: Task) -> str:
    """Drain the inbox into the outboxes, and deliver what came last."""
    return _shown(runs.take_in(runtime_of(task.app), wakeup=task.request.id))


def deliver(task: Task, *environments: str) -> str:
    """Drain these environments' outboxes to the API."""
    return _shown(runs.deliver(runtime_of(task.app), environments, wakeup=task.request.id))


def _shown(drained: Drained) -> str:
    """Return a drain's summary, for Flower to show as its result; after an outage raise it, to be shown as a retry.

    Showing is all that raising does. Celery's own `Task.retry` would send a message, and nothing needs one: wakeups
    and
    the sweep call for a drain again.
    """
    if drained.met_outage:
        raise Retry(drained.summary, exc=Outage(drained.summary))
    return drained.summary


def forget(task: Task, *_: object) -> str:
    """Forget what was not seen for long. Older versions sent along where to go on."""
    try:
        return walk(runtime_of(task.app))
    except RedisError as error:
        return _shown(Drained(summary=f"Redis failed, so the rest waits: {type(error).__name__}", met_outage=True))


def report(task: Task, /, *args: Any, **envelope: Any) -> str:
    """Enqueue an event for a producer that speaks Celery; judged in the inbox like everybody's.

    `body` is the API's JSON body, as an object or as text. `id`, `source` and `time` as a queue entry has them;
    without `id` the message's own id is taken, so that a message handed out twice is one event. Arguments that there
    are not make a body that cannot be read, so that a wrong call becomes a dead letter and does not vanish. So does
    `unreadable`, which says what is wrong with a message whose raw text is the body (unreadable.py).
    """
    body, more = (args[0], args[1:]) if args else (envelope.pop("body", None), ())
    fields = {name: _text(envelope.pop(name)) for name in ("id", "source", "time") if envelope.get(name)}
    unknown = {name: value for name, value in envelope.items() if name not in {"id", "source", "time"}}
    unreadable = unknown.pop(inbox.UNREADABLE, None)
    if more or unknown:
        body = {"body": body, "unknown arguments": [*more, unknown]}
    # What kombu's JSON made of dates, decimals and the like becomes text again.
    text = body if isinstance(body, str) else json.dumps(body, default=str)
    entry = {"event": text, "id": str(task.request.id), **fields}
    if unreadable is not None:
        entry[inbox.UNREADABLE] = str(unreadable)
    queue = queue_of(task.app)
    try:
        encoded = {name: value.encode(errors="surrogatepass") for name, value in entry.items()}  # intake judges it
        append = inbox.append_call(queue.keys, [encoded], queue.max_backlog, queue.memory_watermark)
        scripts.run(queue.client, append)
    except RedisError as error:
        _try_again(task, error)
    return str(fields.get("id", task.request.id))


def _text(value: Any) -> str:
    """Return an argument as text; kombu's JSON makes a date of what was one."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _try_again(task: Task, error: RedisError) -> NoReturn:
    """Have the broker hand the message out again, whether or not it takes a new one for later."""
    try:
        raise task.retry(exc=error, countdown=REPORT_RETRY_SECONDS)
    except Reject as refused:  # Celery's answer when the new message cannot be published is to drop this one
        raise Reject(str(error), requeue=True) from refused


class _Queue(NamedTuple):
    """What reporting takes; no API, so that a worker without one loses no report."""

    client: Redis
    keys: Keys
    max_backlog: int
    memory_watermark: float


def queue_of(app: Celery) -> _Queue:
    """Return this thread's way to the queue, made at its first report."""
    if not hasattr(_of_thread, "queue"):
        redis, queue = app.relay_settings.redis, app.relay_settings.queue
        keys = Keys(queue.namespace)
        _of_thread.queue = _Queue(connect(redis), keys, queue.max_backlog, queue.memory_watermark)
    made: _Queue = _of_thread.queue
    return made


def runtime_of(app: Celery) -> Runtime:
    """Return this thread's runtime, made at its first task: after the fork, and one for each pool thread."""
    if not hasattr(_of_thread, "runtime"):
        _of_thread.runtime = make_runtime(app.relay_settings, app)
    runtime: Runtime = _of_thread.runtime
    return runtime
