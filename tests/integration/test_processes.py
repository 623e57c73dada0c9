"""Child processes: their order of stopping, their deadlines, and their end with a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rig import is_alive, wait_for

from relay.errors import ChildFailed
from relay.processes.supervisor import Child, Children, Ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_SECONDS = 10.0

SLEEPER = ["sleep", "600"]

#: Prints "ready" once it ignores SIGTERM.
STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"]

#: Prints its own child's process id, then waits.
SHELL_WITH_A_CHILD = ["sh", "-c", "sleep 600 & echo $!; wait"]

#: A parent to be killed: starts a child and prints the process ids of child and grandchild.
PARENT = """
import pathlib, sys, threading, time
from relay.processes.supervisor import Children
log = pathlib.Path(sys.argv[1])
with Children() as children:
    def start():
        argv = ["sh", "-c", "sleep 600 & echo $!; wait"]
        child = children.start("shell", argv, log_path=log, ready=lambda: "\\n" in log.read_text())
        print(child.pid, log.read_text().strip(), flush=True)
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    print("thread ended", flush=True)
    time.sleep(600)
"""

#: A parent to be interrupted: its child prints its signals and ignores them, and has ten minutes to stop.
INTERRUPTED_PARENT = """
import pathlib, signal, sys, time
from relay.processes.supervisor import Children
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process starts without it
log = pathlib.Path(sys.argv[1])
script = "trap 'echo SIGTERM' TERM; trap 'echo SIGINT' INT; echo up; while :; do sleep 0.01; done"
argv = ["sh", "-c", script]
try:
    with Children() as children:
        ready = lambda: "up" in log.read_text()
        child = children.start("stubborn", argv, log_path=log, ready=ready, stop_seconds=600)
        print("started", flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    print(child.poll(), flush=True)
"""


def state(pid: int) -> str:
    argv = ["ps", "-o", "stat=", "-p", str(pid)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def keepers_of(pid: int) -> list[str]:
    argv = ["ps", "-A", "-ww", "-o", "args="]  # -ww: no line is cut to the width in COLUMNS
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.endswith(f"keeper.py keep {pid}")]


def says(path: Path, text: str) -> Callable[[], bool]:
    return lambda: text in path.read_text()


def has_line(path: Path) -> Callable[[], bool]:
    return lambda: path.read_text().endswith("\n")


def test_child_is_the_command_itself_with_its_environment_and_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Child("one", ["sh", "-c", "echo $$ $WORD; exit 7"], env={"WORD": "hello"}, log_path=log)
    assert child.wait(DEADLINE_SECONDS) == Ended(name="one", code=7)
    assert log.read_text() == f"{child.pid} hello\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_child_inherits_no_ignored_signal_and_no_descriptor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Child("one", ["sh", "-c", "grep SigIgn /proc/self/status; ls /proc/$$/fd"], log_path=log)
    assert child.wait(DEADLINE_SECONDS) == Ended(name="one", code=0)
    mask, *descriptors = log.read_text().split()[1:]
    assert int(mask, 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert set(descriptors) <= {"0", "1", "2", "10"}  # dash keeps 10 for itself


def test_early_end_is_reported_with_the_tail_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "seq 1 100; echo no such port >&2; exit 3"
    with Children() as children, pytest.raises(ChildFailed) as failed:
        children.start("gateway", ["sh", "-c", script], log_path=log, ready=lambda: False)
    message = str(failed.value)
    assert message.startswith("gateway exited with code 3 before it was ready; its log ends:\n82\n")
    assert message.endswith("\n100\nno such port")


def test_command_that_cannot_be_run_is_reported(tmp_path: Path) -> None:
    with Children() as children, pytest.raises(ChildFailed, match=r"code 127.*\n.*cannot run .*No such file"):
        children.start("typo", ["/no/such/command"], log_path=tmp_path / "log", ready=lambda: False)


def test_child_that_is_not_ready_in_time_is_reported_and_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    expected = r"slow was not ready within 0.3 s; its log ends:\n\d+$"
    with Children() as children, pytest.raises(ChildFailed, match=expected):
        children.start("slow", SHELL_WITH_A_CHILD, log_path=log, ready=lambda: False, ready_seconds=0.3)
    wait_for(lambda: not is_alive(int(log.read_text())))


def test_wait_any_returns_each_end_once() -> None:
    with Children() as children:
        assert children.wait_any() is None
        sleeper = children.start("sleeper", SLEEPER)
        children.start("short", ["sh", "-c", "exit 5"])
        assert children.wait_any(DEADLINE_SECONDS) == Ended(name="short", code=5)
        assert children.wait_any(0) is None
        sleeper.signal(signal.SIGKILL)
        ended = children.wait_any(DEADLINE_SECONDS)
        assert str(ended) == "sleeper was ended by SIGKILL"


def test_name_is_free_again_once_its_child_has_ended() -> None:
    with Children() as children:
        first = children.start("worker", SLEEPER)
        with pytest.raises(ValueError, match="worker is running"):
            children.start("worker", SLEEPER)
        first.kill()
        assert children.start("worker", SLEEPER).pid != first.pid


def test_children_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = 'trap "echo $0 >>{order}; exit 0" TERM; echo ready; while :; do sleep 0.01; done'
    with Children() as children:
        for name in ("first", "second", "third"):
            log = tmp_path / name
            argv = ["sh", "-c", script.format(order=order), name]
            children.start(name, argv, log_path=log, ready=has_line(log))
    assert order.read_text().split() == ["third", "second", "first"]
    assert children.killed == ()


def test_child_that_ignores_sigterm_is_killed_at_the_deadline(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Children() as children:
        polite = children.start("polite", SLEEPER)
        stubborn = children.start("stubborn", STUBBORN, log_path=log, ready=says(log, "ready"), stop_seconds=0.2)
    assert children.killed == ("stubborn",)
    assert stubborn.poll() == Ended(name="stubborn", code=-signal.SIGKILL)
    assert polite.poll() == Ended(name="polite", code=-signal.SIGTERM)


def test_suspended_child_is_killed_at_the_deadline() -> None:
    child = Child("suspended", SLEEPER)
    child.signal(signal.SIGSTOP)
    wait_for(lambda: state(child.pid).startswith("T"))
    assert not child.stop(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_grandchild_does_not_outlive_the_child(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    with Children() as children:
        child = children.start("shell", SHELL_WITH_A_CHILD, log_path=log, ready=has_line(log))
        grandchild = int(log.read_text())
        assert is_alive(grandchild)
        child.signal(number)
        assert children.wait_any(DEADLINE_SECONDS) == Ended(name="shell", code=-number)
        wait_for(lambda: not is_alive(grandchild))


def test_keeper_exits_when_the_child_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Children() as children:
        child = children.start("shell", SHELL_WITH_A_CHILD, log_path=log, ready=has_line(log))
        wait_for(lambda: len(keepers_of(child.pid)) == 1)
    wait_for(lambda: not keepers_of(child.pid))


def test_child_and_grandchild_end_with_a_killed_parent_though_their_thread_ended_before(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.touch()
    argv = [sys.executable, "-c", PARENT, str(log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline() == "thread ended\n"
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
        parent.kill()
        assert parent.stdout.read() == ""  # no remaining process holds the parent's output open
    wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_ctrl_c_reaches_the_parent_only_and_a_second_one_kills(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, "-c", INTERRUPTED_PARENT, str(log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        os.killpg(parent.pid, signal.SIGINT)  # as the terminal does to its foreground group
        wait_for(says(log, "SIGTERM"))
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.read() == "stubborn was ended by SIGKILL\n"
    assert log.read_text() == "up\nSIGTERM\n"
