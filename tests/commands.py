"""The command line of each service: docker-compose.yml runs these in containers, the acceptance tests as processes.

tests/unit/test_packaging.py holds the two together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from relay.processes.stack import FLOWER

WORKER = ("relay", "worker")
GATEWAY = ("relay", "gateway")
SANDBOX = ("relay", "sandbox", "--host", "*")
METRICS = ("relay", "metrics", "--host", "*")

#: In Kubernetes only; compose has none.
WATCHER = ("relay", "watch", "kubernetes", "--heartbeat", "/tmp/alive")  # noqa: S108 - the pod's own

SERVICES = {"worker": WORKER, "gateway": GATEWAY, "flower": FLOWER, "sandbox": SANDBOX, "metrics": METRICS}


def here(command: tuple[str, ...], *options: str) -> list[str]:
    """Return the command as a process of this Python's environment, whatever PATH says; options go at its end."""
    program, *arguments = command
    return [str(Path(sys.executable).with_name(program)), *arguments, *options]
