"""Replay the log of an estate through real processes, with an outage of the API in the middle.

`Demo.watch` yields the progress. The result compares the relay's counters and the sandbox API's own count of distinct
events with the outcomes that the simulation of the estate expects.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from relay.connections.clients import connect
from relay.demo.estate import Outcome, partition, simulate
from relay.errors import ConfigurationError
from relay.processes.stack import Stack, local_session
from relay.queue.counters import Counters, read_counters
from relay.queue.keys import Keys
from relay.settings import SHORT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping
    from pathlib import Path

    from redis import Redis

    from relay.processes.supervisor import Child

#: Processes of each kind. The log divides evenly between two or four producers.
PRODUCERS = 4
WORKERS = 2
PROCESSES_PER_WORKER = 2

#: The outage begins once this share of the log is in the inbox.
OUTAGE_AT = 0.4

#: Between two readings of the counters.
POLL_SECONDS = 0.2

#: Deadline for the backlog once the producers have ended.
BACKLOG_SECONDS = 60.0

#: The workers' timers, scaled to a run of seconds.
TIMERS = {
    "RELAY_API__TIMEOUT": "3s",
    "RELAY_WORKER__LEASE": "5s",
    "RELAY_WORKER__BUDGET": "2s",
    "RELAY_WORKER__SWEEP": "1s",
    "RELAY_DELIVERY__BACKOFF_INITIAL": "250ms",
    "RELAY_DELIVERY__BACKOFF_MAX": "2s",
    "RELAY_DELIVERY__MAX_ATTEMPTS": "30",
}

#: Prefixes of the relay's variables that are not settings: the Redis server's path, and those of tests.
_NOT_SETTINGS = ("RELAY_REDIS_SERVER", "RELAY_TEST_")

#: Deadline of one request to the sandbox.
_SANDBOX_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a demo runs."""

    events_per_second: float = 2000
    outage_seconds: float = 4
    kill_worker: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """State of a running demo."""

    seconds: float
    total: int
    counters: Counters
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Counts at the end of a demo. `differences` is empty if all agree on every event."""

    seconds: float
    producing_seconds: float
    counters: Counters
    expected: Mapping[Outcome, int]
    api_distinct: int
    api_repeats: int
    api_refusals: int
    differences: list[str]


def forget_settings(environment: MutableMapping[str, str]) -> None:
    """Remove the relay's settings from an environment: a demo must not touch a queue, broker or spool in use."""
    for name in list(environment):
        upper = name.upper()
        if upper in SHORT_NAMES or (upper.startswith("RELAY_") and not upper.startswith(_NOT_SETTINGS)):
            del environment[name]


class Demo:
    """One run, a context manager around its processes.

    `watch` drives it and yields its progress; `result` is set at the end. The processes run until the context ends.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        if directory.exists() and any(directory.iterdir()):
            raise ConfigurationError(f"{directory} is not empty: a demo begins with an empty queue")
        self._plan = plan
        self._directory = directory
        self.stack = Stack(directory, environment=TIMERS)
        self._log = simulate()
        self._started = 0.0
        self._producing_seconds = 0.0
        self._note = ""
        self._keys = Keys()
        self.result: Result | None = None

    def __enter__(self) -> Self:
        self.stack.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.__exit__(*exception)

    def watch(self) -> Iterator[Progress | str]:
        """Run the demo: yield a line for each process that starts, then the progress."""
        stack = self.stack
        settings = stack.settings
        self._keys = Keys(settings.queue.namespace)
        with connect(settings.redis) as client:
            yield f"Redis on {stack.redis_url}, sandbox API on {stack.api_url}"
            workers = []
            for number in range(1, WORKERS + 1):
                workers.append(stack.start_worker(f"demo-{number}", concurrency=PROCESSES_PER_WORKER))
                yield f"Celery worker demo-{number} with {PROCESSES_PER_WORKER} processes"
            yield f"{PRODUCERS} producers replay {len(self._log):,} queue entries"
            yield from self._run(client, workers)
            self.result = self._compare(read_counters(client, self._keys))

    def _run(self, client: Redis, workers: list[Child]) -> Iterator[Progress]:
        producers = self._start_producers()
        outage = self._outage(workers)
        self._started = first_added = time.monotonic()
        deadline = float("inf")
        while time.monotonic() < deadline:
            counters = read_counters(client, self._keys)
            if counters.added >= OUTAGE_AT * len(self._log):
                next(outage, None)
            producing = any(producer.poll() is None for producer in producers)
            if not counters.added:
                first_added = time.monotonic()
            if not producing and not self._producing_seconds:
                self._producing_seconds = time.monotonic() - first_added
                deadline = time.monotonic() + BACKLOG_SECONDS
            seconds = time.monotonic() - self._started
            yield Progress(seconds=seconds, total=len(self._log), counters=counters, note=self._note)
            if not producing and not counters.waiting:
                return
            time.sleep(POLL_SECONDS)

    def _start_producers(self) -> list[Child]:
        rate = self._plan.events_per_second / PRODUCERS
        producers = []
        for number, entries in enumerate(partition(self._log, PRODUCERS)):
            file = self._directory / f"producer-{number}.jsonl"
            file.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
            command = ["-m", "relay.demo.produce", str(file), str(rate)]
            producers.append(self.stack.start(f"producer-{number}", command))
        return producers

    def _outage(self, workers: list[Child]) -> Iterator[None]:
        """Begin the outage and kill a worker, then follow the outage with a note at each step."""
        seconds = self._plan.outage_seconds
        if seconds:
            self._set_faults([{"kind": "status", "status": 503, "for_seconds": seconds}])
        if self._plan.kill_worker:
            workers[0].kill()
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            self._note = "the API answers 503"
            yield
        self._note = "the API is back" if seconds else ""
        yield

    def _set_faults(self, faults: list[dict[str, object]]) -> None:
        with local_session() as session:
            url = f"{self.stack.api_url}_sandbox/faults"
            session.put(url, json=faults, timeout=_SANDBOX_SECONDS).raise_for_status()

    def _compare(self, counters: Counters) -> Result:
        with local_session() as session:
            counts = session.get(f"{self.stack.api_url}_sandbox/counts", timeout=_SANDBOX_SECONDS).json()
        expected = Counter(arrival.outcome for arrival in self._log)
        distinct, repeats = counts["accepted"] - counts["repeats"], counts["repeats"]
        compared = [
            ("added", counters.added, len(self._log)),
            ("delivered", counters.delivered, expected[Outcome.DELIVERED]),
            ("duplicate", counters.duplicate, expected[Outcome.DUPLICATE]),
            ("stale", counters.stale, expected[Outcome.STALE]),
            ("dead", counters.dead, expected[Outcome.INVALID]),
            ("waiting", counters.waiting, 0),
            ("unaccounted", counters.unaccounted, 0),
            ("distinct events at the API", distinct, expected[Outcome.DELIVERED]),
        ]
        if not self._plan.kill_worker:
            compared.append(("repeated POSTs at the API", repeats, 0))
        differences = [f"{name}: {is_:,}, expected {wanted:,}" for name, is_, wanted in compared if is_ != wanted]
        return Result(
            seconds=time.monotonic() - self._started,
            producing_seconds=self._producing_seconds,
            counters=counters,
            expected=expected,
            api_distinct=distinct,
            api_repeats=repeats,
            api_refusals=counts["received"] - counts["accepted"],
            differences=differences,
        )
