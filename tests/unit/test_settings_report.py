"""`relay config` shows every value's source and every fault's place, and no secret."""

from __future__ import annotations

import json
import tomllib
import traceback
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from relay.cli import app
from relay.operations import settings_report
from relay.operations.settings_report import Source
from relay.redaction import MASK
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "canary-0123456789abcdef"

pytestmark = pytest.mark.usefixtures("no_settings")


def sources() -> dict[str, tuple[object, Source, str]]:
    return {
        f"{each.section}.{each.key}": (each.value, each.source, each.name)
        for each in settings_report.effective(Settings.load())
    }


def test_every_value_has_its_source(config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(
        '[api]\nurl = "https://file.example.com"\ntimeout = "5s"\n[environments."edge-*"]\nplatform = "linux/arm64"'
    )
    monkeypatch.setenv("ATOMIST_URL", "https://atomist.example.com")
    monkeypatch.setenv("relay_queue__namespace", "other")
    monkeypatch.setenv("RELAY_WORKER", '{"concurrency": 3}')
    seen = sources()

    assert seen["redis.timeout"] == (5.0, Source.DEFAULT, "")
    assert seen["api.timeout"] == (5.0, Source.FILE, str(path))
    assert seen["api.url"] == ("https://atomist.example.com", Source.ENVIRONMENT, "ATOMIST_URL")
    assert seen["queue.namespace"] == ("other", Source.ENVIRONMENT, "relay_queue__namespace")
    assert seen["worker.concurrency"] == (3, Source.ENVIRONMENT, "RELAY_WORKER")
    assert seen['environments."edge-*".platform'] == ("linux/arm64", Source.FILE, str(path))
    assert len(seen) == 1 + sum(
        len(field.annotation.model_fields)  # type: ignore[union-attr]
        for name, field in Settings.model_fields.items()
        if name != "environments"
    )


def secrets() -> list[str]:
    """Return the variables of all secret settings."""
    return [
        f"RELAY_{section}__{key}".upper()
        for section, field in Settings.model_fields.items()
        for key, setting in getattr(field.annotation, "model_fields", {}).items()
        if setting.annotation is SecretStr
    ]


@pytest.mark.parametrize("options", [[], ["--json"], ["--toml"]])
def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    assert len(secrets()) >= 2
    for number, name in enumerate(secrets()):
        monkeypatch.setenv(name, f"{CANARY}-{number}")
    monkeypatch.setenv("RELAY_REDIS_URL", f"redis://user:{CANARY}@redis.example.com:6380/1?password={CANARY}")
    monkeypatch.setenv("RELAY_BROKER_URL", f"amqp://user:{CANARY}@one//;amqp://user:{CANARY}@two//")
    monkeypatch.setenv("RELAY_API_URL", f"https://api.example.com/v1?key={CANARY}")
    said = CliRunner().invoke(app, ["config", "show", *options])

    assert said.exit_code == 0, said.output
    assert CANARY not in said.output
    assert "redis.example.com:6380/1" in said.output
    assert said.output.count(MASK) == len(secrets()) + 4, "and in the URLs"


@pytest.mark.parametrize("fault", ["RELAY_API__TIMEOUT", "RELAY_WORKER"])
def test_no_secret_is_in_a_fault(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    for name in secrets():
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("RELAY_REDIS_URL", f"nonsense://user:{CANARY}@redis.example.com")
    monkeypatch.setenv("RELAY_API_URL", f"https://user:{CANARY}@api.example.com")
    monkeypatch.setenv(fault, f"soon-{CANARY}")
    said = CliRunner().invoke(app, ["config", "check"])

    assert said.exit_code == 2
    assert fault in said.output or "cannot be read" in said.output
    assert CANARY not in said.output


def test_output_of_show_toml_is_a_configuration(
    config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_QUEUE__NAMESPACE", "other")
    monkeypatch.setenv("RELAY_ENVIRONMENTS", '{"edge-*": {"platform": "linux/arm64"}}')
    monkeypatch.setenv("RELAY_API_TOKEN", CANARY)
    said = CliRunner().invoke(app, ["config", "show", "--toml"]).output
    assert tomllib.loads(said)["environments"] == {"edge-*": {"platform": "linux/arm64"}}
    before = Settings.load()
    for name in ("RELAY_QUEUE__NAMESPACE", "RELAY_ENVIRONMENTS", "RELAY_API_TOKEN"):
        monkeypatch.delenv(name)
    config(said)
    after = Settings.load()
    assert after.queue == before.queue
    assert after.environments == before.environments
    assert after.api.token.get_secret_value() == ""


def test_a_valid_configuration_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(app, ["config", "check"])
    assert said.exit_code == 0
    assert "the configuration is valid" in said.output
    assert "RELAY_API_URL" in said.output, "a worker would not start: a note, and no fault"
    monkeypatch.setenv("RELAY_API_URL", "https://api.example.com")
    monkeypatch.setenv("RELAY_API_TOKEN", "t")
    said = CliRunner().invoke(app, ["config", "check", "--json"])
    assert json.loads(said.output) == {"valid": True, "faults": [], "hints": []}


def test_every_fault_has_its_line_and_its_place(
    config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = config('[api]\ntimeout = "soon"\ntokn = "x"\n[quue]\nx = 1\n')
    monkeypatch.setenv("RELAY_GATEWAY__PORT", "99999")
    monkeypatch.setenv("RELAY_API__TIMOUT", "3")
    monkeypatch.setenv("RELAY_REDIS_URI", "redis://elsewhere")
    monkeypatch.setenv("RELAY_ZZZ", "1")
    faults = settings_report.check()

    assert [fault.where for fault in faults] == [
        "RELAY_API__TIMOUT", "RELAY_REDIS_URI", "RELAY_ZZZ", str(path), str(path), "RELAY_GATEWAY__PORT", str(path),
    ]  # fmt: skip
    said = "\n".join(map(str, faults))
    for word in (
        "did you mean RELAY_API__TIMEOUT?",
        "did you mean RELAY_REDIS_URL?",
        "docs/settings.md",
        "api.timeout: not a duration",
        "api.tokn: is not a setting; did you mean api.token?",
        "quue: is not a setting",
        "gateway.port: Input should be less than or equal to 65535",
    ):
        assert word in said


@pytest.mark.parametrize(
    ("text", "word"), [("[api\n", "cannot be read"), ('[api]\nurl = "ftp://x"\n', "api: url must be http")]
)
def test_a_malformed_file_is_named(config: Callable[[str], Path], text: str, word: str) -> None:
    path = config(text)
    (fault,) = settings_report.check()
    assert fault.where == str(path)
    assert word in str(fault)


@pytest.mark.parametrize("command", ["config check", "status", "doctor", "report nginx@sha256:" + 64 * "a"])
def test_no_command_repeats_a_password_that_cuts_its_url(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("RELAY_REDIS_URL", f"redis://:{CANARY}/xyz+1@127.0.0.1:6379/0")
    done = CliRunner().invoke(app, command.split())
    said = "".join([done.output, *traceback.format_exception(done.exception)])
    assert done.exit_code != 0
    assert "must be percent-encoded" in said
    assert CANARY not in said


def test_files_that_cannot_be_read_are_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.touch()
    monkeypatch.setenv("RELAY_API_TOKEN_FILE", str(empty))
    monkeypatch.setenv("RELAY_API__CA_FILE", str(tmp_path / "nowhere"))
    faults = settings_report.check()
    monkeypatch.setenv("RELAY_GATEWAY_TOKEN_FILE", str(tmp_path / "nowhere"))
    faults = {fault.where: fault.what for fault in settings_report.check()}
    assert set(faults) == {"RELAY_API_TOKEN_FILE", "RELAY_API__CA_FILE", "RELAY_GATEWAY_TOKEN_FILE"}
    assert f"{empty} is empty" in faults["RELAY_API_TOKEN_FILE"]
    assert "No such file" in faults["RELAY_API__CA_FILE"]
    monkeypatch.setenv("RELAY_CONFIG", str(tmp_path / "nothing.toml"))
    assert "which is no file" in settings_report.check()[-1].what
    for unreadable in ("/proc/self/mem", f"/{'x' * 300}"):  # for root too
        monkeypatch.setenv("RELAY_CONFIG", unreadable)
        assert f"names {unreadable}, which cannot be read: " in settings_report.check()[-1].what


@pytest.mark.parametrize(
    ("content", "word"), [(b"change-me\n", "openssl rand"), (b"", "openssl rand"), (b"\xff" * 20, "not text")]
)
def test_a_malformed_admission_secret_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, word: str
) -> None:
    file = tmp_path / "secret"
    monkeypatch.setenv("CLUSTER_NAME", "kind-1")
    monkeypatch.setenv("RELAY_GATEWAY__ADMISSION_SECRET_FILE", str(file))
    file.write_bytes(content)
    (fault,) = settings_report.check()
    assert fault.where == "RELAY_GATEWAY__ADMISSION_SECRET_FILE"
    assert word in fault.what
    assert "change-me" not in fault.what
    file.write_text("0123456789abcdef\nanother-secret-of-these\n", encoding="utf-8")
    assert settings_report.check() == []


def test_a_fault_of_an_environments_setting_has_its_place(config: Callable[[str], Path]) -> None:
    path = config('[environments."edge 1.example: a"]\nplatfrom = "linux/arm64"\n')
    (fault,) = settings_report.check()
    setting = "environments.edge 1.example: a"
    assert str(fault) == f"{path}: {setting}.platfrom: is not a setting; did you mean {setting}.platform?"


@pytest.mark.parametrize(
    "name",
    ["RELAY_PORT", "RELAY_PORT_8080_TCP", "RELAY_PORT_8080_TCP_ADDR", "RELAY_SERVICE_HOST", "RELAY_SERVICE_PORT_HTTP",
     "RELAY_GATEWAY_SERVICE_HOST", "RELAY_GATEWAY_PORT_443_TCP_PROTO", "RELAY_ENVIRONMENTS__X__PLATFORM"],
)  # fmt: skip
def test_variables_of_kubernetes_services_are_no_faults(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "linux/arm64")
    assert settings_report.check() == []
