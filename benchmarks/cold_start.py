"""How long a fresh process takes to a usable Producer, and a whole `relay report`, beside importing two libraries."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.report import decision, table
from benchmarks.rig import bare_environment
from relay.processes.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Starts of each program, one after the other in turn.
STARTS = 15

STARTED_WITHIN_SECONDS = 30.0

INTERPRETER, LIBRARIES, PRODUCER, REPORT = "python alone", "redis and pydantic", "relay.Producer", "relay report"

#: What may take how many times as long as the libraries alone, without the interpreter's own start.
REQUIRED_RATIOS = {PRODUCER: 1.4, REPORT: 1.6}

#: Program → what Python is started with.
PROGRAMS = {
    INTERPRETER: ("-c", "pass"),
    LIBRARIES: (
        "-c",
        """
import redis
from pydantic import BaseModel

class Event(BaseModel):
    image: str
    environment: str = "deployed"

Event(image="registry.example.com/app")
""",
    ),
    PRODUCER: ("-c", 'from relay import Producer; Producer("redis://127.0.0.1:6379/0")'),
    REPORT: ("-m", "relay", "report", f"registry.example.com/app@sha256:{'0' * 64}"),
}

#: What neither may have to import.
FORBIDDEN = frozenset({"celery", "kombu", "billiard", "pycurl", "requests", "rich", "starlette"})


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """One run: the seconds that each start of each program took, and what the producer imported in vain."""

    seconds: dict[str, list[float]]
    forbidden: list[tuple[str, str]]

    @property
    def faults(self) -> list[str]:
        """What makes the run a failure."""
        return [f"{program} imports {name}" for program, name in self.forbidden]

    def ratio(self, program: str, *, net: bool) -> float:
        """Return a program to the libraries, of the medians; `net` takes the interpreter's own start off both."""
        medians = {name: median(seconds) for name, seconds in self.seconds.items()}
        start = medians[INTERPRETER] if net else 0.0
        return (medians[program] - start) / (medians[LIBRARIES] - start)


def measure(_: int | None) -> ColdStart:
    """Start each program `STARTS` times, in turn, after one start of each that is not timed and compiles it."""
    with EmbeddedRedis(append_only=False) as redis:
        environment = {**bare_environment(), "RELAY_REDIS_URL": redis.url}
        forbidden = [
            (program, name)
            for program in REQUIRED_RATIOS
            for name in sorted(FORBIDDEN & _imported(program, environment))
        ]
        for program in PROGRAMS.values():
            _start(program, environment)
        seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(STARTS):
            for name, program in PROGRAMS.items():
                begun = time.perf_counter()
                _start(program, environment)
                seconds[name].append(time.perf_counter() - begun)
    return ColdStart(seconds=seconds, forbidden=forbidden)


def told(runs: Sequence[ColdStart]) -> str:
    """Return what the runs showed, to be printed."""
    rows = [
        [name, f"{min(seconds) * 1000:.0f}", f"{median(seconds) * 1000:.0f}"]
        for run in runs
        for name, seconds in run.seconds.items()
    ]
    title = f"Cold start: {len(runs[0].seconds[PRODUCER])} starts of each, in turn"
    results = [_result(program, runs) for program in REQUIRED_RATIOS]
    return "\n".join([title, table(["program", "min ms", "median ms"], rows), *results])


def _result(program: str, runs: Sequence[ColdStart]) -> str:
    required = REQUIRED_RATIOS[program]
    ratio = median(run.ratio(program, net=True) for run in runs)
    gross = median(run.ratio(program, net=False) for run in runs)
    return (
        f"{program} to libraries: {ratio:.2f} without the interpreter's own start, {gross:.2f} with it;"
        f" required {required:g}: {decision(passed=ratio <= required)}"
    )


def _start(program: Sequence[str], environment: dict[str, str], *options: str) -> str:
    """Run a program in a fresh interpreter; return what it wrote to its standard error."""
    return subprocess.run(
        [sys.executable, *options, *program],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=STARTED_WITHIN_SECONDS,
    ).stderr


def _imported(program: str, environment: dict[str, str]) -> set[str]:
    """Return the top-level packages that a program imports."""
    lines = _start(PROGRAMS[program], environment, "-X", "importtime").splitlines()
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
