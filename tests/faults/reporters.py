"""Many processes that report one event at the same moment: `python reporters.py COUNT IMAGE ENVIRONMENT ID`.

Each prints a line once its report returned: the lines are the acknowledgements.
"""

from __future__ import annotations

import os
import sys
import time

from relay import Producer

#: Time for all processes to start.
START_SECONDS = 0.3


def main(count: int, image: str, environment: str, event_id: str) -> int:
    """Fork, and return the number of those that failed."""
    at = time.monotonic() + START_SECONDS
    children = []
    for _ in range(count):
        child = os.fork()
        if not child:
            _report(at, image, environment, event_id)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _report(at: float, image: str, environment: str, event_id: str) -> None:
    failed = 1
    try:
        time.sleep(max(0.0, at - time.monotonic()))
        with Producer() as producer:
            producer.report(image, environment=environment, id=event_id)
        os.write(sys.stdout.fileno(), b"acknowledged\n")
        failed = 0
    finally:
        os._exit(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
