"""Runs all checks of `relay doctor` concurrently, each with a time limit: one that fails or hangs stops no other."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.connections.clients import connect
from relay.errors import ConfigurationError
from relay.operations.doctor import api, broker, configuration, deliveries, leases, redis_server, workers
from relay.operations.finding import Check, Finding, Severity, fault, note
from relay.queue import counters
from relay.queue.keys import Keys
from relay.queue.status import read_status
from relay.redaction import Secrets
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis import Redis

#: Time limit of one check in seconds, beyond the time-outs that the settings give to its requests.
CHECK_SECONDS = 20.0


def run_doctor(*, offline: bool) -> list[Finding]:
    """Run all checks, with secrets masked in their findings; offline without those of the destination."""
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        rest = note("others", "nothing else was checked, because the configuration cannot be read", "fix that first")
        return _masked([*configuration.explain_refusal(error), rest], Secrets.of_variables(os.environ))
    checks = [Check("configuration", lambda: configuration.check_configuration(settings))]
    if not offline:
        checks.append(Check("api", lambda: api.check_api(settings)))
    with connect(settings.redis, retries=0) as client:
        connection = Check("redis", lambda: [redis_server.check_connection(client, settings)])
        reached = run_all([connection], _time_limit(settings))
        if all(each.severity is Severity.OK for each in reached):
            checks += _queue_checks(client, settings)
        else:
            if settings.broker.url:
                checks.append(Check("broker", lambda: broker.check_broker(settings, frozenset)))
            reached.append(note("workers", "workers, leases and deliveries were not checked: they need that Redis"))
        findings = run_all(checks, _time_limit(settings))
    return _masked([*reached, *findings], Secrets.of(settings))


def _queue_checks(client: Redis, settings: Settings) -> list[Check]:
    keys, destination = Keys(settings.queue.namespace), settings.destination
    worker, api_timeout = settings.worker, settings.api.timeout
    repair_seconds = workers.repair_seconds(worker, api_timeout)

    def alive() -> frozenset[str]:
        return frozenset(workers.read_work(client, keys, destination).alive)

    def check_environments() -> Iterator[Finding]:
        known = counters.environment_names(client, keys, destination)
        return configuration.decide_environments(list(settings.environments), known)

    def check_deliveries() -> Iterator[Finding]:
        return deliveries.decide_deliveries(read_status(client, keys, destination, settings.queue))

    return [
        Check("redis", lambda: redis_server.check_redis(client, settings)),
        Check("workers", lambda: workers.check_workers(client, keys, destination, repair_seconds)),
        Check("broker", lambda: broker.check_broker(settings, alive)),
        Check("leases", lambda: leases.check_leases(client, keys, destination, worker, repair_seconds)),
        Check("deliveries", check_deliveries),
        Check("environments", check_environments),
    ]


def _masked(findings: Iterable[Finding], secrets: Secrets) -> list[Finding]:
    return [replace(each, what=secrets.mask(each.what), do=secrets.mask(each.do)) for each in findings]


def _time_limit(settings: Settings) -> float:
    return CHECK_SECONDS + 2 * (settings.api.connect_timeout + settings.api.timeout) + settings.redis.timeout


def run_all(checks: Sequence[Check], seconds: float) -> list[Finding]:
    """Run checks concurrently and return their findings in order; one that takes longer than `seconds` is a fault."""
    found: list[list[Finding]] = [[] for _ in checks]
    threads = [
        threading.Thread(target=_run, args=(check, into), daemon=True, name=f"check {check.name}")
        for check, into in zip(checks, found, strict=True)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    findings: list[Finding] = []
    for check, thread, into in zip(checks, threads, found, strict=True):
        findings += list(into)
        if thread.is_alive():
            findings.append(
                fault(check.name, f"this check did not finish within {seconds:g} s", "find out why its target hangs")
            )
    return findings


def _run(check: Check, into: list[Finding]) -> None:
    """Run one check and collect its findings; an exception becomes a finding."""
    try:
        into.extend(check.run())
    except RedisError as error:
        into.append(fault(check.name, f"Redis failed during this check: {error}", "check Redis's log; try again"))
    except Exception as error:  # noqa: BLE001 - a defect in one check must not stop the others
        into.append(fault(check.name, f"this check failed: {type(error).__name__}: {error}", "report this defect"))
