"""The plain Celery design: one task an event, `SET NX` against repeats, `requests.post` to the API.

A sensible implementation of one afternoon: no results, a kept-alive session and one Redis connection a child, a
retry with backoff, and a failed report may be repeated. It lacks the relay's guarantees (see README.md here), not an
optimisation that every author would make.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import redis
import requests
from celery import Celery
from celery.signals import worker_process_init, worker_ready

if TYPE_CHECKING:
    from celery import Task

REPORT = "plain.report"

#: Set in Redis once the worker consumes.
READY_KEY = "plain:ready"

#: Window in which a digest counts as reported.
WINDOW_SECONDS = 120

API_SECONDS = 10.0

app = Celery("plain", broker=os.environ.get("RELAY_REDIS_URL", "redis://127.0.0.1:6379/0"))
app.conf.update(
    task_ignore_result=True,
    worker_concurrency=int(os.environ.get("PLAIN_CONCURRENCY", "4")),
    broker_connection_retry_on_startup=True,
    broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 2},
)

_connections: dict[str, Any] = {}


@worker_process_init.connect
def _connect(**_: Any) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {os.environ['RELAY_API_TOKEN']}"
    _connections["api"] = session
    _connections["redis"] = redis.Redis.from_url(os.environ["RELAY_REDIS_URL"])


@worker_ready.connect
def _tell(**_: Any) -> None:
    redis.Redis.from_url(os.environ["RELAY_REDIS_URL"]).set(READY_KEY, 1)


@app.task(name=REPORT, bind=True, max_retries=12)
def report(task: Task, body: dict[str, Any]) -> None:
    """POST to the API, unless that was done within the window."""
    seen = _seen_key(body)
    if not _connections["redis"].set(seen, 1, nx=True, ex=WINDOW_SECONDS):
        return
    try:
        answer = _connections["api"].post(
            os.environ["RELAY_API_URL"],
            json=body,
            headers={"Idempotency-Key": task.request.id},
            timeout=API_SECONDS,
        )
        answer.raise_for_status()
    except requests.RequestException as error:
        _connections["redis"].delete(seen)
        raise task.retry(exc=error, countdown=min(2**task.request.retries, 300)) from error


def _seen_key(body: dict[str, Any]) -> str:
    repository, _, digest = body["image"]["url"].partition("@")
    platform = body["platform"]
    instance = [body["environment"]["name"], repository, platform["os"], platform["architecture"]]
    return f"plain:seen:{hashlib.sha256('|'.join(instance).encode()).hexdigest()}:{digest}"
