"""Single steps of workers, producers and operators, each in a process that a fail point may kill: `python steps.py`.

Each line of standard input is a step, `<fail point or nothing>\\t<step>\\t<argument>`; its answer is the exit code of
the process: 0, or minus the number of the signal. The processes are forked, so that one takes milliseconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from recorded_wakeups import RecordedWakeups

from relay import DeploymentEvent, Producer, failpoints
from relay.queue import dead_letters, epoch, forgetting, metrics_snapshot, pausing
from relay.queue.counters import read_counters, read_environments
from relay.queue.redrive import Redrive, redrive_all
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.delivery.run import run_delivery
from workers.intake.run import run_intake
from workers.scheduling.poller import Poller
from workers.wiring import make_runtime

if TYPE_CHECKING:
    from workers.runtime import Runtime


#: Deadline of `work_on`.
WORK_SECONDS = 20.0


def work(runtime: Runtime, _: str) -> None:
    """Run a worker's poller once, and the runs that it wakes up."""
    wakeups = RecordedWakeups()
    runtime = replace(runtime, wakeups=wakeups)
    epoch.beat(runtime.client, runtime.keys, "steps", keep_seconds=1)
    Poller(runtime.settings, runtime.shard, wakeups).send_wakeups()
    if wakeups.intake and (taken := run_intake(runtime)):
        wakeups.wake_delivery(taken.to_deliver)
    while wakeups.environments:
        environments = list(dict.fromkeys(wakeups.environments))
        wakeups.clear()
        if done := run_delivery(runtime, environments):
            wakeups.wake_delivery(done.to_deliver)


def work_on(runtime: Runtime, _: str) -> None:
    """Run until nothing waits; pauses of the destination end at once."""
    until = time.monotonic() + WORK_SECONDS
    while read_counters(runtime.client, runtime.keys).waiting:
        assert time.monotonic() < until, read_counters(runtime.client, runtime.keys)
        runtime.client.hset(runtime.keys.destination(DEFAULT_DESTINATION), mapping={"until": 1, "probe_until": 1})
        work(runtime, "")


def report(runtime: Runtime, bodies: str) -> None:
    """Report events."""
    with Producer(settings=runtime.settings) as producer:
        producer.report_many(DeploymentEvent.from_body(body) for body in json.loads(bodies))


def redrive(runtime: Runtime, _: str) -> None:
    """Redrive all dead letters."""
    run = Redrive(runtime.client, runtime.keys, max_backlog=runtime.settings.queue.max_backlog)
    assert run.acquire(), "another redrive is under way"
    for _ in redrive_all(run, dead_letters.EVERYTHING):
        pass
    run.release()


def drop(runtime: Runtime, _: str) -> None:
    """Drop all dead letters."""
    for page in dead_letters.walk(runtime.client, runtime.keys):
        dead_letters.drop(runtime.client, runtime.keys, page.letters)


def pause(runtime: Runtime, environment: str) -> None:
    """Pause an environment, and resume it."""
    pausing.pause(runtime.client, runtime.keys, DEFAULT_DESTINATION, [environment])
    pausing.resume(runtime.client, runtime.keys, DEFAULT_DESTINATION, [environment])


def forget(runtime: Runtime, environment: str) -> None:
    """Remove an environment's state as far as that is allowed."""
    outbox = runtime.keys.of_outbox(DEFAULT_DESTINATION, environment)
    seen_before = forgetting.now_ms(runtime.client) + 1
    forgetting.forget_page(runtime.client, outbox, 0, seen_before)
    forgetting.forget_environment(runtime.client, runtime.keys, outbox, seen_before)


def status(runtime: Runtime, _: str) -> None:
    """Read the counters of the shard and its environments."""
    read_counters(runtime.client, runtime.keys)
    read_environments(runtime.client, runtime.keys, DEFAULT_DESTINATION)


def scrape(runtime: Runtime, _: str) -> None:
    """Read the metrics' snapshot."""
    metrics_snapshot.read_snapshot(runtime.client, runtime.keys, DEFAULT_DESTINATION, environments=1)


STEPS = {step.__name__: step for step in (work, work_on, report, redrive, drop, pause, forget, status, scrape)}


def run(runtime: Runtime, crash: str, step: str, argument: str) -> int:
    """Do one step in a process of its own; return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    failed = 1
    try:
        os.environ["RELAY_TEST_CRASH"] = crash
        importlib.reload(failpoints)
        STEPS[step](runtime, argument)
        failed = 0
    except BaseException:  # noqa: BLE001 - this process ends here
        traceback.print_exc()
    finally:
        os._exit(failed)


def main() -> None:
    """Answer line by line. No connection is open before a fork."""
    settings = Settings.load()
    runtime = make_runtime(settings, RecordedWakeups())
    for line in sys.stdin:
        crash, step, argument = line.rstrip("\n").split("\t")
        sys.stdout.write(f"{run(runtime, crash, step, argument)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
