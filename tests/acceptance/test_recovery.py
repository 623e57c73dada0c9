"""Recovery: Redis out of memory, read-only or away, a silent broker, a lost data set."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from faults.proxy import Proxy, Way
from redis import Redis
from redis.exceptions import ResponseError
from rig import image, pool_processes, signal_all, wait_for

from relay.errors import QueueFull
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue.state import Accepted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig import Estate


def wakeups_answered(estate: Estate) -> int:
    return sum("intake run" in line and '"wakeup"' in line for line in estate.log().splitlines())


def test_events_are_delivered_while_redis_is_out_of_memory(estate: Estate) -> None:
    worker = estate.start_worker()
    processes = [worker.pid, *pool_processes(worker.pid)]
    signal_all(processes, signal.SIGSTOP)
    estate.report(5000)
    estate.client.config_set("maxmemory", "1mb")  # far below the used memory: it stays full
    with pytest.raises(QueueFull, match="memory"):
        estate.report(1)
    signal_all(processes, signal.SIGCONT)
    counters = estate.wait_until_done(5000, timeout_seconds=60)
    assert (counters.delivered, counters.unaccounted, len(estate.api.requests)) == (5000, 0, 5000)
    assert '"inline": true' in estate.log()
    estate.client.config_set("maxmemory", 0)
    wait_for_wakeup(estate, 5000)
    assert worker.poll() is None


def test_report_by_celery_is_retried_until_there_is_memory(estate: Estate, broker: EmbeddedRedis) -> None:
    estate.stack.environment["RELAY_LOG__LEVEL"] = "DEBUG"  # at which Celery logs what it does with each message
    estate.start_worker()
    estate.client.config_set("maxmemory", "1mb")
    producer = Celery(broker=broker.url)
    for number in range(5):
        producer.send_task("relay.report", args=[{"image": {"url": image(number)}}], queue="celery")
    wait_for(lambda: estate.log().count("retry: Retry in") >= 5, 20, lambda: estate.log()[-3000:])
    assert estate.counters().added == 0
    estate.client.config_set("maxmemory", 0)
    assert estate.wait_until_done(5).delivered == 5


#: For a worker that is to recover: to connect again takes seconds on a busy machine.
PATIENT = "60s"


class SilentProxy(Proxy):
    """A link that passes all commands on, and while `is_silent` drops the replies to BRPOP."""

    is_silent = False

    def _look_for_pattern(self, link: Any, data: bytes) -> None:
        if self.is_silent and b"BRPOP" in data:
            link.gates[Way.REPLIES].clear()


@pytest.fixture
def broker(estate: Estate) -> Iterator[EmbeddedRedis]:
    """A separate broker beside the queue's Redis."""
    with EmbeddedRedis(append_only=False) as server:
        estate.stack.environment["RELAY_BROKER_URL"] = server.url
        yield server


@pytest.fixture
def link(estate: Estate, broker: EmbeddedRedis) -> Iterator[SilentProxy]:
    """The link between worker and broker."""
    with SilentProxy(broker.port) as link:
        estate.stack.environment |= {
            "RELAY_BROKER_URL": f"redis://127.0.0.1:{link.port}/0",
            "RELAY_REDIS__TIMEOUT": "1s",
            "RELAY_WORKER__DEAF_AFTER": "4s",
        }
        yield link


def wait_for_wakeup(estate: Estate, first: int) -> None:
    """Report one event after the other until the worker's pool answers a wake-up."""
    before = wakeups_answered(estate)
    numbers = count(first)

    def is_answered() -> bool:
        number = next(numbers)
        estate.report(1, first=number)
        estate.api.wait_for(number + 1, timeout_seconds=30)
        return wakeups_answered(estate) > before

    wait_for(is_answered, 60, lambda: estate.log()[-3000:])


def test_deliveries_go_on_without_a_broker_and_wakeups_return_with_it(estate: Estate, link: SilentProxy) -> None:
    estate.stack.environment["RELAY_WORKER__DEAF_AFTER"] = PATIENT
    worker = estate.start_worker()
    estate.report(10)
    estate.wait_until_done(10)
    link.refuse()
    assert link.reset_all() > 0
    estate.report(490, first=10)
    counters = estate.wait_until_done(500)
    assert (counters.delivered, len(estate.api.requests)) == (500, 500)
    assert '"inline": true' in estate.log()
    link.listen()
    wait_for_wakeup(estate, 500)
    assert worker.poll() is None


def test_deliveries_go_on_while_the_broker_hangs_and_wakeups_return_with_it(
    estate: Estate, link: SilentProxy
) -> None:
    estate.stack.environment["RELAY_WORKER__DEAF_AFTER"] = PATIENT
    worker = estate.start_worker()
    estate.report(10)
    estate.wait_until_done(10)
    link.stall()
    estate.report(490, first=10)
    counters = estate.wait_until_done(500)
    assert (counters.delivered, len(estate.api.requests)) == (500, 500)
    assert link.held > 0
    link.resume()
    wait_for_wakeup(estate, 500)
    assert worker.poll() is None


def test_worker_whose_link_went_silent_recovers_without_a_restart(estate: Estate, link: SilentProxy) -> None:
    """All its connections are dead without being closed; new ones work."""
    estate.stack.environment["RELAY_WORKER__DEAF_AFTER"] = PATIENT
    worker = estate.start_worker()
    estate.report(10)
    estate.wait_until_done(10)
    link.stall(new=False)
    wait_for_wakeup(estate, 10)
    assert link.held > 0
    assert worker.poll() is None


def test_worker_that_receives_nothing_exits_with_the_reason(
    estate: Estate, link: SilentProxy, broker: EmbeddedRedis
) -> None:
    """The broker accepts its messages, and it receives none, on any connection."""
    worker = estate.start_worker()
    estate.report(10)
    estate.wait_until_done(10)
    link.is_silent = True
    end = worker.wait(60)
    assert end is not None, estate.log()[-3000:]
    assert end.code == 70
    assert "the broker accepts messages, and this worker received none for 4 s" in estate.log()
    with Redis.from_url(broker.url) as client:
        probes = [key for key in client.scan_iter("*") if b"probe" in key]
        assert all(client.llen(key) == 1 and 0 < client.pttl(key) <= 8000 for key in probes), "probes pile up"
        bound = [member for key in client.scan_iter("_kombu*", _type="set") for member in client.smembers(key)]
        assert not [member for member in bound if b"probe" in member], "a binding remains for each worker"


def test_worker_whose_redis_stays_read_only_exits_with_the_reason(estate: Estate) -> None:
    """The address still leads to a demoted server: new connections do not help."""
    estate.stack.environment["RELAY_WORKER__READ_ONLY_AFTER"] = "2s"
    worker = estate.start_worker(concurrency=1)
    estate.report(1)
    estate.wait_until_done(1)
    estate.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    end = worker.wait(60)
    assert end is not None, estate.log()[-3000:]
    assert end.code == 70
    assert "Redis refused writes for 2 s (READONLY You can't write against a read only replica." in estate.log()


def test_broker_that_stays_read_only_piles_up_no_connections_and_wakeups_return(
    estate: Estate, broker: EmbeddedRedis
) -> None:
    """The address still leads to a demoted broker: deliveries go on without it."""
    estate.start_worker(concurrency=1)
    with Redis.from_url(broker.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        wait_for(lambda: estate.log().count("Cannot connect") >= 4, 30, lambda: estate.log()[-3000:])
        assert len(client.client_list()) < 25
        estate.report(1)
        assert estate.wait_until_done(1).delivered == 1
        client.execute_command("REPLICAOF", "NO", "ONE")
    wait_for_wakeup(estate, 1)


def test_lost_data_set_is_logged_and_counted_and_the_worker_goes_on(estate: Estate) -> None:
    worker = estate.start_worker()
    estate.report(10)
    estate.wait_until_done(10)
    estate.client.flushall()
    wait_for(lambda: "was flushed, or a failover" in estate.log(), 10)
    estate.report(10)
    counters = estate.wait_until_done(10)
    assert (counters.added, counters.delivered, counters.unaccounted) == (10, 10, 0)
    assert estate.client.hget(estate.keys.counts, "resets") == b"1"
    assert estate.log().count("was flushed, or a failover") == 1
    assert worker.poll() is None


def test_flushed_broker_delays_deliveries_until_the_next_sweep(estate: Estate, broker: EmbeddedRedis) -> None:
    worker = estate.start_worker()
    with Redis.from_url(broker.url) as client:
        for number in range(5):
            estate.report(20, first=20 * number)
            client.flushall()
            estate.wait_until_done(20 * number + 20)
    assert len(estate.api.requests) == 100
    assert worker.poll() is None


def test_instances_not_seen_for_long_are_forgotten(estate: Estate) -> None:
    """A `forget_after` of a minute: duplicates update the time only once an hour."""
    estate.stack.environment["RELAY_DELIVERY__FORGET_AFTER"] = "60s"
    outbox = estate.keys.of_outbox("default", "deployed")
    now = int(time.time() * 1000)
    for number in range(2000):
        hours = 2 if number % 2 else 0.5
        seen = now - round(hours * 3_600_000)
        state = Accepted("sha256:a", None, seen, seen, ("id",))
        estate.client.hset(outbox.accepted, f"{number}", state.encode())
    estate.client.zadd(estate.keys.environments("default"), {"deployed": 0})
    estate.start_worker()
    wait_for(lambda: estate.client.hlen(outbox.accepted) == 1000, 20, lambda: estate.log()[-2000:])
    assert all(int(number) % 2 == 0 for number in estate.client.hkeys(outbox.accepted))


def redis_of(estate: Estate) -> EmbeddedRedis:
    server = estate.stack._embedded
    assert server is not None
    return server


def test_worker_survives_a_redis_that_is_killed_repeatedly(estate: Estate) -> None:
    worker = estate.start_worker()
    estate.report(500)
    for _ in range(6):
        redis_of(estate).kill()
        redis_of(estate).restart()
    estate.report(500, first=500)
    counters = estate.wait_until_done(1000, timeout_seconds=60)
    assert (counters.delivered, counters.unaccounted) == (1000, 0)
    wait_for_wakeup(estate, 1000)
    assert worker.poll() is None


def test_worker_survives_a_redis_that_is_away_for_long(estate: Estate) -> None:
    worker = estate.start_worker()
    estate.report(100)
    estate.wait_until_done(100)
    redis_of(estate).kill()
    wait_for(lambda: estate.log().count("Redis is away") >= 3, 60)
    redis_of(estate).restart()
    wait_for_wakeup(estate, 100)
    assert worker.poll() is None


@pytest.mark.parametrize("refusing", ["READONLY", "MISCONF"])
def test_worker_survives_a_redis_that_refuses_writes(estate: Estate, refusing: str) -> None:
    """A failover that leaves the connection at a replica; a full disk."""
    worker = estate.start_worker()
    estate.report(100)
    estate.wait_until_done(100)
    if refusing == "READONLY":
        estate.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        (redis_of(estate).directory / "dump.rdb").mkdir()  # so that no snapshot can be saved
        estate.client.config_set("save", "1 1")
        with suppress(ResponseError):
            estate.client.bgsave()
        wait_for(lambda: estate.client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)
    wait_for(lambda: estate.log().count("Redis is away") >= 3, 30, lambda: estate.log()[-3000:])
    if refusing == "READONLY":
        estate.client.execute_command("REPLICAOF", "NO", "ONE")
    else:
        estate.client.config_set("save", "")
    wait_for_wakeup(estate, 100)
    assert worker.poll() is None
