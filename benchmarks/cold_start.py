"""How long a fresh process takes to a usable Producer, beside what importing its two libraries alone takes."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.report import table, verdict
from benchmarks.rig import bare_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Starts of each program, one after the other in turn.
STARTS = 15

STARTED_WITHIN_SECONDS = 30.0

REQUIRED_RATIO = 1.4

INTERPRETER, LIBRARIES, PRODUCER = "python alone", "redis and pydantic", "relay.Producer"

PROGRAMS = {
    INTERPRETER: "pass",
    LIBRARIES: """
import redis
from pydantic import BaseModel

class Event(BaseModel):
    image: str
    environment: str = "deployed"

Event(image="registry.example.com/app")
""",
    PRODUCER: """
from relay import Producer

Producer("redis://127.0.0.1:6379/0")
""",
}

#: What no producer may have to import.
FORBIDDEN = frozenset({"celery", "kombu", "billiard", "pycurl"})


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """One run: the seconds that each start of each program took, and what the producer imported in vain."""

    seconds: dict[str, list[float]]
    forbidden: list[str]

    @property
    def faults(self) -> list[str]:
        """What makes the run a failure."""
        return [f"relay.Producer imports {name}" for name in self.forbidden]

    def ratio(self, *, net: bool) -> float:
        """Return producer to libraries, of the medians; `net` takes the interpreter's own start off both."""
        medians = {name: median(seconds) for name, seconds in self.seconds.items()}
        start = medians[INTERPRETER] if net else 0.0
        return (medians[PRODUCER] - start) / (medians[LIBRARIES] - start)


def measure(_: int | None) -> ColdStart:
    """Start each program `STARTS` times, in turn, after one start of each that nobody times; there are no events."""
    forbidden = sorted(FORBIDDEN & _imported(PROGRAMS[PRODUCER]))
    for program in PROGRAMS.values():
        _start(program)
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(STARTS):
        for name, program in PROGRAMS.items():
            begun = time.perf_counter()
            _start(program)
            seconds[name].append(time.perf_counter() - begun)
    return ColdStart(seconds=seconds, forbidden=forbidden)


def told(runs: Sequence[ColdStart]) -> str:
    """Return what the runs showed, to be printed."""
    rows = [
        [name, f"{min(seconds) * 1000:.0f}", f"{median(seconds) * 1000:.0f}"]
        for run in runs
        for name, seconds in run.seconds.items()
    ]
    ratio = median(run.ratio(net=True) for run in runs)
    gross = median(run.ratio(net=False) for run in runs)
    title = f"Cold start: {len(runs[0].seconds[PRODUCER])} starts of each, in turn"
    result = (
        f"Producer to libraries: {ratio:.2f} without the interpreter's own start, {gross:.2f} with it;"
        f" required {REQUIRED_RATIO:g}: {verdict(passed=ratio <= REQUIRED_RATIO)}"
    )
    return "\n".join([title, table(["program", "min ms", "median ms"], rows), result])


def _start(program: str, *options: str) -> str:
    """Run a program in a fresh interpreter; return what it wrote to its standard error."""
    return subprocess.run(
        [sys.executable, *options, "-c", program],
        env=bare_environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=STARTED_WITHIN_SECONDS,
    ).stderr


def _imported(program: str) -> set[str]:
    """Return the top-level packages that a program imports."""
    lines = _start(program, "-X", "importtime").splitlines()
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
