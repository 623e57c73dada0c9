"""A whole relay as real processes: a Redis, Celery workers, and the sandbox API over sockets."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from relay import DeploymentEvent, Producer
from relay.queue.counters import read_counters
from relay.queue.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from relay.processes.stack import Stack
    from relay.processes.supervisor import Child
    from relay.queue.counters import Counters
    from relay.sandbox import Sandbox

TOKEN = "canary-token-of-the-tests"

MEBIBYTE = 2**20

#: Found once: some tests empty PATH.
PS = shutil.which("ps") or "ps"

#: A value that takes a mebibyte with Redis's overhead; beyond it allocators round up to the next size.
FILLER = b"x" * (MEBIBYTE - 64)

#: Timers scaled down, so that a fault is over in seconds.
TIMERS = {
    "RELAY_API__TIMEOUT": "1s",
    "RELAY_WORKER__LEASE": "2s",
    "RELAY_WORKER__BUDGET": "1s",
    "RELAY_WORKER__SWEEP": "1s",
    "RELAY_DELIVERY__BACKOFF_INITIAL": "50ms",
    "RELAY_DELIVERY__BACKOFF_MAX": "200ms",
    "RELAY_DELIVERY__MAX_ATTEMPTS": "5",
}


class Estate:
    """A running relay: its queue, its counters and the API."""

    def __init__(self, stack: Stack, client: Redis, api: Sandbox) -> None:
        self.stack = stack
        self.client = client
        self.api = api
        self.keys = Keys()

    def xadd(self, body: str, **fields: str) -> None:
        """Add an entry to the inbox as redis-cli would."""
        self.client.xadd("{relay:0}:inbox", {"event": body, **fields})

    def start_worker(self, name: str = "worker", concurrency: int = 1) -> Child:
        """Start a worker of one process, which starts faster than several."""
        return self.stack.start_worker(name, concurrency=concurrency)

    def report(
        self, count: int, *, first: int = 0, version: str = "", environment: str = "deployed", ids: str = ""
    ) -> None:
        """Report one version of each of so many instances, with ids that begin with `ids` if given."""
        with Producer(self.stack.redis_url) as producer:
            producer.report_many(
                DeploymentEvent.of(image(n, version), environment=environment, id=f"{ids}{n}" if ids else None)
                for n in range(first, first + count)
            )

    def log(self, name: str = "worker") -> str:
        return self.stack.log_path(name).read_text(encoding="utf-8", errors="replace")

    def counters(self) -> Counters:
        return read_counters(self.client, self.keys)

    def wait_until_done(self, added: int, timeout_seconds: float = 30) -> Counters:
        """Wait until this many were added and nothing waits."""
        counters = self.counters()

        def done() -> bool:
            nonlocal counters
            counters = self.counters()
            return counters.added >= added and not counters.waiting

        wait_for(done, timeout_seconds, lambda: f"{counters}")
        return counters


def image(number: int, version: str = "") -> str:
    return f"ghcr.io/acme/app-{number}@sha256:{sha256(f'{version} {number}'.encode()).hexdigest()}"


def wait_for(
    condition: Callable[[], bool], timeout_seconds: float = 10, seen: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {seen()}"
        time.sleep(0.01)


def pool_processes(pid: int) -> list[int]:
    """Return the pool's processes: a worker's living children without multiprocessing's own."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _proc(task / "children").split()
    ]
    return [child for child in children if b"spawn_main" in _proc(Path(f"/proc/{child}/cmdline"))]


def event_of(key: str | None) -> str:
    """Return the event id in a request's idempotency key."""
    assert key
    return key.rpartition(".")[0]


def is_alive(pid: int) -> bool:
    """A zombie is dead: its parent may be another process."""
    state = subprocess.run([PS, "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _proc(file: Path) -> bytes:
    """Return the contents of a file of /proc; nothing once its process or thread has ended."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
