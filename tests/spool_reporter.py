"""A program that reports through a spool until it is killed: `python spool_reporter.py DIR NAME FIRST COUNT`.

It prints the id of each acknowledged event.
"""

from __future__ import annotations

import os
import sys

from relay import Producer
from relay.settings import Settings

DIGEST = "sha256:" + "0123456789abcdef" * 4


def main(directory: str, name: str, first: int, count: int) -> None:
    settings = Settings.load(redis={"timeout": 2, "connect_timeout": 2})
    with Producer(settings=settings, spool=directory) as producer:
        for number in range(first, first + count):
            event_id = producer.report(f"ghcr.io/acme/{name}@{DIGEST}", environment="prod", id=f"{name}-{number}")
            os.write(sys.stdout.fileno(), f"{event_id}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
