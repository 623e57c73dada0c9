"""`relay report --spool` and `relay spool`: an acknowledged event arrives once, although processes are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from relay.processes.embedded_redis import EmbeddedRedis
from relay.producer.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORTER = Path(__file__).parents[1] / "spool_reporter.py"
IMAGE = f"nginx@sha256:{sha256(b'x').hexdigest()}"

#: An address without a server.
NOWHERE = "redis://127.0.0.1:1/0"

#: Fail points of a process that spools, and of one that sends the spool.
SPOOLING = ["before:append:1", "after:spool-write:1", "after:spool-sync:1"]
SENDING = [
    "after:spool-seal:1",
    "before:append:1",
    "after:append:1",
    "before:spool-remove:1",
    "after:append:2",
    "before:spool-remove:2",
]

#: Those of the latter that only the first process passes: it leaves nothing to seal, or a single segment.
PASSED_ONCE = {"after:spool-seal:1", "after:append:2", "before:spool-remove:2"}


@pytest.fixture
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(append_fsync="always") as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def relay(
    *arguments: str, stdin: str = "", url: str = NOWHERE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        input=stdin,
        env={**os.environ, "RELAY_REDIS_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def report(directory: Path, event_id: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return relay("report", IMAGE, "-e", "production", "--id", event_id, "--spool", str(directory), **environment)


def waiting(directory: Path) -> int:
    return Spool(directory, max_bytes=1, patience_seconds=30).status().events


def enqueued(server: EmbeddedRedis) -> list[str]:
    with Redis.from_url(server.url, socket_timeout=10) as client:
        return [fields[b"id"].decode() for _, fields in client.xrange("{relay:0}:inbox")]


def test_report_is_spooled_and_sent_by_flush(redis_server: EmbeddedRedis, directory: Path) -> None:
    done = report(directory, "job-7")
    assert (done.returncode, done.stdout) == (0, "job-7\n")
    assert f"spooled in {directory}: Redis at {NOWHERE} did not take it" in done.stderr
    assert "1 spooled; sent by the next report, or by `relay spool flush`" in done.stderr
    seen = json.loads(relay("spool", "status", "--json", "--spool", str(directory)).stdout)
    assert 0 < seen.pop("bytes") < 1000
    assert 0 < seen.pop("oldest_seconds") < 300
    assert seen == {"directory": str(directory), "events": 1, "max_bytes": 67_108_864, "damaged": 0}

    flushed = relay("spool", "flush", "--spool", str(directory), url=redis_server.url)
    assert (flushed.returncode, flushed.stdout, flushed.stderr) == (0, "1 events sent\n", "")
    assert enqueued(redis_server) == ["job-7"]
    assert waiting(directory) == 0


def test_directory_comes_from_the_settings_too(redis_server: EmbeddedRedis, directory: Path) -> None:
    spooling = {"RELAY_SPOOL__DIRECTORY": str(directory)}
    assert relay("report", IMAGE, "--id", "1", **spooling).returncode == 0
    assert "1 events wait" in relay("spool", "status", **spooling).stdout
    done = relay("report", IMAGE, "--id", "2", url=redis_server.url, **spooling)
    assert (done.returncode, done.stderr) == (0, "")
    assert enqueued(redis_server) == ["1", "2"]
    assert relay("spool", "flush", url=redis_server.url, **spooling).stdout == "0 events sent\n"


def test_stream_is_spooled_and_bad_lines_are_still_named(redis_server: EmbeddedRedis, directory: Path) -> None:
    lines = [json.dumps({"image": {"url": IMAGE}, "id": f"e{number}"}) for number in range(700)]
    done = relay("report", "-", "--spool", str(directory), stdin="\n".join(["no json", *lines]))
    assert done.returncode == 1
    assert "line 1: the event is not valid JSON" in done.stderr
    assert "700 spooled" in done.stderr
    assert relay("spool", "flush", "--spool", str(directory), url=redis_server.url).stdout == "700 events sent\n"
    assert enqueued(redis_server) == [f"e{number}" for number in range(700)]


def test_without_a_spool_an_unavailable_redis_is_an_error() -> None:
    assert relay("report", IMAGE).returncode == 69


def test_full_spool_is_an_error_and_keeps_its_events(directory: Path) -> None:
    bound = {"RELAY_SPOOL__MAX_BYTES": "300"}
    assert report(directory, "1", **bound).returncode == 0
    done = report(directory, "2", **bound)
    assert (done.returncode, done.stdout) == (69, "")
    assert "did not take it" in done.stderr
    assert "is full" in done.stderr
    assert waiting(directory) == 1


@pytest.mark.parametrize("command", ["status", "flush"])
def test_spool_that_cannot_be_used_is_a_usage_error(command: str, directory: Path) -> None:
    (directory / "lock").mkdir(parents=True)
    done = relay("spool", command, "--spool", str(directory))
    assert (done.returncode, "cannot be used" in done.stderr) == (2, True)
    told = " ".join(relay("spool", command, "--help").stdout.split())
    assert "2 usage, or the directory cannot be used" in told


@pytest.mark.parametrize("command", ["status", "flush"])
def test_missing_spool_is_a_usage_error(command: str, tmp_path: Path) -> None:
    missing = relay("spool", command, "--spool", str(tmp_path / "typo"))
    assert (missing.returncode, "there is no directory" in missing.stderr) == (2, True)
    unsaid = relay("spool", command)
    assert (unsaid.returncode, "give --spool DIR" in unsaid.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_flush_without_redis_prints_how_many_wait(directory: Path) -> None:
    report(directory, "1")
    done = relay("spool", "flush", "--spool", str(directory))
    assert done.returncode == 69
    assert f"1 events wait in {directory}" in done.stderr


def test_flush_reports_damage_and_keeps_it(redis_server: EmbeddedRedis, directory: Path) -> None:
    report(directory, "1")
    (segment,) = directory.glob("*.sealed")
    with segment.open("ab") as file:
        file.write(b"deadbeef {torn")
    done = relay("spool", "flush", "--spool", str(directory), url=redis_server.url)
    assert (done.returncode, done.stdout) == (1, "1 events sent\n")
    assert f"1 damaged lines are kept in {directory / 'damaged'}" in done.stderr
    assert (directory / "damaged").read_bytes() == b"deadbeef {torn\n"
    assert "1 damaged lines" in relay("spool", "status", "--spool", str(directory)).stdout


def test_flush_leaves_it_to_the_process_that_is_sending(redis_server: EmbeddedRedis, directory: Path) -> None:
    report(directory, "1")
    with Spool(directory, max_bytes=1, patience_seconds=30).sending() as ours:
        assert ours
        done = relay("spool", "flush", "--spool", str(directory), url=redis_server.url)
    assert (done.returncode, done.stdout) == (75, "0 events sent\n")
    assert "another process is sending" in done.stderr
    assert enqueued(redis_server) == []


# Killed


@pytest.mark.parametrize("point", SPOOLING)
def test_killed_while_it_spools(point: str, redis_server: EmbeddedRedis, directory: Path) -> None:
    acknowledged = []
    for number, crash in enumerate([None, point, None, point, None]):
        done = report(directory, str(number), **({"RELAY_TEST_CRASH": crash} if crash else {}))
        assert done.returncode == (-signal.SIGKILL if crash else 0), done.stderr
        acknowledged += done.stdout.split()
    assert acknowledged == ["0", "2", "4"]
    relay("spool", "flush", "--spool", str(directory), url=redis_server.url)

    got = enqueued(redis_server)
    assert [each for each in got if each in acknowledged] == acknowledged
    assert len(got) == len(set(got)), "what was not acknowledged may arrive, once"


@pytest.mark.parametrize("point", SENDING)
def test_killed_while_it_sends(point: str, redis_server: EmbeddedRedis, directory: Path) -> None:
    acknowledged = [report(directory, str(number)).stdout.strip() for number in range(3)]
    flush = ("spool", "flush", "--spool", str(directory))
    assert relay(*flush, url=redis_server.url, RELAY_TEST_CRASH=point).returncode == -signal.SIGKILL
    assert waiting(directory)
    again = relay(*flush, url=redis_server.url, RELAY_TEST_CRASH=point)
    assert again.returncode == (0 if point in PASSED_ONCE else -signal.SIGKILL), again.stderr
    acknowledged.append(report(directory, "last", url=redis_server.url).stdout.strip())
    assert enqueued(redis_server) == acknowledged == ["0", "1", "2", "last"]


def test_processes_killed_at_any_moment_while_redis_comes_and_goes(
    redis_server: EmbeddedRedis, directory: Path
) -> None:
    chance = random.Random(7)
    acknowledged: list[str] = []
    reached = 0
    for turn in range(12):
        if turn % 3 == 1:
            redis_server.kill()
        if turn % 3 == 2:
            redis_server.restart()
        command = [sys.executable, str(REPORTER), str(directory), "app", str(reached), "100000"]
        with subprocess.Popen(
            command, env={**os.environ, "RELAY_REDIS_URL": redis_server.url}, stdout=subprocess.PIPE, text=True
        ) as reporter:
            assert reporter.stdout
            seen = [reporter.stdout.readline().strip() for _ in range(chance.randrange(1, 40))]
            reporter.kill()
            seen += reporter.stdout.read().split()
        acknowledged += seen
        reached += len(seen) + 1  # the one after the last may have been taken too: its id is not used again
        assert acknowledged[-1] == f"app-{reached - 2}"
    redis_server.restart()
    assert relay("spool", "flush", "--spool", str(directory), url=redis_server.url).returncode in {0, 1}

    got = enqueued(redis_server)
    assert len(got) == len(set(got)), "none is doubled"
    known = set(acknowledged)
    assert [each for each in got if each in known] == acknowledged, "none is lost, and all are in their order"
    assert len(got) <= len(acknowledged) + 12, "beside them only what was under way when its process was killed"
