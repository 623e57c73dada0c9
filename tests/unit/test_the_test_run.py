"""The rules of the test run itself: conftest.py and watchdog.py, in test runs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

#: Deadline of a run with scaled-down limits on a loaded machine; without the rules it takes minutes, or never ends.
DEADLINE_SECONDS = 60


def run(folder: Path, source: str, *, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test file under these rules, from a shell that runs `before` first."""
    (folder / "test_it.py").write_text(source)
    options = (
        f"-q -p conftest -p pytest_timeout -p no:cacheprovider -o timeout=1 -o timeout_grace=0.5 --rootdir {folder}"
    )
    return subprocess.run(
        ["sh", "-c", f"{before} exec {sys.executable} -m pytest {options} {folder}/test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": "", **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


STUBBORN = """
import signal, subprocess, sys

def test_it_waits_for_ever():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(3600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        child.wait()

def test_the_next_one_runs():
    pass
"""

STUCK_WITHOUT_A_CHILD = """
import threading

def test_it_waits_for_ever():
    try:
        threading.Event().wait()
    finally:
        threading.Event().wait()
"""

INTERRUPTED = """
import signal, subprocess, sys

def test_ctrl_c():
    code = "print(flush=True); import time; time.sleep(3600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait() == -signal.SIGINT
"""

SKIPPED = """
import pytest

@pytest.mark.skipif(True, reason="no such program")
def test_one():
    pass

def test_two():
    pytest.skip("no such program")

@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    assert False
"""


def test_a_time_out_kills_what_it_waits_for_and_the_run_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, STUBBORN)
    assert (done.returncode, "1 failed, 1 passed" in done.stdout) == (1, True), done.stdout + done.stderr


def test_a_wait_that_no_kill_ends_ends_the_run_and_says_where(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(tmp_path, STUCK_WITHOUT_A_CHILD)
    assert done.returncode == 124, done.stdout + done.stderr
    assert "over its limit" in done.stderr
    assert "in test_it_waits_for_ever" in done.stderr
    assert time.monotonic() - began < DEADLINE_SECONDS


@pytest.mark.parametrize("before", ["", "trap '' INT HUP QUIT TERM;"])
def test_processes_get_default_signals_however_the_run_was_started(tmp_path: Path, before: str) -> None:
    done = run(tmp_path, INTERRUPTED, before=before)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.parametrize("source", [SKIPPED, "import pytest\npytest.importorskip('no_such_module')\n"])
def test_a_skip_is_a_failure_in_ci_and_there_alone(tmp_path: Path, source: str) -> None:
    outside, inside = run(tmp_path, source), run(tmp_path, source, CI="true")
    assert outside.returncode in {0, 5}, "5: no test was left to run"
    assert inside.returncode in {1, 2}, inside.stdout
    assert "no such" in inside.stdout.replace("_", " ")
    assert ("1 failed, 1 xfailed, 1 error" if source is SKIPPED else "1 error") in inside.stdout


def test_each_test_file_has_a_name_of_its_own() -> None:
    """Test folders are not packages: of two files with one name pytest imports only the first, and stops the run."""
    names = sorted(file.name for file in TESTS.rglob("test_*.py"))
    assert names == sorted(set(names))
