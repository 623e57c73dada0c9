"""One of the demo's producers, a process of its own: replays its part of the estate's log.

    python -m relay.demo.produce FILE EVENTS_PER_SECOND

FILE has one queue entry in JSON a line. Valid events go through `Producer`, as from a pipeline that uses the library;
invalid ones go straight into the stream, as from a shell script. The order is the file's.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from relay.connections.clients import connect
from relay.errors import InvalidEvent
from relay.events.event import DeploymentEvent
from relay.producer.queue_producer import Producer
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.demo.estate import Entry

#: Entries sent together before the rate is checked.
BURST = 50


def produce(file: Path, events_per_second: float) -> None:
    """Replay a file at this rate; 0 is unbounded."""
    settings = Settings.load()
    entries = (json.loads(line) for line in file.read_text().splitlines())
    started, sent = time.monotonic(), 0
    with Producer(settings=settings) as producer, connect(settings.redis) as client:
        inbox = Keys(settings.queue.namespace).inbox
        while burst := list(islice(entries, BURST)):
            for batch in _batches(burst):
                if isinstance(batch, dict):
                    client.xadd(inbox, batch)
                else:
                    producer.report_many(batch)
            sent += len(burst)
            if events_per_second:
                time.sleep(max(0.0, started + sent / events_per_second - time.monotonic()))


def _batches(entries: list[Entry]) -> Iterator[list[DeploymentEvent] | Entry]:
    """Split entries into batches of valid events and single invalid entries, in their order."""
    valid: list[DeploymentEvent] = []
    for entry in entries:
        try:
            fields = {name: value for name, value in entry.items() if name != "event"}
            valid.append(DeploymentEvent.parse(entry["event"], **fields))
        except InvalidEvent:
            if valid:
                yield valid
                valid = []
            yield entry
    if valid:
        yield valid


if __name__ == "__main__":
    produce(Path(sys.argv[1]), float(sys.argv[2]))
