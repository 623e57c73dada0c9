"""Child processes that end with this one: `relay up`, `relay demo` and the acceptance tests start theirs here.

Each child leads a session of its own. A Ctrl-C in the terminal therefore reaches only this process, which stops the
children one by one in the reverse order of their start: the worker finishes its run while Redis still answers. (In
one foreground group all would get the signal at once, and Redis would stop first.) A second Ctrl-C during the stop
kills the rest. Ctrl-Z suspends only this process; the children go on.

SIGTERM is sent to the child alone, SIGKILL to its whole group. A Celery worker that is asked to stop waits for its
pool, and a SIGTERM to the pool's processes would interrupt their runs. When a child has ended, the rest of its group
is killed. If this process is killed, `relay/processes/keeper.py` kills the children.

Not promised: threads may start children, but only one thread may use a `Children` at a time. SIGTERM and SIGHUP to
this process are left to the caller: turned into an exception they stop the children one by one, otherwise they kill
them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Self

from relay.errors import ChildFailed
from relay.processes import keeper as launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

#: Time between two checks of a child or a condition, in seconds.
POLL_SECONDS = 0.02

#: Default of how long a child may take to become ready, in seconds.
READY_SECONDS = 30.0

#: Default of how long a child may take from SIGTERM to its end, in seconds.
STOP_SECONDS = 10.0

#: Lines of a log that an error message quotes, and bytes from its end that are read for them.
TAIL_LINES = 20
TAIL_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of a child; `code` is its exit code, or minus the number of the signal that ended it."""

    name: str
    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"{self.name} exited with code {self.code}"
        return f"{self.name} was ended by {_signal_name(-self.code)}"


class Child:
    """One process and its group, started at construction.

    `env` is its whole environment (None: that of this process). Its output is appended to `log_path` (None:
    inherited), its input is empty. It runs until it ends, `stop` or `kill` is called, or this process is gone.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        theirs, self._lifeline = os.pipe()
        try:
            with _output(log_path) as output:
                self._process = subprocess.Popen(
                    launcher.command(list(argv), lifeline=theirs),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(theirs)
        self._swept = False

    @property
    def pid(self) -> int:
        """The child's process id, which is also that of its group and its session."""
        return self._process.pid

    def poll(self) -> Ended | None:
        """Return how the child ended, None while it runs. Once it has ended, no process of its group is left."""
        code = self._process.poll()
        if code is None:
            return None
        if not self._swept:
            self._sweep()
        return Ended(name=self.name, code=code)

    def wait(self, timeout_seconds: float) -> Ended | None:
        """Wait for the end at most that long, then return what `poll` does."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)
        return self.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the child alone, not to its group; do nothing if it has ended."""
        self._process.send_signal(number)

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> bool:
        """Send SIGTERM, and SIGKILL to the group at the deadline; return whether SIGTERM sufficed."""
        self.signal(signal.SIGTERM)
        if self.wait(timeout_seconds):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """Send SIGKILL to the child and its group, and wait for its end."""
        if self.poll() is None:
            self._kill_group()
            self._process.wait()
            self._sweep()

    def log_tail(self) -> str:
        """Return the last lines of its log, empty if it has none."""
        return "" if self.log_path is None else tail(self.log_path)

    def _sweep(self) -> None:
        """Kill the rest of the child's group, and have its keeper exit.

        No other group can have the number yet, unless all process ids were used since the child was reaped.
        """
        self._kill_group()
        self._swept = True
        with contextlib.suppress(BrokenPipeError):  # the keeper is gone, or was never started
            os.write(self._lifeline, b".")
        os.close(self._lifeline)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self.pid, signal.SIGKILL)


class Children:
    """Several children, started one after another and stopped in the reverse order when the context ends.

    After the context `killed` names those that SIGTERM did not end in time.
    """

    def __init__(self) -> None:
        self._started: list[_Started] = []
        self.killed: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        ready: Callable[[], bool] | None = None,
        ready_seconds: float = READY_SECONDS,
        stop_seconds: float = STOP_SECONDS,
    ) -> Child:
        """Start a child, and wait until `ready()` is true if it is given.

        `env` and `log_path` are those of `Child`; `stop_seconds` is the time between SIGTERM and SIGKILL. Raise
        `ChildFailed` if the child ends early or is not ready in time, and `ValueError` if one of that name still
        runs.
        """
        if any(each.child.name == name and each.child.poll() is None for each in self._started):
            raise ValueError(f"a child named {name} is running")
        child = Child(name, argv, env=env, log_path=log_path)
        self._started.append(_Started(child=child, stop_seconds=stop_seconds))
        if ready is not None:
            await_ready(child, ready, ready_seconds)
        return child

    def wait_any(self, timeout_seconds: float | None = None) -> Ended | None:
        """Wait for the next child that ends; return None at the deadline, or if no child is left.

        Each end is returned once. Children that have already ended are returned in the order of their start.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self._started:
            for each in self._started:
                if ended := each.child.poll():
                    self._started.remove(each)
                    return ended
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS)
        return None

    def stop(self) -> tuple[str, ...]:
        """Stop all children, the last started first, each within its time; return the names of the killed ones.

        An exception, such as the KeyboardInterrupt of a second Ctrl-C, kills the rest at once.
        """
        try:
            while self._started:
                last = self._started[-1]
                if not last.child.stop(last.stop_seconds):
                    self.killed += (last.child.name,)
                self._started.pop()
        except BaseException:
            self.kill()
            raise
        return self.killed

    def kill(self) -> None:
        """Send SIGKILL to all children and their groups, the last started first."""
        while self._started:
            self._started[-1].child.kill()
            self._started.pop()


@dataclass(frozen=True, kw_only=True)
class _Started:
    child: Child
    stop_seconds: float


def await_ready(child: Child, ready: Callable[[], bool], timeout_seconds: float) -> None:
    """Wait until `ready()` is true. Raise `ChildFailed` if the child ends before, or at the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if ended := child.poll():
            raise ChildFailed(_quoting(child, f"{ended} before it was ready"))
        if time.monotonic() >= deadline:
            raise ChildFailed(_quoting(child, f"{child.name} was not ready within {timeout_seconds:g} s"))
        time.sleep(POLL_SECONDS)


def tail(path: Path) -> str:
    """Return the last `TAIL_LINES` lines of a file within `TAIL_BYTES`; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-TAIL_LINES:])


def _quoting(child: Child, message: str) -> str:
    lines = child.log_tail()
    return f"{message}; its log ends:\n{lines}" if lines else message


@contextlib.contextmanager
def _output(log_path: Path | None) -> Iterator[BinaryIO | None]:
    if log_path is None:
        yield None
    else:
        with log_path.open("ab") as file:
            yield file


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
