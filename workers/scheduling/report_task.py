"""The task `relay.report`, by which producers report an event through Celery."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from celery.exceptions import Reject
from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.queue import inbox, scripts
from relay.queue.entries import UNREADABLE
from relay.queue.keys import Keys
from relay.queue.shard import Shard

if TYPE_CHECKING:
    from celery import Celery, Task

#: Pause before a report that the queue did not accept is tried again, in seconds. Far below the broker's visibility
#: time-out, after which it would deliver the message a second time.
RETRY_SECONDS = 5

_ENVELOPE = ("id", "source", "time")

_of_thread = threading.local()


def report(task: Task, /, *args: Any, **envelope: Any) -> str:
    """Enqueue an event; intake validates it like every other, so a wrong call becomes a dead letter.

    `body` is the JSON body of the deployment API, as an object or as text. `id`, `source` and `time` are those of a
    queue entry. The default `id` is the message's own, so a message that is delivered twice is one event. Unknown
    arguments make a body that cannot be read. So does `unreadable`, which says what is wrong with a message whose raw
    text is the body (unreadable.py).
    """
    body, more = (args[0], args[1:]) if args else (envelope.pop("body", None), ())
    fields = {name: _text(envelope.pop(name)) for name in _ENVELOPE if envelope.get(name)}
    unknown = {name: value for name, value in envelope.items() if name not in _ENVELOPE}
    unreadable = unknown.pop(UNREADABLE.decode(), None)
    if more or unknown:
        body = {"body": body, "unknown arguments": [*more, unknown]}
    # kombu's JSON decodes dates, decimals and the like; they become text again.
    text = body if isinstance(body, str) else json.dumps(body, default=str)
    entry = {"event": text, "id": str(task.request.id), **fields}
    if unreadable is not None:
        entry[UNREADABLE.decode()] = str(unreadable)
    queue = _queue_of(task.app)
    try:
        encoded = {name: value.encode(errors="surrogatepass") for name, value in entry.items()}  # intake checks UTF-8
        append = inbox.append_call(queue.shard.keys, [encoded], queue.max_backlog, queue.memory_watermark)
        scripts.run(queue.shard.client, append)
    except RedisError as error:
        _retry(task, error)
    return entry["id"]


def _text(value: Any) -> str:
    """Return an argument as text; kombu's JSON makes a `datetime` of an RFC 3339 string."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _retry(task: Task, error: RedisError) -> NoReturn:
    """Have the broker deliver the message again, even if it accepts no new message for later."""
    try:
        raise task.retry(exc=error, countdown=RETRY_SECONDS)
    except Reject as refused:  # the new message could not be published; Celery would drop this one
        raise Reject(str(error), requeue=True) from refused


class _Queue(NamedTuple):
    """The queue without a destination, so that a worker that lacks the destination's settings loses no report."""

    shard: Shard
    max_backlog: int
    memory_watermark: float


def _queue_of(app: Celery) -> _Queue:
    """Return this thread's queue, made by its first report."""
    if not hasattr(_of_thread, "queue"):
        redis, queue = app.relay_settings.redis, app.relay_settings.queue
        shard = Shard(client=connect(redis), keys=Keys(queue.namespace))
        _of_thread.queue = _Queue(shard, queue.max_backlog, queue.memory_watermark)
    made: _Queue = _of_thread.queue
    return made
