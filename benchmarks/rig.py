"""What the benchmarks run on: a private Redis, the trivial API, a worker, producers; and waiting for them.

All are processes of their own that die with this one. Nothing of the caller's relay configuration reaches them.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import redis

from benchmarks import processor_time
from benchmarks.workload import PRODUCERS
from relay.errors import ChildFailed
from relay.processes.embedded_redis import EmbeddedRedis
from relay.processes.supervisor import Children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from relay.processes.supervisor import Child

ROOT = Path(__file__).resolve().parent.parent

#: Interval of checks for a run's end.
POLL_SECONDS = 0.05

#: A worker is at rest once it used less than this share of a processor for this long; checked for at most this long.
REST_SHARE = 0.1
REST_SECONDS = 0.5
REST_WITHIN_SECONDS = 30.0

#: Deadline of an HTTP client's work.
POST_SECONDS = 120.0

#: Deadline of the API's answers about its counts.
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Requests that the API received; `last_unix_seconds` is the time of the last distinct key."""

    requests: int
    distinct: int
    last_unix_seconds: float

    @property
    def repeats(self) -> int:
        """Requests with a key that was received before."""
        return self.requests - self.distinct


class Api:
    """Client of the trivial API's counts."""

    def __init__(self, url: str, child: Child) -> None:
        self.url = url
        self.child = child
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_SECONDS)

    def counts(self) -> Counts:
        """Return the counts so far."""
        return Counts(**json.loads(self._get("/counts")))

    def receipts(self) -> dict[str, float]:
        """Return each event's first reception in Unix seconds, by its id, with which its key begins."""
        lines = (line.split("\t") for line in self._get("/receipts").decode().splitlines())
        return {key.rpartition(".")[0]: float(seconds) for key, seconds in lines}

    def _get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        return self._connection.getresponse().read()


class Rig:
    """The running parts; `rig()` makes one."""

    def __init__(self, server: EmbeddedRedis, children: Children, directory: Path) -> None:
        self.redis = server
        self.client = redis.Redis.from_url(server.url)
        self._children = children
        self._directory = directory
        self._environment = {**bare_environment(), "RELAY_REDIS_URL": server.url}
        self.api = self._start_api()
        self._environment |= {"RELAY_API_URL": self.api.url, "RELAY_API_TOKEN": "benchmark"}
        self._watched = [self.api.child]

    def start_worker(self, app: str, ready: Callable[[], bool]) -> Child:
        """Start `celery -A app worker` with its own defaults, and return once it is ready and at rest."""
        argv = [sys.executable, "-m", "celery", "-A", app, "worker"]
        worker = self._start("worker", argv, ready)
        self._watched.append(worker)
        _await_rest(worker)
        return worker

    def start_producers(self, design: str, total: int) -> Producers:
        """Start the producers, and return once all wait for the signal."""
        started = []
        for share in range(PRODUCERS):
            name = f"producer-{share}"
            argv = [sys.executable, "-m", "benchmarks.producing", design, str(share), str(total)]
            started.append(self._start(name, argv, partial(_is_ready, self._log(name))))
        return Producers(started)

    def start_gateway(self) -> str:
        """Start `relay gateway`, and return its URL once it listens."""
        self._environment["RELAY_GATEWAY__TOKEN"] = self._environment["RELAY_API_TOKEN"]
        return self.start_server("gateway", "relay", "gateway", "--port", "0")

    def start_server(self, name: str, module: str, *arguments: str) -> str:
        """Start a server module, and return the URL at the end of its first line."""
        log = self._log(name)
        argv = [sys.executable, "-m", module, *arguments]
        self._watched.append(self._start(name, argv, lambda: log.read_text().endswith("\n")))
        return log.read_text().split()[-1]

    def post(self, url: str, body: str, *options: str) -> Posted:
        """POST from a process of its own (posting.py), and return its figures."""
        file = self._directory / "body.json"
        file.write_text(body)
        argv = [sys.executable, "-m", "benchmarks.posting", url, str(file), *options]
        done = subprocess.run(
            argv, env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=POST_SECONDS, check=True
        )
        return Posted(**json.loads(done.stdout))

    def wait_until(self, done: Callable[[], bool], within_seconds: float) -> bool:
        """Wait for a condition and return whether it held in time; raise `ChildFailed` if a part ended."""
        deadline = time.monotonic() + within_seconds
        while not done():
            for child in self._watched:
                if ended := child.poll():
                    raise ChildFailed(f"{ended} in the middle of the run; its log ends:\n{child.log_tail()}")
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _start_api(self) -> Api:
        log = self._log("api")
        child = self._start(
            "api", [sys.executable, "-m", "benchmarks.trivial_api"], lambda: log.read_text().endswith("/\n")
        )
        return Api(log.read_text().strip(), child)

    def _start(self, name: str, argv: Sequence[str], ready: Callable[[], bool]) -> Child:
        return self._children.start(name, argv, env=self._environment, log_path=self._log(name), ready=ready)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


@dataclass(frozen=True, kw_only=True)
class Posted:
    """Figures of an HTTP client: answers by status (0 for none), and latencies in milliseconds."""

    requests: int
    statuses: dict[str, int]
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_seconds: float

    @classmethod
    def together(cls, parts: Sequence[Posted]) -> Posted:
        """Merge several; the p50 is the middle one of theirs, the p99 the worst."""
        statuses: Counter[str] = Counter()
        for part in parts:
            statuses.update(part.statuses)
        return cls(
            requests=sum(part.requests for part in parts),
            statuses=dict(statuses),
            seconds=sum(part.seconds for part in parts),
            p50_ms=median(part.p50_ms for part in parts),
            p99_ms=max(part.p99_ms for part in parts),
            max_ms=max(part.max_ms for part in parts),
            cpu_seconds=sum(part.cpu_seconds for part in parts),
        )

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class Producers:
    """The producer processes, ready to go."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    def go(self) -> float:
        """Start all; return the time in Unix seconds."""
        now = time.time()
        for child in self._children:
            child.signal(signal.SIGUSR1)
        return now

    def results(self, within_seconds: float) -> list[Produced]:
        """Return each producer's figures once all have ended; raise `ChildFailed` if one did not or failed."""
        deadline = time.monotonic() + within_seconds
        results = []
        for child in self._children:
            ended = child.wait(max(0.0, deadline - time.monotonic()))
            if ended is None or ended.code:
                what = ended or f"{child.name} did not end in time"
                raise ChildFailed(f"{what}; its log ends:\n{child.log_tail()}")
            results.append(Produced(**json.loads(child.log_tail().splitlines()[-1])))
        return results


@dataclass(frozen=True, kw_only=True)
class Produced:
    """One producer's figures: events, its processor time for them, and its end in Unix seconds."""

    reported: int
    cpu_seconds: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class Used:
    """Processor seconds by part, and the share of the machine that everything else used."""

    by_part: dict[str, float]
    others_share: float


class Meter:
    """Processor seconds of the parts of a rig between its making and `read`."""

    def __init__(self, rig: Rig, worker: Child) -> None:
        self._leaders = {"redis": rig.redis.pid, "worker": worker.pid, "api": rig.api.child.pid}
        self._started = time.monotonic()
        self._machine = processor_time.of_machine()
        self._before = self._of_parts()

    def read(self, produced: Sequence[Produced]) -> Used:
        """Return the processor time used since."""
        grown = {name: seconds - self._before[name] for name, seconds in self._of_parts().items()}
        by_part = {"producers": sum(each.cpu_seconds for each in produced), **grown}
        others = processor_time.of_machine() - self._machine - sum(by_part.values())
        there_were = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return Used(by_part=by_part, others_share=max(0.0, others / there_were))  # clocks differ: below 0 is 0

    def _of_parts(self) -> dict[str, float]:
        return {name: processor_time.of_session(leader) for name, leader in self._leaders.items()}


@contextmanager
def rig() -> Iterator[Rig]:
    """Run a fresh Redis (append-only file, synced every second) and a fresh trivial API."""
    with (
        tempfile.TemporaryDirectory(prefix="relay-benchmark-") as directory,
        EmbeddedRedis(append_only=True, append_fsync="everysec") as server,
        Children() as children,
    ):
        yield Rig(server, children, Path(directory))


def bare_environment() -> dict[str, str]:
    """Return this process's environment without any relay setting, and with this checkout to import from.

    Compiled modules are kept and used, as an installed relay's are.
    """
    dropped = ("RELAY_", "ATOMIST_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


def _is_ready(log: Path) -> bool:
    return log.read_text().startswith("ready\n")


def _await_rest(worker: Child) -> None:
    """Wait until a worker's children have started, too: it is ready before they are."""
    deadline = time.monotonic() + REST_WITHIN_SECONDS
    before = processor_time.of_session(worker.pid)
    while time.monotonic() < deadline:
        time.sleep(REST_SECONDS)
        now = processor_time.of_session(worker.pid)
        if now - before < REST_SHARE * REST_SECONDS:
            return
        before = now
    raise ChildFailed(f"{worker.name} found no rest within {REST_WITHIN_SECONDS:g} s of its start")
