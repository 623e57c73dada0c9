"""`python -m benchmarks [NAME…]`: measure, print tables, and exit with 1 if a run lost or repeated an event.

A requirement that is missed is told and changes no exit code: on a busy machine that says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import cold_start, end_to_end, gateway, latency, plain
from benchmarks.rig import ROOT
from relay.errors import RelayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.end_to_end import EndToEnd
    from benchmarks.throughput import Throughput

#: How long git may take to name the commit.
GIT_SECONDS = 10.0

#: In the order of running.
BENCHMARKS: dict[str, Any] = {
    "end-to-end": end_to_end,
    "plain": plain,
    "latency": latency,
    "cold-start": cold_start,
    "gateway": gateway,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; gives the exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that directories are removed
    chosen = list(BENCHMARKS) if "all" in options.names else list(dict.fromkeys(options.names))
    print(f"{_machine()}, load {os.getloadavg()[0]:.1f}\n")
    try:
        results = _measure(chosen, options.runs, options.events)
    except (RelayError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, runs in results.items():
        print(BENCHMARKS[name].told(runs) + "\n")
    if {"end-to-end", "plain"} <= results.keys():
        print(_compared(results["end-to-end"], results["plain"]) + "\n")
    if options.json:
        options.json.write_text(json.dumps(_record(results), indent=2) + "\n")
    faults = [f"{name}: {fault}" for name, runs in results.items() for run in runs for fault in run.faults]
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if faults else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*BENCHMARKS, "all"], default="all", metavar="NAME", help="|".join(BENCHMARKS)
    )
    parser.add_argument(
        "--events", type=_count, help="instead of each benchmark's own number; with `all`, of end-to-end's"
    )
    parser.add_argument("--runs", type=_count, default=1, help="of each benchmark, one of each in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _measure(chosen: Sequence[str], runs: int, events: int | None) -> dict[str, list[Any]]:
    results: dict[str, list[Any]] = {name: [] for name in chosen}
    for number in range(runs):
        for name in chosen:
            print(f"{name}, run {number + 1} of {runs} …", file=sys.stderr, flush=True)
            its_own = len(chosen) == len(BENCHMARKS) and name != "end-to-end"
            results[name].append(BENCHMARKS[name].measure(None if its_own else events))
    return results


def _compared(relay: Sequence[EndToEnd], other: Sequence[Throughput]) -> str:
    faster = median(run.events_per_second for run in relay) / median(run.events_per_second for run in other)
    cheaper = median(run.microseconds_an_event() for run in other) / median(
        run.throughput.microseconds_an_event() for run in relay
    )
    return f"The relay does {faster:.1f} times the plain design's events/s, at 1/{cheaper:.1f} of the processor time"


def _record(results: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        "machine": _machine(),
        "time": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "runs": {name: [asdict(run) for run in runs] for name, runs in results.items()},
    }


def _machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, "
        f"{platform.python_implementation()} {platform.python_version()}, commit {_commit()}"
    )


def _commit() -> str:
    """Return what was measured, with `-dirty` if the checkout has changes."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
