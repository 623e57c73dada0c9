"""All checks, side by side, each within its time: one that fails or hangs keeps no other from being made."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.errors import ConfigurationError
from relay.operations.doctor import api, broker, configuration, deliveries, leases, redis_server, workers
from relay.operations.doctor.masking import mask_for, mask_for_refused, masked
from relay.operations.doctor.result import Grade, Result, fault, note
from relay.queue import counters, overview
from relay.queue.keys import Keys
from relay.settings import DEFAULT_DESTINATION, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis import Redis

#: How long one check may take, in seconds, beyond the time-outs that its settings give to what it asks.
CHECK_SECONDS = 20.0


class Check(NamedTuple):
    """A check and its name, for when it does not come to an end."""

    name: str
    run: Callable[[], Iterable[Result]]


def examine(*, offline: bool) -> list[Result]:
    """Make all checks; offline, those that leave the estate's own network are left out: the API's. Secrets masked."""
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        unread = note("others", "nothing else was looked at, as it is not known where anything is", "mend that first")
        return masked([*configuration.refused(error), unread], mask_for_refused(os.environ))
    checks = [Check("configuration", lambda: configuration.examine(settings))]
    if not offline:
        checks.append(Check("api", lambda: api.examine(settings)))
    with connect(settings.redis, retries=0) as client:
        reached = run_all([Check("redis", lambda: [redis_server.reach(client, settings)])], _seconds(settings))
        if all(each.grade is Grade.OK for each in reached):
            checks += _of_the_queue(client, settings)
        else:
            if settings.broker.url:
                checks.append(Check("broker", lambda: broker.examine(settings, frozenset)))
            reached.append(note("workers", "workers, leases and deliveries were not looked at: they take that Redis"))
        results = run_all(checks, _seconds(settings))
    return masked([*reached, *results], mask_for(settings))


def _of_the_queue(client: Redis, settings: Settings) -> list[Check]:
    keys = Keys(settings.queue.namespace)
    worker, api_timeout = settings.worker, settings.api.timeout
    patience = workers.patience_seconds(worker, api_timeout)

    def of_environments() -> Iterator[Result]:
        known = counters.environment_names(client, keys, DEFAULT_DESTINATION)
        return configuration.environments(list(settings.environments), known)

    return [
        Check("redis", lambda: redis_server.examine(client, settings)),
        Check("workers", lambda: workers.examine(client, keys, worker, api_timeout)),
        Check("broker", lambda: broker.examine(settings, lambda: frozenset(workers.look(client, keys).alive))),
        Check("leases", lambda: leases.examine(client, keys, worker, patience)),
        Check(
            "deliveries", lambda: deliveries.judge(overview.read(client, keys, DEFAULT_DESTINATION, settings.queue))
        ),
        Check("environments", of_environments),
    ]


def _seconds(settings: Settings) -> float:
    return CHECK_SECONDS + 2 * (settings.api.connect_timeout + settings.api.timeout) + settings.redis.timeout


def run_all(checks: Sequence[Check], seconds: float) -> list[Result]:
    """Run checks side by side, and return what they found in their order; what takes longer is a fault of its own."""
    found: list[list[Result]] = [[] for _ in checks]
    threads = [
        threading.Thread(target=_run, args=(check, into), daemon=True, name=f"check {check.name}")
        for check, into in zip(checks, found, strict=True)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    results: list[Result] = []
    for check, thread, into in zip(checks, threads, found, strict=True):
        results += list(into)
        if thread.is_alive():
            results.append(
                fault(check.name, f"this check came to no end within {seconds:g} s", "see what it asks: it hangs")
            )
    return results


def _run(check: Check, into: list[Result]) -> None:
    """Run one check to its end, whatever becomes of it."""
    try:
        into.extend(check.run())
    except RedisError as error:
        into.append(fault(check.name, f"Redis failed while it was asked: {error}", "see Redis's log; try again"))
    except Exception as error:  # noqa: BLE001 - a doctor that dies of what is ill is of no use: the other checks go on
        into.append(fault(check.name, f"this check failed: {type(error).__name__}: {error}", "report this defect"))
