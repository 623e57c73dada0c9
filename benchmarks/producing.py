"""One producer process: `python -m benchmarks.producing relay|plain SHARE TOTAL`.

It imports and connects, prints `ready`, waits for SIGUSR1, reports its share of the workload, and prints as JSON
what that took.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.workload import deployments

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long to wait for the signal.
GO_SECONDS = 120.0


def with_the_relay(share: int, total: int) -> Callable[[], int]:
    """Return what reports the share through `Producer.report_stream`."""
    from relay import DeploymentEvent, Producer  # noqa: PLC0415 - a producer imports what it needs, and no more

    producer = Producer()

    def report() -> int:
        events = (DeploymentEvent.of(image, environment=name) for image, name in deployments(share, total))
        with producer:
            return sum(1 for _ in producer.report_stream(events))

    return report


def with_plain_celery(share: int, total: int) -> Callable[[], int]:
    """Return what reports the share as one Celery task an event."""
    from benchmarks.plain_worker import REPORT, app  # noqa: PLC0415 - as above

    def report() -> int:
        reported = 0
        for image, name in deployments(share, total):
            body = {
                "image": {"url": image},
                "environment": {"name": name},
                "platform": {"os": "linux", "architecture": "amd64"},
            }
            app.send_task(REPORT, args=[body], ignore_result=True)
            reported += 1
        return reported

    app.connection_for_write().ensure_connection(timeout=5)
    return report


def main(design: str, share: int, total: int) -> int:
    """Prepare, wait, report, and tell; gives the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    report = {"relay": with_the_relay, "plain": with_plain_celery}[design](share, total)
    print("ready", flush=True)
    if signal.sigtimedwait([signal.SIGUSR1], GO_SECONDS) is None:
        return 1
    cpu_before = time.process_time()
    reported = report()
    cpu_seconds = time.process_time() - cpu_before
    print(json.dumps({"reported": reported, "cpu_seconds": cpu_seconds, "ended": time.time()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
