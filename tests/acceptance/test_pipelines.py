"""Each pipeline step of config/pipelines: its script, run as its CI system would, against a whole relay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import pipelines
import pytest
from rig import TIMERS, TOKEN, Estate, wait_for

from relay.connections.clients import connect
from relay.processes.stack import Stack
from relay.queue import pausing
from relay.sandbox import Sandbox
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipelines import Step

GATEWAY_TOKEN = "canary-token-of-the-gateway"

#: What would run a command, end a string, or read a variable, if anything but data were made of it.
HOSTILE = """$(touch pwned) `touch pwned` "; touch pwned; ' || touch pwned $RELAY_GATEWAY_TOKEN ${{ env.X }} {{=1}}"""


class System(NamedTuple):
    """A CI system: how a step becomes a script, what it calls a run, and what the relay is then told."""

    step: Callable[[dict[str, str], dict[str, str], dict[str, str]], Step]
    run: dict[str, str]
    again: dict[str, str]
    source: str
    #: How it is told of Redis and of the gateway's token: as variables of the job, or as a secret's keys.
    redis: str
    token: str


SYSTEMS = {
    "github": System(
        pipelines.github,
        {
            "GITHUB_ACTIONS": "true",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_REPOSITORY": "acme/shop",
            "GITHUB_RUN_ID": "1658821493",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_JOB": "deploy",
            "GITHUB_ACTION": "report",
        },
        {"GITHUB_RUN_ATTEMPT": "2"},
        "https://github.com/acme/shop/actions/runs/1658821493",
        "RELAY_REDIS_URL",
        "RELAY_GATEWAY_TOKEN",
    ),
    "gitlab": System(
        pipelines.gitlab,
        {"GITLAB_CI": "true", "CI_JOB_ID": "4711", "CI_JOB_URL": "https://gitlab.example.com/acme/shop/-/jobs/4711"},
        {"CI_JOB_ID": "4712"},
        "https://gitlab.example.com/acme/shop/-/jobs/4711",
        "RELAY_REDIS_URL",
        "RELAY_GATEWAY_TOKEN",
    ),
    "argo": System(
        pipelines.argo,
        {"namespace": "ci", "name": "deploy-x7k2p", "uid": "0f5c1a4e-6d43-4b9c-9d0c-2a9a4a1f3b11", "pod": "0f5c-a"},
        {"pod": "6b0e-b"},
        "argo:ci/deploy-x7k2p",
        "redis-url",
        "gateway-token",
    ),
    "tekton": System(
        pipelines.tekton,
        {"namespace": "ci", "name": "deploy-run-report", "uid": "5d0e4a52-5a53-4f9b-8a53-8f3d7a2cbb01"},
        {"uid": "9c0e3a52-5a53-4f9b-8a53-8f3d7a2cbb02"},
        "tekton:ci/deploy-run-report",
        "redis-url",
        "gateway-token",
    ),
}


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    """A relay with a worker and a gateway; each test has an environment of its own."""
    with Sandbox(token=TOKEN) as api:
        environment = {**TIMERS, "RELAY_API_TOKEN": TOKEN, "RELAY_API_URL": api.url}
        environment |= {"RELAY_GATEWAY__TOKEN": GATEWAY_TOKEN}
        directory = tmp_path_factory.mktemp("stack")
        with (
            Stack(directory, api_url=api.url, environment=environment) as stack,
            connect(stack.settings.redis) as client,
        ):
            estate = Estate(stack, client, api)
            estate.start_worker(concurrency=1)
            stack.start_gateway(0)
            yield estate


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]


@pytest.fixture(params=["redis", "gateway"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


def digest(version: str) -> str:
    return f"sha256:{sha256(version.encode()).hexdigest()}"


class Pipelines:
    """Runs steps in a directory of their own, with `relay` on PATH, and nothing of this process's environment."""

    def __init__(self, directory: Path, estate: Estate, system: System, way: str) -> None:
        self.directory = directory
        self._estate = estate
        self._system = system
        self._way = way
        relay = directory / "bin" / "relay"
        relay.parent.mkdir()
        relay.write_text(f'#!/bin/sh\nexec {sys.executable} -m relay "$@"\n')
        relay.chmod(0o755)

    def run(self, run: dict[str, str] | None = None, **inputs: str) -> subprocess.CompletedProcess[str]:
        estate, system = self._estate, self._system
        inputs = {name.replace("_", "-"): value for name, value in inputs.items()}
        outer = {system.redis: estate.stack.redis_url}
        if self._way == "gateway":
            inputs.setdefault("gateway-url", estate.stack.gateway_url)
            outer = {system.token: GATEWAY_TOKEN}
        if self._way == "variables":
            outer = {system.token: GATEWAY_TOKEN, "RELAY_GATEWAY_URL": estate.stack.gateway_url or ""}
        step = system.step(inputs, outer, {**system.run, **(run or {})})
        script = self.directory / "script"
        script.write_text(step.script)
        variables = {
            "PATH": f"{self.directory / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.directory),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "GITHUB_OUTPUT": str(self.directory / "output"),
            **step.variables,
        }
        return subprocess.run(
            [*step.shell, str(script)], env=variables, cwd=self.directory, capture_output=True, text=True, timeout=90,
            check=False,
        )  # fmt: skip


@pytest.fixture
def steps(tmp_path: Path, estate: Estate, system: System, way: str) -> Pipelines:
    return Pipelines(tmp_path, estate, system, way)


def python(directory: Path) -> str:
    """A PATH that has this Python and no relay."""
    (directory / "bin" / "python3").symlink_to(sys._base_executable)
    return f"{directory / 'bin'}:/usr/bin:/bin"


def outbox(estate: Estate, environment: str) -> list[dict[bytes, bytes]]:
    key = estate.keys.of_outbox(DEFAULT_DESTINATION, environment).outbox
    return [fields for _, fields in estate.client.xrange(key)]


def received(estate: Estate, environment: str) -> list[dict[str, object]]:
    return [json.loads(request.body) for request in estate.api.requests if request.environment == environment]


def test_a_step_reports_for_its_run_and_the_api_hears_of_it(
    steps: Pipelines, estate: Estate, system: System, request: pytest.FixtureRequest
) -> None:
    environment = request.node.name
    pausing.pause(estate.client, estate.keys, DEFAULT_DESTINATION, [environment])
    image = f"ghcr.io/acme/shop@{digest('a')}"
    done = steps.run(image=image, environment=environment, name="web", platform="linux/arm64", no_fail="false")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: len(outbox(estate, environment)) == 1, 30)
    [fields] = outbox(estate, environment)
    assert fields[b"source"].decode() == system.source
    assert fields[b"id"].decode().startswith(next(name for name, each in SYSTEMS.items() if each is system) + "-")
    pausing.resume(estate.client, estate.keys, DEFAULT_DESTINATION, [environment])
    wait_for(lambda: len(received(estate, environment)) == 1, 30)
    assert received(estate, environment) == [
        {
            "image": {"url": image, "name": "web"},
            "environment": {"name": environment},
            "platform": {"os": "linux", "architecture": "arm64"},
        }
    ]


@pytest.mark.parametrize("system", ["github", "gitlab"], indirect=True)
@pytest.mark.parametrize("way", ["variables"], indirect=True)
def test_an_input_that_is_left_out_hides_no_variable(
    steps: Pipelines, estate: Estate, request: pytest.FixtureRequest
) -> None:
    environment = request.node.name
    done = steps.run(image=f"ghcr.io/acme/shop@{digest('a')}", environment=environment, no_fail="false", wait="60")
    assert done.returncode == 0, done.stderr
    assert len(received(estate, environment)) == 1


@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_a_rerun_that_deploys_the_old_image_again_is_news_and_a_retry_of_a_step_is_not(
    steps: Pipelines, estate: Estate, system: System, request: pytest.FixtureRequest
) -> None:
    """A, then B, then A again: by another run of the job it is a rollback, by the same it is a late retry."""
    environment = request.node.name
    images = [f"ghcr.io/acme/shop@{digest(version)}" for version in "ab"]
    for image in (images[0], images[1], images[0]):
        assert steps.run(image=image, environment=environment, no_fail="false", wait="60").returncode == 0
    assert [each["image"]["url"] for each in received(estate, environment)] == images
    done = steps.run(system.again, image=images[0], environment=environment, no_fail="false", wait="60")
    assert done.returncode == 0, done.stderr
    assert [each["image"]["url"] for each in received(estate, environment)] == [*images, images[0]]


@pytest.mark.parametrize("way", ["gateway"], indirect=True)
def test_what_an_input_holds_stays_data(
    steps: Pipelines, estate: Estate, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment = f"{HOSTILE} {request.node.name}"
    image = f"ghcr.io/acme/shop@{digest('a')}"
    done = steps.run(image=image, environment=environment, name=HOSTILE, no_fail="false", wait="60")
    assert done.returncode == 0, done.stderr
    [event] = received(estate, environment)
    assert event["image"] == {"url": image, "name": HOSTILE}
    for hostile in (HOSTILE, "--help", "-"):
        assert steps.run(image=hostile, no_fail="false").returncode in {0, 1}  # "-" is an empty file
    assert steps.run(image=image, platform=HOSTILE, id=HOSTILE * 2, no_fail="false").returncode == 1
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("system", ["argo", "tekton"], indirect=True)
@pytest.mark.parametrize("way", ["gateway"], indirect=True)
def test_no_parameter_can_name_a_secret(steps: Pipelines, estate: Estate, request: pytest.FixtureRequest) -> None:
    """Kubernetes replaces $(NAME) in a variable's value by a variable that stands above it."""
    image = f"ghcr.io/acme/shop@{digest('a')}"
    environment = f"$(RELAY_GATEWAY_TOKEN) $(RELAY_REDIS_URL) {request.node.name}"
    done = steps.run(image=image, environment=environment, no_fail="false", wait="60")
    assert done.returncode == 0, done.stderr
    assert len(received(estate, environment)) == 1


@pytest.mark.parametrize("way", ["gateway"], indirect=True)
def test_an_image_that_came_out_empty_fails_a_step_only_if_it_is_told_to(steps: Pipelines) -> None:
    refused = steps.run(image="", environment="shop", no_fail="false")
    assert (refused.returncode, "image.url: the image is empty" in refused.stderr) == (1, True)
    softly = steps.run(image="", environment="shop")
    assert (softly.returncode, "relay: warning: image.url: the image is empty" in softly.stderr) == (0, True)


@pytest.mark.parametrize("way", ["gateway"], indirect=True)
def test_a_relay_that_is_away_fails_a_step_only_if_it_is_told_to(steps: Pipelines) -> None:
    image = f"ghcr.io/acme/shop@{digest('a')}"
    refused = steps.run(image="ghcr.io/acme/shop:1.0", no_fail="false")
    assert refused.returncode == 1
    assert "has a tag but no digest" in refused.stderr
    softly = steps.run(image="ghcr.io/acme/shop:1.0")
    assert softly.returncode == 0
    assert "relay: warning: image.url: has a tag but no digest" in softly.stderr
    wrong = steps.run(image=image, gateway_url="ftp://nowhere")
    assert wrong.returncode == 0
    assert "relay: warning: producer: gateway_url must be" in wrong.stderr


@pytest.mark.parametrize("system", ["github"], indirect=True)
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_the_action_installs_its_own_version_where_there_is_no_relay(
    steps: Pipelines, tmp_path: Path, request: pytest.FixtureRequest, estate: Estate
) -> None:
    """Nothing is downloaded: pip builds with what is installed here, and PYTHONPATH has what the relay needs."""
    (tmp_path / "bin" / "relay").unlink()
    site = next(path for path in sys.path if path.endswith("site-packages"))
    runner = {
        "GITHUB_ACTION_PATH": str(pipelines.PIPELINES / "github"),
        "RUNNER_TEMP": str(tmp_path),
        "PATH": python(tmp_path),
        "PYTHONPATH": site,
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that there is none
    }
    done = steps.run(runner, image=f"ghcr.io/acme/shop@{digest('a')}", id=request.node.name, no_fail="false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "relay" / "bin" / "relay").exists()
    assert (tmp_path / "output").read_text() == f"id={request.node.name}\n"


@pytest.mark.parametrize("system", ["github"], indirect=True)
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_an_action_that_cannot_install_the_relay_is_a_warning(steps: Pipelines, tmp_path: Path) -> None:
    (tmp_path / "bin" / "relay").unlink()
    runner = {"GITHUB_ACTION_PATH": "/nowhere", "RUNNER_TEMP": str(tmp_path), "PATH": python(tmp_path)}
    runner |= {"PIP_NO_INDEX": "1"}
    image = f"ghcr.io/acme/shop@{digest('a')}"
    done = steps.run(runner, image=image)
    assert (done.returncode, "cannot be installed" in done.stderr) == (0, True)
    assert steps.run(runner, image=image, no_fail="false").returncode == 1


@pytest.mark.parametrize("system", ["github"], indirect=True)
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_an_action_without_python_says_so_on_the_runs_page(steps: Pipelines, tmp_path: Path) -> None:
    (tmp_path / "bin" / "relay").unlink()
    for tool in ("bash", "cat", "grep", "mktemp", "rm", "tail"):
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin" / tool).symlink_to(found)
    runner = {"GITHUB_ACTION_PATH": "/nowhere", "RUNNER_TEMP": str(tmp_path), "PATH": str(tmp_path / "bin")}
    image = f"ghcr.io/acme/shop@{digest('a')}"
    done = steps.run(runner, image=image)
    assert done.returncode == 0
    annotation = (
        "title=Deployment not reported::The relay command cannot be installed: there is no Python 3.11 or later"
    )
    assert done.stdout.startswith(f"::warning {annotation}")
    done = steps.run(runner, image=image, no_fail="false")
    assert done.returncode == 1
    assert done.stdout.startswith(f"::error {annotation}")


@pytest.mark.parametrize("system", ["github"], indirect=True)
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_the_action_finds_the_python_of_a_windows_venv(
    steps: Pipelines, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """There is `python` and no `python3`, and a venv has its programs in `Scripts`."""
    (tmp_path / "bin" / "relay").unlink()
    fake = tmp_path / "bin" / "python"
    fake.write_text(
        f"""#!/bin/sh
if [ "$1 $2" != "-m venv" ]; then exec {sys.executable} "$@"; fi
mkdir -p "$3/Scripts"
cat >"$3/Scripts/python.exe" <<'END'
#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then exit 0; fi
exec {sys.executable} "$@"
END
chmod +x "$3/Scripts/python.exe"
"""
    )
    fake.chmod(0o755)
    hidden = tmp_path / "bin" / "python3"
    hidden.write_text("#!/bin/sh\necho 'Python was not found; run without arguments to install' >&2\nexit 49\n")
    hidden.chmod(0o755)
    runner = {
        "GITHUB_ACTION_PATH": "/nowhere",
        "RUNNER_TEMP": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
    }
    done = steps.run(runner, image=f"ghcr.io/acme/shop@{digest('a')}", id=request.node.name, no_fail="false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == f"id={request.node.name}\n"


@pytest.mark.parametrize("system", ["github"], indirect=True)
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_a_report_that_fails_is_an_annotation_of_the_run(steps: Pipelines) -> None:
    for no_fail, level, code in (("true", "warning", 0), ("false", "error", 1)):
        done = steps.run(image="ghcr.io/acme/shop:100%", no_fail=no_fail)
        assert done.returncode == code
        assert done.stdout.startswith(f"::{level} title=Deployment not reported::relay: ")
        assert "\n" not in done.stdout.strip()
        assert done.stdout.count("%25") == done.stderr.splitlines()[0].count("%")


@pytest.mark.parametrize("system", ["github"], indirect=True)
@pytest.mark.parametrize("way", ["redis"], indirect=True)
def test_the_action_tells_the_next_step_the_events_id(steps: Pipelines, tmp_path: Path) -> None:
    done = steps.run(image=f"ghcr.io/acme/shop@{digest('a')}", id="release-7", no_fail="false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == "id=release-7\n"
