"""A producer with a spool: Redis stops, hangs, loses answers and restarts, and each event arrives once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from rig import wait_for

from relay import ConfigurationError, DeploymentEvent, InvalidEvent, Producer, QueueFull, SpoolUnavailable
from relay.processes.embedded_redis import EmbeddedRedis
from relay.producer.queue_producer import CHUNK
from relay.producer.spool import SEGMENT_BYTES, Segment, Spool
from relay.queue.keys import Keys
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORTER = Path(__file__).parents[1] / "spool_reporter.py"
DIGEST = "sha256:" + "0123456789abcdef" * 4
APP = f"registry.example.com/team/app@{DIGEST}"
INBOX = Keys().inbox

#: An address without a server.
NOWHERE = "redis://127.0.0.1:1/0"

#: Short enough that a test waits for a Redis that hangs.
TIMEOUTS = {"timeout": 0.3, "connect_timeout": 0.3}


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, to be stopped and started."""
    with EmbeddedRedis(append_fsync="always") as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def producing(url: str, directory: Path | None = None, **sections: Any) -> Iterator[Producer]:
    redis = {"url": url, **sections.pop("redis", {})}
    with Producer(settings=Settings.load(redis=redis, **sections), spool=directory) as producer:
        yield producer


def spool_of(producer: Producer) -> Spool:
    assert producer._spooling
    return producer._spooling.spool


def enqueued(url: str) -> list[str]:
    with Redis.from_url(url, socket_timeout=10) as client:
        return [fields[b"id"].decode() for _, fields in client.xrange(INBOX)]


def events(count: int) -> Iterator[DeploymentEvent]:
    return (DeploymentEvent.of(APP, environment="production", id=f"e{number}") for number in range(count))


# Away and back


def test_spooled_events_are_sent_before_the_next_report(server: EmbeddedRedis, directory: Path) -> None:
    with producing(server.url, directory) as producer:
        ids = [producer.report(APP)]
        assert producer.spooled == 0
        server.kill()
        ids += [producer.report(APP), producer.report(APP, id="given", source="ci", time="2026-01-31T12:00:00Z")]
        ids += producer.report_many(events(3))
        assert producer.spooled == 5
        server.restart()
        ids.append(producer.report(APP))

        assert enqueued(server.url) == ids
        assert len(set(ids)) == 7
        assert spool_of(producer).is_empty()
        assert producer.spooled == 5


def test_entry_is_the_one_that_would_have_been_sent(server: EmbeddedRedis, directory: Path) -> None:
    event = DeploymentEvent.of(
        APP, environment="wéb", name="n", platform="linux/arm64", id="1", source="ci", time="2026-01-31T12:00:00.5Z"
    )
    with producing(NOWHERE, directory) as away:
        away.report_event(event, receipt=True)
    with producing(server.url, directory) as producer:
        assert producer.flush_spool() == (1, 0)
        producer.report_event(event, receipt=True)
    with Redis.from_url(server.url) as client:
        (_, spooled), (_, direct) = client.xrange(INBOX)
    assert spooled == direct


def test_another_process_sends_the_spool(server: EmbeddedRedis, directory: Path) -> None:
    with producing(NOWHERE, directory) as away:
        ids = away.report_many(events(5))
    with producing(server.url, directory) as producer:
        ids.append(producer.report(APP))
        assert producer.spooled == 0
    assert enqueued(server.url) == ids


def test_directory_of_the_settings_is_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SPOOL__DIRECTORY", str(directory))
    with Producer(NOWHERE) as producer:
        producer.report(APP)
        assert producer.spooled == spool_of(producer).status().events == 1
    with producing(NOWHERE, directory.parent / "other") as producer:
        producer.report(APP)
        assert spool_of(producer).directory.name == "other", "what is given beats the settings"


def test_directory_that_is_gone_keeps_nothing_from_redis_and_is_made_anew_when_needed(
    server: EmbeddedRedis, directory: Path
) -> None:
    """As after a cleaner of temporary files, while a producer lives."""
    with producing(server.url, directory) as producer:
        shutil.rmtree(directory)
        ids = [producer.report(APP), *producer.report_many(events(3))]
        assert producer.flush_spool() == (0, 0)
        shutil.rmtree(directory)
        server.kill()
        ids.append(producer.report(APP))
        assert producer.spooled == spool_of(producer).status().events == 1
        server.restart()
        producer.flush_spool()
    assert enqueued(server.url) == ids


def test_flushing_without_a_spool_says_what_is_missing() -> None:
    with producing(NOWHERE) as producer, pytest.raises(ConfigurationError, match=r"spool\.directory"):
        producer.flush_spool()


def test_event_that_can_never_be_delivered_is_refused_and_not_spooled(directory: Path) -> None:
    with producing(NOWHERE, directory) as producer:
        with pytest.raises(InvalidEvent):
            producer.report("nginx:latest")
        assert spool_of(producer).is_empty()


def test_damaged_lines_are_skipped_and_logged(
    server: EmbeddedRedis, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with producing(NOWHERE, directory) as away:
        away.report(APP, id="1")
        away.report(APP, id="2")
        away.report(APP, id="3")
    (behind,) = directory.glob("*.open")
    behind.write_bytes(behind.read_bytes().replace(b'"2"', b'"7"'))
    with producing(server.url, directory) as producer:
        assert producer.flush_spool() == (2, 1)
    assert enqueued(server.url) == ["1", "3"]
    assert "1 damaged lines" in caplog.text
    assert b'"7"' in (directory / "damaged").read_bytes()


# Once


def test_event_whose_answer_was_lost_arrives_once(server: EmbeddedRedis, directory: Path) -> None:
    with producing(server.url, directory, redis=TIMEOUTS) as producer:
        producer.report(APP, id="before")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            producer.report(APP, id="lost")
            producer.report(APP, id="behind")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert producer.spooled == 2
        wait_for(lambda: "lost" in enqueued(server.url), seen=lambda: "the report that was given up never arrived")
        producer.report(APP, id="after")
    assert enqueued(server.url) == ["before", "lost", "behind", "after"]


def test_segment_is_added_once_however_often_it_is_sent(server: EmbeddedRedis, directory: Path) -> None:
    with producing(NOWHERE, directory) as away:
        ids = [away.report(APP) for _ in range(3)]
        with spool_of(away).sending():
            for path in sorted(directory.glob("*.open")):
                spool_of(away)._seal(Segment(path, int(path.stem), ""))
    sealed = {path: path.read_bytes() for path in directory.glob("*.sealed")}
    assert len(sealed) == 2
    with producing(server.url, directory) as producer:
        for _ in range(3):  # as often as a process dies between Redis's answer and the removal
            producer.flush_spool()
            for path, content in sealed.items():
                assert not path.exists()
                path.write_bytes(content)
    assert enqueued(server.url) == ids


# Full


def test_full_queue_is_raised_and_nothing_is_spooled(server: EmbeddedRedis, directory: Path) -> None:
    with producing(server.url, directory, queue={"max_backlog": 2}) as producer:
        producer.report_many(events(2))
        with pytest.raises(QueueFull):
            producer.report(APP)
        assert spool_of(producer).is_empty()


def test_spooled_events_stay_while_the_queue_is_full(server: EmbeddedRedis, directory: Path) -> None:
    with producing(NOWHERE, directory) as away:
        away.report(APP, id="spooled")
    with producing(server.url, queue={"max_backlog": 1}) as other:
        other.report(APP, id="other")
    with producing(server.url, directory, queue={"max_backlog": 1}) as producer:
        with pytest.raises(QueueFull):
            producer.report(APP, id="new")
        with Redis.from_url(server.url) as client:
            client.delete(INBOX)
        assert producer.flush_spool() == (1, 0)
    assert enqueued(server.url) == ["spooled"]


def test_full_spool_is_raised_with_the_reason_for_spooling(directory: Path) -> None:
    with producing(NOWHERE, directory, spool={"max_bytes": 1000}) as producer:
        taken = [producer.report(APP), producer.report(APP)]
        with pytest.raises(SpoolUnavailable, match=r"did not take it: .*; and the spool .* is full") as refused:
            producer.report_many(events(10))
        assert refused.value.enqueued == ()
        assert producer.spooled == len(taken) == spool_of(producer).status().events


def test_error_has_the_ids_that_were_spooled_before(directory: Path) -> None:
    with producing(NOWHERE, directory.parent / "measure") as producer:
        producer.report_many(events(CHUNK))
        most = spool_of(producer).status().bytes * 3 // 2
    with producing(NOWHERE, directory, spool={"max_bytes": most}) as producer:
        with pytest.raises(SpoolUnavailable) as refused:
            producer.report_many(events(3 * CHUNK))
        assert refused.value.enqueued == tuple(f"e{number}" for number in range(CHUNK))
        assert spool_of(producer).status().events == CHUNK


# In time


@contextmanager
def black_hole() -> Iterator[tuple[str, socket.socket]]:
    """A Redis that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=500)) as listening:
        listening.settimeout(0)
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0", listening


def connections(listening: socket.socket) -> int:
    count = 0
    with suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def test_report_tries_twice_with_and_without_spooled_events(directory: Path) -> None:
    with black_hole() as (url, listening), producing(url, directory, redis=TIMEOUTS) as producer:
        for _ in range(2):
            producer.report(APP)
            assert connections(listening) == 2
        assert producer.spooled == 2


def test_many_chunks_do_not_wait_for_redis_one_by_one(directory: Path) -> None:
    patient = {"timeout": 2, "connect_timeout": 2}
    with black_hole() as (url, listening), producing(url, directory, redis=patient) as producer:
        assert len(list(producer.report_stream(events(4 * CHUNK)))) == 4 * CHUNK
        assert connections(listening) == 2
        assert producer.spooled == 4 * CHUNK


# Several at once


def test_report_goes_behind_what_another_process_is_sending(server: EmbeddedRedis, directory: Path) -> None:
    with producing(NOWHERE, directory) as away:
        away.report(APP, id="first")
    with producing(server.url, directory) as producer:
        with Spool(directory, max_bytes=SEGMENT_BYTES, patience_seconds=1).sending() as theirs:
            assert theirs
            producer.report(APP, id="second")
            assert enqueued(server.url) == [], "it must not overtake the first"
            assert producer.flush_spool() == (0, 0)
        producer.report(APP, id="third")
    assert enqueued(server.url) == ["first", "second", "third"]


def test_processes_that_share_a_spool_lose_double_and_reorder_nothing(server: EmbeddedRedis, directory: Path) -> None:
    names, count = ("a", "b", "c"), 60
    environment = {**os.environ, "RELAY_REDIS_URL": server.url}
    commands = [[sys.executable, str(REPORTER), str(directory), name, "0", str(count)] for name in names]
    reporters = [subprocess.Popen(each, env=environment, stdout=subprocess.PIPE, text=True) for each in commands]
    try:
        while any(reporter.poll() is None for reporter in reporters):
            wait_for(lambda: _is_up(server.url) or all(r.poll() is not None for r in reporters), 60)
            server.kill()
            wait_for(lambda: not _is_up(server.url))
            server.restart()
        acknowledged = [reporter.communicate(timeout=60)[0].split() for reporter in reporters]
    finally:
        for reporter in reporters:
            reporter.kill()
            reporter.communicate()
    with producing(server.url, directory) as producer:
        producer.flush_spool()
    got = enqueued(server.url)
    for name, ids in zip(names, acknowledged, strict=True):
        assert ids == [f"{name}-{number}" for number in range(count)]
        assert list(dict.fromkeys(each for each in got if each.startswith(f"{name}-"))) == ids
    assert len(got) == len(set(got)), "nothing is doubled, not even within the inbox"


def _is_up(url: str) -> bool:
    try:
        with Redis.from_url(url, socket_timeout=5) as client:
            return bool(client.ping())
    except RedisError:
        return False
