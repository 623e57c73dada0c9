"""A Redis that is killed, suspended, flushed, unreachable or full."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import redis
from faults.ground import plain_client, report_of, scenario
from rig import signal_all

from relay import Producer, QueueFull, QueueUnavailable
from relay.connections.clients import RETRIES
from relay.processes.embedded_redis import SERVER_VARIABLE, find_server
from relay.queue import epoch, intake, leases, outbox, pausing, schedule, scripts
from relay.queue.inbox import append_call, fields_of
from relay.sandbox.response import Response
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.scheduling.celery_reconnect import PAUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from faults.ground import Ground, Worker

#: A run that lost Redis commits once Redis is back, unless another run took over meanwhile: with a lease that
#: outlasts the fault none does, and then there is no repeat.
LONG_LEASE = {"RELAY_WORKER__LEASE": "8s"}
RESTART_LEASE = {"RELAY_WORKER__LEASE": "4s"}

KILLS = 5

#: Deadline of one answer to a producer, and of all its attempts with the pauses between them.
PATIENCE_SECONDS = 0.5
IN_TIME_SECONDS = (RETRIES + 1) * PATIENCE_SECONDS + RETRIES * 0.5

#: Tolerance of that on a busy machine.
BUSY_SECONDS = 3.0

#: Deadline after a fault until every worker delivers again.
AGAIN_SECONDS = 10.0

#: Seconds for which Redis is suspended, or its link is a black hole.
AWAY_SECONDS = 6.0

#: Number of times that scripts are flushed and connections killed.
MEDDLINGS = 4

#: Memory that Redis has left until it is full, and refusals in a row that show that it is.
ROOM_BYTES = 3_000_000
FULL_REFUSALS = 20

#: Seconds for which the disk is full.
FULL_SECONDS = 2.0

#: Bytes that remain of a torn write.
TORN_BYTES = 10

#: Seconds of Redis's first absence of several.
GONE_SECONDS = 3.0

#: A worker's log line at a run's end.
RUN_ENDED = ' run"'

#: Maximum tail that `everysec` may lose.
TAIL_SECONDS = 2.0


class Reporting:
    """One producer that reports at a steady rate, and retries each event until it is acknowledged."""

    def __init__(self, ground: Ground, url: str, per_second: float) -> None:
        self.longest_seconds = 0.0
        self.refused: list[Exception] = []
        #: When each event was acknowledged, by time.monotonic().
        self.acknowledged: dict[str, float] = {}
        self.errors: list[BaseException] = []
        self._ground = ground
        self._pause = 1 / per_second
        self._over = threading.Event()
        self._producer = impatient_producer(url)

    def run(self) -> None:
        try:
            number = 1_000_000
            while not self._over.wait(self._pause):
                number += 1
                self._report(number)
        except BaseException as error:  # noqa: BLE001 - raised at the context's end
            self.errors.append(error)
        finally:
            self._producer.close()

    def stop(self) -> None:
        self._over.set()

    def _report(self, number: int) -> None:
        event = self._ground.event(number, environments=5)
        while True:
            began = time.monotonic()
            try:
                self._producer.report_event(event)
            except (QueueUnavailable, QueueFull) as error:
                self.refused.append(error)
                self._ground.oracle.note([report_of(event)], acknowledged=False)
            else:
                self.acknowledged[event.id or ""] = time.monotonic()
                self._ground.oracle.note([report_of(event)])
                return
            finally:
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            if self._over.wait(0.05):
                return


def impatient_producer(url: str) -> Producer:
    return Producer(settings=Settings.load(redis={"url": url, "timeout": PATIENCE_SECONDS, "connect_timeout": 0.5}))


@contextmanager
def reporting(ground: Ground, url: str = "", per_second: float = 100) -> Iterator[Reporting]:
    """Run a producer in the context; its unexpected exceptions are raised at the end."""
    producer = Reporting(ground, url or ground.redis.url, per_second)
    thread = threading.Thread(target=producer.run, name="reporting")
    thread.start()
    try:
        yield producer
    finally:
        producer.stop()
        thread.join()
    if producer.errors:
        raise producer.errors[0]


def has_delivered_since(ground: Ground, worker: Worker, since: float) -> bool:
    ports = worker.ports()
    return any(a.peer_port in ports for a in list(ground.api.attempts) if a.read_at > since)


def all_work(ground: Ground, since: float) -> None:
    """Check that each worker delivers or runs intake again in time, while events are reported.

    Under load one may run intake and the other deliveries for long. The first run that ends may have begun before the
    fault; the second was woken up since.
    """
    ended = {worker.name: worker.log().count(RUN_ENDED) for worker in ground.workers}

    def works(worker: Worker) -> bool:
        return has_delivered_since(ground, worker, since) or worker.log().count(RUN_ENDED) >= ended[worker.name] + 2

    ground.wait(
        lambda: all(map(works, ground.workers)),
        AGAIN_SECONDS + BUSY_SECONDS,
        lambda: [worker.child.log_tail() for worker in ground.workers],
    )


def same_processes(ground: Ground) -> Callable[[], bool]:
    """Return a function that returns whether no worker process was replaced since."""
    before = {worker.name: set(worker.pids) for worker in ground.workers}
    return lambda: before == {worker.name: set(worker.pids) for worker in ground.workers}


def delivered(ground: Ground) -> int:
    return len(ground.api.processed_ids())


def go_on(ground: Ground, more: int) -> None:
    """Wait until this many more events are delivered."""
    goal = delivered(ground) + more
    ground.wait(lambda: delivered(ground) >= goal, seen=lambda: (goal, ground.counters()))


@scenario(
    11, "SIGKILL of Redis, 5 times, with its append-only file", bound="missing 0, repeats 0, in both fsync modes"
)
@pytest.mark.parametrize(
    "ground",
    [{"append_fsync": "everysec"}, {"append_fsync": "always"}],
    indirect=True,
    ids=lambda p: p["append_fsync"],
)
def test_a_redis_that_is_killed_loses_nothing(ground: Ground) -> None:
    ground.api.behave(Response(delay_seconds=0.02))
    ground.start_workers(2, **RESTART_LEASE)
    fsync = ground.client.config_get("appendfsync")["appendfsync"]
    servers = [ground.redis.pid]
    with reporting(ground):
        for _ in range(KILLS):
            go_on(ground, 20)
            await_written(ground)
            ground.redis.kill()
            ground.redis.restart()
            servers.append(ground.redis.pid)
        go_on(ground, 20)
    ground.bit(len(set(servers)) == KILLS + 1, "each time another server took over during deliveries")
    ground.check()
    ground.observed(
        f"{fsync}: {KILLS} kills, {ground.oracle.added} acknowledged, 0 missing, {ground.api.repeats()} repeats"
    )


def await_written(ground: Ground) -> None:
    """Wait until no fsync is under way: during one, `everysec` answers before it writes."""

    def written() -> bool:
        info = ground.client.info("persistence")
        return not info["aof_pending_bio_fsync"] and not info["aof_buffer_length"]

    ground.wait(written)


def append_only_file(ground: Ground) -> Path:
    [file] = (ground.redis.directory / "appendonlydir").glob("*.incr.aof")
    return file


def lose_power(ground: Ground, synced: int) -> int:
    """Kill Redis and cut its append-only file to its last fsync; return the number of bytes cut."""
    ground.redis.kill()
    file = append_only_file(ground)
    lost = file.stat().st_size - synced
    os.truncate(file, synced)
    ground.redis.restart()
    return lost


@scenario(12, "power loss: the append-only file is cut to its last fsync, `always`", bound="missing 0, repeats 0")
@pytest.mark.parametrize("ground", [{"append_fsync": "always"}], indirect=True)
def test_power_loss_loses_nothing_where_each_write_is_synced(ground: Ground) -> None:
    """Acknowledged events are synced, so only the one unacknowledged write can be lost."""
    ground.api.behave(Response(delay_seconds=0.02))
    workers = ground.start_workers(2, **LONG_LEASE)
    with reporting(ground):
        go_on(ground, 50)
    for worker in workers:
        signal_all(worker.pids, signal.SIGSTOP)
    ground.report(50)
    synced = append_only_file(ground).stat().st_size
    event = ground.event(2_000_000)
    unheard(ground, append_call(ground.keys, [fields_of(event)], 1_000_000, 1.0))
    ground.oracle.note([report_of(event)], acknowledged=False)
    ground.wait(lambda: append_only_file(ground).stat().st_size > synced)
    lost = lose_power(ground, synced + TORN_BYTES)
    left = {fields[b"id"].decode() for _, fields in ground.client.xrange(ground.keys.inbox)}
    ground.bit(event.id not in left and "event-0" in left, "only the last write was lost")
    for worker in workers:
        ground.resume(worker)
    ground.check()
    ground.observed(
        f"always: {lost} bytes of an unacknowledged write lost, 0 missing, {ground.api.repeats()} repeats"
    )


def unheard(ground: Ground, call: scripts.Call) -> None:
    """Send a call without waiting for its answer."""
    words = ["EVAL", call.script.text, str(len(call.keys)), *call.keys, *call.args]
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    with socket.create_connection(("127.0.0.1", ground.redis.port)) as link:
        parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
        link.sendall(b"*%d\r\n" % len(parts) + b"".join(parts))
        link.recv(1)  # it was executed; its answer is not read


@scenario(12, "power loss: the append-only file is cut to its last fsync, `everysec`",
          bound="known limit: a contiguous tail of at most 2 s; repeats ≤ commits of that time",
          slow=True)  # fmt: skip
def test_power_loss_loses_no_more_than_the_last_seconds(ground: Ground) -> None:
    """Redis loses a tail of its commands. A run still delivers the events that it had claimed by then."""
    ground.api.behave(Response(delay_seconds=0.02))
    workers = ground.start_workers(2, **LONG_LEASE)
    with reporting(ground) as producer:
        go_on(ground, 50)
        pausing.pause(ground.client, ground.keys, DEFAULT_DESTINATION, ["env-0"])  # these wait for the power loss
        before = len(producer.acknowledged)
        ground.wait(lambda: len(producer.acknowledged) > before + 50)
        synced, synced_at = append_only_file(ground).stat().st_size, time.monotonic()
        before = len(producer.acknowledged)
        ground.wait(
            lambda: time.monotonic() > synced_at + TAIL_SECONDS / 2 and len(producer.acknowledged) > before + 20
        )
        producer.stop()
    killed_at = time.monotonic()
    assert killed_at - synced_at < TAIL_SECONDS + BUSY_SECONDS
    for worker in workers:
        signal_all(worker.pids, signal.SIGSTOP)
    lost_bytes = lose_power(ground, synced)
    inbox = {fields[b"id"].decode() for _, fields in ground.client.xrange(ground.keys.inbox)}
    left = inbox | ground.in_outboxes()
    waiting = {e.event_id for e in ground.oracle.acknowledged} - set(ground.api.processed_ids())
    pausing.resume(ground.client, ground.keys, DEFAULT_DESTINATION, ["env-0"])
    for worker in workers:
        ground.resume(worker)
    ground.wait(lambda: not ground.counters().waiting)
    tail = [event for event, at in producer.acknowledged.items() if at > synced_at]
    missing = [event for event in producer.acknowledged if event not in ground.api.processed_ids()]
    ground.bit(missing and set(missing) <= waiting, "acknowledged events were lost with the end of the file")
    assert set(missing) <= set(tail), "an event is missing that was acknowledged before"
    first = list(producer.acknowledged).index(missing[0])
    assert left.isdisjoint(list(producer.acknowledged)[first:]), "the lost events are not a contiguous tail"
    assert left.isdisjoint(missing), "events that Redis still had were not delivered"
    uncommitted = [a for a in ground.api.attempts if a.processed and a.read_at > synced_at - TAIL_SECONDS / 2]
    owed = [report for report in ground.oracle.acknowledged if report.event_id not in tail]
    ground.oracle.uncertain += [report for report in ground.oracle.acknowledged if report.event_id in tail]
    ground.oracle.acknowledged = owed
    ground.check(unsynced=len({attempt.event_id for attempt in uncommitted}))
    ground.observed(
        f"everysec: {lost_bytes} bytes of {killed_at - synced_at:.1f} s lost, with them a contiguous tail of "
        f"{len(missing)} events of {len(producer.acknowledged)}; {ground.api.repeats()} repeats"
    )


@scenario(13, "Redis suspended; its link a black hole",
          bound="typed errors in time, no hang, all workers deliver again within 10 s, repeats 0")  # fmt: skip
def test_a_redis_that_does_not_answer_causes_no_repeat(ground: Ground) -> None:
    """Half a minute, scaled to three time-outs. The lease outlasts it, or the first run afterwards takes over.

    The API answers requests in flight while the runs wait for Redis and read no answer: that counts, however late.
    """
    ground.api.behave(Response(delay_seconds=0.1))
    data, broker = ground.redis_proxy(), ground.broker_proxy()
    ground.start_workers(2, RELAY_WORKER__LEASE="20s")
    unchanged = same_processes(ground)
    waits = []
    with reporting(ground, ground.environment["RELAY_REDIS_URL"]) as producer:
        for leave, come_back in (
            (lambda: os.kill(ground.redis.pid, signal.SIGSTOP), lambda: os.kill(ground.redis.pid, signal.SIGCONT)),
            (lambda: (data.stall(), broker.stall()), lambda: (data.resume(), broker.resume())),
        ):
            go_on(ground, 20)
            refused = len(producer.refused)
            ground.wait(lambda: ground.api.in_flight >= 1)
            leave()
            away_at = time.monotonic()
            ground.wait(lambda away_at=away_at: time.monotonic() > away_at + AWAY_SECONDS)  # type: ignore[misc]
            come_back()
            back_at = time.monotonic()
            all_work(ground, back_at)
            waits.append(time.monotonic() - back_at)
            ground.bit(len(producer.refused) > refused, "a producer got the error that Redis does not answer")
    ground.bit(data.held, "the link held bytes back")
    assert {type(error) for error in producer.refused} == {QueueUnavailable}
    assert producer.longest_seconds < IN_TIME_SECONDS + BUSY_SECONDS
    assert unchanged(), "a process was replaced"
    ground.check()
    ground.observed(
        f"{len(producer.refused)} typed errors, after at most {producer.longest_seconds:.1f} s; all worked "
        f"again after {waits[0]:.1f} s (stopped), {waits[1]:.1f} s (black hole); {ground.api.repeats()} repeats"
    )


@scenario(13, "Redis killed and restarted 6 times within seconds",
          bound="all workers deliver again within 10 s, repeats 0")  # fmt: skip
def test_a_redis_that_restarts_repeatedly_causes_no_repeat(ground: Ground) -> None:
    ground.start_workers(2, RELAY_WORKER__LEASE="6s")
    unchanged = same_processes(ground)
    ground.api.behave(Response(delay_seconds=0.2))
    with reporting(ground) as producer:
        go_on(ground, 20)
        ground.wait(lambda: ground.api.in_flight > 0)
        await_written(ground)
        ground.redis.kill()
        gone_at = time.monotonic()
        ground.wait(lambda: time.monotonic() > gone_at + GONE_SECONDS)  # longer than the clients' own retries
        ground.redis.restart()
        for _ in range(5):
            await_written(ground)
            ground.redis.kill()
            ground.redis.restart()
        back_at = time.monotonic()
        all_work(ground, back_at)
        again = time.monotonic() - back_at
    pauses = [float(pause) for w in ground.workers for pause in re.findall(r"Trying again in ([\d.]+) sec", w.log())]
    assert max(pauses) <= PAUSES["interval_max"], "a worker must reconnect to a broker soon"
    ground.bit(producer.refused or any("Redis is away" in w.log() for w in ground.workers), "Redis was away")
    assert unchanged(), "a process was replaced"
    ground.check()
    ground.observed(f"all workers delivered again after {again:.1f} s, {ground.api.repeats()} repeats")


#: The scripts of a worker, by the modules that declare them.
SCRIPTS_OF_A_WORKER = {
    "acquire": leases,
    "commit_intake": intake,
    "release_inbox": intake,
    "claim": outbox,
    "commit_delivery": outbox,
    "release_outbox": outbox,
    "waiting": schedule,
    "wake": leases,
    "beat": epoch,
}


@scenario(14, "the reply of an XADD, and of each of a worker's scripts, is cut after it ran",
          bound="one event each, repeats 0")  # fmt: skip
def test_a_lost_reply_makes_no_second_event(ground: Ground) -> None:
    link = ground.redis_proxy()
    ground.start_workers(1)
    ground.report(1)
    ground.rest()
    for name in SCRIPTS_OF_A_WORKER:
        cuts = link.cuts
        link.cut_reply(scripts.DECLARED[name].sha.encode())
        ground.report(5)
        ground.wait(lambda cuts=cuts: link.cuts > cuts)  # type: ignore[misc]
        ground.rest()
    url = ground.environment["RELAY_REDIS_URL"]
    cuts = link.cuts
    with Producer(settings=Settings.load(redis={"url": url})) as producer:
        link.cut_reply(scripts.DECLARED["append"].sha.encode())
        ground.report_events([ground.event(3_000_000)], producer)
        link.cut_reply(scripts.DECLARED["append"].sha.encode())
        ground.report_events([ground.event(n) for n in range(3_000_001, 3_000_100)], producer)
    assert link.cuts == cuts + 2
    ground.bit(link.cuts >= 11, "replies were cut")
    counters = ground.rest()
    assert (counters.added, counters.duplicate) == (ground.oracle.added, 0)
    ground.check()
    ground.observed(
        f"{link.cuts} replies cut, {counters.added} events added of as many, {ground.api.repeats()} repeats"
    )


@scenario(15, "FLUSHALL", bound="continues without a restart, repeats 0; each worker logs the loss")
def test_a_flushed_redis_is_noticed_and_used_again(ground: Ground) -> None:
    ground.start_workers(2)
    unchanged = same_processes(ground)
    with reporting(ground) as producer:
        go_on(ground, 50)
        ground.client.flushall()
        seen = len(ground.oracle.acknowledged)
        ground.wait(lambda: len(ground.oracle.acknowledged) > seen + 50)
        for worker in ground.workers:
            ground.wait(lambda worker=worker: epoch.LOST in worker.log(), seen=worker.log)  # type: ignore[misc]
    assert producer.refused == []
    ground.bit(ground.client.hget(ground.keys.counts, "resets") == b"1", "the loss of the data set was counted once")
    for worker in ground.workers:
        said = [json.loads(line) for line in worker.log().splitlines() if epoch.LOST in line]
        assert [(each["level"], each["pid"]) for each in said] == [("error", worker.child.pid)]
    assert unchanged(), "a process was replaced"
    gone = ground.oracle.acknowledged[: seen + 1]  # it is unknown which of those were only in Redis
    ground.oracle.acknowledged = ground.oracle.acknowledged[seen + 1 :]
    ground.oracle.uncertain += gone
    ground.check()
    ground.observed(
        f"alarm in each log; {len(ground.oracle.acknowledged)} events since, {ground.api.repeats()} repeats"
    )


@scenario(15, "SCRIPT FLUSH and CLIENT KILL repeatedly; DEL of an outbox",
          bound="continues without a restart, repeats 0; deleted events are counted as lost")  # fmt: skip
def test_flushed_scripts_and_killed_connections_stop_no_worker(ground: Ground) -> None:
    ground.start_workers(2)
    unchanged = same_processes(ground)
    killed = 0
    with reporting(ground):
        for _ in range(MEDDLINGS):
            ground.client.script_flush()
            killed += ground.client.client_kill_filter(_type="normal", skipme=True)
            go_on(ground, 50)
    ground.bit(killed > MEDDLINGS, "connections were killed")
    ground.check()
    repeats = ground.api.repeats()

    pausing.pause(ground.client, ground.keys, DEFAULT_DESTINATION, ["env-0"])
    doomed = ground.report(10)
    ground.wait(lambda: set(doomed) <= ground.in_outboxes())
    assert ground.client.delete(ground.keys.of_outbox(DEFAULT_DESTINATION, "env-0").outbox) == 1
    pausing.resume(ground.client, ground.keys, DEFAULT_DESTINATION, ["env-0"])
    [fresh] = ground.report(1)
    ground.wait(lambda: fresh in ground.api.processed_ids())
    ground.wait(lambda: ground.client.hget(ground.keys.counts, "lost") == b"10", seen=ground.counters)
    ground.wait(lambda: not ground.counters().waiting, seen=ground.counters)
    assert ground.counters().unaccounted == len(doomed)
    assert unchanged(), "a process was replaced"
    ground.observed(
        f"{killed} connections killed, {repeats} repeats; {len(doomed)} deleted and as many counted as lost"
    )


def fill_queue(ground: Ground) -> None:
    """Report until it raises; few instances, because their states take memory after the delivery."""
    while True:
        ground.report(100, instances=500, environments=5)


@contextmanager
def no_memory(ground: Ground) -> Iterator[list[str]]:
    """Keep Redis at its maxmemory: freed memory is filled at once. Yield the filler keys."""
    filler: list[str] = []
    over = threading.Event()

    def fill() -> None:
        size = 65_536
        with plain_client(ground.redis.url) as client:
            while not over.wait(0.001):
                name = f"filler:{len(filler)}"
                try:
                    client.set(name, "x" * size)
                    filler.append(name)
                    size = min(65_536, 2 * size)
                except redis.exceptions.OutOfMemoryError:
                    refusals.append(name)
                    size = max(64, size // 2)

    refusals: list[str] = []
    thread = threading.Thread(target=fill, name="filler")
    thread.start()
    try:
        ground.wait(lambda: len(refusals) > FULL_REFUSALS)
        yield refusals
    finally:
        over.set()
        thread.join()
        ground.client.delete(*filler)


@scenario(16, "Redis at its maxmemory",
          bound="producers refused at the watermark before; others delivered and recorded, repeats 0")  # fmt: skip
def test_a_redis_without_memory_still_records_deliveries(ground: Ground) -> None:
    workers = ground.start_workers(2)
    environments = [f"env-{n}" for n in range(5)]
    pausing.pause(ground.client, ground.keys, DEFAULT_DESTINATION, environments)
    most = ground.client.info("memory")["used_memory"] + ROOM_BYTES
    ground.client.config_set("maxmemory", most)
    with pytest.raises(QueueFull, match="short of memory"):
        fill_queue(ground)
    left = most - ground.client.info("memory")["used_memory"]
    assert left > 0, "Redis itself refused"
    waiting = ground.counters().waiting
    with no_memory(ground) as refusals:
        pausing.resume(ground.client, ground.keys, DEFAULT_DESTINATION, environments)
        before = len(refusals)
        ground.wait(lambda: not ground.counters().waiting, 60, ground.counters)
        ground.bit(len(refusals) > before, "Redis refused writes while the workers delivered")
        with pytest.raises(QueueFull):
            ground.report(1)
    assert all(worker.runs for worker in workers)
    ground.check()
    ground.observed(
        f"refused with {left // 1024} KiB left; {waiting} delivered and recorded beside {len(refusals)} refused "
        f"writes; {ground.api.repeats()} repeats"
    )


@scenario(16, "the disk is full under the append-only file",
          bound="typed errors, nothing half-written, repeats 0; recovers by itself")  # fmt: skip
def test_a_full_disk_loses_nothing(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ground.directory / "redis-server"
    server.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {find_server()} \"$@\"\n")
    server.chmod(0o755)
    monkeypatch.setenv(SERVER_VARIABLE, str(server))
    ground.redis.restart()
    ground.start_workers(2, **LONG_LEASE)
    unchanged = same_processes(ground)
    with reporting(ground) as producer:
        go_on(ground, 50)
        size = append_only_file(ground).stat().st_size
        _, most = resource.prlimit(ground.redis.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(ground.redis.pid, resource.RLIMIT_FSIZE, (size + 4096, most))
        ground.wait(lambda: bool(producer.refused))
        batch = [ground.event(n) for n in range(4_000_000, 4_000_300)]
        with impatient_producer(ground.redis.url) as other, pytest.raises(QueueUnavailable):
            other.report_many(batch)
        lying = {fields[b"id"].decode() for _, fields in ground.client.xrange(ground.keys.inbox)}
        assert not lying & {event.id for event in batch}, "a part of a call was written"
        full_at = time.monotonic()
        ground.wait(lambda: time.monotonic() > full_at + FULL_SECONDS)
        assert ground.client.info("persistence")["aof_last_write_status"] == "err"
        resource.prlimit(ground.redis.pid, resource.RLIMIT_FSIZE, (most, most))
        back_at = time.monotonic()
        all_work(ground, back_at)
        again = time.monotonic() - back_at
    ground.bit("MISCONF" in str(producer.refused[-1]), "Redis could not write its file")
    assert {type(error) for error in producer.refused} == {QueueUnavailable}
    assert unchanged(), "a process was replaced"
    ground.check()
    ground.observed(
        f"{len(producer.refused)} typed errors; deliveries after {again:.1f} s, {ground.api.repeats()} repeats"
    )
