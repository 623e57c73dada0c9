"""The demo: a log of an estate, replayed through real processes, with an outage in the middle.

Yields what it sees while it runs, and at the end a decision that compares three books: the relay's counters, the
API's own count of distinct events, and a reckoning of the log that shares no code with the relay.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from relay.connections.clients import connect
from relay.demo.counters import reckon
from relay.demo.estate import shipped_log
from relay.errors import ConfigurationError
from relay.processes.stack import Stack, local_session
from relay.queue.counters import Counters, read_counters
from relay.queue.keys import Keys
from relay.settings import SHORT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from pathlib import Path

    from redis import Redis

    from relay.demo.counters import Reckoning
    from relay.processes.supervisor import Child

#: Producers and workers, all processes of their own. The log divides evenly between two or four.
PRODUCERS = 4
WORKERS = 2
PROCESSES_PER_WORKER = 2

#: The API fails once this share of the log has been taken in.
OUTAGE_AT = 0.4

#: How often the counters is looked at.
LOOK_SECONDS = 0.2

#: After the producers are done, what is left must be delivered within this.
SETTLE_SECONDS = 60.0

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

#: How variables begin that are the relay's and no settings: where a Redis server is, and what tests set.
_NO_SETTINGS = ("RELAY_REDIS_SERVER", "RELAY_TEST_")

#: Bound of one question to the sandbox.
_ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a demo runs."""

    events_per_second: float = 2000
    outage_seconds: float = 4
    kill_worker: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look at the running demo shows."""

    seconds: float
    total: int
    counters: Counters
    note: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the three books say at the end. `faults` is empty if they agree on every event."""

    seconds: float
    producing_seconds: float
    counters: Counters
    expected: Reckoning
    api_distinct: int
    api_repeats: int
    api_refusals: int
    faults: list[str] = field(default_factory=list)


def forget_settings(environment: MutableMapping[str, str]) -> None:
    """Take the relay's settings out of an environment: a demo must come near no queue, broker or spool in use."""
    for name in list(environment):
        upper = name.upper()
        if upper in SHORT_NAMES or (upper.startswith("RELAY_") and not upper.startswith(_NO_SETTINGS)):
            del environment[name]


class Demo:
    """One run, a context manager around its processes. `watch` drives it and yields what there is to see.

    Then `decision` has the end, and the processes stay until the context ends.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        if directory.exists() and any(directory.iterdir()):
            raise ConfigurationError(f"{directory} is not empty: a demo begins with an empty queue")
        self._plan = plan
        self.stack = Stack(directory, environment=TIMERS)
        self._log = shipped_log()
        self._started = 0.0
        self._producing_seconds = 0.0
        self._note = ""
        self._keys = Keys()
        self.decision: Decision | None = None

    def __enter__(self) -> Self:
        self.stack.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.__exit__(*exception)

    def watch(self) -> Iterator[Sight | str]:
        """Run it: first lines about what starts, then a sight at each look."""
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
            self.decision = self._judge(read_counters(client, self._keys))

    def _run(self, client: Redis, workers: list[Child]) -> Iterator[Sight]:
        rate = self._plan.events_per_second / PRODUCERS
        self._started = time.monotonic()
        producers = [
            self.stack.start(f"producer-{part}", ["-m", "relay.demo.produce", str(part), str(PRODUCERS), str(rate)])
            for part in range(PRODUCERS)
        ]
        harm = self._harm(workers)
        first_added = self._started
        deadline = float("inf")
        while time.monotonic() < deadline:
            counters = read_counters(client, self._keys)
            if counters.added >= OUTAGE_AT * len(self._log):
                next(harm, None)
            producing = any(producer.poll() is None for producer in producers)
            if not counters.added:
                first_added = time.monotonic()
            if not producing and not self._producing_seconds:
                self._producing_seconds = time.monotonic() - first_added
                deadline = time.monotonic() + SETTLE_SECONDS
            yield Sight(time.monotonic() - self._started, len(self._log), counters, self._note)
            if not producing and not counters.waiting:
                return
            time.sleep(LOOK_SECONDS)

    def _harm(self, workers: list[Child]) -> Iterator[None]:
        """Do what the demo survives, once; then follow it."""
        outage = self._plan.outage_seconds
        if outage:
            self._tell_sandbox([{"kind": "status", "status": 503, "for_seconds": outage}])
        if self._plan.kill_worker:
            workers[0].kill()
        over = time.monotonic() + outage
        while time.monotonic() < over:
            self._note = "the API answers 503"
            yield
        self._note = "the API is back" if outage else ""
        yield

    def _tell_sandbox(self, faults: list[dict[str, object]]) -> None:
        with local_session() as session:
            url = f"{self.stack.api_url}_sandbox/faults"
            session.put(url, json=faults, timeout=_ASK_SECONDS).raise_for_status()

    def _judge(self, counters: Counters) -> Decision:
        with local_session() as session:
            counts = session.get(f"{self.stack.api_url}_sandbox/counts", timeout=_ASK_SECONDS).json()
        expected = reckon(self._log)
        distinct, repeats = counts["accepted"] - counts["repeats"], counts["repeats"]
        compared = [
            ("added", counters.added, len(self._log)),
            ("delivered", counters.delivered, expected.delivered),
            ("duplicate", counters.duplicate, expected.duplicate),
            ("stale", counters.stale, expected.stale),
            ("dead", counters.dead, expected.invalid),
            ("waiting", counters.waiting, 0),
            ("unaccounted", counters.unaccounted, 0),
            ("distinct events at the API", distinct, expected.delivered),
        ]
        if not self._plan.kill_worker:
            compared.append(("repeated POSTs at the API", repeats, 0))
        return Decision(
            seconds=time.monotonic() - self._started,
            producing_seconds=self._producing_seconds,
            counters=counters,
            expected=expected,
            api_distinct=distinct,
            api_repeats=repeats,
            api_refusals=counts["received"] - counts["accepted"],
            faults=[f"{name}: {found:,}, expected {wanted:,}" for name, found, wanted in compared if found != wanted],
        )
