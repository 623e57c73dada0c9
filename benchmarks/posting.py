"""A client that POSTs over many kept-alive connections: `python -m benchmarks.posting URL BODY_FILE …`.

Asks with libcurl's multi interface, so that it costs little beside what it measures, and prints what it saw as JSON.
Paced, a request's latency counts from when it was due, whether or not a connection was free then.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, deque
from math import ceil
from pathlib import Path

import pycurl

#: Headers of the requests.
AUTHORIZATION = "Authorization: Bearer benchmark"

#: Deadline of one request.
TIMEOUT_SECONDS = 30

#: Maximum wait for sockets at a time.
SELECT_SECONDS = 0.001


def main() -> None:
    """Post for a number of seconds and print the figures."""
    options = _options()
    client = _Client(options)
    sys.stdout.write(json.dumps(client.run()) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("body", type=Path, help="a file with the body; @N@ in it becomes the request's number")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: unbounded")
    return parser.parse_args()


class _Client:
    """The connections and their figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._before, self._mark, self._after = options.body.read_bytes().partition(b"@N@")
        self._rate = options.rate
        self._seconds = options.seconds
        self._multi = pycurl.CurlMulti()
        self._idle = deque(self._connection(options.url) for _ in range(options.connections))
        self._connections = options.connections
        self._due: dict[pycurl.Curl, float] = {}
        self._number = 0
        self._statuses: Counter[int] = Counter()
        self._seconds_taken: list[float] = []

    def run(self) -> dict[str, object]:
        """Post, then wait for the last answers."""
        started = time.perf_counter()
        until = started + self._seconds
        while (now := time.perf_counter()) < until:
            self._send(started, now)
            self._hear()
        ended = time.perf_counter()
        while self._due:
            self._hear()
        taken = sorted(self._seconds_taken)
        return {
            "requests": len(taken),
            "statuses": dict(self._statuses),
            "seconds": ended - started,
            "p50_ms": _percentile(taken, 50),
            "p99_ms": _percentile(taken, 99),
            "max_ms": _percentile(taken, 100),
            "cpu_seconds": time.process_time(),
        }

    def _send(self, started: float, now: float) -> None:
        while self._idle:
            due = started + self._number / self._rate if self._rate else now
            if due > now:
                return
            connection = self._idle.popleft()
            body = self._before + (b"%d" % self._number if self._mark else b"") + self._after
            connection.setopt(pycurl.POSTFIELDS, body)
            self._number += 1
            self._due[connection] = due
            self._multi.add_handle(connection)

    def _hear(self) -> None:
        self._multi.perform()
        _, answered, failed = self._multi.info_read()
        now = time.perf_counter()
        for connection in answered:
            self._end(connection, now, connection.getinfo(pycurl.RESPONSE_CODE))
        for connection, *_ in failed:
            self._end(connection, now, 0)
        if not answered:
            self._multi.select(SELECT_SECONDS)

    def _end(self, connection: pycurl.Curl, now: float, status: int) -> None:
        self._multi.remove_handle(connection)
        self._seconds_taken.append(now - self._due.pop(connection))
        self._statuses[status] += 1
        self._idle.append(connection)

    @staticmethod
    def _connection(url: str) -> pycurl.Curl:
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.HTTPHEADER, ["Content-Type: application/json", AUTHORIZATION, "Expect:"])
        curl.setopt(pycurl.WRITEFUNCTION, len)
        curl.setopt(pycurl.TIMEOUT, TIMEOUT_SECONDS)
        curl.setopt(pycurl.TCP_NODELAY, 1)
        return curl


def _percentile(ordered: list[float], percent: int) -> float:
    """Return a percentile by the nearest rank, in milliseconds."""
    return ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)] * 1000 if ordered else 0.0


if __name__ == "__main__":
    main()
