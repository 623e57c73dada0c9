from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from relay import logs
from relay.redaction import MASK
from relay.settings import LogSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = "p@ss/wörd\"'\\"
IN_URL = "p%40ss%2Fw%C3%B6rd%22%27%5C"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    kept = root.handlers, root.level, logging.raiseExceptions, sys.excepthook
    yield
    root.handlers, level, logging.raiseExceptions, sys.excepthook = kept
    root.setLevel(level)


class Log(io.StringIO):
    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.load(**sections)


def configured(made: Settings | None = None, *, log: Log | None = None) -> Log:
    log = log or Log()
    logs.configure(made or settings(), role="worker", worker="relay@host", handler=logging.StreamHandler(log))
    return log


def test_a_line_says_when_how_bad_what_and_who() -> None:
    log = configured()
    logs.get_logger("workers.scheduling.tasks").info("intake run", taken=480, seconds=0.25)
    [line] = log.lines
    assert list(line) == [
        "timestamp", "level", "event", "taken", "seconds", "role", "worker", "pid", "logger"
    ]  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "intake run",
        "taken": 480,
        "seconds": 0.25,
        "role": "worker",
        "worker": "relay@host",
        "pid": os.getpid(),
        "logger": "workers.scheduling.tasks",
    }


def test_other_libraries_lines_are_alike() -> None:
    log = configured()
    logging.getLogger("celery.worker").warning("lost %s", "connection", extra={"data": {"args": "not wanted"}})
    logging.getLogger("uvicorn.error").debug("not wanted")
    [line] = log.lines
    assert (line["level"], line["event"], line["logger"]) == ("warning", "lost connection", "celery.worker")
    assert "not wanted" not in log.getvalue()


def test_the_level_is_the_settings_unless_another_is_given() -> None:
    log = configured(settings(log={"level": "WARNING"}))
    logging.getLogger("relay").info("not wanted")
    assert not log.lines
    logs.configure(settings(), role="worker", level=logging.DEBUG, handler=logging.StreamHandler(log))
    logging.getLogger("relay").debug("wanted")
    assert [line["event"] for line in log.lines] == ["wanted"]


@pytest.mark.parametrize(
    ("wanted", "is_terminal", "is_json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("json", True, True),
        ("json", False, True),
        ("text", True, False),
        ("text", False, False),
    ],
)
def test_lines_are_json_where_the_settings_say_so_or_nobody_reads_along(
    *, wanted: str, is_terminal: bool, is_json: bool
) -> None:
    log = Log()
    log.is_terminal = is_terminal
    configured(settings(log={"format": wanted}), log=log)
    logging.getLogger("relay").info("ready")
    assert log.getvalue().startswith("{") is is_json
    assert "ready" in log.getvalue()


def test_what_is_logged_forges_no_line_of_text() -> None:
    log = configured(settings(log={"format": "text"}))
    logs.get_logger("relay").info("evil\n2026-01-01T00:00:00Z [error] forged\x1b[2J", names=["a\n2026 forged"])
    assert log.getvalue().count("\n") == 1
    assert "\x1b" not in log.getvalue()


SECRETS: dict[str, Callable[[Path], Settings]] = {
    "api.token": lambda _: settings(api={"token": PASSWORD}),
    "api.token_file": lambda path: settings(api={"token_file": written(path, f"{PASSWORD}\n")}),
    "gateway.token": lambda _: settings(gateway={"token": PASSWORD}),
    "gateway.tokens_file": lambda path: settings(
        gateway={"tokens_file": written(path, f"[team]\ntoken = {json.dumps(PASSWORD)}\n")}
    ),
    "gateway.admission_secret_file": lambda path: settings(
        gateway={"token": "any", "admission_secret_file": written(path, f"first-of-two\n{PASSWORD}\n")}
    ),
    "redis.url": lambda _: settings(redis={"url": f"redis://user:{IN_URL}@host:6379/0"}),
    "redis.url's query": lambda _: settings(redis={"url": f"redis://host:6379/0?password={IN_URL}"}),
    "broker.url": lambda _: settings(broker={"url": f"rediss://:{IN_URL}@host:6379/0"}),
}


def written(path: Path, text: str) -> Path:
    file = path / "secret"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("source", SECRETS)
def test_no_secret_is_in_any_line(source: str, form: str, tmp_path: Path) -> None:
    made = SECRETS[source](tmp_path)
    log = configured(made.model_copy(update={"log": LogSettings(format=form)}))
    say_it_in_all_ways(logs.get_logger("relay"))
    text = log.getvalue()
    assert text.count(MASK) >= 8
    ways = {PASSWORD, IN_URL, repr(PASSWORD)[1:-1], json.dumps(PASSWORD)[1:-1]}
    ways |= {json.dumps(way)[1:-1] for way in ways} | {json.dumps(way, ensure_ascii=False)[1:-1] for way in ways}
    assert not [way for way in ways if way in text]
    assert "the rest is readable" in text


def say_it_in_all_ways(log: Any) -> None:
    log.info("the rest is readable: %s", PASSWORD)
    log.info(
        "as a field",
        header=f"Bearer {PASSWORD}",
        url=f"redis://:{IN_URL}@host",
        each=[PASSWORD],
        nested={"in": {PASSWORD: 1}},
    )
    log.info("as Python writes it: %r", {"password": PASSWORD})
    log.info("of no type of JSON's", error=ValueError(PASSWORD), body=PASSWORD.encode("unicode_escape"))
    log.info("in JSON", body=json.dumps({"token": PASSWORD}), also=json.dumps(PASSWORD, ensure_ascii=False))
    try:
        int(PASSWORD)
    except ValueError:
        log.exception("in a traceback")


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    class Full(Log):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    log = Full()
    configured(log=log)
    logs.get_logger("relay").error("lost")


def test_a_signal_handlers_line_is_as_the_others_are(capfd: pytest.CaptureFixture[str]) -> None:
    logs.say(LogSettings(), 'relay: "stopping"', role="worker")
    logs.say(LogSettings(format="text"), "relay: stopping", role="worker")
    first, second = capfd.readouterr().err.splitlines()
    assert json.loads(first)["event"] == 'relay: "stopping"'
    assert json.loads(first)["role"] == "worker"
    assert second == "relay: stopping"


def test_what_ends_the_process_is_logged_without_secrets() -> None:
    log = configured(settings(api={"token": PASSWORD}))
    error = RuntimeError(f"the token is {PASSWORD}")
    sys.excepthook(RuntimeError, error, None)
    [line] = log.lines
    assert line["level"] == "critical"
    assert f"RuntimeError: the token is {MASK}" in line["exception"]
