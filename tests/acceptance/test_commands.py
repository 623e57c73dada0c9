"""The command line as a process: its output and its exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import requests
from redis import Redis
from rig import wait_for

from relay.processes.embedded_redis import EmbeddedRedis
from relay.processes.supervisor import Children

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = f"sha256:{sha256(b'x').hexdigest()}"


@pytest.fixture
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(append_only=False) as server:
        yield server


def relay(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_report_enqueues_one_event_and_prints_its_id(redis_server: EmbeddedRedis) -> None:
    done = relay(
        "report", f"nginx@{DIGEST}", "-e", "production", "--name", "web", "--platform", "linux/arm64",
        "--id", "job-7", "--source", "ci", "--time", "2026-01-31T12:00:00Z", RELAY_REDIS_URL=redis_server.url,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "job-7\n")
    with Redis.from_url(redis_server.url) as client:
        [(_, fields)] = client.xrange("{relay:0}:inbox")
    assert json.loads(fields[b"event"]) == {
        "image": {"url": f"docker.io/library/nginx@{DIGEST}", "name": "web"},
        "environment": {"name": "production"},
        "platform": {"os": "linux", "architecture": "arm64"},
    }
    assert (fields[b"id"], fields[b"source"]) == (b"job-7", b"ci")


def test_report_names_faulty_lines_and_enqueues_the_others(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    lines = [json.dumps({"image": {"url": f"nginx@{DIGEST}"}}), "no json", "", '{"image":{"url":"nginx:1.27"}}']
    for arguments, stdin in ((("report", "-"), "\n".join(lines)), (("report", str(tmp_path / "e.jsonl")), "")):
        (tmp_path / "e.jsonl").write_text("\n".join(lines))
        done = relay(*arguments, stdin=stdin, RELAY_REDIS_URL=redis_server.url)
        assert done.returncode == 1
        assert "line 2: the event is not valid JSON" in done.stderr
        assert "line 4: image.url: has a tag but no digest" in done.stderr
        assert "1 enqueued, 2 refused" in done.stderr
    with Redis.from_url(redis_server.url) as client:
        assert client.xlen("{relay:0}:inbox") == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["report", "nginx:1.27"], {}, 1, "has a tag but no digest"),
        (["report"], {}, 2, "Missing argument"),
        (["report", "missing.jsonl"], {}, 2, "is no file"),
        (["report", "."], {}, 1, "image.url: has no digest"),
        (["report", "-", "--environment", "production"], {}, 2, "options describe a single image"),
        (["up", "--data", "/dev/null/x"], {}, 2, "/dev/null/x"),
        (
            ["up", "--data", f"{tempfile.gettempdir()}/relay-test-up"],
            {
                "RELAY_REDIS_URL": "redis://127.0.0.1:1/0",
                "RELAY_API_URL": "http://127.0.0.1:1/",
                "RELAY_API_TOKEN": "t",
            },
            69,
            "did not answer",
        ),
        (["up"], {"RELAY_REDIS_URL": "redis://127.0.0.1:1/0"}, 2, "RELAY_API_URL) is not"),
        (["up"], {"RELAY_BROKER_URL": "redis://127.0.0.1:1/0"}, 2, "RELAY_REDIS_URL) is not"),
        (["dead", "drop", "--image", ""], {}, 2, "is empty"),
        (["dead", "redrive", "--environment", " "], {}, 2, "is empty"),
        (["dead", "drop", "--id", ""], {}, 2, "is empty"),
        (["dead", "export", "--output", ""], {}, 2, "'-o': is empty"),
        (["report", f"nginx@{DIGEST}", "--spool", ""], {}, 2, "'--spool': is empty"),
        (["report", f"nginx@{DIGEST}", "--gateway", " "], {}, 2, "'--gateway': is empty"),
        (["report", f"nginx@{DIGEST}", "--gateway-token-file", "", "--no-fail"], {}, 2, "is empty"),
        (["spool", "flush", "--spool", ""], {}, 2, "'--spool': is empty"),
        (["spool", "status", "--spool", ""], {}, 2, "'--spool': is empty"),
        (["nonsense"], {}, 2, "No such command"),
        (["report", f"nginx@{DIGEST}"], {"RELAY_REDIS_URL": "redis://127.0.0.1:1/0"}, 69, "did not take it"),
        (["report", f"nginx@{DIGEST}"], {"RELAY_REDIS_URL": "http://x"}, 2, "RELAY_REDIS_URL"),
        (["status"], {"RELAY_REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, 69, "did not answer"),
        (["worker"], {}, 2, "RELAY_API_URL"),
        (["worker"], {"RELAY_API_URL": "http://api.example.com/"}, 2, "in the clear"),
        (["worker"], {"RELAY_API_URL": "https://a.example.com/", "RELAY_API_TOKEN_FILE": "/none"}, 2, "token_file"),
    ],
)
def test_error_has_its_message_and_its_exit_code(
    arguments: list[str], environment: dict[str, str], code: int, message: str
) -> None:
    done = relay(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "-"], "standard input is closed"),
        (["dead", "drop"], "to drop all dead letters without a terminal, give --yes or a filter (--help)"),
    ],
)
def test_closed_standard_input_is_an_error(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "relay", *arguments]
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"relay: {message}\n")


def test_a_full_queue_is_exit_code_75(redis_server: EmbeddedRedis) -> None:
    settings = {"RELAY_REDIS_URL": redis_server.url, "RELAY_QUEUE__MAX_BACKLOG": "1"}
    assert relay("report", f"nginx@{DIGEST}", **settings).returncode == 0
    done = relay("report", f"nginx@{DIGEST}", **settings)
    assert done.returncode == 75
    assert "queue is full" in done.stderr


def test_status_shows_each_environment(redis_server: EmbeddedRedis) -> None:
    relay("report", f"nginx@{DIGEST}", "-e", "production", RELAY_REDIS_URL=redis_server.url)
    seen = json.loads(relay("status", "--json", RELAY_REDIS_URL=redis_server.url).stdout)
    assert seen["counters"]["added"] == seen["counters"]["waiting"] == 1
    assert "added 1, waiting 1" in relay("status", RELAY_REDIS_URL=redis_server.url).stdout


def test_up_runs_all_parts_and_continues_after_a_restart(tmp_path: Path) -> None:
    """An event passes the gateway, Redis, a worker and the sandbox. SIGTERM stops all of them."""
    for version in ("one", "two"):
        log = tmp_path / f"up-{version}.log"
        with Children() as children:
            up = children.start(
                "up",
                [sys.executable, "-m", "relay", "up", "--data", str(tmp_path / "data"), "--port", "0"],
                log_path=log,
                ready=lambda log=log: "Ctrl-C stops everything" in log.read_text(),
                ready_seconds=60,
                stop_seconds=30,
            )
            shown = dict(line.split(maxsplit=1) for line in log.read_text().splitlines()[:4])
            digest = f"sha256:{sha256(version.encode()).hexdigest()}"
            body = {"image": {"url": f"ghcr.io/acme/api@{digest}"}, "environment": {"name": "production"}}
            answer = requests.post(shown["Gateway"], json=body, timeout=10)
            assert answer.status_code == 202
            counts = f"{shown['API']}_sandbox/counts"
            wait_for(lambda: requests.get(counts, timeout=5).json()["accepted"] == 1)  # noqa: B023 - called here
            same = requests.post(f"{shown['Gateway']}/v1/deployments", json=body, timeout=10)
            assert same.status_code == 202
            up.signal(signal.SIGTERM)
            ended = up.wait(30)
            assert ended is not None
            assert ended.code == 0, log.read_text()
    counters = None
    with EmbeddedRedis(tmp_path / "data" / "redis") as server:
        counters = json.loads(relay("status", "--json", RELAY_REDIS_URL=server.url).stdout)["counters"]
    assert counters["delivered"] == 2
    assert counters["added"] == 4, "the second start did not find the data of the first"


def test_up_refuses_a_directory_or_port_in_use(tmp_path: Path) -> None:
    """Two servers would damage one append-only file."""
    arguments = [sys.executable, "-m", "relay", "up", "--data", str(tmp_path / "data"), "--port"]
    log = tmp_path / "up.log"
    with Children() as children, socket.create_server(("127.0.0.1", 0)) as taken:
        first = [*arguments, "0"]
        children.start("up", first, log_path=log, ready=lambda: "Ctrl-C" in log.read_text(), ready_seconds=60)
        same = subprocess.run([*arguments, "0"], capture_output=True, text=True, timeout=60, check=False)
        assert same.returncode == 2
        assert "is in use by process" in same.stderr
        arguments[5] = str(tmp_path / "other")
        port = str(taken.getsockname()[1])
        blocked = subprocess.run([*arguments, port], capture_output=True, text=True, timeout=60, check=False)
        assert blocked.returncode == 2
        assert f"port {port} is taken" in blocked.stderr


def test_up_ends_with_its_redis(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    argv = [sys.executable, "-m", "relay", "up", "--data", str(tmp_path / "data"), "--port", "0"]
    with Children() as children:
        up = children.start("up", argv, log_path=log, ready=lambda: "Ctrl-C" in log.read_text(), ready_seconds=60)
        with Redis.from_url(log.read_text().split()[1]) as client:
            client.shutdown(nosave=True)
        ended = up.wait(40)
        assert ended is not None
        assert ended.code == 69
        assert "redis exited with code 0" in log.read_text()


def test_demo_refuses_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = relay("demo", "--logs", str(tmp_path))
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_demo_accounts_for_every_event_though_a_worker_is_killed(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    """It uses none of the configured queue, broker and spool."""
    away, in_use = {"RELAY_REDIS_URL": "redis://127.0.0.1:1/0"}, {"RELAY_REDIS__URL": redis_server.url}
    spool = {"RELAY_SPOOL__DIRECTORY": str(tmp_path / "spool")}
    relay("report", f"nginx@{DIGEST}", **away, **spool)
    relay("report", f"nginx@{DIGEST}", **in_use)
    settings = {**in_use, **spool, "RELAY_BROKER_URL": redis_server.url, "http_proxy": "http://127.0.0.1:1"}
    arguments = ("--rate", "4000", "--outage", "2", "--kill-worker", "--logs", str(tmp_path / "logs"))
    done = relay("demo", *arguments, **settings)
    with Redis.from_url(redis_server.url) as client:
        assert client.xlen("{relay:0}:inbox") == 1
        assert not client.exists("celery", "_kombu.binding.celery")
    assert "1 events wait" in relay("spool", "status", **spool).stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every event is accounted for." in done.stdout
    assert "the API answers 503" in done.stdout
