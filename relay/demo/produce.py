"""One of the demo's producers, a process of its own: replays its part of the shipped log.

    python -m relay.demo.produce PART PARTS EVENTS_PER_SECOND

What is well-formed goes through `Producer`, as from a pipeline that uses the library; what is not goes straight
into the stream, as from somebody's shell script. The order is the log's.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from typing import TYPE_CHECKING

from relay.connections.clients import connect
from relay.demo.counters import partition
from relay.demo.estate import shipped_log
from relay.errors import InvalidEvent
from relay.events.event import DeploymentEvent
from relay.producer.queue_producer import Producer
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.demo.counters import Entry

#: Entries sent together, before the pace is looked at.
BURST = 50


def produce(part: int, parts: int, events_per_second: float) -> None:
    """Replay one part at this rate; 0 is as fast as it goes."""
    settings = Settings.load()
    entries = iter(partition(shipped_log(), parts)[part])
    started, sent = time.monotonic(), 0
    with Producer(settings=settings) as producer, connect(settings.redis) as client:
        inbox = Keys(settings.queue.namespace).inbox
        while burst := list(islice(entries, BURST)):
            for run in _runs(burst):
                if isinstance(run, dict):
                    client.xadd(inbox, run)
                else:
                    producer.report_many(run)
            sent += len(burst)
            if events_per_second:
                time.sleep(max(0.0, started + sent / events_per_second - time.monotonic()))


def _runs(entries: list[Entry]) -> Iterator[list[DeploymentEvent] | Entry]:
    """Split entries into runs of good events and single bad entries, in their order."""
    good: list[DeploymentEvent] = []
    for entry in entries:
        try:
            fields = {name: value for name, value in entry.items() if name != "event"}
            good.append(DeploymentEvent.parse(entry["event"], **fields))
        except InvalidEvent:
            if good:
                yield good
                good = []
            yield entry
    if good:
        yield good


if __name__ == "__main__":
    produce(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
