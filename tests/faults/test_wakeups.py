"""Wake-ups that are lost, duplicated or delayed: none may matter."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from celery import Celery
from faults.ground import SWEEP_SECONDS, plain_client, scenario

from workers.scheduling.wakeups import DELIVER, INTAKE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.ground import Ground

ENVIRONMENTS = [f"env-{n}" for n in range(5)]

#: From the sweep to the next poll, in seconds.
POLL_SECONDS = 1.0

#: Surplus wake-ups of each kind.
SURPLUS = 50

#: Delay that a busy machine may add, in seconds.
BUSY_SECONDS = 2.0


def received(ground: Ground, task: str) -> int:
    """Return how many wake-ups of a kind the workers received."""
    return sum(worker.log().count(f"Task {task}[") for worker in ground.workers)


def until_rest(ground: Ground) -> float:
    """Wait until no event waits; return the seconds that it took."""
    since = time.monotonic()
    ground.rest()
    return time.monotonic() - since


@contextmanager
def thieves(broker: str) -> Iterator[list[bytes]]:
    """Take wake-ups off the broker with enough clients that most BRPOPs of the workers queue behind one of them."""
    stolen: list[bytes] = []
    over = threading.Event()

    def steal() -> None:
        with plain_client(broker) as client:
            while not over.is_set():
                if item := client.blpop([INTAKE, DELIVER], 0.5):
                    stolen.append(item[0])

    threads = [threading.Thread(target=steal) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield stolen
    finally:
        over.set()
        for thread in threads:
            thread.join()


@scenario(27, "wakeups doubled, lost, delayed; broker flushed", bound="repeats 0; nothing waits longer than a sweep")
def test_nothing_depends_on_a_wakeup(ground: Ground) -> None:
    link = ground.broker_proxy()
    broker = f"{ground.redis.url.removesuffix('/0')}/1"
    ground.start_workers(2, log_level="DEBUG")  # at which Celery logs each wake-up

    with Celery(broker=broker, set_as_current=False) as app, ground.load(100):
        for _ in range(SURPLUS):
            app.send_task(DELIVER, args=ENVIRONMENTS, queue=DELIVER, ignore_result=True)
            app.send_task(INTAKE, queue=INTAKE, ignore_result=True)
    with plain_client(broker) as client:
        ground.wait(lambda: not client.llen(DELIVER) + client.llen(INTAKE))
    ground.rest()
    ground.bit(received(ground, DELIVER) > SURPLUS, "the workers received more wake-ups than needed")

    with thieves(broker) as lost:
        ground.wait(lambda: bool(ground.report(5, environments=5)) and bool(lost))
    waits = [until_rest(ground)]
    ground.bit(lost, "wake-ups were lost")

    with plain_client(broker) as client:
        client.flushdb()
        ground.report(50, environments=5)
        client.flushdb()
    waits.append(until_rest(ground))

    link.latency(0.1)
    passed = sum(link.passed.values())
    ground.report(50, environments=5)
    waits.append(until_rest(ground))
    link.latency(0)
    ground.bit(sum(link.passed.values()) > passed, "the broker's link was slow")

    assert max(waits) < SWEEP_SECONDS + POLL_SECONDS + BUSY_SECONDS
    ground.check()
    ground.observed(
        f"{2 * SURPLUS} surplus wake-ups, {len(lost)} lost; all events delivered within {waits[0]:.1f} s (lost), "
        f"{waits[1]:.1f} s (flushed), {waits[2]:.1f} s (delayed)"
    )
