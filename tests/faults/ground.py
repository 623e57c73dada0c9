"""The ground of a fault scenario: a real Redis with its append-only file, workers, the API and the oracle.

    @scenario(2, "SIGKILL during a POST", bound="repeats ≤ POSTs in flight, ≥ 1 seen")
    def test_a_kill_during_posts_repeats_no_more_than_was_in_flight(ground: Ground) -> None:
        ground.api.behave(Response(delay_seconds=0.3))
        ground.start_workers(2)
        ground.report(100)
        ground.wait(lambda: ground.api.in_flight >= 10)
        at_risk = ground.kill(ground.at_work())
        ground.check(killed=len(at_risk))
        ground.bit(ground.api.repeats() >= 1, "events in flight were repeated")
        ground.observed(f"{len(at_risk)} in flight, {ground.api.repeats()} repeats")

`check` waits for rest and then checks every promise by the oracle. `bit` is the evidence that the fault occurred: a
scenario that never calls it is void and fails, as does one that calls it with something false.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import redis
from faults.api import Api
from faults.oracle import Oracle, Outcomes, Report
from faults.proxy import Proxy
from redis.backoff import NoBackoff
from redis.retry import Retry
from rig import pool_processes, signal_all, wait_for

from relay import DeploymentEvent, Producer, QueueUnavailable
from relay.processes.embedded_redis import EmbeddedRedis
from relay.processes.supervisor import Child
from relay.queue.counters import read_counters
from relay.queue.keys import Keys
from relay.settings import DEFAULT_DESTINATION, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from relay.queue.counters import Counters

#: Must be nowhere at the end of each scenario.
TOKEN = "canary-token-of-the-faults"

LEASE_SECONDS = 2.0
SWEEP_SECONDS = 1.0
TIMEOUT_SECONDS = 1.0

#: Timers scaled down, so that a fault is over in seconds.
TIMERS = {
    "RELAY_API__TIMEOUT": f"{TIMEOUT_SECONDS}s",
    "RELAY_API__CONNECT_TIMEOUT": "500ms",
    "RELAY_REDIS__TIMEOUT": "2s",
    "RELAY_REDIS__CONNECT_TIMEOUT": "1s",
    "RELAY_WORKER__LEASE": f"{LEASE_SECONDS}s",
    "RELAY_WORKER__BUDGET": "1s",
    "RELAY_WORKER__SWEEP": f"{SWEEP_SECONDS}s",
    "RELAY_WORKER__CONCURRENCY": "1",
    "RELAY_DELIVERY__BACKOFF_INITIAL": "50ms",
    "RELAY_DELIVERY__BACKOFF_MAX": "200ms",
    "RELAY_DELIVERY__MAX_ATTEMPTS": "5",
}

#: Deadline of a fresh event after the last fault.
LIVENESS_SECONDS = 10.0

#: Deadlines of workers' start, and of a backlog's delivery, on a loaded machine.
READY_SECONDS = 60.0
REST_SECONDS = 30.0

#: Maximum growth of a process over its first measurement: kept-alive connections, Python's own caches.
MORE_DESCRIPTORS = 60
MORE_THREADS = 4
MORE_MEGABYTES = 48

#: Maximum Redis clients of one process, and of the test.
CLIENTS_PER_PROCESS = 16

#: Prefixes of the relay's keys that may exist once nothing waits.
KEYS_AT_REST = (
    "receipt:",
    "inbox",
    "state:",
    "counts",
    "latency",
    "dead",
    "destination:",
    "environments:",
    "worker:",
    "workers",
    "appended:",
    "changes:",
    "clock_ahead",
    "contested:",
    "nodes:",
    "dataset",
    "forgetting",
)

SLOW_SECONDS = 240


def scenario(number: int, title: str, *, bound: str, slow: bool = False, timeout: float = 120) -> Any:
    """Mark a test as the scenario of that number in docs/faults.md; several tests may share one."""
    marks = [
        pytest.mark.scenario(number=number, title=title, bound=bound),
        pytest.mark.faults,
        pytest.mark.timeout(max(timeout, SLOW_SECONDS) if slow else timeout),
    ]
    marks += [pytest.mark.slow] if slow else []

    def mark(test: Any) -> Any:
        for each in marks:
            test = each(test)
        return test

    return mark


@dataclass(slots=True)
class Footprint:
    """Resources of all processes of a worker."""

    pids: tuple[int, ...]
    descriptors: int
    threads: int
    megabytes: float

    @classmethod
    def of(cls, pids: list[int]) -> Footprint:
        descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)  # noqa: PTH208 - names suffice
        status = [dict(_status(pid)) for pid in pids]
        threads = sum(int(each["Threads"]) for each in status)
        kilobytes = sum(int(each["VmRSS"].split()[0]) for each in status)
        return cls(tuple(pids), descriptors, threads, kilobytes / 1024)


class Worker:
    """One `relay worker` with its pool."""

    def __init__(self, name: str, child: Child, log: Path, heartbeat: str) -> None:
        self.name = name
        self.child = child
        self.log_path = log
        self.heartbeat = heartbeat
        self.at_first: Footprint | None = None

    @property
    def pids(self) -> list[int]:
        """The main process and the pool's processes."""
        return [self.child.pid, *pool_processes(self.child.pid)]

    @property
    def runs(self) -> bool:
        return self.child.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def peak_megabytes(self) -> float:
        """Return the sum of its processes' peak memory."""
        return sum(int(dict(_status(pid))["VmHWM"].split()[0]) for pid in self.pids) / 1024

    def forget_peak(self) -> float:
        """Reset the peak, where the kernel can; return the new value."""
        for pid in self.pids:
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        return self.peak_megabytes()

    def ports(self) -> set[int]:
        """Return the local TCP ports of its processes' connections."""
        return {port for pid in self.pids for port in _ports(pid)}


class Ground:
    """One scenario's relay. Ask for proxies before the workers start."""

    def __init__(
        self, directory: Path, *, append_fsync: str = "everysec", redis_options: dict[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.workers: list[Worker] = []
        self.evidence: list[str] = []
        self.observations: list[str] = []
        self.keys = Keys()
        self.oracle = Oracle(directory / "producers.txt")
        self.api = Api(directory / "api.txt")
        self.environment: dict[str, str] = {**TIMERS, "RELAY_API_TOKEN": TOKEN}
        self._exits = ExitStack()
        self._started = 0
        self._serial = 0
        fsync: Any = append_fsync
        self.redis = EmbeddedRedis(directory / "redis", append_fsync=fsync, options=redis_options)

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(self.redis)
            exits.enter_context(self.api)
            self.client = exits.enter_context(plain_client(self.redis.url))
            self.environment |= {"RELAY_REDIS_URL": self.redis.url, "RELAY_API_URL": self.api.url}
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                signal_all(worker.pids if worker.runs else [], signal.SIGCONT)
            worker.child.kill()
        self._exits.close()

    # Evidence

    def bit(self, evidence: object, what: str) -> None:
        """Fail as void unless the fault occurred."""
        assert evidence, f"void: the fault did not occur; missing evidence: {what}"
        self.evidence.append(what)

    def observed(self, text: str) -> None:
        """Add an observation to the table."""
        self.observations.append(text)

    @staticmethod
    def wait(condition: Callable[[], bool], timeout_seconds: float = 20, seen: Callable[[], object] = str) -> None:
        """Wait for a condition, or fail with the result of `seen`."""
        wait_for(condition, timeout_seconds, lambda: str(seen()))

    # Proxies, to be asked for before the workers start

    def redis_proxy(self) -> Proxy:
        """Put a proxy between the workers to be started and Redis, without the broker unless that is set already."""
        link = self._exits.enter_context(Proxy(self.redis.port))
        self.environment["RELAY_REDIS_URL"] = f"redis://127.0.0.1:{link.port}/0"
        self.environment.setdefault("RELAY_BROKER_URL", self.redis.url)
        return link

    def broker_proxy(self) -> Proxy:
        """Put a proxy between the workers to be started and the broker, which is database 1 of the same Redis."""
        link = self._exits.enter_context(Proxy(self.redis.port))
        self.environment["RELAY_BROKER_URL"] = f"redis://127.0.0.1:{link.port}/1"
        return link

    def api_proxy(self) -> Proxy:
        """Put a proxy between the workers to be started and the API."""
        link = self._exits.enter_context(Proxy(self.api.port))
        self.environment["RELAY_API_URL"] = f"http://127.0.0.1:{link.port}/report"
        return link

    # Workers

    def start_workers(
        self, count: int = 1, *, concurrency: int = 1, log_level: str = "INFO", **environment: str
    ) -> list[Worker]:
        """Start workers and wait for their heartbeats; `environment` overrides the ground's."""
        workers = [self._start_worker(concurrency, log_level, environment) for _ in range(count)]
        for worker in workers:
            wait_for(lambda worker=worker: self._is_up(worker, concurrency), READY_SECONDS, worker.log)  # type: ignore[misc]
            worker.at_first = Footprint.of(worker.pids)
        return workers

    def _start_worker(self, concurrency: int, log_level: str, environment: dict[str, str]) -> Worker:
        self._started += 1
        name = f"w{self._started}"
        log = self.directory / f"{name}.log"
        argv = [sys.executable, "-m", "relay", "worker", "--name", f"{name}@%h", "--concurrency", str(concurrency)]
        argv += ["--log-level", log_level]
        child = Child(name, argv, env={**os.environ, **self.environment, **environment}, log_path=log)
        worker = Worker(name, child, log, self.keys.worker(f"{name}@{socket.gethostname()}"))
        self.workers.append(worker)
        return worker

    def _is_up(self, worker: Worker, concurrency: int) -> bool:
        assert worker.runs, f"{worker.name} ended at its start: {worker.log()}"
        log = worker.log()
        consumes = f"{worker.name}@" in log and " ready." in log  # its heartbeat is a second earlier
        return (
            consumes
            and log.count("a process of the pool is ready") >= concurrency
            and bool(self.client.exists(worker.heartbeat))
        )

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.runs]

    def at_work(self) -> Worker:
        """Return the worker with the most requests in flight."""
        return max(self.running, key=lambda worker: self.api.in_flight_of(worker.ports()))

    def has_delivered(self, worker: Worker) -> bool:
        """Return whether an open connection of the worker was used for a request."""
        ports = worker.ports()
        return any(attempt.peer_port in ports for attempt in list(self.api.attempts))

    def kill(self, *workers: Worker) -> set[str]:
        """SIGKILL whole workers, by default all; return the ids that may be repeated: K."""
        doomed = list(workers) or self.running
        for worker in doomed:
            signal_all(worker.pids, signal.SIGSTOP)  # so that their connections can be listed
        ports = {port for worker in doomed for port in worker.ports()}
        for worker in doomed:
            worker.child.kill()
        wait_for(
            lambda: self.api.has_closed(ports), seen=lambda: "the API still has connections of the killed workers"
        )
        return self.at_risk(ports)

    def stop_and_hold(self, worker: Worker) -> set[str]:
        """SIGSTOP a whole worker; return the ids that another one may repeat."""
        signal_all(worker.pids, signal.SIGSTOP)
        ports = worker.ports()
        wait_for(lambda: not self.api.in_flight_of(ports), seen=lambda: "its requests are not answered")
        return self.at_risk(ports)

    @staticmethod
    def resume(worker: Worker) -> None:
        """SIGCONT a whole worker, the pool first."""
        signal_all(worker.pids[::-1], signal.SIGCONT)

    @staticmethod
    def terminate(*workers: Worker, timeout_seconds: float = 30) -> list[int]:
        """SIGTERM workers and return their exit codes."""
        for worker in workers:
            worker.child.signal(signal.SIGTERM)
        ended = [worker.child.wait(timeout_seconds) for worker in workers]
        late = [worker.log() for worker, end in zip(workers, ended, strict=True) if end is None]
        assert not late, f"not stopped by SIGTERM: {late}"
        return [end.code for end in ended if end]

    def at_risk(self, ports: Collection[int]) -> set[str]:
        """Return the ids that the API has processed from these ports and that are still in an outbox."""
        uncommitted = self.in_outboxes()
        taken = {a.event_id for a in list(self.api.attempts) if a.processed and a.peer_port in ports}
        return taken & uncommitted

    def in_outboxes(self) -> set[str]:
        """Return the ids that wait for delivery."""
        prefix = self.keys.of_outbox(DEFAULT_DESTINATION, "").outbox
        streams = self.client.scan_iter(match=f"{prefix}*", count=1000)
        return {fields[b"id"].decode() for key in streams for _, fields in self.client.xrange(key)}

    # Producers

    def event(self, number: int, *, instances: int | None = None, environments: int = 1) -> DeploymentEvent:
        """Return the event of a number: by default the first of its instance, else the next of one of `instances`."""
        instance = number if instances is None else number % instances
        return DeploymentEvent.of(
            f"ghcr.io/acme/app-{instance}@{digest(number)}",
            environment=f"env-{instance % environments}",
            id=f"event-{number}",
        )

    def report(self, count: int = 1, *, instances: int | None = None, environments: int = 1) -> list[str]:
        """Report this many events with new digests, of the instances in turns, and return their ids."""
        first, self._serial = self._serial, self._serial + count
        events = [self.event(n, instances=instances, environments=environments) for n in range(first, first + count)]
        return self.report_events(events)

    def report_events(self, events: list[DeploymentEvent], producer: Producer | None = None) -> list[str]:
        """Report events, note them as acknowledged or uncertain, and return their ids."""
        if producer is None:
            with self.producer() as own:
                return self.report_events(events, own)
        reports = [report_of(event) for event in events]
        try:
            ids = producer.report_many(events)
        except QueueUnavailable as error:
            done = len(error.enqueued)
            self.oracle.note(reports[:done])
            self.oracle.note(reports[done:], acknowledged=False)
            raise
        self.oracle.note(reports)
        return ids

    def producer(self) -> Producer:
        """Return a producer that reports to Redis directly, past any proxy."""
        return Producer(settings=Settings.load(redis={"url": self.redis.url}))

    @contextmanager
    def load(self, per_second: float, *, instances: int = 50, environments: int = 5) -> Iterator[None]:
        """Report at a steady rate while the context lasts."""
        over = threading.Event()
        failures: list[BaseException] = []

        def produce() -> None:
            began, done = time.monotonic(), 0
            try:
                while not over.wait(0.02):
                    due = int((time.monotonic() - began) * per_second) - done
                    if due > 0:
                        self.report(due, instances=instances, environments=environments)
                        done += due
            except BaseException as error:  # noqa: BLE001 - raised at the context's end
                failures.append(error)

        thread = threading.Thread(target=produce, name="load")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]

    def xadd(self, fields: dict[Any, Any], *, malformed: bool = False) -> str:
        """Add an entry as redis-cli would; a malformed one is expected among the dead letters."""
        entry = self.client.xadd(self.keys.inbox, fields).decode()
        if malformed:
            self.oracle.malformed.append(entry)
        return entry

    # At the end

    def counters(self) -> Counters:
        return read_counters(self.client, self.keys)

    def health(self, field: str) -> str:
        """Return a field of the destination's shared health, "" if it has none."""
        value: Any = self.client.hget(self.keys.destination(DEFAULT_DESTINATION), field)
        return (value or b"").decode()

    def rest(self, timeout_seconds: float = REST_SECONDS) -> Counters:
        """Wait until every added event has an outcome and no run is active."""
        counters = self.counters()

        def done() -> bool:
            nonlocal counters
            counters = self.counters()
            return counters.added >= self.oracle.added and not counters.waiting and not self.leftovers()

        seen = f"of {self.oracle.added} added: "
        wait_for(done, timeout_seconds, lambda: f"{seen}{counters}, {self.leftovers()}, {self._last_words()}")
        return counters

    def leftovers(self) -> list[str]:
        """Return the relay's keys that must not exist once nothing waits."""
        keys = [key.decode().removeprefix(self.keys.prefix) for key in self.client.scan_iter(f"{self.keys.prefix}*")]
        return sorted(key for key in keys if not key.startswith(KEYS_AT_REST))

    def outcomes(self) -> Outcomes:
        counters = self.counters()
        letters = [fields for _, fields in self.client.xrange(self.keys.dead)]
        return Outcomes(
            added=counters.added,
            redriven=counters.redriven,
            dropped=counters.dropped,
            delivered=counters.delivered,
            duplicate=counters.duplicate,
            stale=counters.stale,
            superseded=counters.superseded,
            dead=counters.dead,
            waiting=counters.waiting,
            dead_ids=[
                (fields.get(b"id") or fields[b"entry"]).decode(errors="backslashreplace") for fields in letters
            ],
        )

    def check(
        self,
        *,
        killed: int = 0,
        unknowable: int = 0,
        unsynced: int = 0,
        superseded: Collection[str] = (),
        ordered: bool = True,
    ) -> None:
        """Check that a fresh event is delivered, wait for rest, and check every promise.

        The bound on repeats is exactly 0 unless the scenario says otherwise: `killed` (K) counts events in flight or
        uncommitted of killed processes, as `kill` returns them, `unknowable` (T) the ends that the client could not
        know, as `api.unknowable()` counts them, `unsynced` (P) the commits that a power loss undid.
        """
        assert self.evidence, "void: no evidence of the fault; call `bit` before `check`"
        self.check_liveness()
        self.rest()
        outcomes = self.outcomes()
        self.oracle.check_conservation(self.api, outcomes, superseded=superseded)
        self.oracle.check_bodies(self.api)
        self.oracle.check_repeats(self.api, killed + unknowable + unsynced)
        if ordered:
            self.oracle.check_order(self.api)
        self.oracle.check_truth(outcomes, superseded=len(superseded))
        self.check_resources()
        self.check_no_token()
        assert not self.api.errors, f"a behaviour of the test failed: {self.api.errors}"

    def check_liveness(self) -> None:
        """Check that an event reported now is delivered in time."""
        [fresh] = self.report(instances=None)
        wait_for(
            lambda: fresh in self.api.processed_ids(),
            LIVENESS_SECONDS,
            lambda: f"no fresh event was delivered: {self.counters()}, {self._last_words()}",
        )

    def check_resources(self) -> None:
        """Check that running processes use no more than at first: descriptors, threads, memory, clients, keys."""
        for worker in self.running:
            first, now = worker.at_first, Footprint.of(worker.pids)
            assert first
            beyond = (
                now.descriptors - first.descriptors,
                now.threads - first.threads,
                now.megabytes - first.megabytes,
            )
            allowed = (MORE_DESCRIPTORS * len(now.pids), MORE_THREADS, MORE_MEGABYTES * len(now.pids))
            fits = all(more <= most for more, most in zip(beyond, allowed, strict=True))
            assert fits, f"{worker.name} grew from {first} to {now}"
        processes = sum(len(worker.pids) for worker in self.running)
        clients = len(self.client.client_list())
        assert clients <= CLIENTS_PER_PROCESS * (processes + 1), f"{clients} Redis clients of {processes} processes"

    def check_no_token(self) -> None:
        """Check that the token is in no file (Redis's, logs) and no key."""
        token = TOKEN.encode()
        for path in self.directory.rglob("*"):
            if path.is_file():
                assert token not in path.read_bytes(), f"the token is in {path.name}"
        for key in self.client.scan_iter(count=1000):
            assert token not in repr(_value(self.client, key)).encode(), f"the token is in {key!r}"

    def _last_words(self) -> str:
        return "".join(f"\n{worker.name} ends:\n{worker.child.log_tail()}" for worker in self.workers)


def plain_client(url: str) -> redis.Redis:
    """Return a client without retries: a test must see each error."""
    return redis.Redis.from_url(url, socket_timeout=10, retry=Retry(NoBackoff(), 0))


def digest(version: object) -> str:
    return f"sha256:{sha256(str(version).encode()).hexdigest()}"


def report_of(event: DeploymentEvent) -> Report:
    """Return an event as the oracle notes it, in the API's terms."""
    repository, _, version = event.image.url.partition("@")
    platform = "/".join(filter(None, (event.platform.os, event.platform.architecture, event.platform.variant)))
    environment = event.environment.name or "deployed"
    return Report(
        event_id=event.id or "",
        instance=f"{environment}|{repository}|{event.image.name or ''}|{platform or 'linux/amd64'}",
        digest=version,
        time=event.time.timestamp() if event.time else None,
    )


def _status(pid: int) -> Iterator[tuple[str, str]]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()


def _ports(pid: int) -> Iterator[int]:
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(os.readlink(descriptor))  # noqa: PTH115 - socket:[inode] is not a path
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in sockets:
            yield int(fields[1].partition(":")[2], 16)


def _value(client: redis.Redis, key: bytes) -> Any:
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
        b"none": lambda _: None,
    }
    return readers[client.type(key)](key)
