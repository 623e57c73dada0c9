"""The files around the code agree with the code: compose, image, example configuration, lock files."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import redis
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, SecretStr

from relay.processes.embedded_redis import EmbeddedRedis
from relay.queue.keys import Keys
from relay.settings import SHORT_NAMES, Settings
from tests.commands import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXAMPLE_CONFIGURATION = (ROOT / "config" / "relay.toml").read_text()

#: The Compose Specification's schema (github.com/compose-spec/compose-spec, schema/compose-spec.json, Apache-2.0),
#: as the wheel of check-jsonschema 0.39.0 ships it, unchanged.
COMPOSE_SCHEMA = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())

#: Services of ours that run from the one image.
RELAY_SERVICES = sorted(SERVICES)

#: Variables that a value must be given for, by the service that needs it.
MANDATORY = {
    "worker": {"RELAY_API_URL", "RELAY_API_TOKEN"},
    "gateway": {"RELAY_GATEWAY__TOKEN"},
    "flower": {"FLOWER_BASIC_AUTH"},
    "redis": set(),
    "sandbox": set(),
    "metrics": set(),
    "prometheus": set(),
    "grafana": set(),
}


@pytest.fixture(autouse=True)
def _no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("RELAY_", "ATOMIST_")):
            monkeypatch.delenv(name)


class TestCompose:
    def test_is_what_the_compose_specification_allows(self) -> None:
        jsonschema.Draft202012Validator(COMPOSE_SCHEMA).validate(COMPOSE)

    def test_the_schema_refuses_a_misspelt_key(self) -> None:
        wrong = {**COMPOSE, "services": {"redis": {"image": "redis:7", "comand": "x"}}}
        assert not jsonschema.Draft202012Validator(COMPOSE_SCHEMA).is_valid(wrong)

    @pytest.mark.parametrize("name", RELAY_SERVICES)
    def test_a_service_runs_the_command_the_acceptance_tests_run(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert (*service.get("entrypoint", dockerfile_entrypoint()), *service["command"]) == SERVICES[name]

    @pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
    def test_secrets_have_no_default_and_go_to_the_one_service_that_needs_them(self, name: str) -> None:
        mandatory = set(re.findall(r"\$\{(\w+):\?", json.dumps(COMPOSE["services"][name])))
        assert mandatory == MANDATORY[name]

    @pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
    def test_a_service_is_locked_in_and_watched(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        assert not service.get("privileged")

    def test_redis_forgets_nothing_and_is_reached_by_nobody_else(self) -> None:
        service = COMPOSE["services"]["redis"]
        assert "ports" not in service
        assert service["networks"] == ["queue"]
        assert COMPOSE["networks"]["queue"]["internal"] is True
        options = dict(zip(service["command"][1::2], service["command"][2::2], strict=True))
        assert options["--appendonly"] == "yes"
        assert options["--maxmemory-policy"] == "noeviction"

    def test_flower_is_published_on_loopback_only(self) -> None:
        assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"]["flower"]["ports"])

    @pytest.mark.parametrize("name", ["prometheus", "grafana"])
    def test_what_asks_for_no_password_is_published_on_loopback_only(self, name: str) -> None:
        service = COMPOSE["services"][name]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "queue" not in service["networks"]

    def test_sandbox_and_monitoring_wait_for_their_profiles(self) -> None:
        assert {name: each["profiles"] for name, each in COMPOSE["services"].items() if "profiles" in each} == {
            "sandbox": ["sandbox"],
            "metrics": ["monitoring"],
            "prometheus": ["monitoring"],
            "grafana": ["monitoring"],
        }

    def test_monitoring_is_given_files_that_are_there(self) -> None:
        given = {each["source"] for service in COMPOSE["services"].values() for each in service.get("configs", [])}
        assert given == COMPOSE["configs"].keys()
        for each in COMPOSE["configs"].values():
            assert (ROOT / each["file"]).is_file()

    def test_a_worker_may_finish_what_it_has_in_flight(self) -> None:
        settings = Settings()
        grace = COMPOSE["services"]["worker"]["stop_grace_period"]
        assert float(grace.removesuffix("s")) > settings.api.timeout + settings.worker.budget

    @pytest.mark.parametrize("name", RELAY_SERVICES)
    def test_the_settings_a_service_is_given_are_real_and_load(self, name: str) -> None:
        given = COMPOSE["services"][name].get("environment", {})
        unreal = {key for key in given if key.startswith("RELAY_")} - setting_variables()
        assert not unreal
        settings = load_as(name)
        if given:
            assert settings.redis.url == "redis://redis:6379/0"
        if name == "gateway":
            assert settings.gateway.host == "*"

    def test_the_workers_health_is_its_heartbeat(self) -> None:
        argv = COMPOSE["services"]["worker"]["healthcheck"]["test"]
        assert argv[:3] == ["CMD", "python", "-c"]
        with EmbeddedRedis(append_only=False) as server:
            check = [sys.executable, *argv[2:]]
            environment = {**os.environ, "RELAY_REDIS_URL": server.url}
            assert subprocess.run(check, env=environment, check=False).returncode == 1
            with redis.Redis.from_url(server.url) as client:
                client.set(Keys().worker(f"relay@{socket.gethostname()}"), "1")
            assert subprocess.run(check, env=environment, check=False).returncode == 0


class TestDockerfile:
    def test_does_not_run_as_root(self) -> None:
        (user,) = dockerfile("USER")
        assert int(user.split(":")[0]) > 0

    def test_copies_only_what_dockerignore_lets_through(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        let_through = {line[1:] for line in ignored if line.startswith("!")}
        assert "*" in ignored
        assert {path.split("/")[0] for path in copied_from_the_context()} == let_through

    def test_copies_what_there_is(self) -> None:
        assert not [path for path in copied_from_the_context() if not (ROOT / path).exists()]

    def test_installs_locked_wheels_only(self) -> None:
        for line in dockerfile("RUN"):
            for command in re.findall(r"pip\S*(?: --python \S+)? install (.*?)(?:&&|$)", line):
                assert "--require-hashes --only-binary :all:" in command or "--no-deps --no-index" in command


class TestExamples:
    def test_configuration_loads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_CONFIG", str(ROOT / "config" / "relay.toml"))
        assert Settings.load() == Settings()

    def test_configuration_loads_with_all_that_is_commented_out(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "relay.toml"
        file.write_text(uncommented(EXAMPLE_CONFIGURATION))
        monkeypatch.setenv("RELAY_CONFIG", str(file))
        assert Settings.load().environments["edge-*"].platform == "linux/arm64"

    def test_configuration_shows_every_setting(self) -> None:
        shown = tomllib.loads(uncommented(EXAMPLE_CONFIGURATION))
        shown["environments"] = shown["environments"]["edge-*"]
        paths = {(section, key) for section, table in shown.items() for key in table}
        assert paths == set(setting_paths())

    def test_configuration_shows_no_secret_as_set(self) -> None:
        for section, table in tomllib.loads(EXAMPLE_CONFIGURATION).items():
            for key in table:
                assert not isinstance(getattr(getattr(Settings(), section), key), SecretStr)

    def test_env_example_sets_what_compose_asks_for_and_nothing_else(self) -> None:
        asked = set(re.findall(r"\$\{(\w+)[:}?-]", COMPOSE_TEXT))
        assert set(env_example()) == asked | {"COMPOSE_PROFILES"}

    def test_env_example_has_settings_that_are_real(self) -> None:
        names = {name for name in env_example() if name.startswith("RELAY_")}
        assert names - setting_variables() == {"RELAY_IMAGE"}

    def test_env_example_repeats_the_defaults_of_compose(self) -> None:
        defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE_TEXT))
        required = re.findall(r"\$\{(\w+):\?", COMPOSE_TEXT)
        assert {name: value for name, value in env_example().items() if name not in required} == {
            **defaults,
            "COMPOSE_PROFILES": "",
        }

    def test_env_example_explains_each_variable(self) -> None:
        lines = (ROOT / ".env.example").read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if line and not line.startswith("#"):
                assert before.startswith("#") or line.startswith("RELAY_API_TOKEN=")

    def test_sandbox_profile_needs_what_env_example_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (ROOT / ".env.example").read_text()
        for name, value in (("RELAY_API_URL", "http://sandbox:8300/"), ("RELAY_API__ALLOW_INSECURE", "true")):
            assert f"{name}={value}" in text
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RELAY_API_TOKEN", "any")
        assert Settings.load().require_api().url == "http://sandbox:8300/"


class TestLocks:
    @pytest.mark.parametrize("name", ["dev", "runtime", "build"])
    def test_holds_pins_and_hashes_and_no_trace_of_an_index(self, name: str) -> None:
        pin, hashed = r"[a-z0-9-]+==[\w.+!]+( ; [\w .<>!='()]+)? \\", r"    --hash=sha256:[0-9a-f]{64}( \\)?"
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            assert re.fullmatch(f"{pin}|{hashed}", line)

    def test_dev_has_every_direct_dependency(self) -> None:
        extras = PROJECT["project"]["optional-dependencies"]
        required = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
        required += [each for extra in extras.values() for each in extra]
        assert not unmet(required, locked("dev"))

    def test_runtime_has_all_that_the_image_runs(self) -> None:
        extras = PROJECT["project"]["optional-dependencies"]
        image_extras = extras.keys() - {"all", "embedded"}
        required = [*PROJECT["project"]["dependencies"], *(each for name in image_extras for each in extras[name])]
        assert not unmet(required, locked("runtime"))

    def test_all_is_the_sum_of_the_other_extras(self) -> None:
        extras = PROJECT["project"]["optional-dependencies"]
        assert Requirement(extras["all"][0]).extras == extras.keys() - {"all"}

    def test_build_has_the_build_backend(self) -> None:
        assert not unmet(PROJECT["build-system"]["requires"], locked("build"))

    @pytest.mark.parametrize("name", ["runtime", "build"])
    def test_what_ships_is_what_is_tested(self, name: str) -> None:
        assert locked(name).items() <= locked("dev").items()


def dockerfile(instruction: str) -> list[str]:
    """Return what follows each such instruction, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} +(.*)$", text, re.MULTILINE)


def dockerfile_entrypoint() -> list[str]:
    (entrypoint,) = dockerfile("ENTRYPOINT")
    argv: list[str] = json.loads(entrypoint)
    return argv


def copied_from_the_context() -> Iterator[str]:
    for line in dockerfile("COPY"):
        if not line.startswith("--from"):
            yield from shlex.split(line)[:-1]


def uncommented(text: str) -> str:
    """Return the example with its commented-out settings: those have no blank after the #."""
    return re.sub(r"^#(?=[\w\[])", "", text, flags=re.MULTILINE)


def setting_paths() -> Iterator[tuple[str, str]]:
    """Yield (section, key) for every setting; those of an environment as of the section `environments`."""
    for section, field in Settings.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = model.__args__[1]  # type: ignore[union-attr]
        for key in model.model_fields:
            yield section, key


def setting_variables() -> set[str]:
    by_path = {f"RELAY_{section}__{key}".upper() for section, key in setting_paths()}
    return by_path | set(SHORT_NAMES) | {"RELAY_CONFIG"}


def load_as(service: str) -> Settings:
    """Read the settings as the service would, with its mandatory variables filled in."""
    samples = {"RELAY_API_URL": "https://api.example.com/", "FLOWER_BASIC_AUTH": "user:password"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in COMPOSE["services"][service].get("environment", {}).items():
            asked = re.fullmatch(r"\$\{(\w+):([?-])([^}]*)\}", str(value))
            if asked is None:
                patch.setenv(name, str(value))
            else:
                patch.setenv(name, samples.get(asked[1], "secret") if asked[2] == "?" else asked[3])
        patch.setenv("RELAY_CONFIG", str(ROOT / "config" / "relay.toml"))
        return Settings.load()


def env_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def locked(name: str) -> dict[str, str]:
    """Return package → version of a lock file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE))


def unmet(requirements: list[str], versions: dict[str, str]) -> list[str]:
    """Return the requirements that the locked versions do not meet."""
    found = []
    for text in requirements:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name), "")
        if requirement.name != PROJECT["project"]["name"] and not (
            version and requirement.specifier.contains(version, prereleases=True)
        ):
            found.append(text)
    return found
