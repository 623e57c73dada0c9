"""What the relay lives through: Redis without memory or away, a broker that is silent, a lost data set."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from faults.proxy import Proxy, Way
from redis import Redis
from redis.exceptions import ResponseError
from rig import pool_processes, signal_all, wait_for

from relay import DeploymentEvent, Producer
from relay.errors import QueueFull
from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue.state import Accepted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig import Estate


def image(number: int) -> str:
    return f"ghcr.io/acme/app-{number}@sha256:{sha256(str(number).encode()).hexdigest()}"


def report(estate: Estate, numbers: range) -> None:
    with Producer(estate.stack.redis_url) as producer:
        producer.report_many(DeploymentEvent.of(image(number)) for number in numbers)


def log(estate: Estate, name: str = "worker") -> str:
    return estate.stack.log_path(name).read_text(encoding="utf-8", errors="replace")


def wakeups_answered(estate: Estate) -> int:
    return sum("intake run" in line and '"wakeup"' in line for line in log(estate).splitlines())


def test_all_is_delivered_while_redis_has_no_memory_left(estate: Estate) -> None:
    worker = estate.start_worker()
    processes = [worker.pid, *pool_processes(worker.pid)]
    signal_all(processes, signal.SIGSTOP)
    report(estate, range(5000))
    estate.client.config_set("maxmemory", "1mb")  # far below what is used: it stays full whatever is freed
    with pytest.raises(QueueFull, match="memory"):
        report(estate, range(1))
    signal_all(processes, signal.SIGCONT)
    counters = estate.wait_until_done(5000, timeout_seconds=60)
    assert (counters.delivered, counters.unaccounted, len(estate.api.requests)) == (5000, 0, 5000)
    assert '"inline": true' in log(estate)
    estate.client.config_set("maxmemory", 0)
    wakeups_ring(estate, 5000)
    assert worker.poll() is None


def test_a_report_by_celery_waits_until_there_is_memory(estate: Estate, broker: EmbeddedRedis) -> None:
    estate.stack.environment["RELAY_LOG__LEVEL"] = "DEBUG"  # where Celery says what it does with each message
    estate.start_worker()
    estate.client.config_set("maxmemory", "1mb")
    producer = Celery(broker=broker.url)
    for number in range(5):
        producer.send_task("relay.report", args=[{"image": {"url": image(number)}}], queue="celery")
    wait_for(lambda: log(estate).count("retry: Retry in") >= 5, 20, lambda: log(estate)[-3000:])
    assert estate.counters().added == 0
    estate.client.config_set("maxmemory", 0)
    assert estate.wait_until_done(5).delivered == 5


#: For those that are to hear again: connecting anew takes seconds where much else goes on.
PATIENT = "60s"


class DeafeningProxy(Proxy):
    """A link that takes everything, and swallows the replies to whoever waits for messages while `deafens`."""

    deafens = False

    def _look_for_pattern(self, link: Any, data: bytes) -> None:
        if self.deafens and b"BRPOP" in data:
            link.gates[Way.REPLIES].clear()


@pytest.fixture
def broker(estate: Estate) -> Iterator[EmbeddedRedis]:
    """A broker of its own beside the queue's Redis."""
    with EmbeddedRedis(append_only=False) as server:
        estate.stack.environment["RELAY_BROKER_URL"] = server.url
        yield server


@pytest.fixture
def link(estate: Estate, broker: EmbeddedRedis) -> Iterator[DeafeningProxy]:
    """The link between worker and broker."""
    with DeafeningProxy(broker.port) as link:
        estate.stack.environment |= {
            "RELAY_BROKER_URL": f"redis://127.0.0.1:{link.port}/0",
            "RELAY_REDIS__TIMEOUT": "1s",
            "RELAY_WORKER__DEAF_AFTER": "4s",
        }
        yield link


def wakeups_ring(estate: Estate, first: int) -> None:
    """Report one event after the other until the worker's pool is called again."""
    before = wakeups_answered(estate)
    numbers = count(first)

    def rung() -> bool:
        number = next(numbers)
        report(estate, range(number, number + 1))
        estate.api.wait_for(number + 1, timeout_seconds=30)
        return wakeups_answered(estate) > before

    wait_for(rung, 60, lambda: log(estate)[-3000:])


def test_deliveries_go_on_without_a_broker_and_bells_return_with_it(estate: Estate, link: DeafeningProxy) -> None:
    estate.stack.environment["RELAY_WORKER__DEAF_AFTER"] = PATIENT
    worker = estate.start_worker()
    report(estate, range(10))
    estate.wait_until_done(10)
    link.refuse()
    assert link.reset_all() > 0
    report(estate, range(10, 500))
    counters = estate.wait_until_done(500)
    assert (counters.delivered, len(estate.api.requests)) == (500, 500)
    assert '"inline": true' in log(estate)
    link.listen()
    wakeups_ring(estate, 500)
    assert worker.poll() is None


def test_deliveries_go_on_while_the_broker_hangs_and_bells_return_with_it(
    estate: Estate, link: DeafeningProxy
) -> None:
    estate.stack.environment["RELAY_WORKER__DEAF_AFTER"] = PATIENT
    worker = estate.start_worker()
    report(estate, range(10))
    estate.wait_until_done(10)
    link.stall()
    report(estate, range(10, 500))
    counters = estate.wait_until_done(500)
    assert (counters.delivered, len(estate.api.requests)) == (500, 500)
    assert link.held > 0
    link.resume()
    wakeups_ring(estate, 500)
    assert worker.poll() is None


def test_a_worker_whose_link_went_silent_hears_again_without_a_restart(estate: Estate, link: DeafeningProxy) -> None:
    """All its connections are dead without being closed; new ones work."""
    estate.stack.environment["RELAY_WORKER__DEAF_AFTER"] = PATIENT
    worker = estate.start_worker()
    report(estate, range(10))
    estate.wait_until_done(10)
    link.stall(new=False)
    wakeups_ring(estate, 10)
    assert link.held > 0
    assert worker.poll() is None


def test_a_deaf_worker_leaves_and_says_why(estate: Estate, link: DeafeningProxy, broker: EmbeddedRedis) -> None:
    """The broker takes all that it sends, and it hears nothing, whatever connection it makes."""
    worker = estate.start_worker()
    report(estate, range(10))
    estate.wait_until_done(10)
    link.deafens = True
    end = worker.wait(60)
    assert end is not None, log(estate)[-3000:]
    assert end.code == 70
    assert "the broker accepts messages, and this worker received none for 4 s" in log(estate)
    with Redis.from_url(broker.url) as client:
        echoes = [key for key in client.scan_iter("*") if b"probe" in key]
        assert all(client.llen(key) == 1 and 0 < client.pttl(key) <= 8000 for key in echoes), "echoes pile up"
        bound = [member for key in client.scan_iter("_kombu*", _type="set") for member in client.smembers(key)]
        assert not [member for member in bound if b"probe" in member], "a binding is left behind for each worker"


def test_a_worker_whose_redis_stays_read_only_exits_and_says_why(estate: Estate) -> None:
    """A demoted server that its address still leads to: new connections do not help."""
    estate.stack.environment["RELAY_WORKER__READ_ONLY_AFTER"] = "2s"
    worker = estate.start_worker(concurrency=1)
    report(estate, range(1))
    estate.wait_until_done(1)
    estate.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    end = worker.wait(60)
    assert end is not None, log(estate)[-3000:]
    assert end.code == 70
    assert "Redis refused writes for 2 s (READONLY You can't write against a read only replica." in log(estate)


def test_a_broker_that_stays_read_only_piles_up_no_connections_and_bells_return(
    estate: Estate, broker: EmbeddedRedis
) -> None:
    """A separate broker that was demoted, and that its address still leads to: deliveries go on without it."""
    estate.start_worker(concurrency=1)
    with Redis.from_url(broker.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        wait_for(lambda: log(estate).count("Cannot connect") >= 4, 30, lambda: log(estate)[-3000:])
        assert len(client.client_list()) < 25
        report(estate, range(1))
        assert estate.wait_until_done(1).delivered == 1
        client.execute_command("REPLICAOF", "NO", "ONE")
    wakeups_ring(estate, 1)


def test_a_lost_data_set_raises_an_alarm_and_the_worker_goes_on(estate: Estate) -> None:
    worker = estate.start_worker()
    report(estate, range(10))
    estate.wait_until_done(10)
    estate.client.flushall()
    wait_for(lambda: "was flushed, or a failover" in log(estate), 10)
    report(estate, range(10))
    counters = estate.wait_until_done(10)
    assert (counters.added, counters.delivered, counters.unaccounted) == (10, 10, 0)
    assert estate.client.hget(estate.keys.counts, "resets") == b"1"
    assert log(estate).count("was flushed, or a failover") == 1
    assert worker.poll() is None


def test_a_flushed_broker_costs_no_more_than_a_sweep(estate: Estate, broker: EmbeddedRedis) -> None:
    worker = estate.start_worker()
    with Redis.from_url(broker.url) as client:
        for number in range(5):
            report(estate, range(20 * number, 20 * number + 20))
            client.flushall()
            estate.wait_until_done(20 * number + 20)
    assert len(estate.api.requests) == 100
    assert worker.poll() is None


def test_what_was_not_seen_for_long_is_forgotten(estate: Estate) -> None:
    """Instances of two hours ago, and a time of a minute: a duplicate may have been seen an hour ago."""
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
    wait_for(lambda: estate.client.hlen(outbox.accepted) == 1000, 20, lambda: log(estate)[-2000:])
    assert all(int(number) % 2 == 0 for number in estate.client.hkeys(outbox.accepted))


def redis_of(estate: Estate) -> EmbeddedRedis:
    server = estate.stack._embedded
    assert server is not None
    return server


def test_a_redis_that_is_killed_again_and_again_costs_no_worker(estate: Estate) -> None:
    worker = estate.start_worker()
    report(estate, range(500))
    for _ in range(6):
        redis_of(estate).kill()
        redis_of(estate).restart()
    report(estate, range(500, 1000))
    counters = estate.wait_until_done(1000, timeout_seconds=60)
    assert (counters.delivered, counters.unaccounted) == (1000, 0)
    wakeups_ring(estate, 1000)
    assert worker.poll() is None


def test_a_redis_that_is_away_for_long_costs_no_worker(estate: Estate) -> None:
    worker = estate.start_worker()
    report(estate, range(100))
    estate.wait_until_done(100)
    redis_of(estate).kill()
    wait_for(lambda: log(estate).count("Redis is away") >= 3, 60)
    redis_of(estate).restart()
    wakeups_ring(estate, 100)
    assert worker.poll() is None


@pytest.mark.parametrize("refusing", ["READONLY", "MISCONF"])
def test_a_redis_that_refuses_to_write_costs_no_worker(estate: Estate, refusing: str) -> None:
    """A failover that left us at a replica; a disk that is full."""
    worker = estate.start_worker()
    report(estate, range(100))
    estate.wait_until_done(100)
    if refusing == "READONLY":
        estate.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        (redis_of(estate).directory / "dump.rdb").mkdir()  # so nothing can be saved
        estate.client.config_set("save", "1 1")
        with suppress(ResponseError):
            estate.client.bgsave()
        wait_for(lambda: estate.client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)
    wait_for(lambda: log(estate).count("Redis is away") >= 3, 30, lambda: log(estate)[-3000:])
    if refusing == "READONLY":
        estate.client.execute_command("REPLICAOF", "NO", "ONE")
    else:
        estate.client.config_set("save", "")
    wakeups_ring(estate, 100)
    assert worker.poll() is None
