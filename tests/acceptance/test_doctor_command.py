"""`relay doctor` as an operator meets it: a process, its lines and its exit code, beside real workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from rig import TOKEN, pool_processes, signal_all, wait_for

from relay.processes.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from rig import Estate

BODY = json.dumps(
    {"image": {"url": f"nginx@sha256:{sha256(b'x').hexdigest()}"}, "environment": {"name": "production"}}
)


def relay(estate: Estate, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, **estate.stack.environment, **environment},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def faults_found(estate: Estate, *arguments: str, **environment: str) -> dict[str, str]:
    """Check → what is wrong and what to do, of the faults; the exit code agrees."""
    done = relay(estate, "doctor", "--json", *arguments, **environment)
    found = json.loads(done.stdout)
    faults = {
        each["check"]: f"{each['what']} → {each['do']}" for each in found["findings"] if each["severity"] == "fault"
    }
    assert (done.returncode, found["faults"] > 0) == ((1, True) if faults else (0, False)), done.stderr
    return faults


def test_a_relay_at_work_has_no_fault(estate: Estate) -> None:
    estate.start_worker()
    estate.xadd(BODY)
    estate.wait_until_done(1)
    taken = estate.api.counts().accepted
    done = relay(estate, "doctor")
    assert done.returncode == 0, done.stdout
    assert "accepts the token" in done.stdout
    assert "1 answer at the broker, and their pollers give heartbeats" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("no faults")
    assert TOKEN not in done.stdout + done.stderr
    assert estate.api.counts().accepted == taken, "the probe made a deployment"


def test_no_workers_are_found_and_offline_leaves_the_api_alone(estate: Estate) -> None:
    faults = faults_found(estate, "--offline")
    assert list(faults) == ["workers"]
    assert "no worker is alive" in faults["workers"]
    assert "`relay worker`" in faults["workers"]
    assert not estate.api.requests


def test_workers_that_do_not_consume_are_found(estate: Estate) -> None:
    """The main process beats and hears; those that would do the work are stopped."""
    worker = estate.start_worker()
    children = pool_processes(worker.pid)
    signal_all(children, signal.SIGSTOP)
    try:
        estate.xadd(BODY)
        found: dict[str, str] = {}

        def told() -> bool:
            found.update(faults_found(estate, "--offline"))
            return "workers.work" in found

        wait_for(told, 90, lambda: str(found))
    finally:
        signal_all(children, signal.SIGCONT)
    assert "heartbeats but consumes nothing: the inbox has waited" in found["workers.work"]
    assert "restart the workers" in found["workers.work"]
    estate.wait_until_done(1)


def test_a_worker_whose_poller_is_silent_is_found(estate: Estate) -> None:
    """It hears the broker, and looks after another namespace: nothing that is added here is noticed."""
    estate.stack.environment["RELAY_QUEUE__NAMESPACE"] = "another"
    estate.stack.start("stranger", ["-m", "relay", "worker", "--name", "stranger@%h", "--concurrency", "1"])
    del estate.stack.environment["RELAY_QUEUE__NAMESPACE"]
    found: dict[str, str] = {}

    def told() -> bool:
        found.update(faults_found(estate, "--offline"))
        return "workers.poller" in found

    wait_for(told, 90, lambda: str(found))
    assert "stranger@" in found["workers.poller"]
    assert "the poller hangs" in found["workers.poller"]
    assert "queue.namespace" in found["workers.poller"]
    assert "no worker is alive" in found["workers"]


def test_a_broker_elsewhere_is_found(estate: Estate) -> None:
    estate.start_worker()
    with EmbeddedRedis(append_only=False) as elsewhere:
        faults = faults_found(estate, "--offline", RELAY_BROKER_URL=elsewhere.url)
    assert list(faults) == ["workers.broker"]
    assert "no worker answers at the broker" in faults["workers.broker"]
    assert "RELAY_BROKER_URL" in faults["workers.broker"]
    faults = faults_found(estate, "--offline", RELAY_BROKER_URL="redis://:broker-secret@127.0.0.1:1/0")
    assert list(faults) == ["broker"]
    assert "redis://***@127.0.0.1:1/0 is not reachable" in faults["broker"]


@pytest.mark.parametrize("url", ["redis://:redis-secret@127.0.0.1:1/0", "redis://nowhere.invalid:6379/0"])
def test_a_redis_that_is_away_is_found_and_all_else_looked_at(estate: Estate, url: str) -> None:
    done = relay(estate, "doctor", RELAY_REDIS__URL=url)
    assert done.returncode == 1
    assert "is not reachable" in done.stdout
    assert "accepts the token" in done.stdout
    assert "redis-secret" not in done.stdout + done.stderr


def test_a_configuration_that_is_refused_is_told(estate: Estate) -> None:
    done = relay(estate, "doctor", RELAY_API__TOKN="secret-in-the-wrong-place")
    assert done.returncode == 1
    assert "did you mean RELAY_API__TOKEN?" in done.stdout
    assert "secret-in-the-wrong-place" not in done.stdout + done.stderr
    done = relay(estate, "doctor", RELAY_API_URL="http://api.example.com/", RELAY_API__ALLOW_INSECURE="false")
    assert done.returncode == 1
    assert "the token would travel in the clear" in done.stdout


def test_without_celery_and_kombu_it_works_and_says_so(estate: Estate) -> None:
    """As on a machine with a bare install."""
    block = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in {'celery', 'kombu', 'pycurl', 'structlog'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from relay.cli import main\n"
        "main(['doctor', '--offline'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", block], env={**os.environ, **estate.stack.environment},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "the broker is the queue's Redis" in done.stdout, done.stderr
    assert done.returncode == 1, "no worker runs"
