"""Flower, the real one, as the README starts it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import requests
from rig import TOKEN, wait_for

from relay.embedded import free_port

if TYPE_CHECKING:
    from rig import Estate

BODY = {"image": {"url": f"docker.io/library/nginx@sha256:{'a' * 64}"}}


def test_flower_shows_the_tasks_and_no_secret(estate: Estate) -> None:
    port = free_port()
    estate.start_worker()
    estate.stack.environment["FLOWER_BASIC_AUTH"] = "operator:password-of-the-tests"
    argv = ["-m", "celery", "-A", "workers", "flower", f"--port={port}", "--address=127.0.0.1", "--max-tasks=10000"]
    flower = estate.stack.start("flower", argv)
    url = f"http://127.0.0.1:{port}/api/tasks"
    seen: dict[str, dict[str, str]] = {}

    def shows_a_finished_task() -> bool:
        """Flower sees only what happens while it listens, so give it something to see at each look."""
        nonlocal seen
        estate.xadd(json.dumps(BODY))
        try:
            seen = requests.get(url, auth=("operator", "password-of-the-tests"), timeout=2).json()
        except requests.RequestException:
            return False
        return any(task["state"] == "SUCCESS" and task["name"] for task in seen.values())

    try:
        wait_for(shows_a_finished_task, 30, lambda: estate.stack.log_path("flower").read_text())
        names = {task["name"] for task in seen.values() if task["name"]}  # none if its receipt went before
        assert names <= {"relay.intake", "relay.deliver", "relay.forget"}, (
            "an echo is no task that anybody wants to see"
        )
        assert TOKEN not in json.dumps(seen)
        assert requests.get(url, timeout=2).status_code == 401
    finally:
        flower.kill()  # Flower 2.2 hangs on SIGTERM
