"""`relay dead`, `relay pause` and `relay resume` as an operator meets them: processes, output, exit codes."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from letters import ARRIVED, KEYS, REPOSITORY, body, bury, digest, invalid, refused
from outboxes import throttle
from redis import Redis
from rig import wait_for

from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue.counters import read_counters
from relay.queue.inbox import Redriven
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rig import Estate

RAW = {b"event": b'{"image":\xff\x00', b"\xfe": b"\r\n", b"id": b"job-raw"}


@pytest.fixture(scope="module")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(append_only=False) as server:
        yield server


@pytest.fixture
def client(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


def run(
    url: str, *arguments: str, stdin: Any = subprocess.DEVNULL, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        stdin=stdin,
        env={**os.environ, "RELAY_REDIS_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_on_terminal(url: str, *arguments: str, typed: str) -> tuple[int, str]:
    """Run a command whose every stream is a terminal, and type an answer; return its exit code and what it wrote."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "relay", *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "RELAY_REDIS_URL": url, "TERM": "dumb", "COLUMNS": "200"},
        start_new_session=True,
    ) as command:
        os.close(its)
        os.write(ours, typed.encode())
        written = b""
        while piece := _read_from(ours):
            written += piece
        os.close(ours)
        return command.wait(30), written.decode()


def _read_from(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


def some_letters(client: Redis) -> list[str]:
    return bury(
        client,
        refused("one"),
        refused("two", environment="staging", reason="exhausted", status=503, attempts=12),
        invalid(RAW, "the event is not valid JSON"),
    )


def test_list_shows_the_newest_last(redis_server: EmbeddedRedis, client: Redis) -> None:
    ids = some_letters(client)
    done = run(redis_server.url, "dead", "list")
    rows = [line.split("\t") for line in done.stdout.splitlines()]

    assert done.returncode == 0
    assert [row[0] for row in rows] == ids
    assert rows[1][2:] == [
        "exhausted", "503", "12", "staging", f"{REPOSITORY}@{digest('two')}", "job-two", "HTTP 422: no",
    ]  # fmt: skip
    assert "3 shown of 3 dead letters" in done.stderr

    done = run(redis_server.url, "dead", "list", "--limit", "1", "--json")
    assert [json.loads(line)["letter"] for line in done.stdout.splitlines()] == ids[-1:]
    assert "1 shown of 3 dead letters" in done.stderr

    done = run(redis_server.url, "dead", "list", "-e", "stag*", "--reason", "exhausted", "--reason", "expired")
    assert done.stdout.startswith(ids[1])
    assert done.stdout.count("\n") == 1


def test_half_a_surrogate_pair_does_not_break_the_status(redis_server: EmbeddedRedis, client: Redis) -> None:
    event = b'{"image":{"url":"a\\udfffb"},"environment":{"name":"prod\\ud800"}}'
    bury(client, invalid({"event": event, "id": "job-half"}))
    shown, written = run(redis_server.url, "status"), run(redis_server.url, "status", "--json")
    assert "is a?b in prod?: invalid" in shown.stdout
    assert "is a?b in prod?: invalid" in json.loads(written.stdout)["findings"][-1]["what"]


def test_half_a_surrogate_pair_keeps_no_letter_from_being_seen(
    redis_server: EmbeddedRedis, client: Redis, tmp_path: Path
) -> None:
    url, event = redis_server.url, b'{"image":{"url":"a\\udfffb"},"environment":{"name":"prod\\ud800"}}'
    bad, good = bury(client, invalid({"event": event, "id": "job-half"}), refused("one"))
    lines = {
        what: run(url, "dead", *what.split(), "--json").stdout for what in ("list", f"show {bad}", "show job-half")
    }
    lines |= {"export": run(url, "dead", "export").stdout}
    exported = run(url, "dead", "export", "--output", str(tmp_path / "dead.jsonl"))

    assert exported.returncode == 0
    assert "2 exported" in exported.stderr
    assert (tmp_path / "dead.jsonl").read_text("utf-8") == lines["export"]
    for what, text in lines.items():
        letters = [json.loads(line) for line in text.splitlines()]
        assert [letter["letter"] for letter in letters] == ([bad] if "show" in what else [bad, good])
        assert (letters[0]["environment"], letters[0]["image"]) == ("prod\ud800", "a\udfffb")
        assert letters[0]["fields"][0] == ["event", event.decode()]

    table, whole = run(url, "dead", "list"), run(url, "dead", "show", bad)
    code, drawn = run_on_terminal(url, "dead", "list", typed="")
    traced = run(url, "trace", "job-half", "--json"), run(url, "trace", "job-half")
    assert [code, *(done.returncode for done in (table, whole, *traced))] == [0] * 5
    assert all("prod?" in text for text in (table.stdout, whole.stdout, drawn, traced[1].stdout))
    assert json.loads(traced[0].stdout)["found"]


def test_list_on_a_terminal_is_a_table_and_obeys_no_letter(redis_server: EmbeddedRedis, client: Redis) -> None:
    bury(client, refused("one", detail="\x1b]0;mine\x07 [red]not markup[/red]"))
    code, written = run_on_terminal(redis_server.url, "dead", "list", typed="")

    assert code == 0
    assert "environment" in written
    assert "\x1b]0" not in written
    assert "?]0;mine?" in written


def test_show_tells_all_of_a_letter_or_of_an_events(redis_server: EmbeddedRedis, client: Redis) -> None:
    ids = some_letters(client)
    done = run(redis_server.url, "dead", "show", ids[0], "job-raw")

    assert done.returncode == 0
    for part in ("refused", "HTTP 422: no", "422", "production", digest("one"), "job-one", "2025-06-15T15:06:40.005"):
        assert part in done.stdout
    assert f"base64 {base64.b64encode(RAW[b'event']).decode()}" in done.stdout

    done = run(redis_server.url, "dead", "show", "job-two", "unknown", "--json")
    assert done.returncode == 1
    assert "no dead letter unknown" in done.stderr
    assert json.loads(done.stdout)["attempts"] == 12


def test_export_loses_not_a_byte(redis_server: EmbeddedRedis, client: Redis, tmp_path: Path) -> None:
    some_letters(client)
    client.xadd(KEYS.dead, {**RAW, b"reason": b"mine", **invalid({}, "\u2028 ü")})
    file = tmp_path / "dead.jsonl"
    to_file = run(redis_server.url, "dead", "export", "--output", str(file))
    piped = run(redis_server.url, "dead", "export")

    assert (to_file.returncode, piped.returncode) == (0, 0)
    assert "4 exported" in to_file.stderr
    assert file.read_text(encoding="utf-8") == piped.stdout
    lines = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    found = [(line["letter"], [tuple(map(as_bytes, pair)) for pair in line["fields"]]) for line in lines]
    assert found[2][1] == list(RAW.items())
    assert found[3][1] == [*RAW.items(), (b"reason", b"mine")]
    for (letter_id, fields), (stored_id, stored) in zip(found, client.xrange(KEYS.dead), strict=True):
        assert letter_id == stored_id.decode()
        assert [name for name, _ in fields] == list(stored)[: len(fields)]
    assert (lines[0]["status"], lines[0]["last_attempt_at"]) == (422, "2025-06-15T15:06:40.009+00:00")
    assert client.xlen(KEYS.dead) == 4


def test_export_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "dead.jsonl"
    for before in (None, "kept\n"):
        if before:
            file.write_text(before)
        assert run("redis://127.0.0.1:1/0", "dead", "export", "--output", str(file)).returncode == 69
        assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == (
            [(file.name, before)] if before else []
        )


def test_export_replaces_a_file_and_keeps_its_mode(
    redis_server: EmbeddedRedis, client: Redis, tmp_path: Path
) -> None:
    some_letters(client)
    file, link = tmp_path / "dead.jsonl", tmp_path / "link"
    file.write_text("before\n" * 1000)
    file.chmod(0o640)
    link.symlink_to(file)
    assert run(redis_server.url, "dead", "export", "-o", str(link)).returncode == 0
    assert (len(file.read_text().splitlines()), file.stat().st_mode & 0o777) == (3, 0o640)
    assert (link.is_symlink(), {each.name for each in tmp_path.iterdir()}) == (True, {"dead.jsonl", "link"})


def test_export_writes_to_what_is_no_file_directly(redis_server: EmbeddedRedis, client: Redis) -> None:
    some_letters(client)
    done = run(redis_server.url, "dead", "export", "-o", "/dev/stdout")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)


def as_bytes(text: str | dict[str, str]) -> bytes:
    return text.encode() if isinstance(text, str) else base64.b64decode(text["base64"])


def test_dry_run_says_what_would_be_done_and_does_nothing(redis_server: EmbeddedRedis, client: Redis) -> None:
    some_letters(client)
    for command, word in (("redrive", "redriven"), ("drop", "dropped")):
        done = run(redis_server.url, "dead", command, "--dry-run")
        assert (done.returncode, done.stdout) == (0, f"3 would be {word}: exhausted 1, invalid 1, refused 1\n")
        done = run(redis_server.url, "dead", command, "--dry-run", "--image", "nginx", "--limit", "1")
        assert done.stdout == f"1 would be {word}: refused 1\n"
    assert (client.xlen(KEYS.dead), client.xlen(KEYS.inbox), client.exists(KEYS.redrive_lease)) == (3, 0, 0)


def test_redrive_puts_back_what_matches(redis_server: EmbeddedRedis, client: Redis) -> None:
    some_letters(client)
    done = run(redis_server.url, "dead", "redrive", "--reason", "exhausted", "--force")

    assert (done.returncode, done.stderr) == (0, "1 redriven\n")
    [(_, entry)] = client.xrange(KEYS.inbox)
    redriven = Redriven(1, ARRIVED, 0, force=True).encode()
    assert entry == {
        b"redriven": redriven.encode(),
        b"event": body("two", "staging").encode(),
        b"id": b"job-two",
        b"source": b"ci",
    }
    assert client.exists(KEYS.redrive_lease) == 0
    assert run(redis_server.url, "dead", "redrive", "--yes").returncode == 0
    assert client.xlen(KEYS.inbox) == 3


@pytest.mark.parametrize("command", ["redrive", "drop"])
def test_all_letters_are_meant_only_by_who_says_so(redis_server: EmbeddedRedis, client: Redis, command: str) -> None:
    some_letters(client)
    done = run(redis_server.url, "dead", command)
    assert done.returncode == 2
    assert "--yes" in done.stderr

    code, written = run_on_terminal(redis_server.url, "dead", command, typed="n\n")
    assert code == 1
    assert f"{command.capitalize()} all 3 dead letters?" in written
    assert client.xlen(KEYS.dead) == 3

    code, written = run_on_terminal(redis_server.url, "dead", command, typed="y\n")
    assert code == 0
    assert "3/3" in written, "no progress was shown"
    assert client.xlen(KEYS.dead) == 0


def test_drop_lets_go_of_what_matches(redis_server: EmbeddedRedis, client: Redis) -> None:
    ids = some_letters(client)
    done = run(redis_server.url, "dead", "drop", "--id", "job-raw", "--id", "job-one")

    assert (done.returncode, done.stderr) == (0, "2 dropped\n")
    assert [letter_id.decode() for letter_id, _ in client.xrange(KEYS.dead)] == ids[1:2]
    counters = read_counters(client, KEYS)
    assert (counters.dropped, counters.dead_unaccounted, counters.unaccounted) == (2, 0, 0)


def test_second_redrive_is_told_to_wait(redis_server: EmbeddedRedis, client: Redis) -> None:
    some_letters(client)
    client.set(KEYS.redrive_lease, "another", px=60_000)
    done = run(redis_server.url, "dead", "redrive", "--yes")

    assert done.returncode == 75
    assert "another redrive is running" in done.stderr
    assert client.xlen(KEYS.dead) == 3


def test_redrive_into_a_full_queue_says_how_far_it_came(redis_server: EmbeddedRedis, client: Redis) -> None:
    some_letters(client)
    done = run(redis_server.url, "dead", "redrive", "--yes", RELAY_QUEUE__MAX_BACKLOG="2")

    assert done.returncode == 75
    assert "2 redriven" in done.stderr
    assert "the queue is full" in done.stderr
    assert (client.xlen(KEYS.dead), client.xlen(KEYS.inbox), client.exists(KEYS.redrive_lease)) == (1, 2, 0)


def test_redrive_whose_lease_is_taken_stops(redis_server: EmbeddedRedis, client: Redis) -> None:
    bury(client, *(refused(str(number)) for number in range(100)))
    redrive = subprocess.Popen(
        [sys.executable, "-m", "relay", "dead", "redrive", "--yes", "--rate", "5"],
        env={**os.environ, "RELAY_REDIS_URL": redis_server.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    with redrive:
        wait_for(lambda: client.xlen(KEYS.inbox) > 0, 30)
        client.set(KEYS.redrive_lease, "successor")
        _, errors = redrive.communicate(timeout=30)
    assert redrive.returncode == 75
    assert "another redrive has taken over" in errors
    assert client.xlen(KEYS.inbox) + client.xlen(KEYS.dead) == 100
    assert client.get(KEYS.redrive_lease) == b"successor"


@pytest.mark.parametrize("point", ["before:redrive:2", "after:redrive:2"])
def test_redrive_killed_anywhere_goes_on_where_it_was(redis_server: EmbeddedRedis, client: Redis, point: str) -> None:
    bury(client, *(refused(str(number)) for number in range(900)))
    killed = run(redis_server.url, "dead", "redrive", "--yes", RELAY_TEST_CRASH=point)
    assert killed.returncode == -9
    moved = client.xlen(KEYS.inbox)
    assert 0 < moved < 900, "it was not killed in the middle"
    assert moved + client.xlen(KEYS.dead) == 900
    assert run(redis_server.url, "dead", "redrive", "--yes").returncode == 75, "the dead one's lease still stands"

    client.delete(KEYS.redrive_lease)  # as if its time were over
    assert run(redis_server.url, "dead", "redrive", "--yes").returncode == 0
    ids = [fields[b"id"] for _, fields in client.xrange(KEYS.inbox)]
    assert sorted(ids) == sorted(f"job-{number}".encode() for number in range(900))
    counters = read_counters(client, KEYS)
    assert (counters.redriven, counters.dead_waiting, counters.unaccounted, counters.dead_unaccounted) == (
        900,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["dead"], 2, "Usage"),
        (["dead", "list", "--reason", "boredom"], 2, "boredom"),
        (["dead", "list", "--older-than", "soon"], 2, "not a duration"),
        (["dead", "redrive", "--rate", "0"], 2, "--rate"),
        (["dead", "export", "--output", "/nonexistent/x"], 2, "/nonexistent/x"),
        (["dead", "list"], 69, "did not answer"),
        (["dead", "redrive", "--yes"], 69, "did not answer"),
        (["pause", "production"], 69, "did not answer"),
        (["resume", "production"], 69, "did not answer"),
        (["pause"], 2, "Missing argument"),
    ],
)
def test_errors_say_what_to_do_and_exit_as_documented(arguments: list[str], code: int, message: str) -> None:
    done = run("redis://:secret@127.0.0.1:1/0", *arguments)

    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("command", ["list", "show", "redrive", "drop", "export"])
def test_help_has_examples(redis_server: EmbeddedRedis, command: str) -> None:
    assert f"relay dead {command}" in run(redis_server.url, "dead", command, "--help").stdout.split("Examples:")[1]


def test_pause_and_resume_say_what_they_did(redis_server: EmbeddedRedis, client: Redis) -> None:
    url = redis_server.url
    assert run(url, "pause", "production", "staging").stdout == "production is paused\nstaging is paused\n"
    assert "production was already paused, since 20" in run(url, "pause", "production").stdout
    assert client.hkeys(KEYS.paused(DEFAULT_DESTINATION)) == [b"production", b"staging"]
    status = json.loads(run(url, "status", "--json").stdout)
    assert [each["environment"] for each in status["environments"] if each["paused_since"]] == [
        "production",
        "staging",
    ]
    assert "paused" in run(url, "status").stdout
    done = run(url, "resume", "production", "nowhere")
    assert done.returncode == 0
    assert "production is resumed; it was paused at 20" in done.stdout
    assert "nowhere was not paused" in done.stdout
    assert client.hkeys(KEYS.paused(DEFAULT_DESTINATION)) == [b"staging"]


def test_resume_ends_a_throttle(redis_server: EmbeddedRedis, client: Redis) -> None:
    url = redis_server.url
    assert run(url, "resume", "--destination", "default").stdout == "default was healthy\n"
    throttle(client, 3600)
    status = json.loads(run(url, "status", "--json").stdout)
    assert status["destination"]["throttled_for_seconds"] > 3000
    done = json.loads(run(url, "resume", "--destination", "default", "--json").stdout)
    assert (done["destination"], done["health"]) == ("default", "throttled")
    assert json.loads(run(url, "status", "--json").stdout)["destination"]["health"] == "healthy"
    assert run(url, "resume").returncode == 2
    assert "there is only the destination 'default'" in run(url, "resume", "--destination", "other").stderr


def test_status_accounts_for_dead_letters(redis_server: EmbeddedRedis, client: Redis) -> None:
    some_letters(client)
    run(redis_server.url, "dead", "drop", "--id", "job-raw")
    run(redis_server.url, "dead", "redrive", "--id", "job-one")
    counters = json.loads(run(redis_server.url, "status", "--json").stdout)["counters"]

    names = ("added", "waiting", "dead", "redriven", "dropped", "dead_waiting", "unaccounted", "dead_unaccounted")
    assert {name: counters[name] for name in names} == {
        "added": 3, "waiting": 1, "dead": 3, "redriven": 1, "dropped": 1, "dead_waiting": 1,
        "unaccounted": 0, "dead_unaccounted": 0,
    }  # fmt: skip


def test_a_worker_delivers_what_is_redriven(estate: Estate) -> None:
    """From the API's refusal through the command to its acceptance, with nothing but processes."""
    estate.api.faults = [{"kind": "status", "status": 422, "count": 1}]
    estate.xadd(body("one"), id="job-1")
    estate.start_worker()
    estate.wait_until_done(1)
    url = estate.stack.settings.redis.url
    assert run(url, "dead", "list").stdout.split("\t")[2] == "refused"
    assert run(url, "dead", "redrive", "--id", "job-1").returncode == 0
    wait_for(lambda: estate.counters().delivered == 1, 30, lambda: f"{estate.counters()}")
    counters = estate.counters()
    assert (counters.added, counters.dead, counters.redriven, counters.unaccounted, counters.dead_unaccounted) == (
        1,
        1,
        1,
        0,
        0,
    )
