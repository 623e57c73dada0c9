"""What operators type, as processes: status, inventory, resync, trace, config, completion."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from letters import KEYS, body, bury, digest, refused
from redis import Redis
from rig import TOKEN, wait_for

from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue import forgetting
from relay.queue.dead_letters import moment
from relay.queue.state import Accepted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig import Estate

INSTANCES = 300
CHANGED = 60


@pytest.fixture(scope="module")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(append_only=False) as server:
        yield server


@pytest.fixture
def client(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


def run(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "RELAY_REDIS_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(estate: Estate, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(estate.stack.settings.redis.url, *arguments, **environment)


def seen_by(estate: Estate) -> list[tuple[str, str]]:
    """The (repository, digest) of each POST that the API took, in order."""
    urls = [request.event["image"]["url"] for request in estate.api.requests if request.processed]
    return [(url.partition("@")[0], url.partition("@")[2]) for url in urls]


# Resync and inventory


def test_resync_tells_each_instance_once_more_and_undoes_nothing(estate: Estate) -> None:
    """While another process reports new versions of some of them."""
    repositories = [f"ghcr.io/acme/app-{number}" for number in range(INSTANCES)]
    for repository in repositories:
        estate.xadd(body("1", repository=repository))
    estate.start_worker()
    estate.wait_until_done(INSTANCES)

    def report_changes() -> None:
        with Redis.from_url(estate.stack.settings.redis.url) as client:
            for repository in repositories[:CHANGED]:
                client.xadd(KEYS.inbox, {"event": body("2", repository=repository)})

    reporting = threading.Thread(target=report_changes)
    reporting.start()
    done = ask(estate, "resync", "production", "--yes", "--json")
    reporting.join()
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["scanned"] == outcome["added"] + outcome["undelivered"] == INSTANCES
    counters = estate.wait_until_done(INSTANCES + CHANGED + outcome["added"])

    times = Counter(seen_by(estate))
    last = dict(seen_by(estate))
    for number, repository in enumerate(repositories):
        if number < CHANGED:
            assert last[repository] == digest("2"), "a resync undid a report"
            assert times[repository, digest("2")] in {1, 2}
            assert times[repository, digest("1")] in {1, 2}
        else:
            assert times[repository, digest("1")] == 2
    assert sum(times.values()) == counters.delivered
    assert (counters.unaccounted, counters.dead) == (0, 0)


def test_resync_asks_first_and_shows_what_it_would_do(estate: Estate) -> None:
    estate.xadd(body("1"))
    estate.start_worker()
    estate.wait_until_done(1)
    assert ask(estate, "resync", "production", "--dry-run").stdout == "1 would be delivered again\n"
    refused_to = ask(estate, "resync", "production")
    assert (refused_to.returncode, "--yes" in refused_to.stderr) == (2, True)
    nowhere = ask(estate, "resync", "nowhere", "--yes")
    assert (nowhere.returncode, "nothing is known of nowhere" in nowhere.stderr) == (1, True)
    assert estate.counters().added == 1


def test_resync_of_a_full_queue_says_how_far_it_came(estate: Estate) -> None:
    estate.xadd(body("1"))
    worker = estate.start_worker()
    estate.wait_until_done(1)
    worker.stop()
    estate.xadd(body("2", environment="staging"))
    done = ask(estate, "resync", "production", "--yes", "--wait", "0s", RELAY_QUEUE__MAX_BACKLOG="1")
    assert done.returncode == 75
    assert done.stdout == "0 delivered again\n"
    assert "1 events wait; 0 of about 1 instances were processed. Run it again later" in done.stderr
    assert ask(estate, "resync", "production", "--yes").stdout == "1 delivered again\n"


def test_inventory_shows_what_runs_and_whether_the_api_knows(estate: Estate) -> None:
    estate.xadd(body("1"))
    estate.xadd(body("1", environment="staging", repository="ghcr.io/acme/api"))
    worker = estate.start_worker()
    estate.wait_until_done(2)
    assert ask(estate, "pause", "staging", "--json").returncode == 0
    estate.xadd(body("2", environment="staging", repository="ghcr.io/acme/api"))
    wait_for(lambda: estate.counters().accepted == 3, 30)
    worker.stop()

    rows = [line.split("\t") for line in ask(estate, "inventory").stdout.splitlines()]
    assert [(row[0], row[1], row[3], row[4], row[6], row[7]) for row in rows] == [
        ("production", "docker.io/library/nginx", "linux/amd64", digest("1"), "yes", digest("1")),
        ("staging", "ghcr.io/acme/api", "linux/amd64", digest("2"), "no", digest("1")),
    ]
    (line,) = ask(estate, "inventory", "--search", "ACME", "--json").stdout.splitlines()
    found = json.loads(line)
    assert (found["digest"], found["delivered"], found["last_delivered"]["digest"]) == (
        digest("2"),
        False,
        digest("1"),
    )
    assert found["since"].startswith("20")
    assert ask(estate, "inventory", "production").stdout.count("\n") == 1
    nothing = ask(estate, "inventory", "production", "--search", "acme")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "nothing with acme was reported in production" in nothing.stderr


# Forget


def remember(client: Redis, name: str, *, seen_days_ago: float = 0, environment: str = "production") -> None:
    """Write an instance's state as intake and delivery would have left it."""
    seen = forgetting.now_ms(client) - round(seen_days_ago * 86_400_000)
    outbox = KEYS.of_outbox("default", environment)
    key = f"ghcr.io/acme/{name} linux/amd64 "
    client.hset(outbox.accepted, key, Accepted(digest("1"), None, seen, seen, ("id",)).encode())
    client.hset(outbox.delivered, key, f"{digest('1')}\n\n{seen}\n{seen}")
    client.zadd(KEYS.environments("default"), {environment: 1})
    client.hset(outbox.counts, mapping={"delivered": 1, "outbox": 0, "seen": seen})


def test_forget_drops_what_is_meant_asks_first_and_may_be_repeated(
    redis_server: EmbeddedRedis, client: Redis
) -> None:
    for name in ("api", "api-v2", "web", "old"):
        remember(client, name)
    remember(client, "ancient", seen_days_ago=60)
    remember(client, "api", environment="staging")
    url = redis_server.url

    unanswered = run(url, "forget", "production")
    assert (unanswered.returncode, "--yes" in unanswered.stderr) == (2, True)
    assert run(url, "forget", "production", "--dry-run").stdout == "5 would be forgotten\n"
    outcome = json.loads(run(url, "forget", "production", "--unseen-for", "30d", "--yes", "--json").stdout)
    assert outcome == {
        "environment": "production",
        "dry_run": False,
        "scanned": 5,
        "forgotten": 1,
        "kept": 0,
        "environment_forgotten": False,
    }
    instances = ["-i", "ghcr.io/acme/api", "-i", "ghcr.io/acme/old linux/amd64", "-i", "ghcr.io/acme/web linux/arm64"]
    for count in (2, 0):
        done = run(url, "forget", "production", *instances, "--yes")
        assert (done.returncode, done.stdout) == (0, f"{count} forgotten\n")
    assert {line.split("\t")[1] for line in run(url, "inventory", "production").stdout.splitlines()} == {
        "ghcr.io/acme/api-v2",
        "ghcr.io/acme/web",
    }
    assert run(url, "forget", "production", "--yes").stdout == "2 forgotten, and the environment\n"
    again = run(url, "forget", "production", "--yes")
    assert (again.returncode, again.stdout) == (0, "0 forgotten\n")
    assert "nothing is known of production" in again.stderr
    assert [each["environment"] for each in json.loads(run(url, "status", "--json").stdout)["environments"]] == [
        "staging"
    ]


def test_forget_keeps_what_waits(redis_server: EmbeddedRedis, client: Redis) -> None:
    remember(client, "api")
    remember(client, "web")
    outbox = KEYS.of_outbox("default", "production").outbox
    client.xadd(outbox, {"event": "{}", "instance": "ghcr.io/acme/api linux/amd64 "})
    done = run(redis_server.url, "forget", "production", "--yes")
    assert (done.returncode, done.stdout) == (75, "1 forgotten\n")
    assert "1 kept, because their events wait" in done.stderr


def test_inventory_shows_when_each_was_last_seen_and_what_is_forgotten_soon(
    redis_server: EmbeddedRedis, client: Redis
) -> None:
    remember(client, "stable", seen_days_ago=380)
    remember(client, "busy", seen_days_ago=100)
    done = run(redis_server.url, "inventory", "--json")
    seen = {row["repository"]: row["last_seen_at"] for row in map(json.loads, done.stdout.splitlines())}
    assert seen["ghcr.io/acme/stable"] < seen["ghcr.io/acme/busy"] < moment(forgetting.now_ms(client))
    assert "1 instance is forgotten within 30 days, because delivery.forget_after is 400 days" in done.stderr
    assert {line.split("\t")[-1] for line in run(redis_server.url, "inventory").stdout.splitlines()} == set(
        seen.values()
    )
    done = run(redis_server.url, "resync", "production", "--seen-within", "200d", "--dry-run")
    assert done.stdout == "1 would be delivered again, 1 left out, not seen within that time\n"


# Trace


def test_trace_shows_an_events_history(estate: Estate) -> None:
    estate.xadd(body("1"), id="job-1")
    estate.start_worker()
    estate.wait_until_done(1)
    found = ask(estate, "trace", "job-1")
    assert found.returncode == 0
    assert found.stdout.splitlines()[-1].endswith("  delivered")
    as_json = json.loads(ask(estate, "trace", "job-1", "--json").stdout)
    assert as_json["found"] is True
    assert [step["what"] for step in as_json["timeline"]][-1] == "delivered"
    nothing = ask(estate, "trace", "unknown")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "nothing is known of unknown; scanned: inbox 0 of 0" in nothing.stderr


# Status


def first_line(estate: Estate) -> str:
    return ask(estate, "status").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [
        ({"kind": "status", "status": 401}, "unauthorized", ["refuses the token", "RELAY_API_TOKEN_FILE"]),
        ({"kind": "status", "status": 503}, "unavailable", ["destination is unavailable"]),
        (
            {"kind": "status", "status": 429, "headers": {"Retry-After": "60"}},
            "throttled",
            ["limits the rate", "api.rate_limit"],
        ),
    ],
    ids=["expired token", "API down", "rate limited"],
)
def test_the_first_line_names_what_is_wrong_with_the_api(
    estate: Estate, fault: dict[str, Any], cause: str, words: list[str]
) -> None:
    estate.api.faults = [fault]
    for number in range(40):
        estate.xadd(body("1", repository=f"ghcr.io/acme/app-{number}"))
    estate.start_worker()

    def causes() -> list[str]:
        return [finding["check"] for finding in json.loads(ask(estate, "status", "--json").stdout)["findings"]]

    wait_for(lambda: causes()[:1] == [cause], 60, lambda: f"{causes()}")
    line = first_line(estate)
    for word in words:
        assert word in line
    assert TOKEN not in ask(estate, "status", "--json").stdout


def test_the_first_line_names_a_missing_worker_a_pause_and_a_poisonous_event(estate: Estate) -> None:
    estate.xadd(body("1"), id="job-1")
    assert "no worker is alive, and 1 event is waiting; start one" in first_line(estate)

    estate.api.faults = [{"kind": "status", "status": 422, "count": 1}]
    estate.start_worker()
    estate.wait_until_done(1)
    assert "1 dead letter waits" in first_line(estate)
    assert "refused, HTTP 422" in first_line(estate)

    ask(estate, "dead", "drop", "--yes")
    ask(estate, "pause", "production")
    estate.xadd(body("2"))
    wait_for(lambda: estate.counters().accepted == 2, 30)
    assert "production is paused by an operator, and 1 event is waiting there" in first_line(estate)
    ask(estate, "resume", "production", "--json")
    estate.wait_until_done(2)
    assert first_line(estate).startswith("destination default: healthy")


def test_the_first_line_names_a_full_redis(redis_server: EmbeddedRedis, client: Redis) -> None:
    client.set(KEYS.worker("a@host"), "1")
    client.zadd(KEYS.workers, {"a@host": 1_750_000_000_000})
    client.config_set("maxmemory", 1_000_000)
    try:
        said = run(redis_server.url, "status")
    finally:
        client.config_set("maxmemory", 0)
    assert said.returncode == 0
    assert said.stdout.startswith("Redis is full")
    assert "raise maxmemory" in said.stdout.splitlines()[0]


def test_status_shows_the_urgent_environments_and_all_when_asked(redis_server: EmbeddedRedis, client: Redis) -> None:
    names = [f"env-{number:03}" for number in range(60)]
    client.zadd(KEYS.environments("default"), dict.fromkeys(names, 0))
    client.xadd(KEYS.of_outbox("default", "env-059").outbox, {"event": "{}"})
    run(redis_server.url, "pause", "env-058")
    lines = run(redis_server.url, "status").stdout.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("env-") and "paused by" not in line]
    assert shown[:3] == ["env-058", "env-059", "env-000"]
    assert len(shown) == 20
    assert "40 more environments: --all shows them" in lines
    lines = run(redis_server.url, "status", "--all").stdout.splitlines()
    assert sum(line.startswith("env-") and "paused by" not in line for line in lines) == 60
    everything = json.loads(run(redis_server.url, "status", "--json").stdout)
    assert len(everything["environments"]) == 60
    assert everything["redis"]["memory_bytes"] > 0


def test_watching_ends_with_ctrl_c_and_is_for_terminals(redis_server: EmbeddedRedis, client: Redis) -> None:
    bury(client, refused("one"))
    piped = run(redis_server.url, "status", "--watch")
    assert (piped.returncode, "needs a terminal" in piped.stderr) == (2, True)
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "relay", "status", "-w", "--interval", "0.1"],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "RELAY_REDIS_URL": redis_server.url, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"},
        start_new_session=True,
    ) as command:
        os.close(its)
        written = b""
        while written.count(b"dead letter waits") < 3:
            written += os.read(ours, 4096)
        command.send_signal(signal.SIGINT)
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
        os.close(ours)
        assert command.wait(30) == 0


def test_an_interval_is_for_watching(redis_server: EmbeddedRedis) -> None:
    alone = run(redis_server.url, "status", "--interval", "1")
    assert (alone.returncode, "only with --watch" in alone.stderr) == (2, True)
    short = run(redis_server.url, "status", "--watch", "--interval", "0.01")
    assert (short.returncode, "0.1" in short.stderr) == (2, True)


# Completion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("relay re", ["report", "resume", "resync"]),
        ("relay dead re", ["redrive"]),
        ("relay config ", ["check", "show"]),
        ("relay status --w", ["--watch"]),
    ],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    position = len(typed.split(" ")) - 1
    done = run("redis://127.0.0.1:1/0", _RELAY_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(position))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_calls_the_relay(shell: str) -> None:
    done = run("redis://127.0.0.1:1/0", "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "_RELAY_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inventory"], 69, "did not answer"),
        (["trace", "x"], 69, "did not answer"),
        (["status"], 69, "did not answer"),
        (["resync", "production", "--yes"], 69, "did not answer"),
        (["forget", "production", "--yes"], 69, "did not answer"),
        (["forget"], 2, "Missing argument"),
        (["forget", "x", "--instance", ""], 2, "is empty"),
        (["forget", "x", "--instance", "Not An Image"], 2, "instance"),
        (["forget", "x", "--unseen-for", "0"], 2, "unseen-for"),
        (["resync", "x", "--seen-within", "soon"], 2, "not a duration"),
        (["trace"], 2, "Missing argument"),
        (["resync"], 2, "Missing argument"),
        (["resync", "x", "--wait", "soon"], 2, "not a duration"),
        (["config", "show", "--json", "--toml"], 2, "choose one"),
        (["trace", "pr\udcfcfung"], 2, "'ID': is not UTF-8"),
        (["trace", "x", "-e", "pr\udcfcfung"], 2, "'-e': is not UTF-8"),
        (["inventory", "pr\udcfcfung"], 2, "'ENV': is not UTF-8"),
        (["resync", "pr\udcfcfung", "--yes"], 2, "'ENV': is not UTF-8"),
        (["pause", "production", "pr\udcfcfung"], 2, "'ENV': is not UTF-8"),
        (["resume", "pr\udcfcfung"], 2, "'ENV': is not UTF-8"),
        (["trace", ""], 2, "'ID': is empty"),
        (["pause", ""], 2, "'ENV': is empty"),
    ],
)
def test_errors_say_what_to_do_and_exit_as_documented(arguments: list[str], code: int, message: str) -> None:
    done = run("redis://:secret@127.0.0.1:1/0", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
