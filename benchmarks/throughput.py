"""One run of a design: concurrent producers, worker and API, until the last delivery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.report import table
from benchmarks.rig import Meter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rig import Rig
    from relay.processes.supervisor import Child

#: Minimum rate, below which a run is abandoned, and the tolerance for start and stop.
SLOWEST_EVENTS_PER_SECOND = 100
GRACE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Figures of a run. Seconds count from the signal to the producers; `cpu_seconds` are by part.

    `others_share` is how much of all processors was taken by what has no part in the run, this process included:
    well above a few percent, the run was disturbed.
    """

    events: int
    received: int
    repeats: int
    produced_seconds: float
    seconds: float
    cpu_seconds: dict[str, float]
    others_share: float

    @property
    def events_per_second(self) -> float:
        """Distinct events that the API received, over the time until it received the last of them."""
        return self.received / self.seconds

    def microseconds_an_event(self, part: str | None = None) -> float:
        """Return the processor time per event of one part, or of all."""
        used = sum(self.cpu_seconds.values()) if part is None else self.cpu_seconds[part]
        return 1e6 * used / self.events

    @property
    def faults(self) -> list[str]:
        """Defects that make the run invalid."""
        faults = []
        if self.received != self.events:
            faults.append(f"{self.events} events were reported, and {self.received} came to the API")
        if self.repeats:
            faults.append(f"{self.repeats} requests came more than once")
        return faults


def run(rig: Rig, worker: Child, design: str, events: int) -> Throughput:
    """Report all events, and wait until the API has them or the deadline is over."""
    within_seconds = GRACE_SECONDS + events / SLOWEST_EVENTS_PER_SECOND
    producers = rig.start_producers(design, events)
    meter = Meter(rig, worker)
    started = producers.go()
    rig.wait_until(lambda: rig.api.counts().distinct >= events, within_seconds)
    produced = producers.results(GRACE_SECONDS)
    used = meter.read(produced)
    counts = rig.api.counts()
    return Throughput(
        events=sum(each.reported for each in produced),
        received=counts.distinct,
        repeats=counts.repeats,
        produced_seconds=max(each.ended for each in produced) - started,
        seconds=max(counts.last_unix_seconds - started, 1e-9),
        cpu_seconds=used.by_part,
        others_share=used.others_share,
    )


def costs(runs: Sequence[Throughput]) -> str:
    """Format the runs' processor times."""
    parts = list(runs[0].cpu_seconds)
    rows = [
        [
            *(f"{run.microseconds_an_event(part):,.0f}" for part in parts),
            f"{run.microseconds_an_event():,.0f}",
            f"{run.others_share:.0%}",
        ]
        for run in runs
    ]
    title = "Processor time, microseconds an event; and the others' share of the machine:"
    return f"{title}\n{table([*parts, 'all', 'others'], rows)}"
