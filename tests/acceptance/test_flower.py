"""Flower, as `relay up --flower` starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from celery import Celery
from commands import FLOWER
from redis import Redis
from rig import TOKEN, pool_processes, signal_all, wait_for

from relay import DeploymentEvent, Producer
from relay.processes.embedded_redis import EmbeddedRedis
from relay.processes.supervisor import Children
from workers.scheduling.wakeups import DELIVER, INTAKE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig import Estate

LOGIN = ("operator", "password-of-the-tests")
BROKER_PASSWORD = "password-of-the-broker"

#: Deadline of a wait: Flower and a worker start on a loaded machine, and the destination recovers.
SECONDS = 60


class Flower:
    """Flower's API, with the password."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self.process = estate.stack.start_flower(0, basic_auth=":".join(LOGIN))
        self.url = estate.stack.flower_url

    def get(self, path: str) -> Any:
        return self.text(path, "json")

    def text(self, path: str, kind: str = "text") -> Any:
        answer = requests.get(f"{self.url}{path}", auth=LOGIN, timeout=20)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        return answer.json() if kind == "json" else answer.text

    def tasks(self, **wanted: str) -> list[dict[str, Any]]:
        """The tasks with a name: Flower has none for those received before it was connected."""
        tasks = [task for task in self.get("/api/tasks?limit=10000").values() if task["name"]]
        return [task for task in tasks if all(task[key] == value for key, value in wanted.items())]

    def wait_for_tasks(self, **wanted: str) -> list[dict[str, Any]]:
        wait_for(lambda: bool(self.tasks(**wanted)), SECONDS, lambda: json.dumps(self.tasks())[-3000:])
        return self.tasks(**wanted)


@pytest.fixture
def broker(estate: Estate) -> Iterator[EmbeddedRedis]:
    """A broker with a password, which Flower gets too."""
    with EmbeddedRedis(append_only=False) as server:
        with Redis.from_url(server.url) as client:
            client.config_set("requirepass", BROKER_PASSWORD)
        estate.stack.environment["RELAY_BROKER_URL"] = server.url.replace("://", f"://:{BROKER_PASSWORD}@")
        yield server
        with Redis.from_url(estate.stack.environment["RELAY_BROKER_URL"]) as client:
            client.config_set("requirepass", "")


@pytest.fixture
def flower(estate: Estate, broker: EmbeddedRedis) -> Flower:
    estate.start_worker()
    seen = Flower(estate)
    wait_until_connected(estate, seen)
    return seen


def wait_until_connected(estate: Estate, flower: Flower) -> None:
    """Flower sees only events after it has connected: report until it has seen the end of a task."""

    def has_seen_a_task() -> bool:
        estate.report(1, version=f"warm up {time.monotonic()}", environment="warm-up")
        return bool(flower.tasks(state="SUCCESS"))

    wait_for(has_seen_a_task, SECONDS, lambda: estate.stack.log_path("flower").read_text())
    wait_for(lambda: not estate.counters().waiting, SECONDS)


def test_tasks_show_environments_results_and_reasons(estate: Estate, flower: Flower) -> None:
    """A success as such, an outage as a retry with its reason, no failure, and no secret on any page."""
    estate.api.faults = [{"kind": "status", "status": 503}]
    estate.report(40, environment="production")
    retried = flower.wait_for_tasks(state="RETRY", name=DELIVER, args="production")
    assert all("unavailable" in task["exception"] for task in retried)
    assert any("HTTP 503" in task["exception"] for task in retried), retried

    estate.api.faults = []
    wait_for(lambda: not estate.counters().waiting, SECONDS)
    delivered = flower.wait_for_tasks(state="SUCCESS", name=DELIVER, args="production")
    results = [task["result"] for task in delivered]
    assert all(re.fullmatch(r"'(other runs have the leases|production: .* in \d+\.\d s)'", each) for each in results)
    assert any(re.match(r"'production: [1-9]\d* delivered", each) for each in results), results

    tasks = flower.tasks()
    assert {task["name"] for task in tasks} <= {INTAKE, DELIVER, "relay.forget"}, "a probe is not shown"
    assert {task["state"] for task in tasks} <= {"SUCCESS", "RETRY", "RECEIVED", "STARTED"}
    assert {task["worker"].partition("@")[0] for task in tasks} == {"worker"}
    assert not any(task["retries"] for task in tasks), "Celery itself retried a task"

    name = tasks[0]["worker"]
    pages = ("/api/tasks?limit=10000", "/api/workers?refresh=1", "/workers", f"/worker/{name}", "/broker", "/tasks")
    pages += tuple(f"/task/{task['uuid']}" for task in (retried[0], delivered[0]))
    for page in pages:
        assert not [secret for secret in (TOKEN, BROKER_PASSWORD) if secret in flower.text(page)], page
    assert requests.get(f"{flower.url}/api/tasks", timeout=20).status_code == 401


def test_wakeup_for_many_environments_is_shown_shortened(estate: Estate, flower: Flower) -> None:
    """They wait while the destination is unavailable, and one wake-up names them when it has recovered."""
    estate.api.faults = [{"kind": "status", "status": 503, "for_seconds": 3}]
    estate.report(40, environment="production")
    flower.wait_for_tasks(state="RETRY")
    with Producer(estate.stack.redis_url) as producer:
        image = f"ghcr.io/acme/app@sha256:{'a' * 64}"
        producer.report_many(DeploymentEvent.of(image, environment=f"environment-{n}") for n in range(100))
    wait_for(lambda: not estate.counters().waiting, SECONDS)

    def has_long_wakeup() -> bool:
        return any(re.search(r" and \d\d+ more$", task["args"]) for task in flower.tasks(name=DELIVER))

    wait_for(has_long_wakeup, SECONDS, lambda: str([task["args"] for task in flower.tasks(name=DELIVER)]))
    assert max(len(task["args"]) for task in flower.tasks()) < 100


def test_queue_lengths_are_those_of_the_broker(estate: Estate, flower: Flower, broker: EmbeddedRedis) -> None:
    with Celery(broker=estate.stack.environment["RELAY_BROKER_URL"], set_as_current=False) as app:
        worker = next(each.child for each in estate.stack._children._started if each.child.name == "worker")
        processes = [worker.pid, *pool_processes(worker.pid)]
        signal_all(processes, signal.SIGSTOP)
        with Redis.from_url(estate.stack.environment["RELAY_BROKER_URL"]) as client:
            sent = {INTAKE: 3, DELIVER: 5, "celery": 7}
            for name, count in sent.items():
                for _ in range(count):
                    app.send_task("relay.nothing", queue=name, ignore_result=True)
            waiting = {name: int(client.llen(name)) for name in sent}
        assert all(waiting[name] >= sent[name] - 1 for name in sent), (
            "a stopped worker received more than it requested"
        )
        shown = {each["name"]: each["messages"] for each in flower.get("/api/queues/length")["active_queues"]}
        assert {name: shown[name] for name in waiting} == waiting
        signal_all(processes, signal.SIGCONT)


def test_reports_by_celery_are_not_shown(estate: Estate, flower: Flower) -> None:
    """There is one for each event, which would hide all else."""
    added = estate.counters().added
    with Celery(broker=estate.stack.environment["RELAY_BROKER_URL"], set_as_current=False) as app:
        for n in range(20):
            body = {"image": {"url": f"ghcr.io/acme/app-{n}@sha256:{'a' * 64}"}, "environment": {"name": "celery"}}
            app.send_task("relay.report", args=[body], queue="celery", ignore_result=True)
    estate.wait_until_done(added + 20, SECONDS)
    estate.report(1, environment="after")
    wait_for(lambda: any("after: 1 delivered" in str(task["result"]) for task in flower.tasks()), SECONDS)
    assert not flower.tasks(name="relay.report")


def test_command_line_is_that_of_compose(estate: Estate, broker: EmbeddedRedis, tmp_path: Path) -> None:
    flower = Flower(estate)
    argv = flower_argv(flower.process.pid)
    assert set(FLOWER[1:]) <= set(argv)
    assert LOGIN[1] not in " ".join(argv), "every user of the machine can read a command line"
    shown = flower.get("/api/queues/length")["active_queues"]
    assert {each["name"] for each in shown} == {INTAKE, DELIVER, "celery"}, "the queues are known without workers"


def flower_argv(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def test_up_starts_flower_with_a_password_and_goes_on_without_it(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    argv = ["up", "--data", str(tmp_path / "data"), "--port", "0", "--flower", "--flower-port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "FLOWER_BASIC_AUTH"}
    with Children() as children:
        up = children.start(
            "up",
            [sys.executable, "-m", "relay", *argv],
            env=environment,
            log_path=log,
            ready=lambda: "Ctrl-C stops everything" in log.read_text(),
            ready_seconds=120,
            stop_seconds=60,
        )
        said = re.search(r"^Flower +(\S+) as (\S+) with the password (\S+)$", log.read_text(), re.MULTILINE)
        assert said is not None, log.read_text()
        url, *login = said.groups()
        assert requests.get(f"{url}/api/workers", auth=tuple(login), timeout=20).status_code == 200
        assert requests.get(f"{url}/api/workers", timeout=20).status_code == 401

        flowers = [pid for pid in processes_of(up.pid) if b"\0flower\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(flowers[0], signal.SIGKILL)
        wait_for(lambda: "flower was ended by SIGKILL, and the rest goes on" in log.read_text(), 20, log.read_text)
        gateway = re.search(r"^Gateway +(\S+)$", log.read_text(), re.MULTILINE)
        assert gateway is not None
        assert requests.get(f"{gateway[1]}/readyz", timeout=20).status_code == 200
        up.signal(signal.SIGTERM)
        ended = up.wait(60)
        assert ended is not None
        assert ended.code == 0, log.read_text()


def test_flower_is_stopped_though_it_hangs_on_sigterm(estate: Estate, broker: EmbeddedRedis) -> None:
    flower = Flower(estate)
    started = time.monotonic()
    assert estate.stack._children.stop() == ("flower",), "SIGTERM suffices by now: it need not be killed"
    assert time.monotonic() - started < 30
    assert flower.process.poll() is not None


def processes_of(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
