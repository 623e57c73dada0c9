"""The token is in no log, message, key or process title after many kinds of failures."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from celery import Celery
from faults.api import OK
from faults.ground import TOKEN, digest, report_of, scenario
from servers import Authority

from relay import DeploymentEvent
from relay.errors import ConfigurationError
from relay.processes.supervisor import Child
from relay.sandbox.response import Response
from relay.settings import Settings
from workers.scheduling.wakeups import DELIVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults.ground import Ground, Worker

#: The token as it is, and in base64 as Celery's messages would have it: base64 has three forms of it by its position,
#: each here without the characters at its ends that depend on its neighbours.
DISGUISES = (
    TOKEN.encode(),
    TOKEN.encode().hex().encode(),
    *(base64.b64encode(b"." * shift + TOKEN.encode())[4:-4] for shift in range(3)),
)

#: An environment for each answer that repeats the token in its reason, headers and body.
ECHOES = {"env-302": 302, "env-400": 400, "env-500": 500, "env-429": 429}

#: The environment that is delivered in the end.
LATER = "env-429"

#: Wrong contents of a token file, and the worker's message about each.
SPOILED = {
    b"\xff" + TOKEN.encode(): "cannot be read",
    b"": "token is empty",
    TOKEN.encode() + b"\x07": "characters that no HTTP header can carry",
}

#: Commands that run at the same time.
COMMANDS = 3


def echo(status: int) -> Response:
    body = json.dumps({"error": f"no {TOKEN}", "authorization": f"Bearer {TOKEN}"})
    head = (
        f"HTTP/1.1 {status} No {TOKEN}\r\nContent-Length: {len(body)}\r\nX-Token: {TOKEN}\r\n"
        f"WWW-Authenticate: Bearer {TOKEN}\r\nLocation: https://user:{TOKEN}@{TOKEN}.example/?token={TOKEN}\r\n"
    )
    return Response(status=status, raw=f"{head}\r\n{body}".encode())


def leaks(data: bytes | str) -> bool:
    data = data.encode(errors="replace") if isinstance(data, str) else data
    return any(disguise in data for disguise in DISGUISES)


@contextmanager
def overheard(port: int) -> Iterator[bytearray]:
    """Record all commands to Redis meanwhile, by all clients, in all databases."""
    heard = bytearray()
    with socket.create_connection(("127.0.0.1", port)) as link:

        def listen() -> None:
            while data := link.recv(65_536):
                heard.extend(data)

        link.sendall(b"MONITOR\r\n")
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            link.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def celery_events(broker: str) -> Iterator[list[dict[str, Any]]]:
    """Record the workers' events for Flower."""
    events: list[dict[str, Any]] = []
    with Celery(broker=broker, set_as_current=False) as app, app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        thread = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=None, wakeup=False))
        thread.start()
        try:
            yield events
        finally:
            receiver.should_stop = True
            thread.join()


def start(ground: Ground, exits: ExitStack, name: str, *arguments: str, **environment: str) -> Child:
    """Start a process of the relay beside the ground's; its log is in the same directory."""
    argv = [sys.executable, "-m", "relay", *arguments]
    env = {**os.environ, **ground.environment, **environment}
    child = Child(name, argv, env=env, log_path=ground.directory / f"{name}.log")
    exits.callback(child.kill)
    return child


def start_astray(ground: Ground, exits: ExitStack, name: str, database: int, **environment: str) -> Child:
    """Start a worker with its own queue and broker and an unreachable API, and give it work."""
    key = f"{{{name}:0}}:inbox"
    for number in range(30):  # more than open the circuit breaker
        body = {"image": {"url": f"ghcr.io/acme/{name}-{number}@{digest(number)}"}, "environment": {"name": name}}
        ground.client.xadd(key, {"event": json.dumps(body)})
    broker = f"{ground.redis.url.removesuffix('/0')}/{database}"
    arguments = ("worker", "--name", f"{name}@%h", "--concurrency", "1", "--log-level", "DEBUG")
    apart = {"RELAY_QUEUE__NAMESPACE": name, "RELAY_BROKER_URL": broker}
    return start(ground, exits, name, *arguments, **apart, **environment)


def log_of(ground: Ground, name: str) -> str:
    return (ground.directory / f"{name}.log").read_text(errors="replace")


def wait_for_failures(ground: Ground, *names: str) -> None:
    """Wait until the destination of each of these workers is unavailable, for the reason that is its name."""
    for name in names:
        held = f"health: unavailable ({name}:"
        ground.wait(lambda name=name, held=held: held in log_of(ground, name), 60, lambda: log_of(ground, name))  # type: ignore[misc]  # noqa: B023


def run(ground: Ground, *arguments: str, **environment: str) -> str:
    """Return all output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, **ground.environment, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return done.stdout.decode(errors="replace")


def said_by_commands(ground: Ground, secret: Path) -> list[tuple[str, str]]:
    """Return the output of commands that show something, and of one that cannot start; not all need exist."""
    spoiled = secret / "spoiled"
    spoiled.write_bytes(b"\xff" + TOKEN.encode())
    calls: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("status",), {}),
        (("dead", "export"), {}),
        (("config", "show"), {}),
        (("doctor", "--offline"), {}),  # its probe is not a report, but the oracle takes it for one
        (("worker",), {"RELAY_API_TOKEN_FILE": str(spoiled)}),
    ]
    with ThreadPoolExecutor(COMMANDS) as pool:
        said = list(pool.map(lambda call: run(ground, *call[0], **call[1]), calls))
    assert "cannot be read" in said[-1]
    return [(" ".join(call[0]), text) for call, text in zip(calls, said, strict=True)]


def said_of_settings(secret: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return messages about settings with the token in the wrong place or form, with the traceback."""
    told = []
    files = {
        "a list": f'[api]\ntoken = ["{TOKEN}"]\n',
        "misspelt": f'[api]\ntokn = "{TOKEN}"\n',
        "no quotes": f"[api]\ntoken = {TOKEN}\n",
    }
    for name, text in files.items():
        (secret / name).write_text(text)
    faults = [
        *({"RELAY_CONFIG": str(secret / name)} for name in files),
        {"RELAY_API": f'{{"token": "{TOKEN}"'},
        {"RELAY_API_URL": f"https://user:{TOKEN}@api.example/"},
        {"RELAY_API_TOKEN_FILE": str(secret)},
        {"RELAY_API_TOKEN_FILE": os.devnull},
    ]
    for environment in faults:
        with monkeypatch.context() as patched:
            patched.setenv("RELAY_API_URL", "https://api.example/")
            for name, value in environment.items():
                patched.setenv(name, value)
            with pytest.raises(ConfigurationError) as raised:
                Settings.load().require_api()
        said = "".join(traceback.format_exception(raised.value))
        told.append((f"what is said of {[*environment]}", said))
    return told


def said_by_gateway(ground: Ground) -> list[tuple[str, str]]:
    """Report through the gateway, valid and invalid; return its answers."""
    ground.wait(lambda: "Gateway on" in log_of(ground, "gateway"), 30)
    url = log_of(ground, "gateway").partition("Gateway on ")[2].split()[0]
    event = DeploymentEvent.of(f"ghcr.io/acme/gateway@{digest(1)}", environment="env-ok", id="by-gateway")
    body = {"image": {"url": event.image.url}, "environment": {"name": "env-ok"}}
    ours, theirs = {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": "Bearer another-one"}
    answers = [
        requests.post(url, json=body, headers={**ours, "ce-id": "by-gateway"}, timeout=10),
        requests.post(url, json=body, headers=theirs, timeout=10),
        requests.post(url, data="{", headers={**ours, "Content-Type": "application/json"}, timeout=10),
        requests.post(url, json={"image": 1}, headers=ours, timeout=10),
        *(requests.get(f"{url}/{path}", headers=ours, timeout=10) for path in ("readyz", "metrics", "nowhere")),
    ]
    assert [answer.status_code for answer in answers[:3]] == [202, 403, 400]
    ground.oracle.note([report_of(event)])
    return [("the gateway", f"{answer.reason} {answer.headers} {answer.text}") for answer in answers]


def titles() -> dict[int, bytes]:
    """Return the command lines and names of all processes that descend from this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    family, size = {os.getpid()}, 0
    while len(family) > size:
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    found = {}
    for pid in family - {os.getpid()}:
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
        except OSError:
            continue
    return found


def spoil_token(ground: Ground, file: Path, log: Callable[[], str]) -> None:
    """Overwrite the token file with invalid contents, and check that the worker reports it and keeps its token."""
    for content, message in SPOILED.items():
        file.write_bytes(content)
        ground.wait(lambda message=message: bool(ground.report()) and message in log(), 30, log)  # type: ignore[misc]
    file.unlink()
    ground.wait(lambda: bool(ground.report()) and "No such file" in log(), 30, log)
    file.write_text(TOKEN)


def crash(ground: Ground, worker: Worker, died: Path) -> None:
    """Wait for a process to crash in a run, and a task to fail with a traceback."""
    ground.report(5)
    ground.wait(died.exists)
    ground.wait(lambda: "WorkerLostError" in worker.log(), 30, worker.log)
    with Celery(broker=ground.redis.url, set_as_current=False) as app:
        app.send_task(DELIVER, args=[{"no": "environment"}], queue=DELIVER, ignore_result=True)
    ground.wait(lambda: "Traceback" in worker.log(), 30, worker.log)


def be_echoed(ground: Ground, worker: Worker) -> None:
    """Make the API repeat the token in all parts of its answers, and then recover."""
    ground.api.behave(lambda attempt: echo(ECHOES[attempt.environment]) if attempt.environment in ECHOES else OK)
    events = [DeploymentEvent.of(f"ghcr.io/acme/app@{digest(1)}", environment=name, id=name) for name in ECHOES]
    ground.report_events([event for event in events if event.id != LATER])
    ground.wait(lambda: ground.counters().dead_waiting == len(ECHOES) - 1, 30, ground.counters)
    ground.report_events([event for event in events if event.id == LATER])
    ground.wait(lambda: any(attempt.environment == LATER for attempt in ground.api.attempts))
    ground.api.behave(echo(401))
    ground.report(5)
    ground.wait(lambda: "default is unauthorized: " in worker.log(), 30, worker.log)
    ground.api.behave(OK)
    ground.rest()


def everything(ground: Ground) -> list[tuple[str, bytes]]:
    """Return all files of the scenario: logs, Redis's data, core files."""
    files = [path for path in ground.directory.rglob("*") if path.is_file()]
    return [(str(path.relative_to(ground.directory)), path.read_bytes()) for path in files]


@scenario(52, "the API repeats the token with 302, 400, 401, 429, 500; TLS, DNS; an invalid token file; a crash, a "
          "traceback; wrong settings; a gateway and commands",
          bound="the token in no log (DEBUG), Celery event or message, dead letter, answer, output, process title, "
                "and in no command to Redis")  # fmt: skip
def test_the_token_leaks_nowhere(
    ground: Ground, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path_factory.mktemp("secret")
    token_file, died = secret / "token", ground.directory / "died"
    token_file.write_text(TOKEN)
    untrusted = ground.api.listen(tls=Authority(secret).self_signed())
    seen: list[tuple[str, bytes | str]] = []
    with ExitStack() as exits:
        heard = exits.enter_context(overheard(ground.redis.port))
        events = exits.enter_context(celery_events(ground.redis.url))
        start_astray(ground, exits, "tls", 2, RELAY_API_URL=f"https://127.0.0.1:{untrusted}/")
        start_astray(ground, exits, "dns", 3, RELAY_API_URL="https://no-such-host.invalid/")
        start(ground, exits, "gateway", "gateway", RELAY_GATEWAY__TOKEN=TOKEN, RELAY_GATEWAY__PORT="0")
        [worker] = ground.start_workers(
            1,
            log_level="DEBUG",
            RELAY_API_TOKEN_FILE=str(token_file),
            RELAY_DELIVERY__RETRY_AFTER_MAX="100ms",
            RELAY_TEST_CRASH="after:claim:1",
            RELAY_TEST_CRASH_ONCE=str(died),
        )
        crash(ground, worker, died)
        be_echoed(ground, worker)
        spoil_token(ground, token_file, worker.log)
        seen += said_by_gateway(ground)
        seen += said_by_commands(ground, secret)
        seen += said_of_settings(secret, monkeypatch)
        wait_for_failures(ground, "tls", "dns")
        ground.rest()
        processes = titles()

    kinds = {event["type"] for event in events}
    ground.bit(
        {"task-received", "task-succeeded", "task-failed", "worker-heartbeat"} <= kinds, "events were recorded"
    )
    ground.bit(all(a.authorization == f"Bearer {TOKEN}" for a in ground.api.attempts), "the API got it")
    ground.bit(any(b"celery" in title for title in processes.values()), "processes' titles were read")
    files = everything(ground)
    ground.bit(any(b"by-gateway" in text for name, text in files if "aof" in name), "the AOF was read")
    ground.bit(leaks(base64.b64encode(f'["{TOKEN}"]'.encode())), "it would be found in a message")
    seen += [(f"the title of {pid}", title) for pid, title in processes.items()]
    seen += [(f"an event {event['type']}", json.dumps(event, default=str)) for event in events]
    seen += [("what Redis was told", bytes(heard)), *files]
    assert not [what for what, text in seen if leaks(text)]
    ground.bit(b"***" in heard and "***" in worker.log(), "repetitions of it were kept, without it")
    ground.check()
    ground.observed(
        f"looked for in {len(seen)} places: {len(events)} Celery events, {len(processes)} processes' titles, "
        f"{len(files)} files, {len(heard) >> 10} KiB that Redis was told"
    )
