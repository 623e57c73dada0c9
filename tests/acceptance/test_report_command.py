"""`relay report` in a pipeline: a process with real Redis, gateway, worker and API, and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from rig import TIMERS, TOKEN, Estate, wait_for
from servers import Server, answer, hang

from relay.connections.clients import connect
from relay.processes.stack import Stack
from relay.queue import pausing
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Step

GATEWAY_TOKEN = "canary-token-of-the-gateway"
PAYMENTS_TOKEN = "canary-token-of-payments"

#: An address without a server.
NOWHERE = "redis://127.0.0.1:1/0"

#: Variables of the CI system that may run these tests.
FOREIGN = ("RELAY_", "GITHUB_", "GITLAB_", "CI_", "CIRCLE", "BUILD_TAG", "JOB_NAME")

GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_REPOSITORY": "acme/shop",
    "GITHUB_RUN_ID": "1658821493",
    "GITHUB_RUN_ATTEMPT": "1",
    "GITHUB_JOB": "deploy",
    "GITHUB_ACTION": "report",
}


def digest(version: object) -> str:
    return f"sha256:{sha256(str(version).encode()).hexdigest()}"


def image(version: object, repository: str = "ghcr.io/acme/shop") -> str:
    return f"{repository}@{digest(version)}"


def line(version: object, environment: str, **envelope: str) -> str:
    return json.dumps({"image": {"url": image(version)}, "environment": {"name": environment}, **envelope})


def report(
    *arguments: str, stdin: str = "", python: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return subprocess.run(
        [sys.executable, *python, "-m", "relay", "report", *arguments],
        input=stdin,
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    """A relay with a worker and a gateway; each test has an environment of its own."""
    directory = tmp_path_factory.mktemp("stack")
    (directory / "tokens.toml").write_text(f'[payments]\ntoken = "{PAYMENTS_TOKEN}"\nenvironments = ["payments-*"]\n')
    with Sandbox(token=TOKEN) as api:
        api.faults = [{"kind": "status", "status": 400, "environment": "cursed"}]
        environment = {**TIMERS, "RELAY_API_TOKEN": TOKEN, "RELAY_API_URL": api.url}
        environment |= {"RELAY_GATEWAY__TOKEN": GATEWAY_TOKEN}
        environment |= {"RELAY_GATEWAY__TOKENS_FILE": str(directory / "tokens.toml")}
        with (
            Stack(directory, api_url=api.url, environment=environment) as stack,
            connect(stack.settings.redis) as client,
        ):
            estate = Estate(stack, client, api)
            estate.start_worker(concurrency=1)
            stack.start_gateway(0)
            yield estate


@pytest.fixture(params=["redis", "gateway"])
def way(estate: Estate, request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "redis":
        return {"RELAY_REDIS_URL": estate.stack.redis_url}
    return {
        "RELAY_REDIS_URL": NOWHERE,
        "RELAY_GATEWAY_URL": estate.stack.gateway_url,
        "RELAY_GATEWAY_TOKEN": GATEWAY_TOKEN,
    }


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> str:
    return request.node.name


def received(estate: Estate, environment: str) -> list[str]:
    return [
        request.event["image"]["url"].rpartition("@")[2]
        for request in estate.api.requests
        if request.environment == environment
    ]


def test_wait_ends_with_the_delivery(way: dict[str, str], estate: Estate, environment: str) -> None:
    done = report(image("a"), "-e", environment, "--id", f"{environment}-1", "--wait", **way)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{environment}-1\n", "delivered\n")
    assert received(estate, environment) == [digest("a")]
    again = report(image("a"), "-e", environment, "--wait", **way)
    assert again.returncode == 0
    said = f"duplicate: a duplicate of {environment}-1, which was delivered; there was nothing more to deliver\n"
    assert again.stderr == said
    assert received(estate, environment) == [digest("a")]


def test_wait_does_not_report_the_outcome_of_another_report(
    way: dict[str, str], estate: Estate, environment: str
) -> None:
    """A, then B, then A with the first one's id: B stays."""
    for version in "ab":
        arguments = (image(version), "-e", environment, "--id", f"{environment}-{version}", "--wait")
        assert report(*arguments, **way).stderr == "delivered\n"
    again = report(image("a"), "-e", environment, "--id", f"{environment}-a", "--wait", **way)
    assert (again.returncode, again.stderr.partition(":")[0]) == (0, "superseded")
    assert digest("b") in again.stderr
    assert "--id" in again.stderr
    assert received(estate, environment) == [digest("a"), digest("b")]


@contextmanager
def reporting_stream(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start `relay report -` with a pipe as standard input, and the default signals."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    with subprocess.Popen(
        [sys.executable, "-m", "relay", "report", "-", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**inherited, **variables},
        text=True,
        restore_signals=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write(process: subprocess.Popen[str], *lines: str) -> None:
    assert process.stdin is not None
    process.stdin.write("".join(f"{each}\n" for each in lines))
    process.stdin.flush()


def test_a_line_is_sent_while_the_stream_pauses(way: dict[str, str], estate: Estate, environment: str) -> None:
    with reporting_stream(**way) as process:
        write(process, line("a", environment))
        wait_for(lambda: received(estate, environment) == [digest("a")], 60)
        write(process, line("b", environment), "no json")
        wait_for(lambda: received(estate, environment) == [digest("a"), digest("b")], 60)
        said = process.communicate(f"{line('c', environment)}\n", timeout=60)[1]
    assert process.returncode == 1
    assert "line 3: " in said
    assert "3 enqueued, 1 refused" in said
    wait_for(lambda: len(received(estate, environment)) == 3, 60)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_a_signal_sends_what_was_read_and_names_the_first_line_that_was_not(
    way: dict[str, str], estate: Estate, environment: str, signum: signal.Signals
) -> None:
    with reporting_stream(**way) as process:
        write(process, *(line(version, environment) for version in "abc"))
        # The last line was read, and may wait for others to be sent with it.
        wait_for(lambda: len(received(estate, environment)) >= 1, 60)
        process.send_signal(signum)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum
    assert said == f"stopped by {signum.name}: 3 enqueued, 0 refused; report again from line 4 on\n"
    wait_for(lambda: received(estate, environment) == [digest(each) for each in "abc"], 60)


@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_a_signal_while_waiting_leaves_nothing_to_report_again(
    way: dict[str, str], estate: Estate, environment: str
) -> None:
    pausing.pause(estate.client, estate.keys, DEFAULT_DESTINATION, [environment])
    outbox = estate.keys.of_outbox(DEFAULT_DESTINATION, environment).outbox
    with reporting_stream("--wait", **way) as process:
        assert process.stdin is not None
        write(process, line("a", environment))
        process.stdin.close()
        wait_for(lambda: estate.client.xlen(outbox) == 1, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert process.stderr is not None
        said = process.stderr.read()
    assert said.startswith("stopped by SIGTERM: 1 enqueued, 0 refused; all lines were read")
    pausing.resume(estate.client, estate.keys, DEFAULT_DESTINATION, [environment])


def test_an_unavailable_queue_ends_a_stream_that_pauses() -> None:
    with reporting_stream(RELAY_REDIS_URL=NOWHERE, RELAY_REDIS__CONNECT_TIMEOUT="1s") as process:
        write(process, line("a", "production"))
        assert process.wait(60) == 69
        assert process.stderr is not None
        said = process.stderr.read()
    assert "0 enqueued before this; report again from line 1 on" in said


def test_wait_prints_why_an_event_is_dead(way: dict[str, str]) -> None:
    done = report(image("a"), "-e", "cursed", "--wait", **way)
    assert done.returncode == 1
    assert "dead: " in done.stderr
    assert "400" in done.stderr


def test_wait_that_timed_out_says_so(way: dict[str, str], estate: Estate, environment: str) -> None:
    pausing.pause(estate.client, estate.keys, DEFAULT_DESTINATION, [environment])
    done = report(image("a"), "-e", environment, "--wait", "--timeout", "1", **way)
    assert done.returncode == 75
    assert "still waiting" in done.stderr
    pausing.resume(estate.client, estate.keys, DEFAULT_DESTINATION, [environment])


def test_wait_follows_a_stream_longer_than_its_window(way: dict[str, str], estate: Estate, environment: str) -> None:
    lines = [line(version, environment) for version in range(2_200)]
    lines[7] = "no json"
    done = report("-", "--wait", "--timeout", "60", stdin="\n".join(lines), **way)
    assert done.returncode == 1
    assert "line 8: the event is not valid JSON" in done.stderr
    assert "2199 enqueued, 1 refused, 2199 delivered" in done.stderr
    assert len(received(estate, environment)) == 2_199


def test_wait_counts_each_outcome_of_a_stream(way: dict[str, str], environment: str) -> None:
    lines = [line("a", environment), line("a", environment), line("b", "cursed"), line("b", environment)]
    done = report("-", "--wait", stdin="\n".join(lines), **way)
    assert done.returncode == 1
    assert "line 3: dead: " in done.stderr
    assert "4 enqueued, 0 refused" in done.stderr
    for count in ("2 delivered", "1 duplicate", "1 dead"):
        assert count in done.stderr


def test_lines_that_a_gateway_refuses_are_named(estate: Estate, tmp_path: Path) -> None:
    """Bad lines are known here, wrong environments only there; the numbers are the file's."""
    lines = [line("a", "payments-1"), "no json", "", line("a", "shop"), line("b", "payments-1")]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    (tmp_path / "token").write_text(f"{PAYMENTS_TOKEN}\n")
    done = report(
        str(tmp_path / "events.jsonl"), "--wait",
        "--gateway", estate.stack.gateway_url, "--gateway-token-file", str(tmp_path / "token"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "line 2: the event is not valid JSON" in done.stderr
    assert "line 4: environment.name: the token of payments may not report for the environment shop" in done.stderr
    assert "2 enqueued, 2 refused, 2 delivered" in done.stderr
    assert received(estate, "payments-1") == [digest("a"), digest("b")]


def test_a_later_refusal_of_a_gateway_says_where_to_go_on() -> None:
    ids = [str(number) for number in range(1100)]
    lines = ["no json", *(line("a", "shop", id=each) for each in ids)]
    taken = json.dumps({"ids": ids[:1000]}).encode()
    with Server(answer(202, taken), answer(403)) as server:
        done = report("-", "--gateway", server.url, stdin="\n".join(lines))
    assert done.returncode == 1
    assert "1000 enqueued before this; report again from line 1002 on" in done.stderr


@pytest.mark.parametrize("step", [answer(503), hang])
def test_wait_times_out_though_the_gateway_gives_no_receipt(step: Step) -> None:
    begun = time.monotonic()
    with Server(answer(202, b'{"ids": ["a"]}'), step) as server:
        patient = {"RELAY_PRODUCER__GATEWAY_TIMEOUT": "60s"}
        done = report(image("a"), "--id", "a", "--gateway", server.url, "--wait", "--timeout", "1", **patient)
    assert done.returncode == 75
    assert "still waiting" in done.stderr
    assert time.monotonic() - begun < 30, "half of the gateway's time-out"


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        (["nginx:1.27"], {}, 1, "image.url: has a tag but no digest"),
        (["", "-e", "shop"], {}, 1, "image.url: the image is empty"),
        ([" ", "-e", "shop"], {}, 1, "image.url: the image is empty"),
        (["/tmp", "-e", "shop"], {}, 1, "image.url: has no digest"),  # noqa: S108 - not written to
        ([300 * "a", "-e", "shop"], {}, 1, "image.url: has no digest"),
        ([image("a")], {"RELAY_GATEWAY_TOKEN": "wrong"}, 1, "set RELAY_GATEWAY_TOKEN_FILE or RELAY_GATEWAY_TOKEN"),
        ([image("a")], {"RELAY_GATEWAY_TOKEN": ""}, 1, "a bearer token is missing"),
        ([image("a"), "-e", "shop"], {"RELAY_GATEWAY_TOKEN": PAYMENTS_TOKEN}, 1, "may not report for"),
        ([image("a"), "--gateway-token-file", "/nowhere"], {}, 2, "cannot be read"),
        ([image("a"), "--gateway", "ftp://x"], {}, 2, "gateway_url must be http://"),
        ([image("a"), "--gateway", "http://gateway.example.com"], {}, 2, "in the clear"),
        (
            [image("a"), "--gateway", "http://127.0.0.1:1"],
            {"RELAY_PRODUCER__GATEWAY_TIMEOUT": "1s"},
            69,
            "127.0.0.1:1: ",
        ),
        ([image("a"), "--timeout", "5"], {}, 2, "only with --wait"),
        ([image("a"), "--wait", "--dry-run"], {}, 2, "nothing to wait for"),
        (["-", "--id", "a"], {}, 2, "options describe a single image"),
        (["missing.jsonl"], {}, 2, "is no file"),
        ([image("a"), "--spool", "/tmp"], {}, 2, "--spool is for reports to Redis"),  # noqa: S108 - not written to
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], variables: dict[str, str], code: int, message: str, estate: Estate
) -> None:
    through = {"RELAY_GATEWAY_URL": estate.stack.gateway_url, "RELAY_GATEWAY_TOKEN": GATEWAY_TOKEN, **variables}
    done = report(*arguments, **through)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    for hidden in ("Traceback", GATEWAY_TOKEN, PAYMENTS_TOKEN):
        assert hidden not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "instead_of"),
    [
        (["nginx:1.27"], {}, 1),
        (["", "-e", "shop"], {}, 1),
        (["missing.jsonl"], {}, 2),
        ([image("a")], {"RELAY_REDIS_URL": NOWHERE}, 69),
        ([image("a")], {"RELAY_QUEUE__NONSENSE": "1"}, 2),
        ([image("a"), "--timeout", "5"], {}, None),
        ([image("a"), "--nonsense"], {}, None),
    ],
)
def test_no_fail_makes_warnings_of_all_errors_but_wrong_options(
    arguments: list[str], variables: dict[str, str], instead_of: int | None
) -> None:
    done = report(*arguments, "--no-fail", **variables)
    assert done.returncode == (2 if instead_of is None else 0)
    assert instead_of is None or f"relay: warning: exit code 0 instead of {instead_of}" in done.stderr


def test_no_fail_changes_nothing_of_what_succeeds(way: dict[str, str], estate: Estate, environment: str) -> None:
    done = report(image("a"), "-e", environment, "--id", environment, "--no-fail", "--wait", **way)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{environment}\n", "delivered\n")
    done = report("-", "--no-fail", stdin=f"{line('b', environment)}\nno json", **way)
    assert done.returncode == 0
    assert "1 enqueued, 1 refused" in done.stderr


def test_wait_cannot_know_what_became_of_an_event_in_the_spool(tmp_path: Path) -> None:
    redis = {"RELAY_REDIS_URL": NOWHERE, "RELAY_REDIS__TIMEOUT": "1s"}
    done = report(image("a"), "--spool", str(tmp_path), "--wait", "--timeout", "1", **redis)
    assert done.returncode == 75
    assert "1 spooled" in done.stderr


def test_dry_run_checks_and_contacts_nobody() -> None:
    """Whatever is configured: what would be contacted does not exist, and it would be an error."""
    nowhere = {"RELAY_REDIS_URL": NOWHERE, "RELAY_GATEWAY_URL": "http://127.0.0.1:1"}
    done = report(
        f"nginx@{digest('a')}", "-e", " production ", "--id", "a", "--time", "2026-01-31T13:00:00+01:00",
        "--platform", "linux/x86_64", "--dry-run", **nowhere,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "event": {
            "image": {"url": image("a", "docker.io/library/nginx")},
            "environment": {"name": "production"},
            "platform": {"os": "linux", "architecture": "amd64"},
        },
        "id": "a",
        "time": "2026-01-31T12:00:00Z",
    }
    many = report("-", "--dry-run", stdin=f"{line('a', 'x', source='s')}\nno json\n{line('b', 'x')}", **nowhere)
    assert many.returncode == 1
    assert [json.loads(each).get("source") for each in many.stdout.splitlines()] == ["s", None]
    assert "line 2: the event is not valid JSON" in many.stderr
    assert "2 valid, 1 refused" in many.stderr


def test_a_line_that_is_too_large_lets_the_others_through(estate: Estate, environment: str) -> None:
    """Names cannot reach the usual bound, so it is set lower."""
    long = json.dumps({"image": {"url": image("a"), "name": "n" * 200}, "environment": {"name": environment}})
    lines = "\n".join([line("a", environment), long, line("b", environment)])
    settings = {"RELAY_REDIS_URL": estate.stack.redis_url, "RELAY_QUEUE__MAX_EVENT_BYTES": "250"}
    done = report("-", "--wait", stdin=lines, **settings)
    assert done.returncode == 1
    assert "line 2: the event is " in done.stderr
    assert "2 enqueued, 1 refused, 2 delivered" in done.stderr


def test_the_pipelines_run_is_source_and_id_unless_given() -> None:
    def told(*options: str, **variables: str) -> dict[str, str]:
        return json.loads(report(image("a"), "--dry-run", *options, **(GITHUB | variables)).stdout)

    detected = told()
    assert detected["source"] == "https://github.com/acme/shop/actions/runs/1658821493"
    assert detected["id"].startswith("github-")
    assert told() == detected
    assert told("--source", "me")["source"] == "me"
    assert told(GITHUB_RUN_ATTEMPT="") == {key: value for key, value in detected.items() if key != "id"}
    assert told("--id", "mine") == {**detected, "id": "mine"}
    assert set(told("--no-detect")) == {"event"}
    lines = "\n".join([line("a", "x"), line("b", "x"), line("a", "x"), line("a", "x", id="own")])
    rows = [json.loads(each) for each in report("-", "--dry-run", stdin=lines, **GITHUB).stdout.splitlines()]
    assert {row["source"] for row in rows} == {detected["source"]}
    assert len({row["id"] for row in rows}) == 4
    assert rows[3]["id"] == "own"


def test_a_report_imports_only_what_it_needs(estate: Estate) -> None:
    """A cold report is a pipeline's cost at every deployment. Lists, not times: benchmarks has these."""
    redis = {"RELAY_REDIS_URL": estate.stack.redis_url}
    gateway = {"RELAY_GATEWAY_URL": estate.stack.gateway_url, "RELAY_GATEWAY_TOKEN": GATEWAY_TOKEN}
    heavy = {"celery", "kombu", "pycurl", "rich", "starlette", "uvicorn", "kubernetes", "jinja2"}
    for arguments, variables, unwanted in (
        ((), redis, heavy | {"requests"}),
        (("--wait",), redis, heavy | {"requests"}),
        ((), gateway, heavy | {"redis"}),
        (("--dry-run",), redis, heavy | {"redis", "requests"}),
    ):
        done = report(image("a"), "-e", "imports", *arguments, python=("-X", "importtime"), **variables)
        assert done.returncode == 0, done.stderr
        imported = {each.rpartition("|")[2].strip() for each in done.stderr.splitlines() if "import time:" in each}
        packages = {name.partition(".")[0] for name in imported}
        assert "pydantic" in packages
        assert not packages & unwanted


def test_ascii_locale_without_utf_8_mode_changes_no_text(tmp_path: Path) -> None:
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}
    name = "produktion-ö"
    (tmp_path / f"{name}.jsonl").write_text(line(1, name), encoding="utf-8-sig")

    from_option = report(image(1), "-e", name, "--source", name, "--dry-run", **posix)
    from_file = report(str(tmp_path / f"{name}.jsonl"), "--dry-run", "--no-detect", **posix)

    assert (from_option.returncode, from_file.returncode) == (0, 0), from_option.stderr + from_file.stderr
    assert json.loads(from_option.stdout)["event"]["environment"] == {"name": name}
    assert json.loads(from_option.stdout)["source"] == name
    assert json.loads(from_file.stdout)["event"]["environment"] == {"name": name}


def test_byte_order_mark_is_no_fault_and_utf_16_is_named(tmp_path: Path) -> None:
    marked, wide = tmp_path / "marked.jsonl", tmp_path / "wide.jsonl"
    marked.write_text(f"\n{line(1, 'shop')}\n\ufeff{line(2, 'shop')}\n", encoding="utf-8-sig")
    wide.write_text(f"{line(1, 'shop')}\n{line(2, 'shop')}\n", encoding="utf-16")

    assert report(str(marked), "--dry-run").returncode == 0
    refused = report(str(wide), "--dry-run")
    assert refused.returncode == 1
    assert "line 1: the event is not valid JSON (it is UTF-16: write it in UTF-8)" in refused.stderr
    assert "line 2" not in refused.stderr
